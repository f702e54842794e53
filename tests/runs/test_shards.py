"""Several processes on one results folder: each its share, none in another's way, and together what one makes."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from python_processes import PythonProcess
from records import PIXELS, add_record, make_key, make_record, make_spec
from small_suite import EXAMPLES, run_arguments, write_suite
from tiny_jobs import fake_networks
from typer.testing import CliRunner

import riebench.scoring.score
from riebench.cli.main import app
from riebench.errors import FolderInUseError, IdentityError, RiebenchError
from riebench.jobs.request import parse_shard
from riebench.runs.plan import plan, shard_works, works_of
from riebench.store.folder import RunFolder, find_run_folders
from riebench.store.records import ScoreRecord
from riebench.store.run_file import broken_seals, count_unsealed_lines, part_files, part_path
from riebench.tasks.schema import EditExample, EditTask, Setting
from riebench.utils.locks import brief_lock, shard_lock

UNITS = EXAMPLES * (1 + 5)
SLOW = """
import time
from pathlib import Path
from riebench.store.folder import RunFolder
from riebench.cli.main import main
original = RunFolder.append_many
def append_many(self, records):
    original(self, records)
    PAUSE
RunFolder.append_many = append_many
main()
"""


def lines(folder: RunFolder) -> list[str]:
    """Digests of the units in the order of the lines that stand in the records, each line once."""
    return [record["key"]["example_id"] + record["key"]["block_set"] for record in
            map(json.loads, (folder.path / "records.jsonl").read_text().splitlines())]  # fmt: skip


def test_every_work_belongs_to_exactly_one_share() -> None:
    examples = tuple(
        EditExample(id=f"e{i}", source="a", target="b", source_region="whole", target_region="whole") for i in range(7)
    )
    task = EditTask(name="t", version=1, category="change_object", suite="s", examples=examples)
    works = works_of(plan([task], [Setting(name="n", method="no_edit")], seeds=(0, 1)))
    for count in (1, 2, 5, 20):
        shares = [shard_works(works, (index, count)) for index in range(1, count + 1)]
        places = [(work.example.id, work.seed) for part in shares for work in part]
        assert sorted(places) == sorted((work.example.id, work.seed) for work in works)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    # Neither share has one of the two seeds alone, which dealing the plan's works in turn would do.
    assert all({work.seed for work in shard_works(works, (index, 2))} == {0, 1} for index in (1, 2))
    assert [work.example.id for work in shard_works(works, (1, 1))] == [work.example.id for work in works]


def test_shards_write_side_by_side_and_leave_what_one_process_leaves(folder: RunFolder) -> None:
    plan = [make_key(seed=seed) for seed in range(3)]
    other = RunFolder(folder.path, folder.spec)
    with folder.open_for_writing({"device": "cpu"}, plan, (1, 2)) as one:
        first = add_record(one)
        with other.open_for_writing({"device": "cpu"}, plan, (2, 2)) as two:
            second = add_record(two, seed=1)
            # A reader sees what all of them have recorded, wherever it stands.
            assert RunFolder(folder.path).finished_units() == {first, second}
            assert not (folder.path / "records.jsonl").exists()
        third = add_record(one, seed=2)
        assert RunFolder(folder.path).finished_units() == {first, second, third}
    assert RunFolder(folder.path).finished_units() == {first, second, third}
    assert sum(folder.expected.values()) == 3
    assert part_files(folder.path) == [] and len((folder.path / "records.jsonl").read_text().splitlines()) == 3
    assert broken_seals(folder.path) == [] and count_unsealed_lines(folder.path) == 0
    assert sorted(file.name for file in folder.path.glob(".lock*")) == [".lock", ".lock.begin", ".lock.shards"]


def test_who_may_not_join_is_refused_at_once(folder: RunFolder) -> None:
    def enter(**options: Any) -> None:
        with RunFolder(folder.path, folder.spec).open_for_writing(**options):
            pass

    with folder.open_for_writing(shard=(1, 2)):
        for options, words in (
            ({}, "is being written by another riebench"),
            ({"shard": (1, 2)}, "shard 1/2 of .* is running already"),
            ({"shard": (3, 4)}, "is being written by shards of 2, not of 4"),
        ):
            with pytest.raises(FolderInUseError, match=words):
                enter(**options)
        with pytest.raises(FolderInUseError), RunFolder(folder.path).lock():
            pass
        enter(shard=(2, 2))
    with folder.open_for_writing(), pytest.raises(FolderInUseError, match="by a riebench without --shard"):
        enter(shard=(1, 2))
    enter(shard=(3, 4))
    enter()


def test_a_shard_of_another_run_is_refused_though_both_began_with_an_empty_folder(folder: RunFolder) -> None:
    early = RunFolder(folder.path, make_spec(steps=1))
    with (
        folder.open_for_writing(shard=(1, 2)),
        pytest.raises(IdentityError, match=r"model\.steps is 4 there and 1 here"),
        early.open_for_writing(shard=(2, 2)),
    ):
        pass


@pytest.mark.parametrize("torn", [False, True])
def test_what_a_killed_shard_left_is_read_and_moved_by_the_next_writer(folder: RunFolder, torn: bool) -> None:
    with folder.open_for_writing(shard=(1, 2)) as run:
        kept = add_record(run)
        cut = add_record(run, seed=1)
        left = part_path(folder.path, (1, 2)).read_bytes()
    # As if it had been killed before it came to move anything, in the middle of a line.
    (folder.path / "records.jsonl").unlink()
    (folder.path / "seal.json").unlink()
    with folder.open_for_writing():
        pass
    part_path(folder.path, (1, 2)).write_bytes(left[:-30] if torn else left)
    found = {kept} if torn else {kept, cut}
    assert RunFolder(folder.path).finished_units() == found
    assert count_unsealed_lines(folder.path) == len(found)
    # A shard of another number: nobody else runs, so it may move them.
    with folder.open_for_writing(shard=(2, 3)):
        assert part_files(folder.path) == []
    assert RunFolder(folder.path).finished_units() == found
    assert len((folder.path / "records.jsonl").read_text().splitlines()) == len(found)
    assert count_unsealed_lines(folder.path) == 0


def test_a_move_that_was_cut_off_is_not_made_twice(folder: RunFolder) -> None:
    with folder.open_for_writing(shard=(1, 2)) as run:
        done = {add_record(run), add_record(run, seed=1)}
        left = part_path(folder.path, (1, 2)).read_bytes()
    part_path(folder.path, (1, 2)).write_bytes(left)
    assert RunFolder(folder.path).finished_units() == done
    with folder.open_for_writing():
        pass
    assert (folder.path / "records.jsonl").read_bytes() == left
    assert part_files(folder.path) == [] and broken_seals(folder.path) == []


def test_a_shard_that_cannot_move_its_records_leaves_them_to_be_read(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    with folder.open_for_writing(shard=(1, 2)) as run:
        digest = add_record(run)
        monkeypatch.setattr("riebench.store.folder.merge_parts", full)
    monkeypatch.undo()
    assert RunFolder(folder.path).finished_units() == {digest} and len(part_files(folder.path)) == 1
    with folder.open_for_writing():
        pass
    assert RunFolder(folder.path).finished_units() == {digest} and part_files(folder.path) == []


def test_records_changed_by_hand_while_shards_ran_are_found(folder: RunFolder) -> None:
    with folder.open_for_writing() as run:
        add_record(run)
    with folder.open_for_writing(shard=(1, 2)) as run:
        records = folder.path / "records.jsonl"
        records.write_text(records.read_text().replace('"seed":0', '"seed":7'))
        add_record(run, seed=1)
    assert broken_seals(folder.path) == ["records.jsonl is not as riebench wrote it: something was changed or taken "
                                         "out by hand"]  # fmt: skip


def test_the_latest_record_of_a_unit_counts_wherever_it_stands(folder: RunFolder) -> None:
    with folder.open_for_writing() as run:
        add_record(run)
    with folder.open_for_writing(shard=(1, 2)) as run:
        key = make_key()
        name, digest = run.write_image(key, 255 - PIXELS)
        run.append(make_record(key, name, digest))
        assert [record.image_sha256 for record in RunFolder(folder.path).records()] == [digest]
    assert [record.image_sha256 for record in RunFolder(folder.path).records()] == [digest]


@pytest.mark.parametrize("name", ["records.jsonl", "scores.jsonl"])
def test_shards_seal_no_torn_line(folder: RunFolder, name: str) -> None:
    """What a killed process left of a line goes before anything is sealed, or it would be missed when it goes later."""
    with folder.open_for_writing() as run:
        add_record(run)
        run.append_scores([ScoreRecord(unit="u", metric="lpips", version=1, value=0.5)])
    with (folder.path / name).open("a") as file:
        file.write('{"torn')
    for shard in ((1, 2), (2, 2)):
        with folder.open_for_writing(shard=shard):
            pass
    with folder.lock():
        pass
    assert broken_seals(folder.path) == [] and count_unsealed_lines(folder.path) == 0
    assert (folder.path / name).read_text().count("\n") == 1


def test_copies_of_a_shards_file_are_nobodys(folder: RunFolder) -> None:
    with folder.open_for_writing(shard=(1, 2)) as run:
        add_record(run)
        copy = folder.path / "records.1-of-2 (copy).jsonl"
        copy.write_bytes(part_path(folder.path, (1, 2)).read_bytes().replace(b'"seed":0', b'"seed":9'))
    with folder.open_for_writing():
        assert copy.exists() and [record.key.seed for record in folder.records()] == [0]


def test_a_file_system_without_locks_is_named(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    folder.path.mkdir(parents=True)
    with monkeypatch.context() as patched, pytest.raises(RiebenchError, match="--shard needs locks that the file"):
        patched.setattr(fcntl, "flock", refuse)
        with shard_lock(folder.path, (1, 2)):
            pass
    with folder.open_for_writing(shard=(1, 2)):
        pass


def test_the_brief_lock_is_not_waited_for_forever(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("riebench.utils.locks.BRIEF_LOCK_TIMEOUT", 0.05)
    folder.path.mkdir(parents=True)
    code = "import sys; from pathlib import Path; from riebench.utils.locks import brief_lock\n" \
           "with brief_lock(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"  # fmt: skip
    holder = subprocess.Popen([sys.executable, "-c", code, str(folder.path)], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, text=True)  # fmt: skip
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(FolderInUseError, match="look for one that hangs"), folder.open_for_writing(shard=(1, 2)):
            pass
    finally:
        holder.communicate()
    with brief_lock(folder.path):
        pass


def test_shards_are_written_as_i_of_n() -> None:
    assert parse_shard("2/4") == (2, 4)
    for text in ("0/4", "5/4", "2", "a/b", "-1/2", "1/2/3", ""):
        with pytest.raises(RiebenchError, match="write I/N for the I-th of N parts"):
            parse_shard(text)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a suite and a setting."""
    write_suite(tmp_path)
    return tmp_path


ONE_BY_ONE = ("--batch-size", "1")
"""What goes on in the middle of a batch shares its calls with others, and rounds otherwise; alone, bytes stay."""


def start(place: Path, shard: str, pause: str) -> PythonProcess:
    """A process of its own that makes one shard, and does what `pause` says after each record."""
    code = SLOW.replace("PAUSE", pause)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    line = run_arguments(place, "shards", "--shard", shard, *ONE_BY_ONE)
    return PythonProcess(["-c", code, *line], environment)


def wait_for_records(place: Path, part: str, process: PythonProcess) -> list[Path]:
    """Waits until a shard has recorded something, and returns the files where it has."""

    def written() -> list[Path]:
        return [file for file in (place / "shards").glob(f"*/*/*/records.{part}.jsonl") if file.read_bytes()]

    process.wait_until(written)
    return written()


def run_here(place: Path, results: str, *more: str) -> Any:
    """The command in this process, with scoring networks stood in for."""
    done = CliRunner().invoke(app, run_arguments(place, results, *ONE_BY_ONE, *more))
    assert done.exit_code == 0, done.output
    return done


def outputs(place: Path, results: str) -> dict[str, bytes]:
    """Tables and leaderboard."""
    files = [place / results / "leaderboard.md", *(place / results).glob("*/*/tables/*")]
    return {str(file.relative_to(place / results)): file.read_bytes() for file in files}


@pytest.mark.crash
def test_two_processes_one_of_them_killed_make_what_one_makes(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(riebench.scoring.score, "Networks", fake_networks)
    # The first enters the folder before the second does, and goes on when the second has been killed: which of them
    # is faster decides nothing.
    go_on = place / "go-on"
    first = start(place, "1/2", f"while not Path({str(go_on)!r}).exists(): time.sleep(0.02)")
    started = [first]
    try:
        wait_for_records(place, "1-of-2", first)
        # It is killed behind its first write: several records may come in one.
        second = start(place, "2/2", "time.sleep(600)")
        started.append(second)
        left = wait_for_records(place, "2-of-2", second)
        # Whoever comes without --shard, to make or to score, is refused at once.
        refused = CliRunner().invoke(app, run_arguments(place, "shards"))
        assert refused.exit_code == 2 and "is being written by another riebench" in refused.stderr
        second.send_signal(signal.SIGKILL)
        assert second.wait() == -signal.SIGKILL
        go_on.touch()
        status, errors = first.wait(), first.errors
        assert status == 0 and "shard 1/2 done" in errors and "without --shard" in errors, errors
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert left[0].exists()
    before = {(folder.spec.setting.name, record.key.digest): record for folder in find_run_folders(place / "shards")
              for record in folder.records()}  # fmt: skip
    assert UNITS / 2 < len(before) < UNITS
    run_here(place, "shards", "--shard", "2/2")
    folders = find_run_folders(place / "shards")
    assert sum(len(lines(folder)) for folder in folders) == sum(len(set(lines(folder))) for folder in folders) == UNITS
    for folder in folders:
        assert (
            part_files(folder.path) == [] and broken_seals(folder.path) == [] and count_unsealed_lines(folder.path) == 0
        )
        for record in folder.records():
            assert before.get((folder.spec.setting.name, record.key.digest), record) == record
    run_here(place, "shards")
    run_here(place, "alone")
    assert outputs(place, "shards") == outputs(place, "alone")
    assert len(outputs(place, "alone")) > 4
