"""Tests of the seal of a run folder.

Changes by hand are found and set aside; what a killed run leaves is not mistaken for one.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import Any

import pytest
from records import add_record, make_key, make_spec
from tiny_jobs import job_lines, last_line, run_command

from riebench.jobs.request import RunRequest
from riebench.jobs.run import run_job
from riebench.store import run_file
from riebench.store.damage import folder_warnings, set_aside
from riebench.store.folder import RunFolder, find_run_folders
from riebench.store.run_file import announce_replacement, broken_seals
from riebench.utils.files import write_atomic


def test_every_flipped_byte_of_the_records_is_found(folder: RunFolder) -> None:
    with folder.open_for_writing(plan=[make_key(), make_key(seed=1)]):
        add_record(folder)
        add_record(folder, seed=1)
    for name in ("records.jsonl", "run.json"):
        file = folder.path / name
        data = file.read_bytes()
        for place in range(0, len(data), 7):
            file.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
            assert broken_seals(folder.path) == [f"{name} is not as riebench wrote it: something was changed or taken "
                                                 "out by hand"]  # fmt: skip
        file.write_bytes(data)
    assert broken_seals(folder.path) == []


def test_a_changed_record_is_reported_and_made_anew_on_request(job: RunRequest) -> None:
    job = replace(job, settings=job.settings[1:], blocks="mid.0")
    run_job(job, lambda _: None)
    (folder,) = find_run_folders(job.results)
    file = folder.path / "records.jsonl"
    honest = file.read_text()
    file.write_text(honest.replace('"add":[', '"add":[9', 1))
    assert any("records.jsonl is not as riebench wrote it" in line and "--redo all" in line for line in job_lines(job))
    lines = job_lines(job, redo="all")
    assert any("set-aside-1/" in line for line in lines)
    assert [r.features for r in RunFolder(folder.path).records()] == [r.features for r in folder.records()]
    assert broken_seals(folder.path) == [] and len(file.read_text().splitlines()) == len(honest.splitlines())
    assert '"add":[9' in (folder.path / "set-aside-1" / "records.jsonl").read_text()
    # An unreadable line too; and what is whole is not set aside.
    file.write_text("{" + file.read_text())
    refused = run_command(job, "--blocks", "mid.0")
    assert refused.exit_code == 2 and "records.jsonl, line 1 is damaged" in last_line(refused)
    assert any("set-aside-2/" in line for line in job_lines(job, redo="all"))
    assert not any("set-aside" in line for line in job_lines(job, redo="all"))


def test_a_changed_run_file_goes_aside_and_an_honest_one_still_says_whose_folder_it_is(folder: RunFolder) -> None:
    with folder.open_for_writing():
        add_record(folder)
    records_file = folder.path / "records.jsonl"
    records_file.write_text(records_file.read_text().replace('"e1"', '"e2"'))
    assert set_aside(folder.path) is not None and (folder.path / "run.json").exists()
    with folder.open_for_writing():
        pass
    (folder.path / "run.json").write_text("{")
    assert set_aside(folder.path) is not None and not (folder.path / "run.json").exists()
    assert folder_warnings([RunFolder(folder.path, make_spec())]) == []
    assert set_aside(folder.path.parent / "nothing") is None


def test_what_is_set_aside_replaces_nothing_that_was(folder: RunFolder) -> None:
    for number in (1, 2, 3):
        with folder.open_for_writing():
            add_record(folder)
        (folder.path / "seal.json").write_text("{")
        assert set_aside(folder.path) == folder.path / f"set-aside-{number}"
        # Whoever has looked through it may delete it.
        if number == 2:
            shutil.rmtree(folder.path / "set-aside-1")


def test_a_kill_between_the_run_file_and_its_seal_breaks_nothing(folder: RunFolder) -> None:
    with folder.open_for_writing({"started": "then"}):
        add_record(folder)
    coming = (folder.path / "run.json").read_bytes().replace(b"then", b"now!")
    announce_replacement(folder.path, "run.json", coming)
    assert broken_seals(folder.path) == []
    write_atomic(folder.path / "run.json", coming)
    assert broken_seals(folder.path) == []
    with RunFolder(folder.path).lock():
        pass
    (folder.path / "run.json").write_bytes(coming.replace(b"now!", b"then"))
    assert len(broken_seals(folder.path)) == 1
    # What is broken already cannot be announced whole again.
    announce_replacement(folder.path, "run.json", (folder.path / "run.json").read_bytes())
    assert len(broken_seals(folder.path)) == 1


def test_two_kills_around_the_run_file_break_nothing(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that two kills around the replacement of run.json break no seal.

    The first comes after run.json was replaced and before it was sealed, the second before it is replaced again.
    """
    with folder.open_for_writing({"started": "first"}):
        add_record(folder)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    for place, word in (
        ("riebench.store.folder.renew_seal", "second"),
        ("riebench.store.run_file.write_atomic", "third"),
    ):
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr("riebench.store.folder.renew_seal", killed)
            patched.setattr(place, killed)
            # Another plan, so that run.json is replaced.
            with RunFolder(folder.path).open_for_writing({"started": word}, [make_key(seed=len(word))]):
                pass
        assert broken_seals(folder.path) == []
    with RunFolder(folder.path).open_for_writing({"started": "fourth"}):
        add_record(folder, seed=1)
    assert broken_seals(folder.path) == [] and len(RunFolder(folder.path).invocations) == 1


def test_records_changed_by_hand_during_a_run_are_found(folder: RunFolder) -> None:
    with folder.open_for_writing():
        add_record(folder)
    with folder.open_for_writing() as run:
        file = folder.path / "records.jsonl"
        file.write_text(file.read_text().replace('"seed":0', '"seed":7'))
        add_record(run, seed=1)
    assert len(broken_seals(folder.path)) == 1


def test_who_looks_while_another_process_begins_sees_no_broken_seal(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with folder.open_for_writing({"started": "then"}):
        add_record(folder)
    original = run_file._fingerprint

    def meanwhile(*arguments: Any) -> Any:
        monkeypatch.undo()
        with RunFolder(folder.path).open_for_writing({"started": "now"}) as other:
            add_record(other, seed=1)
        return original(*arguments)

    monkeypatch.setattr(run_file, "_fingerprint", meanwhile)
    assert broken_seals(folder.path) == []
    assert RunFolder(folder.path).provenance == {"started": "now"}
