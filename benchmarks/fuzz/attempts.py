"""Outcome of one input: read, refused in one line, or a finding.

Time, peak memory and the files that the reader touches are watched as well.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.fuzz.inputs import SECRET, Files, Reader
from riebench.errors import RiebenchError
from riebench.utils.machine import peak_ram

SECONDS = 3.0
"""Processor time that one input may take."""
LONGEST_LINE = 5000
READ, REFUSED = "read", "refused"
"""What may become of an input; anything else is a finding."""
NAMED = frozenset({"/etc/passwd", os.path.expanduser("~/x")})
"""Files far away that hostile words name."""
TOUCHING = {"open": 1, "os.listdir": 1, "os.scandir": 1, "os.mkdir": 1, "os.remove": 1, "os.rmdir": 1, "os.truncate": 1,
            "os.rename": 2, "os.link": 2}  # fmt: skip
"""What Python tells of files -> how many paths it names."""


class TooLongError(BaseException):
    """Error of an input that took too much processor time.

    It is a `BaseException`, which readers that catch every `Exception` do not catch.
    """


@dataclass
class Findings:
    """Outcomes of one reader's inputs.

    Attributes:
        inputs: how many there were.
        read: accepted.
        refused: refused in one line.
        wrong: what should not have happened -> how often.
        slowest: processor seconds of the slowest input.
        largest: size of this process in MB, at most.
        first: kind of wrong -> the first such input's files.
    """

    inputs: int = 0
    read: int = 0
    refused: int = 0
    wrong: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    largest: int = 0
    first: dict[str, Files] = field(default_factory=dict)

    def add(self, kind: str, files: Files) -> None:
        """Count the outcome of an input; keep the first files of each kind of finding."""
        if kind == READ:
            self.read += 1
        elif kind == REFUSED:
            self.refused += 1
        else:
            self.wrong[kind] += 1
            self.first.setdefault(kind, files)


class _Watch:
    """Record of the files touched outside the folder that a reader is given."""

    def __init__(self) -> None:
        self.place: str | None = None
        self.strayed: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.place is None:
            return
        for path in arguments[: TOUCHING.get(event, 0)]:
            if isinstance(path, str | bytes | os.PathLike) and self._strays(os.fsdecode(path)):
                self.strayed.append(os.fsdecode(path))

    def _strays(self, path: str) -> bool:
        beside, real = os.path.dirname(str(self.place)), os.path.realpath(path)
        return real in NAMED or (_is_below(real, beside) and not _is_below(real, str(self.place)))


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + os.sep)


_WATCH: list[_Watch] = []


def attempt(reader: Reader, files: Files, root: Path, findings: Findings) -> None:
    """Give a reader one input.

    Args:
        reader: the reader under test.
        files: path below the reader's folder -> content.
        root: an empty folder; the reader's folder is made in it, with a file to be left alone beside.
        findings: gets the outcome.
    """
    if not _WATCH:
        _WATCH.append(_Watch())
    findings.inputs += 1
    with laid_out(root / "case", files) as place:
        before = time.thread_time()
        kind = _outcome(reader, place)
        findings.slowest = max(findings.slowest, time.thread_time() - before)
    findings.add(kind, files)


def _outcome(reader: Reader, place: Path) -> str:
    kind = READ
    try:
        with _timed(), _watched(place):
            reader.read(place)
    except RiebenchError as error:
        kind = _complaint(str(error))
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        # What compiled code raises when it panics is no Exception either.
        kind = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
    strayed = _WATCH[0].strayed
    return f"opened {strayed[0][-60:]}" if strayed else kind


def _complaint(text: str) -> str:
    if not text or len(text.splitlines()) != 1 or not text.isprintable() or len(text) > LONGEST_LINE:
        return f"a message of {len(text.splitlines())} lines and {len(text)} characters: {text[:60]!r}"
    return REFUSED


@contextlib.contextmanager
def laid_out(place: Path, files: Files) -> Iterator[Path]:
    """Keep files in a folder for the `with` block.

    Beside the folder lies one more file, which must be left alone.
    """
    outside = place.parent / "outside"
    if not outside.exists():
        outside.mkdir(parents=True)
        (outside / SECRET).write_bytes(b"not to be read")
    for name, data in files.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


@contextlib.contextmanager
def _watched(place: Path) -> Iterator[None]:
    watch = _WATCH[0]
    watch.strayed, watch.place = [], os.path.realpath(place)
    try:
        yield
    finally:
        watch.place = None


@contextlib.contextmanager
def _timed() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TooLongError(f"more than {SECONDS:g} s")

    earlier = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, earlier)


def forget_peak() -> int:
    """Reset the peak memory of this process to its present size, and return it in MB.

    Where the system cannot reset it, the peak stays.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return largest_size()


def largest_size() -> int:
    """Return the peak memory of this process in MB."""
    return peak_ram() // 2**20
