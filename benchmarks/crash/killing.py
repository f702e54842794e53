"""Job in a process of its own, killed at a moment, with a report of its plans."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from riebench.jobs.request import RunRequest
from riebench.jobs.run import run_job

PHASES = ("run", "score", "tables", "report")
"""What a kill may hit: pictures, scores, tables with leaderboard and galleries, and the page."""
PATIENCE = 900.0
"""Seconds after which a run counts as hanging."""
OPERATIONS = ("fsync", "replace", "link")
"""Calls of `os` by which anything comes to the disk."""


@dataclass(frozen=True)
class Moment:
    """Moment of a kill.

    Attributes:
        operation: before the so many-th call of one of `OPERATIONS`; None for a moment of the clock.
        phase: a moment of the clock in this phase,
        delay: so many seconds after its beginning.
    """

    operation: int | None = None
    phase: str = PHASES[0]
    delay: float = 0.0


@dataclass(frozen=True)
class Ending:
    """End of a run.

    Attributes:
        killed: by us; otherwise it came to its end.
        operations: how many of `OPERATIONS` it made, if it came to its end.
        seconds: phase -> how long it took, as far as it got.
        planned: "SETTING UNIT" and "SETTING UNIT METRIC" of what it set out to compute.
    """

    killed: bool
    operations: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    planned: frozenset[str] = frozenset()


def run(job: RunRequest, moment: Moment | None = None) -> Ending:
    """Run a job in a process of its own, and kill it at a moment.

    Args:
        job: what to run.
        moment: the moment of the kill; None lets the job finish.

    Raises:
        AssertionError: if it fails by itself, is ended by anything but us, or hangs.
    """
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(reader)
        _perform(job, writer, moment)
    os.close(writer)
    try:
        return _Watch(process, reader, moment).ending()
    finally:
        os.close(reader)


def _perform(job: RunRequest, writer: int, moment: Moment | None) -> None:
    """Run the job in the child process; never returns."""
    code = 1
    try:
        import torch
        from tqdm import tqdm

        # Threads do not survive a fork; with one alone none are asked for.
        torch.set_num_threads(1)
        # The bars' own lock is shared by all forks: whoever is killed holding it would stop all later ones.
        tqdm.set_lock(threading.RLock())
        with contextlib.ExitStack() as stack:
            log = stack.enter_context(tempfile.TemporaryFile("w+"))
            stack.enter_context(contextlib.redirect_stdout(log))
            stack.enter_context(contextlib.redirect_stderr(log))
            count = _count_operations(stack, None if moment is None else moment.operation)
            for phase, place in _BEGINNINGS.items():
                stack.enter_context(_marked(phase, place, writer))
            _report_plans(stack, writer)
            os.write(writer, b"begins run\n")
            run_job(job, lambda _: None)
            os.write(writer, f"ends {count[0]}\n".encode())
        code = 0
    except BaseException:
        os.write(writer, ("fails " + traceback.format_exc()).encode()[:60000])
    finally:
        os._exit(code)


_BEGINNINGS = {
    "score": "riebench.scoring.score.score", "tables": "riebench.jobs.run.write_tables",
    "report": "riebench.jobs.run.say_page",
}  # fmt: skip


@contextlib.contextmanager
def _marked(phase: str, place: str, writer: int) -> Iterator[None]:
    from pydoc import locate

    original: Any = locate(place)

    def begin(*args: Any, **options: Any) -> Any:
        os.write(writer, f"begins {phase}\n".encode())
        return original(*args, **options)

    with patch(place, begin):
        yield


def _count_operations(stack: contextlib.ExitStack, last: int | None) -> list[int]:
    count = [0]
    for name in OPERATIONS:
        original: Callable[..., Any] = getattr(os, name)

        def counted(*args: Any, _original: Callable[..., Any] = original, **options: Any) -> Any:
            count[0] += 1
            if count[0] == last:
                os.kill(os.getpid(), signal.SIGKILL)
            return _original(*args, **options)

        stack.enter_context(patch.object(os, name, counted))
    return count


def _report_plans(stack: contextlib.ExitStack, writer: int) -> None:
    """Send the parent all units and scores that are about to be computed.

    The stored files show only those that were finished.
    """
    from riebench.runs.runner import Runner
    from riebench.scoring.score import FolderScores

    run, missing = Runner.run, FolderScores.missing

    def reported_run(runner: Runner, works: Any, *rest: Any) -> None:
        units = [unit for work in works for unit in work.units]
        os.write(writer, "".join(f"plans {unit.setting.name} {unit.key.digest}\n" for unit in units).encode())
        run(runner, works, *rest)

    def reported_missing(scores: FolderScores, record: Any, example: Any, metrics: Any) -> Any:
        found = missing(scores, record, example, metrics)
        unit = f"{scores.folder.spec.setting.name} {record.key.digest}"
        os.write(writer, "".join(f"plans {unit} {metric.name}\n" for metric in found).encode())
        return found

    stack.enter_context(patch.object(Runner, "run", reported_run))
    stack.enter_context(patch.object(FolderScores, "missing", reported_missing))


class _Watch:
    """Parent's side: reads from the child, and kills it when its moment has come."""

    def __init__(self, process: int, reader: int, moment: Moment | None) -> None:
        self.process, self.reader, self.moment = process, reader, moment
        self.text = ""
        self.began: dict[str, float] = {}
        self.kill_at: float | None = None

    def ending(self) -> Ending:
        """Wait for the child's end and return it."""
        while True:
            wait = PATIENCE if self.kill_at is None else max(0.0, self.kill_at - time.monotonic())
            ready, _, _ = select.select([self.reader], [], [], min(wait, PATIENCE))
            if not ready:
                os.kill(self.process, signal.SIGKILL)
                os.waitpid(self.process, 0)
                assert self.kill_at is not None, f"nothing was heard for {PATIENCE:g} s: {self.text}"
                return self._ended(killed=True)
            data = os.read(self.reader, 65536)
            if not data:
                return self._over()
            self._hear(data.decode(errors="replace"))

    def _hear(self, text: str) -> None:
        self.text += text
        for phase in re.findall(r"^begins (\w+)\n", self.text, re.MULTILINE):
            if phase not in self.began:
                self.began[phase] = time.monotonic()
                if self.moment is not None and self.moment.operation is None and self.moment.phase == phase:
                    self.kill_at = self.began[phase] + self.moment.delay

    def _over(self) -> Ending:
        """Return the end of a child that has closed its side of the pipe.

        It has ended by itself, or it was killed before an operation because `Moment.operation` asked for that.

        Raises:
            AssertionError: if it failed, or was ended by a signal that was not ours.
        """
        _, status = os.waitpid(self.process, 0)
        if os.WIFSIGNALED(status):
            asked = self.moment is not None and self.moment.operation is not None
            ours = asked and os.WTERMSIG(status) == signal.SIGKILL
            assert ours, f"the run was ended by signal {os.WTERMSIG(status)}, which was not ours: {self.text}"
            return self._ended(killed=True)
        ended = re.search(r"^ends (\d+)\n", self.text, re.MULTILINE)
        assert ended is not None, f"the run failed by itself: {self.text}"
        return self._ended(killed=False, operations=int(ended[1]))

    def _ended(self, *, killed: bool, operations: int = 0) -> Ending:
        times = [*self.began.values(), time.monotonic()]
        seconds = {phase: times[index + 1] - times[index] for index, phase in enumerate(self.began)}
        planned = frozenset(re.findall(r"^plans (.+)\n", self.text, re.MULTILINE))
        return Ending(killed, operations, seconds, planned)
