"""Python processes that begin as forks of the one that tests, so that they need not import the large libraries again.

What lies in the checkout is imported anew in them, from the paths that a fresh process would have. Tests of what a
start imports, and of how libraries read their settings, need a fresh process.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from io import FileIO, TextIOWrapper
from multiprocessing.process import BaseProcess
from pathlib import Path
from subprocess import CompletedProcess
from types import ModuleType

import torch
from paths import ROOT

TESTS = ROOT / "tests"
PATIENCE = 300.0
"""Seconds after which a process counts as hanging."""
_forgotten: list[ModuleType] = []
"""Modules that a fork imports anew: some hold folders that would be deleted with them."""


def can_fork() -> bool:
    """Whether a fork can do what a fresh process does: where a GPU may have been used, it cannot use it."""
    return sys.platform == "linux" and not torch.cuda.is_available()


class PythonProcess:
    """Python with some arguments in a process of its own, as a fork where that can be; its output goes to files.

    Args:
        arguments: "-c CODE ..." or "-m MODULE ...".
        environment: of the process; None for this one's.
        cwd: where it runs.
    """

    def __init__(
        self, arguments: Sequence[str], environment: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="riebench-output-")
        files = [Path(self._folder.name) / name for name in ("out", "err")]
        self._out, self._err = files
        environment = dict(os.environ if environment is None else environment)
        self._process: subprocess.Popen[bytes] | BaseProcess
        if can_fork():
            for file in files:
                file.touch()
            self._process = multiprocessing.get_context("fork").Process(
                target=_perform, args=(list(arguments), environment, cwd or Path.cwd(), files)
            )
            self._process.start()
        else:
            line = [sys.executable, *arguments]
            with self._out.open("wb") as out, self._err.open("wb") as err:
                self._process = subprocess.Popen(line, env=environment, cwd=cwd, stdout=out, stderr=err)

    def poll(self) -> int | None:
        """Return the status it ended with, the signal's number below zero; None while it runs."""
        return self._process.poll() if isinstance(self._process, subprocess.Popen) else self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        """End it at once, if it still runs."""
        self._process.kill()

    def wait(self, timeout: float = PATIENCE) -> int:
        """Wait for its end and return the status.

        Raises:
            AssertionError: if it takes too long.
        """
        if isinstance(self._process, subprocess.Popen):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout)
        else:
            self._process.join(timeout)
        status = self.poll()
        assert status is not None, f"still there after {timeout:g} s: {self.errors}"
        return status

    def wait_until(self, condition: Callable[[], object], timeout: float = PATIENCE) -> None:
        """Wait until something is so while the process runs.

        Raises:
            AssertionError: if the process ends first, or if it takes too long.
        """
        deadline = time.monotonic() + timeout
        while not condition():
            assert self.poll() is None and time.monotonic() < deadline, self.errors
            time.sleep(0.01)

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self._out.read_text(encoding="utf-8", errors="replace")

    @property
    def errors(self) -> str:
        """What it has said so far, its errors among it."""
        return self._err.read_text(encoding="utf-8", errors="replace")


def run_python(
    *arguments: str, environment: Mapping[str, str] | None = None, cwd: Path | None = None
) -> CompletedProcess[str]:
    """Run Python to its end, and return its output and status; see `PythonProcess`."""
    process = PythonProcess(arguments, environment, cwd)
    try:
        status = process.wait()
    finally:
        process.kill()
    return CompletedProcess(list(arguments), status, process.output, process.errors)


def _perform(arguments: list[str], environment: Mapping[str, str], cwd: Path, files: Sequence[Path]) -> None:
    """Do in the child process what Python does with these arguments."""
    for number, file in enumerate((Path(os.devnull), *files)):
        os.dup2(os.open(file, os.O_RDWR), number)
    sys.stdin, sys.stdout, sys.stderr = (
        TextIOWrapper(FileIO(number, "rww"[number], closefd=False), encoding="utf-8", line_buffering=number == 2)
        for number in range(3)
    )
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    _forget_the_checkout()
    paths = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = ["", *paths, *(path for path in sys.path if not Path(path).is_relative_to(TESTS))]
    importlib.invalidate_caches()
    kind, what, *rest = arguments
    sys.argv = [kind, *rest]
    if kind == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})


def _forget_the_checkout() -> None:
    """Let everything that lies in the checkout be imported anew."""
    from tqdm import tqdm

    # Threads do not survive a fork; with one alone none are asked for. The bars' lock is shared by all forks.
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())
    for name in [None, *logging.root.manager.loggerDict]:
        if name is None or name.partition(".")[0] == "riebench":
            logging.getLogger(name).handlers.clear()
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name.partition(".")[0] in ("riebench", "benchmarks") or (file and Path(file).is_relative_to(TESTS)):
            _forgotten.append(sys.modules.pop(name))
