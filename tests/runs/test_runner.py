"""The main job on a tiny SDXL: what is made, shared, skipped, repeated and recorded."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import SIZE, tiny_model, tiny_saes
from tiny_runs import NO_EDIT, PATCH, SAE, TARGET, picture, task

from riebench.errors import RiebenchError
from riebench.generation.generator import GenerationResult, Generator
from riebench.models.families.sdxl.names import BLOCKS
from riebench.runs import engines
from riebench.runs.plan import plan
from riebench.runs.runner import run_benchmark
from riebench.store.folder import RunFolder
from riebench.store.records import UnitKey
from riebench.tasks.masks import RegionMasks
from riebench.tasks.schema import EditExample, EditTask, Setting


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., list[RunFolder]]:
    """Runs settings on the tiny model into one results folder."""

    def call(*settings: Setting, tasks: Sequence[EditTask] = (), **options: Any) -> list[RunFolder]:
        options = {"results_root": tmp_path, "saes_source": str(tiny_saes()), "progress": False, **options}
        return engines.run("local", tasks or [task()], settings, options.pop("model", tiny_model()), **options)

    return call


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[list[Any]]:
    """The edits of every generation (None for source and target runs)."""
    seen: list[list[Any]] = []
    original = Generator.generate

    def generate(self: Generator, prompts: Sequence[str], seeds: Sequence[int], **options: Any) -> GenerationResult:
        seen.append(list(options.get("edits") or [None] * len(prompts)))
        return original(self, prompts, seeds, **options)

    monkeypatch.setattr(Generator, "generate", generate)
    return seen


def shared(folder: RunFolder, name: str | None) -> np.ndarray[Any, Any]:
    """A shared picture as integers."""
    assert name is not None
    return folder.shared.read_image(name).astype(int)


def test_plan_counts_examples_seeds_block_sets_and_strengths() -> None:
    units = plan([task(3)], [NO_EDIT, SAE, PATCH], seeds=(0, 1), limit=2)
    assert len(units) == 2 * 2 * (1 + 3 * 2 + 1 * 2)
    assert len({(unit.setting.name, unit.key.digest) for unit in units}) == len(units)
    assert {unit.key.block_set for unit in units} == {"none", "mid.0", "up.0.1", "mid.0+up.0.1", "all"}
    # A method that looks into no block has one block set, whatever its setting says.
    assert [unit.blocks for unit in plan([task(1)], [Setting(name="n", method="no_edit")])] == [()]


def test_everything_is_made_recorded_and_differs_as_it_should(run: Callable[..., list[RunFolder]]) -> None:
    none, target, sae, patch = run(NO_EDIT, TARGET, SAE, PATCH, batch_size=5)
    for folder, expected in ((none, 2), (target, 2), (sae, 12), (patch, 4)):
        assert [record.status for record in folder.records()] == ["ok"] * expected
    for record in none.records():
        assert np.array_equal(picture(none, record), shared(none, record.source_image))
    for record in target.records():
        assert np.array_equal(picture(target, record), shared(target, record.target_image))
        assert not np.array_equal(picture(target, record), shared(target, record.source_image))
    for record in (*sae.records(), *patch.records()):
        folder = sae if record.key.block_set != "all" else patch
        change = np.abs(picture(folder, record) - shared(folder, record.source_image)).mean()
        assert (change == 0) == (record.key.strength == 0)
        assert picture(folder, record).shape == (SIZE, SIZE, 3)
    record = next(r for r in sae.records() if r.key.block_set == "mid.0+up.0.1" and r.key.strength == 3)
    assert set(record.features) == {"mid.0", "up.0.1"}
    assert sum(len(block.add) for block in record.features.values()) == 10
    assert record.mask_share is not None and record.mask_share.source == 1


def test_sources_and_targets_are_run_once_for_all_settings(
    run: Callable[..., list[RunFolder]], calls: list[list[Any]]
) -> None:
    run(NO_EDIT, TARGET, SAE, PATCH, batch_size=32)
    plain = [edits for edits in calls if all(edit is None for edit in edits)]
    # The two source pictures on which the SAEs are measured come first.
    assert [len(edits) for edits in plain] == [2, 4]
    # Everything else in one mixed batch; strength 0 and reused pictures are not generated at all.
    assert [len(edits) for edits in calls if edits not in plain] == [2 * 3 + 4]


def test_brackets_are_not_generated_from_and_hide_no_words(
    run: Callable[..., list[RunFolder]], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts: set[str] = set()
    original = Generator.embed

    def embed(self: Generator, prompt: str) -> Any:
        prompts.add(prompt)
        return original(self, prompt)

    monkeypatch.setattr(Generator, "embed", embed)
    marked = EditExample(
        id="e0", source="a [red house]", target="a [red  boat]", source_region="red house", target_region="boat"
    )
    plain = EditExample(**{**marked.model_dump(), **marked.plain.model_dump(include={"source", "target"})})
    folders = [
        run(PATCH, NO_EDIT, tasks=[task(examples=(example,), suite=suite)], batch_size=4)
        for suite, example in (("marked", marked), ("plain", plain))
    ]
    assert prompts == {"a red house", "a red boat"}
    for one, other in zip(*folders, strict=True):
        for record, again in zip(one.records(), other.records(), strict=True):
            assert record.status == "ok" and record.key.example_hash != again.key.example_hash
            assert np.array_equal(picture(one, record), picture(other, again))


def test_batch_size_changes_nothing(run: Callable[..., list[RunFolder]], tmp_path: Path) -> None:
    (small,) = run(PATCH, batch_size=1, results_root=tmp_path / "a")
    (large,) = run(PATCH, batch_size=16, results_root=tmp_path / "b")
    found = {record.key.digest: picture(large, record) for record in large.records()}
    for record in small.records():
        assert np.abs(found[record.key.digest] - picture(small, record)).max() <= 1


def test_a_second_run_makes_only_what_is_missing(run: Callable[..., list[RunFolder]], calls: list[list[Any]]) -> None:
    (folder,) = run(PATCH)
    calls.clear()
    run(PATCH)
    assert calls == []
    victim = folder.records()[1]
    assert victim.image is not None
    before = picture(folder, victim)
    (folder.path / victim.image).unlink()
    run(PATCH)
    assert [len(edits) for edits in calls] == [2, 1]
    assert np.abs(picture(folder, folder.records()[1]) - before).max() <= 1
    calls.clear()
    run(PATCH, redo="all")
    assert sum(len(edits) for edits in calls) == 4 + 4


def test_new_seeds_and_examples_add_to_what_is_there(run: Callable[..., list[RunFolder]]) -> None:
    (folder,) = run(PATCH, limit=1)
    assert len(folder.records()) == 2
    (folder,) = run(PATCH, seeds=(0, 1))
    assert len(folder.records()) == 8
    assert len({record.source_image for record in folder.records()}) == 4


def test_regions_by_words_are_stored_once_and_used(run: Callable[..., list[RunFolder]]) -> None:
    (folder,) = run(PATCH, tasks=[task(region="house")])
    record = folder.records()[0]
    name = folder.shared.mask_name(record.key)
    stored = folder.shared.read_json(name)
    assert stored is not None
    masks = RegionMasks.from_json(stored)
    assert masks.source.shape == (SIZE, SIZE) and 0 < masks.source.mean() < 1
    assert record.mask_share == masks.share
    # A stored mask is not made again: what was compared stays comparable.
    changed = RegionMasks(~masks.source, masks.target)
    (folder.shared.path / name).unlink()
    folder.shared.write_json(name, changed.to_json("attention"))
    (again,) = run(PATCH, tasks=[task(region="house")], redo="all")
    assert again.records()[0].mask_share == changed.share


def test_a_region_that_is_nowhere_skips_every_setting(run: Callable[..., list[RunFolder]]) -> None:
    folders = run(NO_EDIT, PATCH, tasks=[task(region="not: whole")])
    for folder in folders:
        assert {(r.status, r.reason) for r in folder.records()} == {("skipped", "no_region")}


def test_words_that_are_not_in_the_prompt_are_recorded_as_errors(run: Callable[..., list[RunFolder]]) -> None:
    good, bad = (
        task(1).examples[0],
        EditExample(id="bad", source="a red house", target="a red boat", source_region="ship", target_region="boat"),
    )
    (folder,) = run(PATCH, tasks=[task(examples=(good, bad))])
    found = {(r.key.example_id, r.status) for r in folder.records()}
    assert found == {("e0", "ok"), ("bad", "error")}
    assert any("does not contain the region's words 'ship'" in (r.reason or "") for r in folder.records())


def test_one_bad_unit_does_not_stop_the_others(
    run: Callable[..., list[RunFolder]], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Generator.generate

    def generate(self: Generator, prompts: Sequence[str], seeds: Sequence[int], **options: Any) -> GenerationResult:
        edits = options.get("edits") or []
        if any(edit is not None and edit.strength == 2 and prompt.endswith("1")
               for edit, prompt in zip(edits, prompts, strict=False)):  # fmt: skip
            raise RuntimeError("out of memory")
        return original(self, prompts, seeds, **options)

    monkeypatch.setattr(Generator, "generate", generate)
    (folder,) = run(PATCH)
    failed = [record for record in folder.records() if record.status == "error"]
    assert len(folder.records()) == 4 and len(failed) == 1
    assert failed[0].reason == "RuntimeError: out of memory" and failed[0].key.example_id == "e1"
    monkeypatch.setattr(Generator, "generate", original)
    (folder,) = run(PATCH)
    assert [record.status for record in folder.records()].count("error") == 1
    (folder,) = run(PATCH, redo="errors")
    assert [record.status for record in folder.records()] == ["ok"] * 4


def test_a_method_that_fails_is_recorded(run: Callable[..., list[RunFolder]]) -> None:
    many = Setting(name="many", method="sae", params={"n_features": 1000}, blocks=("mid.0",))
    (folder, other) = run(many, PATCH)
    assert {record.status for record in other.records()} == {"ok"}
    assert {record.reason for record in folder.records()} == {"cannot choose 1000 of 96 features; give 0 to 96"}


@pytest.mark.parametrize("guidance", [0.0, 3.0])
def test_units_read_beside_make_the_same_picture(
    run: Callable[..., list[RunFolder]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, guidance: float
) -> None:
    neurons = Setting(name="neurons", method="neurons", params={"n_units": 200}, strengths=(2.0, 6.0))
    model = tiny_model(guidance=guidance)
    (stored,) = run(neurons, model=model, results_root=tmp_path / "a")
    monkeypatch.setattr("riebench.methods.activations.UNIT_BUDGET", 0)
    (beside,) = run(neurons, model=model, results_root=tmp_path / "b")
    assert [record.status for record in beside.records()] == ["ok"] * 4
    for one, other in zip(stored.records(), beside.records(), strict=True):
        assert np.abs(picture(stored, one) - picture(beside, other)).max() <= 1
        assert np.abs(picture(stored, one) - shared(stored, one.source_image)).mean() > 0


def test_no_features_give_the_source_picture(run: Callable[..., list[RunFolder]], calls: list[list[Any]]) -> None:
    (folder,) = run(Setting(name="nothing", method="sae", params={"n_features": 0}))
    assert [len(edits) for edits in calls] == [2, 4]
    for record in folder.records():
        assert np.array_equal(picture(folder, record), shared(folder, record.source_image))


def test_a_picture_that_cannot_be_stored_ends_the_run_when_the_others_are_recorded(
    run: Callable[..., list[RunFolder]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    original = RunFolder.write_image

    def write_image(self: RunFolder, key: UnitKey, pixels: Any) -> tuple[str, str]:
        if key.example_id == "e1":
            raise OSError(28, "No space left on device")
        return original(self, key, pixels)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write_image", write_image)
        with pytest.raises((OSError, RiebenchError), match="No space left"):
            run(PATCH, batch_size=8)
    (file,) = tmp_path.rglob("records.jsonl")
    records = RunFolder(file.parent).records()
    assert [(record.key.example_id, record.status) for record in records] == [("e0", "ok")] * 2
    (folder,) = run(PATCH, batch_size=8)
    assert sorted(record.status for record in folder.records()) == ["ok"] * 4
    assert folder.records()[:2] == records


def test_an_interrupted_run_goes_on(run: Callable[..., list[RunFolder]], monkeypatch: pytest.MonkeyPatch) -> None:
    original = Generator.generate
    count = 0

    def generate(self: Generator, prompts: Sequence[str], seeds: Sequence[int], **options: Any) -> GenerationResult:
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        return original(self, prompts, seeds, **options)

    monkeypatch.setattr(Generator, "generate", generate)
    with pytest.raises(KeyboardInterrupt):
        run(PATCH, batch_size=2)
    monkeypatch.setattr(Generator, "generate", original)
    (folder,) = run(PATCH, batch_size=2)
    assert sorted(record.status for record in folder.records()) == ["ok"] * 4
    lines = (folder.path / "records.jsonl").read_text().splitlines()
    assert len(lines) == 4


def test_shards_part_the_work(run: Callable[..., list[RunFolder]]) -> None:
    (folder,) = run(PATCH, tasks=[task(3)], shard=(1, 2))
    first = {record.key.example_id for record in folder.records()}
    assert len(first) == 2
    (folder,) = run(PATCH, tasks=[task(3)], shard=(2, 2))
    assert {record.key.example_id for record in folder.records()} == {"e0", "e1", "e2"}
    assert len(folder.records()) == 6


@pytest.mark.parametrize("guidance", [3.0])
def test_guided_models_run_too(run: Callable[..., list[RunFolder]], guidance: float) -> None:
    neurons = Setting(name="neurons", method="neurons", params={"n_units": 50}, strengths=(4.0,))
    for folder in run(PATCH, neurons, model=tiny_model(guidance=guidance)):
        assert {record.status for record in folder.records()} == {"ok"}
        record = folder.records()[0]
        assert np.abs(picture(folder, record) - shared(folder, record.source_image)).mean() > 0


def test_other_steps_get_another_folder_and_are_never_mixed(run: Callable[..., list[RunFolder]]) -> None:
    (two,), (three,) = run(NO_EDIT), run(NO_EDIT, model=tiny_model(steps=3))
    assert two.path.parent != three.path.parent
    claim = two.shared.path / "model.json"
    claim.write_text(json.dumps({**json.loads(claim.read_text()), "regions": "elsewhere"}))
    with pytest.raises(RiebenchError, match="regions is elsewhere there and attention here"):
        run(TARGET)


@pytest.mark.parametrize(
    ("setting", "options", "message"),
    [
        (Setting(name="s", method="sea"), {}, "unknown method 'sea'"),
        (Setting(name="s", method="sae", params={"k": 1}), {}, "no parameter 'k'"),
        (Setting(name="s", method="sae", blocks=("up.7.0",)), {}, "has no block up.7.0"),
        (SAE, {"saes_source": "/nowhere"}, "no SAE folder /nowhere"),
        (PATCH, {"redo": "some"}, "unknown redo mode 'some'"),
        (PATCH, {"shard": (3, 2)}, "shard 3/2"),
        (PATCH, {"tasks": [task(), task(suite="other", name="u")]}, "several suites"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is_generated(
    run: Callable[..., list[RunFolder]], calls: list[list[Any]], setting: Setting, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RiebenchError, match=message):
        run(setting, **options)
    assert calls == []


def test_nothing_twice_and_no_unknown_engine(run: Callable[..., list[RunFolder]], tmp_path: Path) -> None:
    with pytest.raises(RiebenchError, match="configurations named twice: patch"):
        run(PATCH, PATCH)
    with pytest.raises(RiebenchError, match="nothing to do"):
        run_benchmark([], [PATCH], tiny_model(), results_root=tmp_path)
    with pytest.raises(RiebenchError, match=r"unknown engine 'rey' \(did you mean 'ray'\?\)"):
        engines.run("rey")
    assert set(BLOCKS) == set(PATCH.blocks)
