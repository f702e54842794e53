"""SAEs of a few-step model on models with more steps and guidance: the same edit at 1, 4 and 20 steps, any branch."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import CHANNELS, GRID, SIZE, tiny_folder, tiny_model, tiny_saes
from torch import Tensor
from unet_calls import unet_input

from riebench.generation.edits import Branch, Edit, StaticEdit
from riebench.generation.trace import Trace, capture, intervene
from riebench.methods.base import EditContext, ExampleRuns, get_method
from riebench.models.loading import load_model
from riebench.models.spec import ModelOptions
from riebench.runs import engines
from riebench.saes.sources import model_saes
from riebench.store.folder import RunFolder
from riebench.tasks.masks import RegionMasks
from riebench.tasks.schema import EditExample, EditTask, Setting

POSITIONS = GRID * GRID
SITES = ("mid.0", "mid.0.ff.0")
SAE: dict[str, Any] = {"n_features": 10}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "sae": ("sae", SAE),
    "adaptive": ("sae", {**SAE, "adaptive": True}),
    "steering": ("mean_steering", {}),
    "patch": ("activation_patch", {}),
    "neurons": ("neurons", {"n_units": 20}),
    "neurons beside": ("neurons", {"n_units": 20}),
}


def calls(steps: int, edits: list[Edit | None] | None = None, **pairs: Any) -> Trace:
    """A guided run of three rows: source, target, and the source again, to be edited; each step has other inputs."""
    unet = tiny_model().denoiser
    with ExitStack() as stack:
        if edits is not None:
            stack.enter_context(intervene(unet, edits, guided=True, steps=steps, **pairs))
        trace = stack.enter_context(capture(unet, SITES, guided=True, unconditional=True, steps=steps))
        for step in range(steps):
            given = unet_input(3, guided=True)
            for inputs in (given, given["added_cond_kwargs"]):
                for name in ("sample", "encoder_hidden_states", "text_embeds"):
                    if name in inputs:
                        inputs[name] = inputs[name] * (1 + step / 4)
                        inputs[name][2], inputs[name][5] = inputs[name][0], inputs[name][3]
            with torch.inference_mode():
                unet(**given)
    return trace


def runs_of(trace: Trace) -> ExampleRuns:
    """The first two rows as an example: source region left, target region above."""
    left, above = np.zeros((2, SIZE, SIZE), dtype=bool)
    left[:, : SIZE // 2], above[: SIZE // 2] = True, True
    pair = EditExample(id="pair", source="a", target="b")
    return ExampleRuns(pair, 0, trace, {"source": 0, "target": 1}, RegionMasks(left, above), {"mid.0": 1})


def make_edit(name: str, steps: int, plain: Trace, branch: Branch) -> Edit:
    """A method's edit of mid.0, made from the traces of as many steps."""
    method, params = METHODS[name]
    saes = model_saes(str(tiny_saes()), tiny_model(steps=steps, guidance=3.0), ("mid.0",))
    edit = get_method(method).edit(EditContext(runs_of(plain), ("mid.0",), saes), {**params, "branch": branch})
    assert isinstance(edit, Edit)
    return edit.scaled(2.0)


def change(edited: Trace, plain: Trace, site: str, half: Any) -> Tensor:
    """What was added to the edited row, [T, positions, width]."""
    found = (edited.get(site, half=half) - plain.get(site, half=half))[2]
    return found.flatten(2).transpose(1, 2) if found.dim() == 4 else found


@pytest.mark.parametrize(
    ("steps", "name", "branches"),
    [(1, "sae", ("both", "conditional", "all")), (20, "sae", ("both",)), (20, "neurons", ("both",)),
     *((4, name, ("both", "conditional", "all")) for name in METHODS)],
)  # fmt: skip
def test_every_step_gets_what_its_own_step_of_the_traces_says(
    monkeypatch: pytest.MonkeyPatch, steps: int, name: str, branches: tuple[Branch, ...]
) -> None:
    plain = calls(steps)
    static = make_edit(name.removesuffix(" beside") if name != "adaptive" else "sae", steps, plain, "both")
    site, placed = next(iter(static.sites.items()))
    assert isinstance(placed, StaticEdit)
    width = CHANNELS if site == "mid.0" else 4 * CHANNELS
    expected = 2.0 * placed.dense(steps, POSITIONS, width)
    assert all(step.any() for step in expected) and (steps == 1 or not torch.equal(expected[0], expected[-1]))
    if name.endswith("beside"):
        monkeypatch.setattr("riebench.methods.activations.UNIT_BUDGET", 0)
    for branch in branches:
        edit = make_edit(name, steps, plain, branch)
        assert (edit.pair is not None) == name.endswith("beside")
        edited = calls(steps, [None, None, edit], pairs={2: (0, 1)})
        torch.testing.assert_close(change(edited, plain, site, "conditional"), expected, rtol=1e-3, atol=1e-3)
        other = change(edited, plain, site, "unconditional")
        if branch == "all" and name == "adaptive":
            # What is there is taken away in each half: the halves hold different things.
            assert other.any() and not torch.allclose(other, expected, rtol=1e-3, atol=1e-3)
        else:
            sign = {"both": -1.0, "conditional": 0.0, "all": 1.0}[branch]
            torch.testing.assert_close(other, sign * expected, rtol=1e-3, atol=1e-3)
        assert torch.equal(edited.get(site)[:2], plain.get(site)[:2])


def task(count: int = 1) -> EditTask:
    """Examples whose prompts differ."""
    examples = tuple(
        EditExample(id=f"e{i}", source=f"a red house {i}", target=f"a blue boat {i}", source_region="house",
                    target_region="boat")
        for i in range(count)
    )  # fmt: skip
    return EditTask(name="t", version=1, category="change_object", suite="tiny", examples=examples)


def pictures(folder: RunFolder) -> dict[str, np.ndarray[Any, Any]]:
    """Unit -> picture."""
    assert {record.status for record in folder.records()} == {"ok"}
    return {record.key.digest: folder.read_image(str(record.image)).astype(int) for record in folder.records()}


def test_one_set_of_saes_serves_any_steps_guidance_and_size(tmp_path: Path) -> None:
    setting = Setting(name="sae", method="sae", params=SAE, strengths=(3.0,))
    large = load_model(str(tiny_folder()), steps=4, guidance=5.0, options=ModelOptions(size=2 * SIZE))
    models = [tiny_model(steps=1), *(tiny_model(steps=steps, guidance=5.0) for steps in (1, 4, 20)), large]
    shas, names = set(), set()
    for model in models:
        (folder,) = engines.run("local", [task()], [setting], model, results_root=tmp_path, progress=False,
                                saes_source=str(tiny_saes()), accept_sae=True)  # fmt: skip
        (record,) = folder.records()
        source = folder.shared.read_image(str(record.source_image)).astype(int)
        assert source.shape == (model.spec.size, model.spec.size, 3)
        assert np.abs(pictures(folder)[record.key.digest] - source).mean() > 0
        assert sum(len(block.add) for block in record.features.values()) == SAE["n_features"]
        shas.add(tuple(sorted(folder.spec.sae_sha256.items())))
        names.add(folder.path)
    assert len(shas) == 1 and len(names) == len(models)


@pytest.mark.parametrize("beside", [False, True])
def test_four_guided_steps_in_a_batch_of_four_give_what_they_give_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beside: bool
) -> None:
    if beside:
        monkeypatch.setattr("riebench.methods.activations.UNIT_BUDGET", 0)
    names = ["neurons beside"] if beside else [name for name in METHODS if not name.endswith("beside")]
    settings = [
        Setting(name=name.replace(" ", "-"), method=METHODS[name][0], params=METHODS[name][1], strengths=(2.0,))
        for name in names
    ]
    model, batches = tiny_model(steps=4, guidance=5.0), {}
    for size in (4, 1):
        batches[size] = engines.run(
            "local", [task(4)], settings, model, results_root=tmp_path / str(size), batch_size=size, progress=False,
            saes_source=str(tiny_saes()),
        )  # fmt: skip
    for together, alone in zip(batches[4], batches[1], strict=True):
        found, single = pictures(together), pictures(alone)
        assert {record.batch_size for record in alone.records()} == {1}
        assert 4 in {record.batch_size for record in together.records()} or len(settings) > 1
        for record in alone.records():
            difference = np.abs(single[record.key.digest] - found[record.key.digest])
            assert difference.max() <= 1, together.spec.setting.name
            source = alone.shared.read_image(str(record.source_image)).astype(int)
            assert np.abs(single[record.key.digest] - source).max() > 1
        one, other = ({r.key.digest: r.features for r in folder.records()} for folder in (together, alone))
        assert one == other
