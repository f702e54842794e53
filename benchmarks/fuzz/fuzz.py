"""Damaged and hostile files for every reader of files, with counted outcomes.

    python -m benchmarks.fuzz --inputs 100000

An input may be read, or refused with a `RiebenchError` of one line. Anything else is a finding: another exception,
more than `SECONDS` of processor time, more than `MEGABYTES` of new memory, or a file touched beside the folder that the
reader was given. Inputs come from hypothesis: variants of valid files (see `benchmarks.fuzz.inputs`), and values of any
form in their place. The summary goes to benchmarks/results/fuzz.json; findings are kept as files.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

from benchmarks.fuzz.attempts import SECONDS, Findings, attempt, forget_peak, laid_out, largest_size
from benchmarks.fuzz.given import GIVEN
from benchmarks.fuzz.inputs import WORDS, Files, Reader
from benchmarks.fuzz.stored import STORED

READERS: dict[str, Reader] = {reader.name: reader for reader in (*GIVEN, *STORED)}
"""Name -> reader."""


MEGABYTES = 400
"""What this process may grow by for `TOGETHER` inputs; a picture of the largest size takes half."""
TOGETHER = 16
"""Variants that are made from one number that hypothesis has drawn."""

_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30) | st.sampled_from(WORDS)
ANY_VALUE: st.SearchStrategy[Any] = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
"""Values of any form, as JSON and YAML can express them."""


def fuzz(reader: Reader, count: int, root: Path, seed: int = 0) -> Findings:
    """Give a reader many inputs and return the outcomes.

    Args:
        reader: the reader under test.
        count: how many, at least.
        root: a folder to work in, best in memory.
        seed: of the inputs.
    """
    findings = Findings()
    place = root / reader.name
    place.mkdir(parents=True, exist_ok=True)
    valid = reader.valid(place / "valid")
    # Also imports what the reader needs, which is nothing that an input costs.
    with laid_out(place / "case", valid[0]):
        reader.read(place / "case")
    quiet = list(HealthCheck)

    # Fewer than needed if most draws give but one input; then there is another round.
    draws = max(1, count // (TOGETHER // 2))

    @settings(max_examples=draws, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=quiet)
    @given(st.data(), st.integers(0, 7), st.integers(0, 2**63))
    def each(data: st.DataObject, kind: int, number: int) -> None:
        # Drawn before anything that depends on what was done: the same choices must lead to the same draws.
        value = data.draw(ANY_VALUE) if kind == 0 else None
        if findings.inputs < count:
            _together(reader, _inputs(reader, valid, value, random.Random(number), kind), place, findings, count)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rounds = 0
        while findings.inputs < count:
            seeded(f"{seed}:{rounds}")(each)()
            rounds += 1
    return findings


def _inputs(reader: Reader, valid: list[Files], value: Any, chance: random.Random, kind: int) -> Iterator[Files]:
    """Yield the inputs of one draw.

    They are a value of any form in a file's place, or variants of valid files.
    """
    if kind == 0 and reader.place is not None:
        yield reader.place(chance.choice(valid), value)
        return
    for _ in range(TOGETHER):
        yield reader.variant(chance.choice(valid), chance)


def _together(reader: Reader, inputs: Iterator[Files], place: Path, findings: Findings, count: int) -> None:
    size = forget_peak()
    tried: list[Files] = []
    for files in islice(inputs, count - findings.inputs):
        tried.append(files)
        attempt(reader, files, place, findings)
    findings.largest = max(findings.largest, largest_size())
    if largest_size() - size > MEGABYTES:
        numbered = {f"{n}/{name}": data for n, files in enumerate(tried) for name, data in files.items()}
        findings.add(f"took {largest_size() - size} MB", numbered)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--inputs", type=int, default=100_000, help="in all; parted between readers by their weight")
    parser.add_argument("--reader", action="append", choices=sorted(READERS), help="only these")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results" / "fuzz.json")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"), help="where inputs of findings are kept")
    chosen = parser.parse_args(arguments)
    readers = [READERS[name] for name in chosen.reader or READERS]
    weight = sum(reader.weight for reader in readers)
    results: dict[str, Any] = {}
    began, processor = time.monotonic(), time.process_time()
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="riebench-fuzz-", dir=memory if memory.is_dir() else None) as root:
        for reader in readers:
            count = -(-chosen.inputs * reader.weight // weight)
            start = time.process_time()
            findings = fuzz(reader, count, Path(root), chosen.seed)
            results[reader.name] = {
                "inputs": findings.inputs, "read": findings.read, "refused": findings.refused,
                "wrong": dict(findings.wrong), "slowest_seconds": round(findings.slowest, 3),
                "processor_seconds": round(time.process_time() - start, 1), "largest_size_mb": findings.largest,
            }  # fmt: skip
            print(f"{reader.name}: {results[reader.name]}", file=sys.stderr, flush=True)
            _keep(findings, chosen.keep / reader.name)
            # After each, so that a run that is stopped has stored what it found until then.
            summary = {
                "inputs": sum(one["inputs"] for one in results.values()),
                "wrong": sum(sum(one["wrong"].values()) for one in results.values()),
                "seconds": round(time.monotonic() - began, 1),
                "processor_seconds": round(time.process_time() - processor, 1),
                "largest_size_mb": max(one["largest_size_mb"] for one in results.values()),
                "limits": {"seconds": SECONDS, "megabytes": MEGABYTES},
                "seed": chosen.seed,
                "readers": results,
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

    from riebench.store.invocations import package_versions

    more = {name: version(name) for name in ("hypothesis", "pydantic", "PyYAML", "pillow", "safetensors")}
    return {"python": platform.python_version(), **package_versions(), **more}
