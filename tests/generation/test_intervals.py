"""Edits of part of the run: which steps they change, how they are asked for, and that the others are left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from records import make_spec
from tiny import CHANNELS, tiny_model, tiny_saes
from unet_calls import POSITIONS, call_unet, push

from riebench.errors import RiebenchError, TaskFileError
from riebench.generation.edits import AdaptiveEdit, Edit, StaticEdit
from riebench.generation.trace import intervene
from riebench.generation.transfers import PairedEdit
from riebench.jobs.request import RunRequest
from riebench.runs import engines
from riebench.saes.sae import SparseAutoencoder
from riebench.tasks.schema import EditExample, EditTask, Interval, Setting, parse_interval, step_window
from riebench.tasks.settings import load_setting_file


@pytest.mark.parametrize(
    ("interval", "windows"),
    [
        ((0.0, 1.0), {1: (0, 1), 4: (0, 4), 20: (0, 20)}),
        ((0.0, 0.5), {1: (0, 1), 4: (0, 2), 20: (0, 10)}),
        ((0.5, 1.0), {4: (2, 4), 20: (10, 20)}),
        ((0.1, 0.3), {4: (1, 2), 20: (2, 6)}),
        ((0.0, 0.01), {1: (0, 1), 4: (0, 1), 20: (0, 1)}),
    ],
)
def test_an_interval_means_the_same_for_any_number_of_steps(
    interval: Interval, windows: dict[int, tuple[int, int]]
) -> None:
    assert {steps: step_window(interval, steps) for steps in windows} == windows


def test_neighbouring_intervals_share_no_step_and_leave_none_out() -> None:
    for steps in (2, 3, 4, 7, 20, 50):
        for cut in range(1, steps):
            share = cut / steps
            assert step_window((0.0, share), steps)[1] == step_window((share, 1.0), steps)[0] == cut


def test_an_interval_without_a_step_is_refused() -> None:
    with pytest.raises(RiebenchError, match=r"none of the 1 steps begins between 0.5 and 1 of the run"):
        step_window((0.5, 1.0), 1)
    with pytest.raises(RiebenchError, match="none of the 4 steps"):
        step_window((0.3, 0.4), 4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.5", "has no colon"), ("a:b", "are not two numbers"), ("0.5:0.5", "is no part of a run"),
        ("0:2", "is no part of a run"), ("-1:1", "is no part of a run"), ("nan:1", "is no part of a run"),
    ],
)  # fmt: skip
def test_what_is_no_interval_is_refused(text: str, message: str) -> None:
    with pytest.raises(RiebenchError, match=f"--edit-steps: .*{message}"):
        parse_interval(text)


def test_a_setting_states_its_interval(tmp_path: Path) -> None:
    def setting(line: str) -> Setting:
        path = tmp_path / "mine.yaml"
        path.write_text(f"method: sae\n{line}\n")
        return load_setting_file(path)

    assert setting("edit_steps: [0, 0.5]").edit_steps == (0.0, 0.5)
    assert setting("edit_steps: [0, 1]").edit_steps is None
    for line, message in (
        ("edit_step: [0, 0.5]", r"unknown key \(did you mean 'edit_steps'\?\)"),
        ("edit_steps: [0.5, 0.5]", "0.5:0.5 is no part of a run"),
        ("edit_steps: [0, 7]", "0:7 is no part of a run"),
        ("edit_steps: [0]", "edit_steps"),
    ):
        with pytest.raises(TaskFileError, match=message):
            setting(line)


def test_an_interval_is_part_of_the_identity_only_if_there_is_one() -> None:
    plain, half = make_spec().run_id, make_spec(edit_steps=(0, 0.5)).run_id
    assert make_spec(edit_steps=None).run_id == make_spec(edit_steps=(0, 1)).run_id == plain
    assert len({plain, half, make_spec(edit_steps=(0.5, 1)).run_id}) == 3


def test_the_option_reaches_settings_that_change_steps() -> None:
    _, settings = RunRequest(settings=("sae", "no_edit"), edit_steps="0:0.5", limit=1).plan()
    assert {setting.name: setting.edit_steps for setting in settings} == {"sae": (0.0, 0.5), "no_edit": None}
    with pytest.raises(RiebenchError, match="has no colon"):
        RunRequest(settings=("sae",), edit_steps="half", limit=1).plan()


def adaptive() -> AdaptiveEdit:
    """Adds, and takes away what is there."""
    torch.manual_seed(1)
    sae = SparseAutoencoder(
        torch.randn(12, CHANNELS), torch.randn(12, CHANNELS), torch.zeros(CHANNELS), torch.zeros(CHANNELS),
        torch.zeros(12), activation="relu",
    )  # fmt: skip
    return AdaptiveEdit(push(steps=3), torch.arange(POSITIONS), torch.tensor([2, 7]), sae)


@pytest.mark.parametrize(
    ("site", "change"),
    [
        ("mid.0", push(steps=3)),
        ("mid.0", adaptive()),
        ("mid.res.1", push(steps=3)),
        ("mid.0.ff.0", PairedEdit(torch.arange(9), torch.arange(POSITIONS), torch.tensor([1, 5]), torch.tensor([3]))),
    ],
)
def test_calls_outside_the_interval_are_the_unedited_ones_bit_for_bit(site: str, change: StaticEdit) -> None:
    plain = call_unet()
    edit = Edit({site: change}, window=(1, 2), strength=4.0)
    with intervene(tiny_model().denoiser, [edit, None], pairs={0: (0, 1)}):
        first, second, third = call_unet(), call_unet(), call_unet()
    assert torch.equal(first, plain) and torch.equal(third, plain)
    assert not torch.equal(second[0], plain[0]) and torch.equal(second[1], plain[1])


def test_rows_of_one_batch_have_their_own_intervals() -> None:
    plain = call_unet()
    edits = [Edit({"mid.0": push(steps=2)}, window=window) for window in ((0, 1), (1, 2))]
    with intervene(tiny_model().denoiser, edits):
        first, second = call_unet(), call_unet()
    assert not torch.equal(first[0], plain[0]) and torch.equal(first[1], plain[1])
    assert torch.equal(second[0], plain[0]) and not torch.equal(second[1], plain[1])


def task() -> EditTask:
    """One example."""
    example = EditExample(id="e0", source="a red house", target="a red boat")
    return EditTask(name="t", version=1, category="change_object", suite="tiny", examples=(example,))


def test_the_runner_keeps_to_the_interval_with_every_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed: dict[int, set[int]] = {}
    seen: list[Edit] = []
    original = Edit.acts_at

    def acts_at(self: Edit, step: int) -> bool:
        acts = original(self, step)
        seen.append(self)  # a number that stands for an object must not come to stand for another one
        changed.setdefault(id(self), set()).update({step} if acts else set())
        return acts

    monkeypatch.setattr(Edit, "acts_at", acts_at)
    methods: dict[str, dict[str, Any]] = {
        "sae": {"n_features": 10}, "neurons": {"n_units": 50}, "activation_patch": {}, "mean_steering": {},
        "random_features": {"n_features": 10},
    }  # fmt: skip
    settings = [
        Setting(name=f"{name}-{part}", method=name, params=params, blocks=("mid.0",), edit_steps=interval)
        for name, params in methods.items()
        for part, interval in (("all", None), ("late", (0.5, 1.0)))
    ]
    options: dict[str, Any] = {"saes_source": str(tiny_saes()), "progress": False}
    folders = engines.run("local", [task()], settings, tiny_model(steps=4), results_root=tmp_path, **options)
    pictures = {folder.spec.setting.name: record.image_sha256 for folder in folders for record in folder.records()}
    assert None not in pictures.values() and len(set(pictures.values())) == len(settings)
    assert sorted(changed.values(), key=len) == [{2, 3}] * len(methods) + [{0, 1, 2, 3}] * len(methods)
    with pytest.raises(RiebenchError, match=r"configuration 'sae-late': edit_steps: none of the 1 steps"):
        engines.run("local", [task()], [settings[1]], tiny_model(steps=1), results_root=tmp_path, **options)
