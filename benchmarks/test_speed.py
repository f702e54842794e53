"""Speed on the toy model, as ratios measured in turn in one run.

    python -m pytest benchmarks/test_speed.py --benchmark-timer=time.process_time -s

RIEBENCH_BENCH_EXAMPLES (default 8) sets how many examples are made, RIEBENCH_BENCH_ROUNDS (3) how often; results go
to RIEBENCH_BENCH_JSON if that names a file.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.workload import OneByOne, bare, clocked, sample
from riebench.fullsize import machine
from riebench.generate import Generator
from riebench.models import LoadedModel, load_model
from riebench.planning import plan, works_of
from riebench.prefix import PrefixPlan
from riebench.runner import run_benchmark
from riebench.schema import BLOCKS
from riebench.scoring import score
from riebench.store import RunFolder

EXAMPLES = int(os.environ.get("RIEBENCH_BENCH_EXAMPLES", "8"))
ROUNDS = int(os.environ.get("RIEBENCH_BENCH_ROUNDS", "3"))
BATCH = 32
SAMPLED_UNITS = 9
"""Units made one by one, spread evenly over all."""


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    """The toy model, warm."""
    loaded = load_model("toy-turbo")
    for rows in (1, BATCH):
        Generator(loaded).generate(["a red house"] * rows, range(rows))
    return loaded


@pytest.fixture
def note() -> Callable[..., None]:
    """Prints figures and keeps them."""

    def keep(name: str, **figures: float) -> None:
        print(f"\n{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in figures.items()))
        file = os.environ.get("RIEBENCH_BENCH_JSON")
        if file:
            path = Path(file)
            found = json.loads(path.read_text()) if path.exists() else {"machine": machine("cpu")}
            path.write_text(json.dumps({**found, name: figures}, indent=1) + "\n")

    return keep


def sweep(model: LoadedModel, folder: Path, examples: int, **options: Any) -> list[RunFolder]:
    """Our way: the sample of the sweep, in one run."""
    tasks, settings = sample(examples)
    return run_benchmark(
        tasks, settings, model, results_root=folder, batch_size=BATCH, progress=False, offline=True, **options
    )


def seconds(function: Callable[[], Any]) -> float:
    """Processor time of a call."""
    start = time.process_time()
    function()
    return time.process_time() - start


def test_sweep(benchmark: Any, model: LoadedModel, tmp_path: Path, note: Callable[..., None]) -> None:
    """The sweep against one by one, against the bare model calls, and what lies outside the model."""
    tasks, settings = sample(EXAMPLES)
    units = plan(tasks, settings)
    chosen = units[:: max(1, len(units) // SAMPLED_UNITS)]
    (tmp_path / "one").mkdir()
    plain = OneByOne(model, tmp_path / "one")
    rounds: dict[str, list[float]] = {"ours": [], "plain": [], "bare": [], "outside": [], "hooks": []}
    evaluations: dict[str, float] = {}
    folders: list[RunFolder] = []
    pictures: dict[str, Any] = {}
    for number in range(ROUNDS):
        with clocked(model) as clock:
            start = time.process_time()
            folders = sweep(model, tmp_path / str(number), EXAMPLES)
            ours = time.process_time() - start
        rounds["ours"].append(ours / len(units))
        rounds["outside"].append(1 - clock.model / ours)
        rounds["hooks"].append(clock.hooks / ours)
        evaluations["ours"] = clock.rows["unet"] / len(units)
        start = time.process_time()
        bare(model, clock.batches, clock.rows["decoder"], BATCH)
        rounds["bare"].append((time.process_time() - start) / len(units))
        with clocked(model) as clock:
            start = time.process_time()
            for unit in chosen:
                pictures[f"{unit.setting.name} {unit.key.digest}"] = plain.make(unit)
            rounds["plain"].append((time.process_time() - start) / len(chosen))
            evaluations["plain"] = clock.rows["unet"] / len(chosen)
    for folder in folders:
        for record in folder.records():
            wanted = pictures.get(f"{folder.spec.setting.name} {record.key.digest}")
            if wanted is not None and record.image is not None:
                # The same pictures, or the comparison would mean nothing.
                assert np.abs(folder.read_image(record.image).astype(int) - wanted).max() <= 1
    benchmark.pedantic(sweep, args=(model, tmp_path / "timed", EXAMPLES), rounds=1)
    note(
        "sweep", units=len(units), examples=EXAMPLES, images_a_second=1 / median(rounds["ours"]),
        times_one_by_one=median(p / o for p, o in zip(rounds["plain"], rounds["ours"], strict=True)),
        of_bare_calls=median(o / b for o, b in zip(rounds["ours"], rounds["bare"], strict=True)),
        outside_model=median(rounds["outside"]), hooks=median(rounds["hooks"]),
        evaluations_an_image=evaluations["ours"], evaluations_one_by_one=evaluations["plain"],
    )  # fmt: skip


@pytest.mark.parametrize("block", BLOCKS)
def test_one_block_one_step(benchmark: Any, block: str, note: Callable[..., None]) -> None:
    """A single-block edit of one step with and without what it shares with its source run."""
    model = load_model("toy-turbo", steps=1)
    tasks, settings = sample(BATCH // 2, ["activation_patch_sweep"])
    works = works_of(plan(tasks, settings))[: BATCH // 2]
    prompts, noises = [work.plain.source for work in works], [work.noise for work in works]
    generator = Generator(model)
    shape = generator.generate(prompts[:1], noises[:1], capture=_captured(block)).trace.get(block).shape
    edit = _push(block, shape)
    source = generator.generate(prompts, noises, keep_prefix=PrefixPlan(len(works), BLOCKS, (0,)))
    assert source.prefix is not None
    gains = []
    for _ in range(3 * ROUNDS):
        spent = []
        for prefixes in ((), (source.prefix,)):
            with clocked(model) as clock:
                generator.generate(prompts, noises, edits=[edit] * len(works), prefixes=prefixes)
            spent.append(clock.unet)
        gains.append(spent[0] / spent[1])
    benchmark.pedantic(
        generator.generate, args=(prompts, noises),
        kwargs={"edits": [edit] * len(works), "prefixes": (source.prefix,)}, rounds=3,
    )  # fmt: skip
    note(f"one block {block}", unet_gain=median(gains), prefix_megabytes_an_example=source.prefix.nbytes / 16 / 2**20)


def _captured(block: str) -> Any:
    from riebench.generate import Capture

    return Capture((block,))


def _push(block: str, shape: torch.Size) -> Any:
    from riebench.edits import Edit, Placed, Term

    _, steps, width, height, side = shape
    values = torch.randn(steps, height * side, width, generator=torch.Generator().manual_seed(0))
    return Edit({block: Placed((Term(torch.arange(height * side), values),))})


def test_scoring(benchmark: Any, model: LoadedModel, tmp_path: Path, note: Callable[..., None]) -> None:
    """All scores of a run against the same, one unit and one setting at a time."""
    names = ("sae_each_sweep", "activation_patch_sweep")
    tasks, settings = sample(EXAMPLES, names)
    both = {
        way: run_benchmark(tasks, settings, model, results_root=tmp_path / way, batch_size=BATCH, progress=False)
        for way in ("ours", "plain")
    }
    score(both["ours"][:1], progress=False, metrics=("clip_gain",))
    ours = seconds(lambda: score(both["ours"], progress=False))
    plain = seconds(lambda: [score([folder], progress=False, batch_size=1) for folder in both["plain"]])
    count = sum(len(folder.records()) for folder in both["ours"])
    benchmark.pedantic(score, args=(both["ours"],), kwargs={"progress": False}, rounds=1)
    note("scoring", units=count, units_a_second=count / ours, times_one_by_one=plain / ours)


MEMORY = """
import resource, sys
from pathlib import Path
from benchmarks.workload import sample
from riebench.models import load_model
from riebench.runner import run_benchmark
tasks, settings = sample(int(sys.argv[1]), ["sae_each_sweep"])
settings = [settings[0].model_copy(update={"strengths": (1.0,)})]
run_benchmark(tasks, settings, load_model("toy-turbo", steps=1), results_root=Path(sys.argv[2]), batch_size=8,
              progress=False, offline=True)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory(benchmark: Any, tmp_path: Path, note: Callable[..., None]) -> None:
    """Peak memory of a process that makes ten times as many examples."""

    def peak(count: int) -> int:
        call = [sys.executable, "-c", MEMORY, str(count), str(tmp_path / str(count))]
        return int(subprocess.run(call, check=True, capture_output=True, text=True).stdout.split()[-1])

    few, many = peak(9), benchmark.pedantic(peak, args=(90,), rounds=1)
    note("memory", megabytes_9_examples=few / 1024, megabytes_90_examples=many / 1024, ratio=many / few)
