"""The engine of several processes on this machine, for small models without a GPU.

PyTorch divides every operation among the cores. Those of a small network are so short that the cores wait for each
other more than they compute: processes that make pictures of their own, each with its share of the cores, make more of
them in the same time.

A process is started as a program of its own and not forked, since PyTorch's threads do not survive a fork, and since a
caller's script would otherwise be run again in every process. Messages go through its standard input and output.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from riebench.errors import reason
from riebench.generation.regions.options import DEFAULT_REGIONS
from riebench.models.lookup import ModelRecipe
from riebench.runs.distribution import suite_references
from riebench.runs.engines.coordinator import Say, WorkerLostError, run_with_workers
from riebench.runs.engines.worker import Assignment, Message, RunFailure, WorkerInfo, WorkerRunner, WorkItem
from riebench.runs.failures import STOP_AFTER
from riebench.runs.sae_check import known_saes
from riebench.store.folder import Redo, RunFolder
from riebench.tasks.schema import EditTask, Setting
from riebench.utils.hub import offline_mode
from riebench.utils.machine import usable_cores
from riebench.utils.processes.collector import pause_collector, resume_collector
from riebench.utils.processes.helpers import end_with_parent

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Environment variables that tell libraries how many cores to use."""
PROGRAM = "from riebench.runs.engines.processes import serve; serve()"
"""Program that a process runs."""
SMALL_MODEL = 50_000_000
"""Parameters of the largest model that gains more from processes than from threads."""
LEAST_UNITS = 300
"""Pictures from which on a second process gains more time than it takes to start: 5 to 10 seconds."""
MOST_WORKERS = 8
"""Processes that are started without having been asked for, at most."""
WORKER_BYTES = 1_500_000_000
"""Memory that a process takes with a small model, at most."""
EXAMPLES_TOGETHER = 8
"""Examples that a process makes at a time, so that its batches are full."""
PRINTED_LINES = 20
"""Last lines of what a process prints that are kept."""


def suitable_workers(units: int, works: int, parameters: int, cores: int, free: int) -> int:
    """Return how many processes make some pictures soonest, without a GPU.

    Args:
        units: pictures to make.
        works: examples with a seed that they belong to.
        parameters: number of the model's.
        cores: of this machine.
        free: bytes of free memory.

    Returns:
        At least 1, which stands for this process.
    """
    if parameters > SMALL_MODEL or units < LEAST_UNITS:
        return 1
    return max(1, min(cores, MOST_WORKERS, works, units // (LEAST_UNITS // 2), free // (2 * WORKER_BYTES)))


def run_in_processes(
    tasks: Sequence[EditTask], settings: Sequence[Setting], model: ModelRecipe, *, results_root: Path, workers: int,
    saes_source: str | None = None, seeds: Sequence[int] = (0,), limit: int | None = None,
    batch_size: int | None = None, regions: str = DEFAULT_REGIONS, redo: Redo = "missing",
    shard: tuple[int, int] = (1, 1), offline: bool = False, progress: bool = True,
    provenance: Mapping[str, Any] | None = None, pool: Sequence[EditTask] | None = None,
    say: Say = lambda _: None, stop_after: int = STOP_AFTER, accept_sae: bool = False,
) -> list[RunFolder]:  # fmt: skip
    """Run a benchmark in several processes of this machine.

    It does what `riebench.runs.runner.run_benchmark` does.

    Args:
        tasks: tasks of one suite.
        settings: configurations with different names.
        model: recipe of the model that each process loads.
        results_root: results folder, written by this process alone.
        workers: number of processes.
        saes_source: as in `run_benchmark`, as is all that follows.
        seeds: likewise.
        limit: likewise.
        batch_size: likewise.
        regions: likewise.
        redo: likewise.
        shard: likewise.
        offline: likewise.
        progress: likewise.
        provenance: likewise.
        pool: likewise.
        say: function that prints a line for people.
        stop_after: as in `run_benchmark`.
        accept_sae: likewise.

    Raises:
        RiebenchError: as `run_benchmark`.
    """
    suite = results_root / tasks[0].suite
    assignment = Assignment(
        tuple(tasks), tuple(settings), replace(model, device="cpu"), saes_source, batch_size, regions, offline,
        tuple(pool or tasks), tuple(seeds), limit, known_saes(suite), suite_references(suite),
    )  # fmt: skip
    threads = max(1, usable_cores() // workers)
    say(f"{workers} processes, each with {threads} core{'s' if threads > 1 else ''}")
    return run_with_workers(
        assignment, lambda: ProcessWorker(assignment, threads), workers, results_root=results_root, seeds=seeds,
        limit=limit, redo=redo, shard=shard, progress=progress, provenance=provenance or {}, say=say,
        stop_after=stop_after, accept_sae=accept_sae, most_together=EXAMPLES_TOGETHER,
    )  # fmt: skip


class ProcessWorker:
    """A worker in a process of this machine, as the coordinator sees it.

    Args:
        assignment: the run.
        threads: cores that the process uses.
    """

    def __init__(self, assignment: Assignment, threads: int) -> None:
        self._assignment, self._threads = assignment, threads
        modules = os.pathsep.join(os.path.abspath(place) for place in sys.path)
        self._process = subprocess.Popen(
            # The same modules as here, and none that lie in the working directory by chance.
            [sys.executable, "-P", "-c", PROGRAM],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads)), "PYTHONPATH": modules},
            # Ctrl-C is for the process that was started by hand, which then ends the others.
            start_new_session=True,
        )  # fmt: skip
        # What libraries print is of interest only if the process ends.
        self._printed: deque[bytes] = deque(maxlen=PRINTED_LINES)
        self._reading = threading.Thread(target=self._printed.extend, args=(self._process.stderr,), daemon=True)
        self._reading.start()

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    def setup(self) -> WorkerInfo | RunFailure:
        """Load the model; see `riebench.runs.engines.coordinator.Worker`."""
        with self._translate_errors():
            self._send((self._assignment, self._threads))
            answer: WorkerInfo | RunFailure = self._receive()
        return answer

    def make(self, item: WorkItem) -> Iterator[Message]:
        """Make a work item; see `riebench.runs.engines.coordinator.Worker`."""
        with self._translate_errors():
            self._send(item)
            while (message := self._receive()) is not None:
                yield message

    def stop(self) -> None:
        """End the process; see `riebench.runs.engines.coordinator.Worker`."""
        self._process.kill()
        self._process.wait()

    def _send(self, value: Any) -> None:
        assert self._process.stdin is not None
        _write(self._process.stdin, value)

    def _receive(self) -> Any:
        assert self._process.stdout is not None
        return pickle.load(self._process.stdout)

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            raise WorkerLostError(f"process {self.pid} {self._end_in_words()}") from error

    def _end_in_words(self) -> str:
        """Return how the process ended, with the last line that it printed."""
        self._process.kill()
        status = self._process.wait()
        self._reading.join()
        lines = (line.decode(errors="replace").strip() for line in reversed(self._printed))
        last = next(filter(None, lines), "")
        how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        return f"{how}: {last}" if last else how


def _write(stream: IO[bytes], value: Any) -> None:
    pickle.dump(value, stream, protocol=pickle.HIGHEST_PROTOCOL)
    stream.flush()


def serve() -> None:
    """Make work items until standard input ends; the program of a process.

    The first message is the assignment with the number of cores, and is answered by a `WorkerInfo` or `RunFailure`.
    Each of those that follow is a work item, answered by its messages and None.
    """
    # What libraries print must not get between the messages.
    incoming, outgoing = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    end_with_parent(os.getppid())
    assignment, threads = pickle.load(incoming)
    with suppress(EOFError, BrokenPipeError), offline_mode(assignment.offline):
        runner = _load(assignment, threads)
        _write(outgoing, runner if isinstance(runner, RunFailure) else runner.info)
        while isinstance(runner, WorkerRunner):
            for message in runner.make(pickle.load(incoming)):
                _write(outgoing, message)
            _write(outgoing, None)


def _load(assignment: Assignment, threads: int) -> WorkerRunner | RunFailure:
    import torch

    torch.set_num_threads(threads)
    pause_collector()
    try:
        runner = WorkerRunner(assignment)
    except Exception as error:
        return RunFailure(reason(error))
    # All that is loaded stays until the end.
    resume_collector(keep=True)
    return runner
