"""SIGTERM and SIGHUP end a command as Ctrl-C does: in order, in one line, with what is finished kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest
from paths import ROOT
from python_processes import PythonProcess
from small_suite import run_arguments, write_suite

from riebench.cli.common import ENDING_SIGNALS, SignalReceived

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")

JOB = """
import os, signal, sys, threading, time
from riebench.cli.common import friendly
import typer

@friendly
def verb() -> None:
    kind = sys.argv[1]
    try:
        print("working", flush=True)
        if kind == "thread":
            threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        time.sleep(60)
    finally:
        print("putting things in order", flush=True)
        time.sleep(60 if kind == "slow" else 0)
        print("in order", flush=True)

if sys.argv[1] == "ignored":
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
try:
    verb()
except typer.Exit as ended:
    sys.exit(ended.exit_code)
"""


def _usual_signals() -> None:
    """Let a process be interrupted and hung up on, whatever starts the tests ignores itself."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def start(kind: str, *, stderr: int = subprocess.PIPE) -> subprocess.Popen[str]:
    """A small job that is working."""
    started = subprocess.Popen(
        [sys.executable, "-c", JOB, kind], env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE,
        stderr=stderr, text=True, preexec_fn=_usual_signals,
    )  # fmt: skip
    assert started.stdout is not None and started.stdout.readline() == "working\n"
    return started


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_in_order_with_one_line(number: signal.Signals, status: int) -> None:
    started = start("plain")
    started.send_signal(number)
    out, errors = started.communicate(timeout=30)
    assert started.returncode == status and out == "putting things in order\nin order\n"
    assert errors == (
        f"riebench: stopped by {number.name}; everything finished so far is kept, and the same command goes on from "
        "there\n"
    )


@pytest.mark.parametrize(
    ("first", "second", "status"),
    [(signal.SIGTERM, signal.SIGTERM, 143), (signal.SIGTERM, signal.SIGINT, 130), (signal.SIGINT, signal.SIGHUP, 129)],
)
def test_a_second_signal_of_any_kind_ends_at_once(first: int, second: int, status: int) -> None:
    started = start("slow")
    started.send_signal(first)
    assert started.stdout is not None and started.stdout.readline() == "putting things in order\n"
    started.send_signal(second)
    out, errors = started.communicate(timeout=30)
    assert started.returncode == status and out == ""
    assert errors.endswith("riebench: ended at once; the same command goes on from what was finished\n")


def test_nohup_is_respected_and_a_closed_terminal_is_no_failure() -> None:
    ignored = start("ignored")
    ignored.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert ignored.poll() is None
    ignored.send_signal(signal.SIGTERM)
    ignored.communicate(timeout=30)
    assert ignored.returncode == 143
    master, slave = os.openpty()
    closed = start("plain", stderr=slave)
    os.close(slave)
    os.close(master)
    closed.send_signal(signal.SIGHUP)
    out, _ = closed.communicate(timeout=30)
    assert closed.returncode == 129 and out.endswith("in order\n")


def test_the_status_is_that_of_shells_and_threads_set_no_signals() -> None:
    numbers = {name: SignalReceived(getattr(signal, name)).exit_status for name in ENDING_SIGNALS}
    assert numbers == {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}
    from riebench.cli.common import friendly

    done: list[bool] = []

    @friendly
    def verb() -> None:
        done.append(True)

    thread = threading.Thread(target=verb)
    thread.start()
    thread.join()
    assert done == [True]


SLOW_RUN = """
import sys, time
import small_suite
from riebench.store.folder import RunFolder
append = RunFolder.append_many
def slowly(self, records):
    for record in records:
        append(self, [record])
        print("recorded", flush=True)
        time.sleep(0.2)
RunFolder.append_many = slowly
from riebench.cli.main import main
sys.argv = ["riebench", *sys.argv[1:]]
main()
"""


def run_until_recorded(place: Path, arguments: Sequence[str], number: int) -> tuple[int, str]:
    """Send a real run a signal once it has recorded something; return its status and what it said."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "helpers")])}
    started = PythonProcess(["-c", SLOW_RUN, *arguments], environment, cwd=place)
    try:
        started.wait_until(lambda: "recorded\n" in started.output)
        started.send_signal(number)
        return started.wait(), started.errors
    finally:
        started.kill()


def test_a_real_run_keeps_what_it_has_recorded(tmp_path: Path) -> None:
    write_suite(tmp_path)
    status, errors = run_until_recorded(tmp_path, run_arguments(tmp_path, "ended"), signal.SIGTERM)
    assert status == 143 and "Traceback" not in errors, errors
    assert [line for line in errors.splitlines() if line.startswith("riebench: ")] == [
        "riebench: stopped by SIGTERM; everything finished so far is kept, and the same command goes on from there"
    ]
    files = [file for file in (tmp_path / "ended").rglob("records*.jsonl") if file.read_bytes()]
    assert files and all(file.read_bytes().endswith(b"}\n") for file in files)


def test_ray_leaves_the_answer_to_a_signal_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray puts its own answer to SIGTERM in the place of ours, also when one comes while it starts."""
    from riebench.runs.engines.ray import cluster

    seen: list[str] = []

    def answer(number: int, _: object) -> None:
        seen.append(signal.Signals(number).name)

    interrupted = iter((False, True))

    def init(**_: object) -> None:
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))
        if next(interrupted):
            signal.raise_signal(signal.SIGTERM)

    fake = ModuleType("ray")
    fake.__dict__.update(init=init, is_initialized=lambda: False, shutdown=lambda: None)
    fake.__spec__ = ModuleSpec("ray", None)
    monkeypatch.setitem(sys.modules, "ray", fake)
    usual = signal.signal(signal.SIGTERM, answer)
    try:
        for _ in range(2):
            with cluster(None):
                assert signal.getsignal(signal.SIGTERM) is answer
        assert seen == ["SIGTERM"]
    finally:
        signal.signal(signal.SIGTERM, usual)
