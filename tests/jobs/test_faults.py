"""Full and read-only disks, flipped bits, clocks that go backwards, two runners, Ctrl-C: what is reported and kept."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from records import make_key, make_record
from tiny_jobs import UNITS, job_lines, last_line, records_by_setting, run_command

from riebench.errors import StoreError
from riebench.jobs.request import RunRequest
from riebench.jobs.run import run_job
from riebench.report.output import OutputFolder
from riebench.store.folder import RunFolder, find_run_folders
from riebench.store.run_file import broken_seals
from riebench.store.shared import SharedFolder
from riebench.utils import files
from riebench.utils.files import append_lines, is_temporary, remove_stale_files, temporary_path, write_atomic
from riebench.utils.images import encode_png, is_intact, read_image

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)


def add(folder: RunFolder, **changes: object) -> Path:
    key = make_key(**changes)
    name, digest = folder.write_image(key, PIXELS)
    folder.append(make_record(key, name, digest))
    return folder.path / name


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a small file system in memory; skips where that is not allowed."""
    place = tmp_path / "mounted"
    place.mkdir()

    def mount(options: str) -> Path:
        again = ["remount,"] if os.path.ismount(place) else [""]
        line = ["mount", "-t", "tmpfs", "-o", f"{again[0]}{options}", "tmpfs", str(place)]
        if shutil.which("mount") is None or subprocess.run(line, capture_output=True).returncode:
            pytest.skip("mounting is not allowed here")
        return place

    yield mount
    if os.path.ismount(place):
        subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_reported_and_the_run_goes_on_when_there_is_room(
    job: RunRequest, mounted: Callable[[str], Path]
) -> None:
    job = replace(job, results=mounted("size=100k") / "out")
    full = run_command(job, "--no-report")
    assert full.exit_code == 2
    assert last_line(full).startswith("riebench: the disk is full; everything finished so far is kept")
    kept = {path: path.read_bytes() for path in job.results.rglob("records*.jsonl")}
    assert not [path for path in job.results.rglob("*") if is_temporary(path.name)]
    mounted("size=50m")
    assert run_command(job, "--no-report").exit_code == 0
    for path, data in kept.items():
        assert path.read_bytes().startswith(data)
    lines = [line for path in job.results.rglob("records.jsonl") for line in path.read_text().splitlines()]
    assert len(lines) == UNITS
    assert [finding for folder in find_run_folders(job.results) for finding in broken_seals(folder.path)] == []


def test_a_read_only_folder_is_one_line(job: RunRequest, mounted: Callable[[str], Path]) -> None:
    refused = run_command(replace(job, results=mounted("ro,size=1m") / "out"))
    assert refused.exit_code == 2
    assert "cannot be written (Read-only file system); use another folder with --results" in last_line(refused)


def test_results_that_became_read_only_are_one_line(job: RunRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(arguments[0]))

    monkeypatch.setattr(os, "replace", refuse)
    refused = run_command(job)
    assert refused.exit_code == 2 and "cannot be written (Read-only file system)" in last_line(refused)


def test_every_flipped_byte_of_a_stored_picture_is_found(tmp_path: Path) -> None:
    path, data = tmp_path / "p.png", encode_png(PIXELS)
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :])
        assert not is_intact(path), place
        with pytest.raises(StoreError, match="delete it and repeat `riebench run`"):
            read_image(path.parent, path.name)
    path.write_bytes(data)
    assert is_intact(path) and np.array_equal(read_image(path.parent, path.name), PIXELS)


def test_a_flipped_byte_in_a_picture_is_reported_and_the_picture_made_again(job: RunRequest) -> None:
    job = replace(job, settings=job.settings[1:], batch_size=1)
    run_job(job, lambda _: None)
    (folder,) = find_run_folders(job.results)
    record = folder.records()[0]
    edited, source = folder.path / str(record.image), folder.shared.path / str(record.source_image)
    before = {path: path.read_bytes() for path in (edited, source)}
    for path, data in before.items():
        path.write_bytes(data[:-30] + bytes([data[-30] ^ 1]) + data[-29:])
        lines: list[str] = []
        run_job(job, lines.append)
        assert any("not as riebench wrote them" in line and path.name in line for line in lines)
        assert path.read_bytes() == data
    assert not any("not as riebench wrote them" in line for line in job_lines(job))
    # Also where no record is asked: everything is made anew, or by another setting.
    for changes in ({"redo": "all"}, {"settings": ("no_edit",)}):
        source.write_bytes(b"no picture")
        assert any("not as riebench wrote them" in line and source.name in line for line in job_lines(job, **changes))
        assert source.read_bytes() == before[source]


def test_what_settings_share_is_looked_at_once(job: RunRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    run_job(job, lambda _: None)
    looked: list[str] = []
    original = SharedFolder.is_intact

    def count_call(self: SharedFolder, name: str) -> bool:
        looked.append(name)
        return original(self, name)

    monkeypatch.setattr(SharedFolder, "is_intact", count_call)
    run_job(job, lambda _: None)
    pictures = [*job.results.glob("*/*/shared/images/*"), *job.results.glob("*/*/shared/masks/*.json")]
    assert len(find_run_folders(job.results)) > 1
    assert sorted(looked) == sorted(f"{path.parent.name}/{path.name}" for path in pictures)


def test_litter_of_killed_processes_goes_and_that_of_others_stays(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    mine = temporary_path(tmp_path / "deep" / "a.png")
    dead = mine.with_name(mine.name.replace(f"-{os.getpid()}-", f"-{ended.pid}-"))
    elsewhere = dead.with_name(".a.png.00000000-" + dead.name.split("-", 1)[1])
    mine.parent.mkdir()
    for path in (mine, dead, elsewhere, tmp_path / ".own.tmp"):
        path.touch()
    assert remove_stale_files(tmp_path) == 1
    assert {path.name for path in tmp_path.rglob("*.tmp")} == {mine.name, elsewhere.name, ".own.tmp"}


def test_processes_of_other_containers_are_not_taken_for_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = []
    try:
        for container in ("pid:[1]", "pid:[2]"):
            monkeypatch.setattr(os, "readlink", lambda _, container=container: container)
            files._machine_id.cache_clear()
            mine = temporary_path(tmp_path / "a.png")
            left.append(mine.with_name(mine.name.replace(f"-{os.getpid()}-", f"-{ended.pid}-")))
            left[-1].touch()
        assert remove_stale_files(tmp_path) == 1
        assert list(tmp_path.iterdir()) == left[:1]
    finally:
        files._machine_id.cache_clear()


def test_a_page_whose_making_was_killed_at_once_is_made(tmp_path: Path) -> None:
    out = tmp_path / "report"
    out.mkdir()
    temporary_path(out / "files.json").touch()
    folder = OutputFolder(out)
    folder.add("data", "x.js", "1")
    assert folder.finish("<p>").read_text() == "<p>"


def test_a_clock_that_goes_backwards_changes_nothing(job: RunRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    job = replace(job, settings=job.settings[1:], blocks="mid.0", batch_size=1)
    run_job(job, lambda _: None)
    (before,) = find_run_folders(job.results)
    monkeypatch.setattr(time, "time", lambda: 3.0)
    monkeypatch.setattr(time, "time_ns", lambda: 3_000_000_000)
    later = replace(job, results=job.results.with_name("later"), leaderboard=job.results.with_name("later.md"))
    run_job(later, lambda _: None)
    (after,) = find_run_folders(later.results)
    assert [record.image_sha256 for record in after.records()] == [record.image_sha256 for record in before.records()]
    os.utime(before.path / "records.jsonl", (1, 1))
    run_job(later, lambda _: None)
    assert len((after.path / "records.jsonl").read_text().splitlines()) == len(after.records())


def test_durations_are_never_negative() -> None:
    """The wall clock is asked for dates only: whoever sets it back makes no duration negative."""
    package = Path(sys.modules["riebench"].__file__ or "").parent
    asked = [path.name for path in package.rglob("*.py") if "time.time(" in path.read_text(encoding="utf-8")]
    assert asked == []


def test_ctrl_c_while_writing_keeps_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "records.jsonl"
    append_lines(file, ['{"a":1}'])

    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        append_lines(file, ['{"a":2}'])
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "x", b"1")
    assert file.read_text() == '{"a":1}\n' and [path.name for path in tmp_path.iterdir()] == ["records.jsonl"]


SLOW_TO_STOP = """
import sys, time
import typer
from riebench.cli.common import friendly

@friendly
def verb():
    try:
        print("working", flush=True)
        time.sleep(60)
    finally:
        print("putting things in order", flush=True)
        time.sleep(float(sys.argv[1]))
        print("in order", flush=True)

try:
    verb()
except typer.Exit as ended:
    sys.exit(ended.exit_code)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
@pytest.mark.parametrize("twice", [False, True])
def test_the_first_ctrl_c_ends_in_order_and_the_second_at_once(twice: bool) -> None:
    # Half a second, or both lines would come at once, and the second one be lost in the reader of the first.
    started = subprocess.Popen(
        [sys.executable, "-c", SLOW_TO_STOP, "60" if twice else "0.5"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert started.stdout is not None
    assert started.stdout.readline() == "working\n"
    started.send_signal(signal.SIGINT)
    assert started.stdout.readline() == "putting things in order\n"
    if twice:
        started.send_signal(signal.SIGINT)
    out, errors = started.communicate(timeout=50)
    assert "stopping; Ctrl-C again ends at once" in errors and "Traceback" not in errors
    assert started.returncode == 130
    if twice:
        assert out == "" and errors.endswith("ended at once; the same command goes on from what was finished\n")
    else:
        assert out == "in order\n" and "everything finished so far is kept" in errors


def test_two_runners_of_one_job(job: RunRequest) -> None:
    """The second is refused at once, in one line; the first goes on."""
    run_job(job, lambda _: None)
    before = {path: path.read_bytes() for path in job.results.rglob("*.jsonl")}
    with find_run_folders(job.results)[0].open_for_writing():
        refused = run_command(job)
    assert refused.exit_code == 2 and "is being written by another riebench; wait for it to end" in last_line(refused)
    assert {path: path.read_bytes() for path in job.results.rglob("*.jsonl")} == before
    assert sum(map(len, records_by_setting(job).values())) == UNITS
