"""Who made which record: every command stays in run.json, and records and scores name theirs."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
from records import add_record, make_key, make_score, make_spec

from riebench.analysis.configurations import configurations, mixed_in_words
from riebench.store.folder import RunFolder, find_run_folders, run_path
from riebench.store.invocations import Invocation, invocation_notes, mixed_versions
from riebench.store.records import RUN_FILE
from riebench.store.run_file import broken_seals


def notes(command: str, **versions: str) -> dict[str, Any]:
    """What a process says of itself."""
    return {
        "command": command,
        "started": f"start of {command}",
        "versions": versions,
        "device": "cpu",
        "batch_size": 4,
    }


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A new run folder of three planned units."""
    made = RunFolder(run_path(tmp_path, "toy", "toy-turbo", "sae"), make_spec())
    with made.open_for_writing(None, [make_key(seed=seed) for seed in range(3)]):
        pass
    return made


def test_every_command_stays_and_records_name_theirs(folder: RunFolder) -> None:
    for seed, command in enumerate(("first", "second")):
        with folder.open_for_writing(notes(command, torch=f"2.{seed}")):
            add_record(folder, seed=seed)
    with folder.lock(notes("score", torch="2.1")):
        folder.append_scores([make_score(record, 0.1) for record in folder.records()])
    again = RunFolder(folder.path)
    assert [one.command for one in again.invocations] == ["first", "second", "score"]
    assert all(one.ended is not None for one in again.invocations)
    assert [record.invocation for record in again.records()] == [0, 1]
    assert {score.invocation for score in again.scores().values()} == {2}
    assert again.provenance["device"] == "cpu" and again.provenance["versions"] == {"torch": "2.1"}
    assert not broken_seals(folder.path)


def test_a_command_that_writes_nothing_changes_nothing(folder: RunFolder) -> None:
    with folder.open_for_writing(notes("first"), [make_key()]):
        add_record(folder)
    before = (folder.path / RUN_FILE).read_bytes()
    with folder.open_for_writing(notes("second"), [make_key()]):
        pass
    assert (folder.path / RUN_FILE).read_bytes() == before


def test_shards_at_the_same_time_each_get_an_entry(folder: RunFolder) -> None:
    one, two = RunFolder(folder.path), RunFolder(folder.path)
    with one.open_for_writing(notes("a"), shard=(1, 2)), two.open_for_writing(notes("b"), shard=(2, 2)):
        add_record(one, seed=0)
        add_record(two, seed=1)
        add_record(one, seed=2)
    again = RunFolder(folder.path)
    made = {again.invocations[record.invocation or 0].command: record.key.seed for record in again.records()}
    assert [one.command for one in again.invocations] == ["a", "b"] and made == {"a": 2, "b": 1}
    assert not broken_seals(folder.path)


def test_the_notes_of_older_files_are_the_first_entry(folder: RunFolder) -> None:
    stored = json.loads((folder.path / RUN_FILE).read_text())
    del stored["invocations"]
    stored["provenance"] = {
        "command": "riebench run", "started": "2026", "versions": {"torch": "2.0"}, "cpus": 2, "batch_size": 8,
        "git": {"commit": "abc", "dirty": True},
    }  # fmt: skip
    (folder.path / RUN_FILE).write_text(json.dumps(stored))
    (first,) = RunFolder(folder.path).invocations
    assert (first.commit, first.uncommitted, first.options) == ("abc", True, {"batch_size": 8})
    assert first.notes == stored["provenance"]
    with folder.open_for_writing(notes("second")):
        add_record(folder)
    assert [one.command for one in RunFolder(folder.path).invocations] == ["riebench run", "second"]
    assert RunFolder(folder.path).records()[0].invocation == 1


def test_a_row_of_several_versions_is_known(folder: RunFolder) -> None:
    for seed, torch in enumerate(("2.14.1", "2.15.0")):
        with folder.open_for_writing(notes(f"run {seed}", torch=torch, numpy="2.0")):
            add_record(folder, seed=seed)
    with folder.lock(notes("score", torch="9")):
        folder.append_scores([make_score(record, 0.1) for record in folder.records()])
    (row,) = configurations(RunFolder(folder.path))
    # That pictures and scores were made by different versions is no mixture: all pictures were scored alike.
    assert mixed_in_words([row]) == "pictures by torch 2.14.1 and 2.15.0"
    assert mixed_versions([Invocation(versions={"a": "1"}), Invocation(versions={"b": "2"})]) == ""


def test_a_copied_folder_is_left_out_with_one_line(folder: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copytree(folder.path, folder.path.parent / "sae_copy")
    with caplog.at_level(logging.WARNING):
        found = find_run_folders(folder.path.parents[2])
        find_run_folders(folder.path.parents[2])
    assert [one.path.name for one in found] == ["sae"]
    (record,) = caplog.records
    assert "sae_copy is left out" in record.getMessage() and "\n" not in record.getMessage()


def test_published_commands_tell_no_folders() -> None:
    made = Invocation(
        command="riebench run --results /home/me/secret/out --sae=/data/saes a/b.yaml 1/4",
        request={"results": "/home/me/secret/out", "settings": ["baselines/toy/sae.yaml"], "limit": 3},
    ).without_folders()
    assert made.command == "riebench run --results .../out --sae=.../saes a/b.yaml 1/4"
    assert made.request == {"results": ".../out", "settings": ["baselines/toy/sae.yaml"], "limit": 3}


def test_notes_describe_this_process() -> None:
    one, two = invocation_notes(device="cpu"), invocation_notes(batch_size=2)
    assert one["started"] == two["started"] and Invocation.from_notes(one).is_same(Invocation.from_notes(two))
    assert "torch" in one["versions"]
