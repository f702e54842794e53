"""Tests of run folders: records, pictures, locks and what a crash leaves."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from records import PIXELS, add_record, make_key, make_record, make_spec

from riebench.blocks import block_set_name
from riebench.errors import FolderInUseError, IdentityError, StoreError
from riebench.models.families.sdxl.names import SDXL_BLOCKS
from riebench.runs.prepare import claim_shared
from riebench.store.folder import RunFolder, find_run_folders, group_by_model, run_path
from riebench.store.records import EditRecord, ScoreRecord
from riebench.store.shared import SharedFolder
from riebench.tasks.masks import MaskShare
from riebench.utils.files import append_lines, write_atomic
from riebench.utils.images import encode_png


def test_a_finished_unit_is_done_and_its_picture_comes_back(folder: RunFolder) -> None:
    with folder.open_for_writing(plan=[make_key()]) as run:
        digest = add_record(run)
    again = RunFolder(folder.path)
    assert again.finished_units() == {digest}
    assert again.finished_units("all") == set()
    assert np.array_equal(again.read_image(again.records()[0].image or ""), PIXELS)
    assert again.records()[0].features["mid.0"].add == (1, 2, 3)


def test_a_torn_last_line_is_dropped_and_the_rest_kept(folder: RunFolder) -> None:
    with folder.open_for_writing() as run:
        kept = add_record(run)
        add_record(run, seed=1)
    file = folder.path / "records.jsonl"
    file.write_bytes(file.read_bytes()[:-40])
    assert RunFolder(folder.path).finished_units() == {kept}
    with folder.open_for_writing() as run:
        third = add_record(run, seed=2)
    assert RunFolder(folder.path).finished_units() == {kept, third}
    assert file.read_bytes().endswith(b"\n")


def test_a_whole_last_line_without_its_end_is_kept(folder: RunFolder) -> None:
    with folder.open_for_writing() as run:
        first = add_record(run)
    file = folder.path / "records.jsonl"
    file.write_bytes(file.read_bytes().rstrip(b"\n"))
    with folder.open_for_writing() as run:
        second = add_record(run, seed=1)
    assert folder.finished_units() == {first, second}


def test_damage_in_the_middle_names_file_and_line(folder: RunFolder) -> None:
    with folder.open_for_writing() as run:
        add_record(run)
        add_record(run, seed=1)
    file = folder.path / "records.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0][:-9], lines[1]]) + "\n")
    with pytest.raises(StoreError, match=r"records\.jsonl, line 1 is damaged"):
        folder.records()
    file.write_text("\n".join([lines[0].replace('"status"', '"stauts"'), lines[1]]) + "\n")
    with pytest.raises(StoreError, match=r"records\.jsonl, line 1: "):
        folder.records()


def test_a_changed_or_missing_picture_is_not_done(folder: RunFolder) -> None:
    with folder.open_for_writing() as run:
        digest = add_record(run)
        other = add_record(run, seed=1)
    first, second = (folder.path / (record.image or "") for record in folder.records())
    first.write_bytes(encode_png(255 - PIXELS))
    assert folder.finished_units() == {other}
    second.unlink()
    assert folder.finished_units() == set()
    assert digest not in folder.finished_units()


def test_errors_are_repeated_on_request_only(folder: RunFolder) -> None:
    key = make_key()
    with folder.open_for_writing() as run:
        run.append(EditRecord(key=key, status="error", reason="ran out of memory"))
    assert folder.finished_units() == {key.digest}
    assert folder.finished_units("errors") == set()


def test_a_missing_source_picture_is_not_done(folder: RunFolder) -> None:
    key = make_key()
    source = folder.shared.image_name(key, "source")
    with folder.open_for_writing() as run:
        name, digest = run.write_image(key, PIXELS)
        run.append(make_record(key, name, digest).model_copy(update={"source_image": source}))
        assert run.finished_units() == set()
        run.shared.write_image(source, PIXELS)
        assert run.finished_units() == {key.digest}


def test_a_missing_or_damaged_mask_is_not_done(folder: RunFolder) -> None:
    """Check that a unit without an intact mask is made again.

    Scores need the mask, and a message tells people to delete it and to run again.
    """
    key = make_key()
    mask = folder.shared.mask_name(key)
    with folder.open_for_writing() as run:
        name, digest = run.write_image(key, PIXELS)
        share = MaskShare(source=0.5, target=0.5)
        run.append(make_record(key, name, digest).model_copy(update={"mask_share": share}))
        assert run.finished_units() == set()
        run.shared.write_json(mask, {"size": [8, 8]})
        assert run.finished_units() == {key.digest}
        (run.shared.path / mask).write_text("{")
        assert run.finished_units() == set()
        run.drop_damaged(key)
        assert not (run.shared.path / mask).exists() and run.altered_files == [f"../shared/{mask}"]


def test_looking_for_what_is_done_deletes_nothing(folder: RunFolder) -> None:
    key = make_key()
    source = folder.shared.image_name(key, "source")
    with folder.open_for_writing() as run:
        name, digest = run.write_image(key, PIXELS)
        run.append(make_record(key, name, digest).model_copy(update={"source_image": source}))
    run.shared.write(source, b"no picture")
    assert run.finished_units() == set() and (run.shared.path / source).read_bytes() == b"no picture"


def test_a_shared_picture_that_cannot_be_read_now_is_no_damaged_one(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = make_key()
    name = folder.shared.image_name(key, "source")
    folder.shared.write_image(name, PIXELS)

    def fail(path: Path) -> bytes:
        raise OSError(errno.EIO, "Input/output error", str(path))

    with monkeypatch.context() as patched, pytest.raises(OSError, match="Input/output error"):
        patched.setattr(Path, "read_bytes", fail)
        folder.drop_damaged(key)
    assert (folder.shared.path / name).exists() and folder.altered_files == []


def test_a_whole_unet_edited_together_has_a_name_that_fits(folder: RunFolder) -> None:
    keys = [make_key(block_set=block_set_name(SDXL_BLOCKS), seed=seed) for seed in (0, 1)]
    assert len(keys[0].block_set) > 255
    with folder.open_for_writing(plan=keys) as run:
        for key in keys:
            name, digest = run.write_image(key, PIXELS)
            run.append(make_record(key, name, digest))
    again = RunFolder(folder.path)
    assert again.finished_units() == {key.digest for key in keys} and sum(again.expected.values()) == 2


def test_a_changed_example_replaces_its_old_record(folder: RunFolder) -> None:
    with folder.open_for_writing() as run:
        add_record(run)
        new = add_record(run, example_hash="1" * 16, task_version=2)
    with folder.open_for_writing() as run:
        assert [record.key.digest for record in run.records()] == [new]
    assert sum(folder.expected.values()) == 1


def test_another_identity_is_refused_with_the_fields_named(folder: RunFolder) -> None:
    with folder.open_for_writing():
        pass
    with pytest.raises(
        IdentityError, match=r"model\.steps is 4 there and 1 here; params\.n_features is 20 there and 5 here"
    ):
        RunFolder(folder.path, make_spec(steps=1, params={"n_features": 5}))
    RunFolder(folder.path, make_spec(strengths=(1.0, 4.0)))  # a further strength continues the run


def test_a_second_writer_is_refused_at_once(folder: RunFolder) -> None:
    code = (
        "import sys; from pathlib import Path; from riebench.store.folder import RunFolder; "
        "from riebench.errors import FolderInUseError\n"
        "try:\n    RunFolder(Path(sys.argv[1])).open_for_writing().__enter__()\n"
        "except FolderInUseError as error:\n    print(error)"
    )
    with folder.open_for_writing():
        done = subprocess.run(
            [sys.executable, "-c", code, str(folder.path)], capture_output=True, text=True, check=True
        )
        assert "is being written by another riebench" in done.stdout
        with pytest.raises(FolderInUseError), RunFolder(folder.path).open_for_writing():
            pass
    with folder.open_for_writing():
        pass


def test_the_plan_and_the_records_are_what_is_expected(folder: RunFolder) -> None:
    with folder.open_for_writing(plan=[make_key(), make_key(seed=1), make_key(block_set="mid.0")]) as run:
        add_record(run)
    assert folder.expected == {("change_object", "all", 1.0): 2, ("change_object", "mid.0", 1.0): 1}
    with folder.open_for_writing(plan=[make_key()]):
        pass
    assert folder.expected == {("change_object", "all", 1.0): 1}


def test_counts_of_a_run_file_are_numbers(folder: RunFolder) -> None:
    with folder.open_for_writing(plan=[make_key(), make_key(seed=1)]):
        pass
    file = folder.path / "run.json"
    file.write_text(file.read_text().replace('"n": 2', '"n": "2"').replace('"strength": 1.0', '"strength": "1"'))
    assert RunFolder(folder.path).expected == {("change_object", "all", 1.0): 2}
    file.write_text(file.read_text().replace('"n": "2"', '"n": "two"'))
    with pytest.raises(StoreError, match=r"run\.json: expected\.0\.n: "):
        RunFolder(folder.path)


def test_the_latest_score_counts(folder: RunFolder) -> None:
    with folder.open_for_writing() as run:
        run.append_scores([ScoreRecord(unit="u", metric="lpips", version=1, value=0.5)])
        run.append_scores([ScoreRecord(unit="u", metric="lpips", version=2, value=0.25)])
        run.append_scores([ScoreRecord(unit="u", metric="lpips", version=1, backbone="other", value=0.75)])
    assert folder.scores()["u", "lpips", ""].value == 0.25
    assert folder.scores()["u", "lpips", "other"].value == 0.75


def test_a_full_disk_leaves_whole_lines_and_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "records.jsonl"
    append_lines(file, ['{"a":1}'])

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        append_lines(file, ['{"a":2}'])
    with pytest.raises(OSError, match="No space"):
        write_atomic(tmp_path / "picture.png", b"x")
    assert file.read_text() == '{"a":1}\n'
    assert [path.name for path in tmp_path.iterdir()] == ["records.jsonl"]


@pytest.mark.parametrize("links", [True, False])
def test_of_several_writers_the_first_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    shared = SharedFolder(tmp_path)
    shared.write_image("a/source.png", PIXELS)
    shared.write_image("a/source.png", 255 - PIXELS)
    assert np.array_equal(shared.read_image("a/source.png"), PIXELS)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["source.png"]


def test_pictures_are_checked(folder: RunFolder) -> None:
    floats: Any = np.zeros((8, 8, 3))
    with pytest.raises(ValueError, match="uint8"):
        folder.write_image(make_key(), floats)
    with pytest.raises(StoreError, match="is missing"):
        folder.read_image("images/none.png")


@pytest.mark.parametrize("text", ["[]", "null", '{"model": 3}', "{"])
def test_a_damaged_note_of_whose_the_shared_pictures_are_is_named(folder: RunFolder, text: str) -> None:
    folder.shared.write("model.json", text.encode())
    with pytest.raises(StoreError, match=r"model\.json is damaged.*; delete it and repeat"):
        claim_shared(folder, folder.spec.model, "attention")


def test_run_folders_are_found_and_damaged_ones_named(filled: RunFolder) -> None:
    results = filled.path.parents[2]
    assert [folder.spec.setting.name for folder in find_run_folders(results)] == ["sae"]
    (filled.path / "run.json").write_text("{")
    with pytest.raises(StoreError, match=r"run\.json is damaged"):
        find_run_folders(results)


def test_the_model_with_most_runs_of_a_suite_comes_first(tmp_path: Path) -> None:
    places = [("b", "z", "one"), ("a", "y", "one"), ("a", "x", "one"), ("a", "z", "one"), ("a", "z", "two")]
    folders = []
    for suite, model, name in places:
        spec = make_spec(name=name)
        spec = spec.model_copy(update={"suite": suite, "model": spec.model.model_copy(update={"name": model})})
        folders.append(RunFolder(run_path(tmp_path, suite, model, name), spec))
    for order in (folders, folders[::-1]):
        groups = group_by_model(order)
        assert [*groups] == [("a", "z"), ("a", "x"), ("a", "y"), ("b", "z")]
        assert sorted(folder.path.name for folder in groups["a", "z"]) == ["one", "two"]
