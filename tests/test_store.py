from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import make_key, make_record, make_spec

from riebench.errors import FolderInUseError, IdentityError, StoreError
from riebench.files import append_lines, write_atomic
from riebench.records import EditRecord, ScoreRecord
from riebench.sharedfolder import SharedFolder, encode_png
from riebench.store import RunFolder, run_folders

PIXELS = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)


def add(folder: RunFolder, **changes: object) -> str:
    key = make_key(**changes)
    name, digest = folder.write_image(key, PIXELS)
    folder.append(make_record(key, name, digest))
    return key.digest


def test_a_finished_unit_is_done_and_its_picture_comes_back(folder: RunFolder) -> None:
    with folder.writing(plan=[make_key()]) as run:
        digest = add(run)
    again = RunFolder(folder.path)
    assert again.done() == {digest}
    assert again.done("all") == set()
    assert np.array_equal(again.read_image(again.records()[0].image or ""), PIXELS)
    assert again.records()[0].features["mid.0"].add == (1, 2, 3)


def test_a_torn_last_line_is_dropped_and_the_rest_kept(folder: RunFolder) -> None:
    with folder.writing() as run:
        kept = add(run)
        add(run, seed=1)
    file = folder.path / "records.jsonl"
    file.write_bytes(file.read_bytes()[:-40])
    assert RunFolder(folder.path).done() == {kept}
    with folder.writing() as run:
        third = add(run, seed=2)
    assert RunFolder(folder.path).done() == {kept, third}
    assert file.read_bytes().endswith(b"\n")


def test_a_whole_last_line_without_its_end_is_kept(folder: RunFolder) -> None:
    with folder.writing() as run:
        first = add(run)
    file = folder.path / "records.jsonl"
    file.write_bytes(file.read_bytes().rstrip(b"\n"))
    with folder.writing() as run:
        second = add(run, seed=1)
    assert folder.done() == {first, second}


def test_damage_in_the_middle_names_file_and_line(folder: RunFolder) -> None:
    with folder.writing() as run:
        add(run)
        add(run, seed=1)
    file = folder.path / "records.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0][:-9], lines[1]]) + "\n")
    with pytest.raises(StoreError, match=r"records\.jsonl, line 1 is damaged"):
        folder.records()
    file.write_text("\n".join([lines[0].replace('"status"', '"stauts"'), lines[1]]) + "\n")
    with pytest.raises(StoreError, match=r"records\.jsonl, line 1: "):
        folder.records()


def test_a_changed_or_missing_picture_is_not_done(folder: RunFolder) -> None:
    with folder.writing() as run:
        digest = add(run)
        other = add(run, seed=1)
    first, second = (folder.path / (record.image or "") for record in folder.records())
    first.write_bytes(encode_png(255 - PIXELS))
    assert folder.done() == {other}
    second.unlink()
    assert folder.done() == set()
    assert digest not in folder.done()


def test_errors_are_repeated_on_request_only(folder: RunFolder) -> None:
    key = make_key()
    with folder.writing() as run:
        run.append(EditRecord(key=key, status="error", reason="ran out of memory"))
    assert folder.done() == {key.digest}
    assert folder.done("errors") == set()


def test_a_missing_source_picture_is_not_done(folder: RunFolder) -> None:
    key = make_key()
    source = folder.shared.image_name(key, "source")
    with folder.writing() as run:
        name, digest = run.write_image(key, PIXELS)
        run.append(make_record(key, name, digest).model_copy(update={"source_image": source}))
        assert run.done() == set()
        run.shared.write_image(source, PIXELS)
        assert run.done() == {key.digest}


def test_a_changed_example_replaces_its_old_record(folder: RunFolder) -> None:
    with folder.writing() as run:
        add(run)
        new = add(run, example_hash="1" * 16, task_version=2)
    with folder.writing() as run:
        assert [record.key.digest for record in run.records()] == [new]
    assert sum(folder.expected.values()) == 1


def test_another_identity_is_refused_with_the_fields_named(folder: RunFolder) -> None:
    with folder.writing():
        pass
    with pytest.raises(
        IdentityError, match=r"model\.steps is 4 there and 1 here; params\.n_features is 20 there and 5 here"
    ):
        RunFolder(folder.path, make_spec(steps=1, params={"n_features": 5}))
    RunFolder(folder.path, make_spec(strengths=(1.0, 4.0)))  # a further strength continues the run


def test_a_second_writer_is_told_at_once(folder: RunFolder) -> None:
    code = (
        "import sys; from pathlib import Path; from riebench.store import RunFolder; "
        "from riebench.errors import FolderInUseError\n"
        "try:\n    RunFolder(Path(sys.argv[1])).writing().__enter__()\n"
        "except FolderInUseError as error:\n    print(error)"
    )
    with folder.writing():
        done = subprocess.run(
            [sys.executable, "-c", code, str(folder.path)], capture_output=True, text=True, check=True
        )
        assert "is being written by another riebench" in done.stdout
        with pytest.raises(FolderInUseError), RunFolder(folder.path).writing():
            pass
    with folder.writing():
        pass


def test_the_plan_and_the_records_are_what_is_expected(folder: RunFolder) -> None:
    with folder.writing(plan=[make_key(), make_key(seed=1), make_key(block_set="mid.0")]) as run:
        add(run)
    assert folder.expected == {("change_object", "all", 1.0): 2, ("change_object", "mid.0", 1.0): 1}
    with folder.writing(plan=[make_key()]):
        pass
    assert folder.expected == {("change_object", "all", 1.0): 1}


def test_the_latest_score_counts(folder: RunFolder) -> None:
    with folder.writing() as run:
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


def test_run_folders_are_found_and_damaged_ones_named(filled: RunFolder) -> None:
    results = filled.path.parents[2]
    assert [folder.spec.setting.name for folder in run_folders(results)] == ["sae"]
    (filled.path / "run.json").write_text("{")
    with pytest.raises(StoreError, match=r"run\.json is damaged"):
        run_folders(results)
