"""Reference activations of a run: which runs measure, what they keep, and that nothing else decides on the numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_model, tiny_saes
from tiny_runs import NO_EDIT, PATCH, task

import riebench.runs.distribution as distribution
from riebench.errors import RiebenchError
from riebench.runs.distribution import prepare_watch, reference_examples, stored_files, suite_references
from riebench.runs.prepare import prepare_all
from riebench.runs.runner import run_benchmark
from riebench.store.folder import RunFolder
from riebench.store.records import EditRecord
from riebench.tasks.schema import EditTask, Setting

SETTINGS = (NO_EDIT, PATCH.model_copy(update={"blocks": ("mid.0", "up.0.1"), "block_mode": "together"}))
POOL = [task(8, region="whole")]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """References of few pictures, which small runs measure by themselves."""
    for name, value in (("FITTED", 4), ("HELD_OUT", 2), ("UNITS_PER_PICTURE", 0)):
        monkeypatch.setattr(distribution, name, value)


def make(results: Path, **options: Any) -> list[RunFolder]:
    """Run both configurations on three examples of eight."""
    given = {"saes_source": str(tiny_saes()), "pool": POOL, "limit": 3, "progress": False, **options}
    return run_benchmark(POOL, SETTINGS, tiny_model(), results_root=results, **given)


def records(folders: list[RunFolder]) -> dict[str, EditRecord]:
    """Records of the edits by unit."""
    return {record.key.digest: record for record in folders[1].records()}


@pytest.mark.usefixtures("small")
def test_every_edit_of_a_block_is_measured_whatever_batch_order_or_part(tmp_path: Path) -> None:
    whole = make(tmp_path / "whole", batch_size=4)
    assert all(record.distribution is None for record in whole[0].records())
    expected = records(whole)
    assert len(expected) == 6
    for record in expected.values():
        assert record.distribution is not None and set(record.distribution) == {"mid.0", "up.0.1"}
        one = record.distribution["mid.0"]
        assert one.steps == (0, 1) and all(0 < value < 1000 for value in one.distance)
    strong, weak = (
        sum(sum(one.distance) for r in expected.values() for one in (r.distribution or {}).values()
            if r.key.strength == strength)
        for strength in (2.0, 1.0)
    )  # fmt: skip
    assert strong > weak
    single = make(tmp_path / "single", batch_size=1, limit=1)
    make(tmp_path / "single", batch_size=1, shard=(2, 2), limit=3)
    again = make(tmp_path / "single", batch_size=2, shard=(1, 2), limit=3)
    assert single[0].shared.path == again[0].shared.path
    for digest, record in records(again).items():
        known, found = expected[digest].distribution, record.distribution
        assert known is not None and found is not None
        for block, one in found.items():
            assert one.reference == known[block].reference
            assert one.distance == pytest.approx(known[block].distance, abs=0.02)
            assert one.norm == pytest.approx(known[block].norm, abs=0.02)
    # The pictures are those of a run that measures nothing.
    hashes = {digest: record.image_sha256 for digest, record in expected.items()}
    assert hashes == {digest: r.image_sha256 for digest, r in records(unmeasured(tmp_path / "plain")).items()}


def unmeasured(results: Path) -> list[RunFolder]:
    """The same run, too small to measure by itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distribution, "UNITS_PER_PICTURE", 2)
        found = make(results, batch_size=4)
    assert all(record.distribution is None for record in found[1].records())
    assert not (found[0].shared.path / "distribution").exists()
    return found


@pytest.mark.usefixtures("small")
def test_stored_references_count_and_changed_or_foreign_ones_are_refused(tmp_path: Path) -> None:
    folders = make(tmp_path, limit=2)
    shared = folders[0].shared
    files = stored_files(shared, ("mid.0", "up.0.1", "up.0.0"))
    assert set(files) == {"distribution/mid.0.safetensors", "distribution/up.0.1.safetensors"}
    assert suite_references(tmp_path / "tiny") == {shared.path.parent.name: files}
    # A small run measures too where the references are there, and leaves them as they are.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distribution, "UNITS_PER_PICTURE", 1000)
        assert all(record.distribution for record in make(tmp_path)[1].records())
    assert stored_files(shared, ("mid.0", "up.0.1")) == files
    path = shared.path / "distribution" / "mid.0.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(RiebenchError, match=r"mid.0.safetensors is not as riebench wrote it; delete it and repeat"):
        make(tmp_path, limit=4)
    path.unlink()
    assert all(record.distribution for record in make(tmp_path, limit=4)[1].records()) and path.read_bytes() == data
    other = tiny_model(steps=3)
    prepared = prepare_all([SETTINGS[1]], "tiny", other, tmp_path / "x", str(tiny_saes()), "attention", True)
    with pytest.raises(RiebenchError, match="is of another model"):
        prepare_watch(prepared, [], other, POOL, files)


def test_examples_are_the_first_of_each_task_in_turn() -> None:
    tasks: list[EditTask] = [task(30, name="a"), task(2, name="b")]
    names = [one.id for one in reference_examples(tasks)]
    assert len(names) == 24 and names[:5] == ["e0", "e0", "e1", "e1", "e2"] and names[-1] == "e21"
    assert len(reference_examples([task(3)])) == 3


def test_configurations_that_edit_no_block_are_never_measured(tmp_path: Path) -> None:
    lerp = Setting(name="embed_lerp", method="embed_lerp", blocks=(), strengths=(0.5,))
    prepared = prepare_all([lerp, NO_EDIT], "tiny", tiny_model(), tmp_path, None, "attention", True)
    assert not prepare_watch(prepared, [], tiny_model(), POOL, {}).references
