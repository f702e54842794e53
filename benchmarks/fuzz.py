"""Gives every reader of foreign files damaged and hostile ones, and counts what becomes of them.

    python -m benchmarks.fuzz --inputs 100000

An input may be read, or refused with a `RiebenchError` of one line. Anything else is a finding: another exception,
more than `SECONDS` of processor time, more than `MEGABYTES` of new memory, or a file opened beside the folder that the
reader was given. Inputs come from hypothesis: variants of valid files (see `benchmarks.mutations`), and values of any
form in their place. The summary goes to benchmarks/results/fuzz.json; findings are kept as files.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

from benchmarks.mutations import SECRET, WORDS
from benchmarks.readers import READERS, Reader
from riebench.errors import RiebenchError

SECONDS = 3.0
"""Processor time that one input may take."""
MEGABYTES = 400
"""Growth of this process's largest size that `TOGETHER` inputs may cause; a picture of the largest size takes half."""
TOGETHER = 16
"""Variants that are made from one number that hypothesis has drawn."""
LONGEST_LINE = 5000


class TooLongError(Exception):
    """An input took too much processor time."""


@dataclass
class Findings:
    """What became of one reader's inputs.

    Attributes:
        read: accepted.
        refused: refused in one line.
        wrong: what should not have happened -> how often.
        slowest: processor seconds of the slowest input.
        first: kind of wrong -> the first such input's files.
    """

    read: int = 0
    refused: int = 0
    wrong: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    first: dict[str, dict[str, bytes]] = field(default_factory=dict)

    @property
    def inputs(self) -> int:
        """How many there were."""
        return self.read + self.refused + self.wrong.total()


class _Watch:
    """Says which files are opened beside the folder that a reader is given."""

    def __init__(self) -> None:
        self.root: Path | None = None
        self.strayed: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.root is not None and event in ("open", "os.listdir", "os.scandir") and arguments:
            path = arguments[0]
            if isinstance(path, str | bytes) and SECRET in os.path.realpath(os.fsdecode(path)):
                self.strayed.append(os.fsdecode(path))


_WATCH: list[_Watch] = []


def attempt(reader: Reader, files: dict[str, bytes], root: Path, findings: Findings) -> None:
    """Gives a reader one input.

    Args:
        reader: who reads.
        files: path below the reader's folder -> content.
        root: an empty folder; the reader's folder is made in it, with a file to be left alone beside.
        findings: gets what became of it.
    """
    if not _WATCH:
        _WATCH.append(_Watch())
    place = root / "case"
    with _laid_out(place, files):
        before = time.thread_time()
        try:
            with _timed(), _watched(root):
                reader.read(place)
            kind = ""
        except RiebenchError as error:
            kind = _complaint(str(error))
            findings.refused += kind == ""
        except Exception as error:
            kind = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        else:
            findings.read += 1
        findings.slowest = max(findings.slowest, time.thread_time() - before)
    if _WATCH[0].strayed:
        kind = f"opened {_WATCH[0].strayed[0][-60:]}"
    if kind:
        findings.wrong[kind] += 1
        findings.first.setdefault(kind, files)


def _complaint(text: str) -> str:
    if not text or len(text.splitlines()) != 1 or not text.isprintable() or len(text) > LONGEST_LINE:
        return f"a message of {len(text.splitlines())} lines and {len(text)} characters: {text[:60]!r}"
    return ""


@contextlib.contextmanager
def _laid_out(place: Path, files: dict[str, bytes]) -> Iterator[None]:
    outside = place.parent / "outside"
    if not outside.exists():
        outside.mkdir(parents=True)
        (outside / SECRET).write_bytes(b"not to be read")
    for name, data in files.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    try:
        yield
    finally:
        shutil.rmtree(place, ignore_errors=True)


@contextlib.contextmanager
def _watched(root: Path) -> Iterator[None]:
    watch = _WATCH[0]
    watch.strayed, watch.root = [], root
    try:
        yield
    finally:
        watch.root = None


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


_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30) | st.sampled_from(WORDS)
ANY_VALUE: st.SearchStrategy[Any] = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
"""Values of any form, as JSON and YAML can say them."""


def fuzz(reader: Reader, count: int, root: Path, seed: int = 0) -> Findings:
    """Gives a reader many inputs.

    Args:
        reader: who reads.
        count: how many, at least.
        root: a folder to work in, best in memory.
        seed: of the inputs.
    """
    findings = Findings()
    place = root / reader.name
    place.mkdir(parents=True, exist_ok=True)
    valid = reader.valid(place / "valid")
    # Also imports what the reader needs, which is nothing that an input costs.
    with _laid_out(place / "case", valid[0]):
        reader.read(place / "case")
    quiet = list(HealthCheck)

    # Fewer than needed if most draws give but one input; then there is another round.
    draws = max(1, count // (TOGETHER // 2))

    @settings(max_examples=draws, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=quiet)
    @given(st.data(), st.integers(0, 7), st.integers(0, 2**63))
    def each(data: st.DataObject, kind: int, number: int) -> None:
        # Drawn before anything that depends on what was done: the same choices must lead to the same draws.
        value = data.draw(ANY_VALUE) if kind == 0 else None
        if findings.inputs >= count:
            return
        size = _largest_size()
        chance = random.Random(number)
        if kind == 0 and reader.place is not None:
            attempt(reader, reader.place(chance.choice(valid), value), place, findings)
        else:
            for _ in range(min(TOGETHER, count - findings.inputs)):
                attempt(reader, reader.variant(chance.choice(valid), chance), place, findings)
        if _largest_size() - size > MEGABYTES:
            findings.wrong[f"took {_largest_size() - size} MB"] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rounds = 0
        while findings.inputs < count:
            seeded(f"{seed}:{rounds}")(each)()
            rounds += 1
    gc.collect()
    return findings


def _largest_size() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--inputs", type=int, default=100_000, help="in all; parted between readers by their weight")
    parser.add_argument("--reader", action="append", choices=sorted(READERS), help="only these")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "fuzz.json")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"), help="where inputs of findings are kept")
    chosen = parser.parse_args(arguments)
    readers = [READERS[name] for name in chosen.reader or READERS]
    weight = sum(reader.weight for reader in readers)
    told: dict[str, Any] = {}
    began, processor = time.monotonic(), time.process_time()
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="riebench-fuzz-", dir=memory if memory.is_dir() else None) as root:
        for reader in readers:
            count = -(-chosen.inputs * reader.weight // weight)
            start = time.process_time()
            findings = fuzz(reader, count, Path(root), chosen.seed)
            told[reader.name] = {
                "inputs": findings.inputs, "read": findings.read, "refused": findings.refused,
                "wrong": dict(findings.wrong), "slowest_seconds": round(findings.slowest, 3),
                "processor_seconds": round(time.process_time() - start, 1),
            }  # fmt: skip
            print(f"{reader.name}: {told[reader.name]}", file=sys.stderr, flush=True)
            _keep(findings, chosen.keep / reader.name)
            # After each, so that a run that is stopped has told what it found until then.
            summary = {
                "inputs": sum(one["inputs"] for one in told.values()),
                "wrong": sum(sum(one["wrong"].values()) for one in told.values()),
                "seconds": round(time.monotonic() - began, 1),
                "processor_seconds": round(time.process_time() - processor, 1),
                "largest_size_mb": _largest_size(),
                "limits": {"seconds": SECONDS, "megabytes": MEGABYTES},
                "seed": chosen.seed,
                "readers": told,
                "versions": _versions(),
            }
            chosen.out.parent.mkdir(parents=True, exist_ok=True)
            chosen.out.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    print(f"{summary['inputs']} inputs, {summary['wrong']} wrong; {chosen.out}")
    return 1 if summary["wrong"] else 0


def _keep(findings: Findings, place: Path) -> None:
    for number, (kind, files) in enumerate(findings.first.items()):
        for name, data in files.items():
            path = place / str(number) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        (place / str(number) / "FINDING.txt").write_text(kind, encoding="utf-8", errors="backslashreplace")


def _versions() -> dict[str, str]:
    import platform
    from importlib.metadata import version

    from riebench.provenance import package_versions

    more = {name: version(name) for name in ("hypothesis", "pydantic", "PyYAML", "pillow", "safetensors")}
    return {"python": platform.python_version(), **package_versions(), **more}


if __name__ == "__main__":
    raise SystemExit(main())
