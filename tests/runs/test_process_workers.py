"""Workers in processes of this machine: the same numbers as one process, and when there are several of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from small_suite import run_arguments, write_suite
from thread_workers import EXAMPLES, RECIPE, SETTINGS, assert_same, assignment, run_in_threads
from thread_workers import expected as expected
from thread_workers import loaded_models as loaded_models
from tiny import tiny_saes
from tiny_runs import task
from typer.testing import CliRunner

from riebench.cli.main import app
from riebench.errors import RiebenchError
from riebench.jobs import run as job
from riebench.jobs.request import EngineOptions, RunRequest
from riebench.models.loading import LoadedModel
from riebench.models.lookup import ModelRecipe
from riebench.registry import METHODS
from riebench.runs import engines
from riebench.runs.engines import processes
from riebench.runs.engines.processes import (
    LEAST_UNITS,
    MOST_WORKERS,
    SMALL_MODEL,
    WORKER_BYTES,
    ProcessWorker,
    suitable_workers,
)
from riebench.runs.engines.worker import Message, UnitResult, WorkItem
from riebench.store.folder import RunFolder, find_run_folders

PLENTY = 100 * WORKER_BYTES


@pytest.mark.crash
def test_two_processes_one_of_them_killed_make_what_one_makes(
    tmp_path: Path, expected: list[RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[int] = []
    original = ProcessWorker.make

    def make(self: ProcessWorker, item: WorkItem) -> Iterator[Message]:
        # Killed while it makes an example, as the system does when memory runs out.
        for message in original(self, item):
            yield message
            if isinstance(message, UnitResult) and not killed:
                killed.append(self.pid)
                os.kill(self.pid, signal.SIGKILL)

    monkeypatch.setattr(ProcessWorker, "make", make)
    lines: list[str] = []
    found = engines.run(
        "processes", [task(EXAMPLES)], SETTINGS, replace(RECIPE, device="cuda"), results_root=tmp_path,
        saes_source=str(tiny_saes()), batch_size=2, progress=False, workers=2, say=lines.append,
    )  # fmt: skip
    assert_same(found, expected)
    assert len(killed) == 1 and not psutil.pid_exists(killed[0])
    assert lines[0].startswith("2 processes, each with ")
    assert f"a worker was lost (process {killed[0]} was ended by SIGKILL); another one takes over" in lines
    assert found[0].provenance["workers"] == 2 and found[0].provenance["device"] == "cpu"


def test_a_process_that_cannot_start_is_reported_with_its_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "PROGRAM", "raise SystemExit('no such library\\n')")
    with pytest.raises(RiebenchError, match=r"process \d+ ended with status 1: no such library\); is there memory"):
        run_in_threads(tmp_path, lambda: ProcessWorker(assignment(), 1), count=1)


@pytest.mark.crash
def test_processes_end_with_the_one_that_started_them() -> None:
    code = (
        "import os, signal, time\n"
        "from types import SimpleNamespace\n"
        "from riebench.runs.engines.processes import ProcessWorker\n"
        "print(ProcessWorker(SimpleNamespace(), 1).pid, flush=True)\n"
        "time.sleep(2)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL
    pid, end = int(done.stdout), time.monotonic() + 20
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end, "the process outlived the one that started it"
        time.sleep(0.1)


def test_the_command_makes_the_same_pictures_in_processes(tmp_path: Path) -> None:
    write_suite(tmp_path)
    for results, workers in (("one", "1"), ("two", "2")):
        done = CliRunner().invoke(app, run_arguments(tmp_path, results, "--workers", workers))
        assert done.exit_code == 0, done.output
        assert ("2 processes" in done.stderr) == (workers == "2")
    one, two = (find_run_folders(tmp_path / results) for results in ("one", "two"))
    assert_same(two, one)
    assert (tmp_path / "one" / "leaderboard.csv").read_text() == (tmp_path / "two" / "leaderboard.csv").read_text()


def test_there_are_several_for_many_pictures_of_a_small_model_alone() -> None:
    assert suitable_workers(10 * LEAST_UNITS, 50, 10**7, 2, PLENTY) == 2
    assert suitable_workers(10**6, 10**4, 10**7, 64, PLENTY) == MOST_WORKERS
    assert suitable_workers(10**6, 10**4, 10**7, 64, 5 * WORKER_BYTES) == 2
    assert suitable_workers(10**6, 3, 10**7, 64, PLENTY) == 3
    assert suitable_workers(LEAST_UNITS, 10, 10**7, 64, PLENTY) == 2
    for units, works, parameters, cores, free in (
        (LEAST_UNITS - 1, 100, 10**7, 8, PLENTY),
        (10**6, 100, SMALL_MODEL + 1, 8, PLENTY),
        (10**6, 100, 10**7, 1, PLENTY),
        (10**6, 1, 10**7, 8, PLENTY),
        (10**6, 100, 10**7, 8, WORKER_BYTES),
    ):
        assert suitable_workers(units, works, parameters, cores, free) == 1


def request_with(results: Path, **engine: Any) -> RunRequest:
    return RunRequest(suite="toy", settings=("no_edit", "sae"), results=results, engine=EngineOptions(**engine))


def workers_of(request: RunRequest) -> int:
    return job.local_workers(request, *request.plan())


def test_a_run_chooses_processes_by_what_is_left_to_make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "usable_cores", lambda: 4)
    monkeypatch.setattr(job, "free_ram", lambda: PLENTY)
    whole = request_with(tmp_path)
    assert workers_of(whole) == 4
    assert workers_of(replace(whole, limit=1)) == 1
    assert workers_of(request_with(tmp_path, shard=(1, 2))) == 1
    assert workers_of(request_with(tmp_path, workers=1)) == 1
    units = whole.units(*whole.plan())
    almost = {"sae": {unit.key.digest for unit in units}}
    done = SimpleNamespace(device="cpu", units=units, done=almost, shape=SimpleNamespace(parameters={"unet": 1}))
    monkeypatch.setattr(job, "prepare_forecast", lambda request: SimpleNamespace(planned=done))
    assert workers_of(whole) == 1
    done.done = {}
    assert workers_of(whole) == 4
    done.device = "cuda"
    assert workers_of(whole) == 1


def test_what_processes_cannot_do_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = request_with(tmp_path, workers=2)
    with monkeypatch.context() as patch:
        patch.setattr(job, "pick_device", lambda device: "cuda")
        with pytest.raises(RiebenchError, match="--workers 2: processes would share cuda; use --engine ray"):
            workers_of(request)
    monkeypatch.setattr(
        type(METHODS), "defined", lambda self: frozenset({"sae_sum"}) if self is METHODS else frozenset()
    )
    sae = replace(request, settings=("sae",))
    name = sae.plan()[1][0].method
    monkeypatch.setattr(type(METHODS), "defined", lambda self: frozenset({name}))
    with pytest.raises(RiebenchError, match=f"--workers 2: processes do not know '{name}', a function defined here"):
        workers_of(sae)
    assert workers_of(request_with(tmp_path)) == 1


def test_the_model_is_not_loaded_where_processes_load_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: ModelRecipe) -> LoadedModel:
        raise AssertionError("this process loads the model too")

    def far(*args: Any, workers: int, **options: Any) -> list[RunFolder]:
        asked.append((args[2].name, workers, options["provenance"]["engine"]))
        raise RiebenchError("enough")

    asked: list[tuple[str, int, str]] = []
    monkeypatch.setattr(ModelRecipe, "load", refuse)
    monkeypatch.setitem(engines.ENGINES, "processes", far)
    with pytest.raises(RiebenchError, match="enough"):
        job.run_job(request_with(tmp_path, workers=3), lambda line: None)
    assert asked == [("toy-turbo", 3, "local")]
