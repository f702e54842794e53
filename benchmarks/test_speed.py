"""Speed on the toy model, as ratios measured in turn in one run.

    python -m pytest -n 0 benchmarks/test_speed.py -s

All times are wall times; with --benchmark-timer=time.process_time they are processor times, for a machine that others
use too. RIEBENCH_BENCH_EXAMPLES (default 9) sets how many examples are made, RIEBENCH_BENCH_ROUNDS (3) how often;
results go to RIEBENCH_BENCH_JSON if that names a file. The sweep against bare calls alone takes a few minutes:

    RIEBENCH_BENCH_EXAMPLES=4 RIEBENCH_BENCH_ROUNDS=3 python -m pytest -n 0 benchmarks/test_speed.py -k beside -s
"""

from __future__ import annotations

import json
import os
import pkgutil
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch

from benchmarks.sdxl.measure import machine
from benchmarks.speed import memory
from benchmarks.speed.bare import BareCalls, Beside
from benchmarks.speed.onebyone import OneByOne
from benchmarks.speed.workload import Clock, Timer, clocked, network_calls, random_clip, sample
from riebench.generation.generator import Generator
from riebench.generation.prefix import PrefixPlan
from riebench.models.families.sdxl.names import BLOCKS
from riebench.models.loading import LoadedModel, load_model
from riebench.models.lookup import ModelRecipe
from riebench.runs.capture import CapturePlan
from riebench.runs.engines.coordinator import Writer
from riebench.runs.engines.processes import run_in_processes
from riebench.runs.plan import plan, works_of
from riebench.runs.references import References
from riebench.runs.runner import run_benchmark
from riebench.scoring.metrics.clip import ClipScorer
from riebench.scoring.metrics.networks import Networks
from riebench.scoring.score import score
from riebench.store.folder import RunFolder, find_run_folders
from riebench.tasks.schema import EditTask, Setting
from riebench.tasks.suites import load_suite
from riebench.utils.machine import usable_cores

EXAMPLES = int(os.environ.get("RIEBENCH_BENCH_EXAMPLES", "9"))
ROUNDS = int(os.environ.get("RIEBENCH_BENCH_ROUNDS", "3"))
BATCH = 32
SAMPLED_UNITS = 61
"""Units made one by one, spread evenly over all."""


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    """Return the toy model after its first calls, at both batch sizes."""
    loaded = load_model("toy-turbo")
    for rows in (1, BATCH):
        Generator(loaded).generate(["a red house"] * rows, range(rows))
    return loaded


@pytest.fixture(scope="module")
def timer(request: pytest.FixtureRequest) -> Timer:
    """Return the timer of all measurements, which is pytest-benchmark's."""
    return pkgutil.resolve_name(str(request.config.getoption("benchmark_timer")))


@pytest.fixture
def note() -> Callable[..., None]:
    """Return a function that prints figures and keeps them."""

    def keep(name: str, **figures: float) -> None:
        print(f"\n{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in figures.items()))
        file = os.environ.get("RIEBENCH_BENCH_JSON")
        if file:
            path = Path(file)
            found = json.loads(path.read_text()) if path.exists() else {}
            path.write_text(json.dumps({**found, "machine": machine("cpu"), name: figures}, indent=1) + "\n")

    return keep


def sweep(model: LoadedModel, folder: Path, examples: int, **options: Any) -> list[RunFolder]:
    """Make the sample of the sweep in one run of the benchmark."""
    tasks, settings = sample(examples)
    return run_benchmark(
        tasks, settings, model, results_root=folder, batch_size=BATCH, progress=False, offline=True, **options
    )


def seconds(timer: Timer, function: Callable[[], Any]) -> float:
    """Measure the seconds of a call."""
    start = timer()
    function()
    return timer() - start


class SweepRounds:
    """Rounds of the sweep beside the bare model calls, and of one by one, in turn.

    Args:
        model: warm.
        folder: gets all pictures.
        timer: takes the times.
    """

    def __init__(self, model: LoadedModel, folder: Path, timer: Timer) -> None:
        self.model, self.folder, self.timer = model, folder, timer
        tasks, settings = sample(EXAMPLES)
        self.units = plan(tasks, settings)
        self.chosen = self.units[:: max(1, len(self.units) // SAMPLED_UNITS)]
        self.pool = load_suite("toy")
        (folder / "one").mkdir()
        self.plain = OneByOne(model, folder / "one", tasks=self.pool, settings=settings)
        self.calls = BareCalls(load_model("toy-turbo"))
        self.found: dict[str, list[float]] = {}
        self.pictures: dict[str, Any] = {}
        self.folders: list[RunFolder] = []

    def _keep(self, **figures: float) -> None:
        for name, figure in figures.items():
            self.found.setdefault(name, []).append(figure)

    def round(self, number: int) -> None:
        """Measure each way once."""
        count, timer = len(self.units), self.timer
        clock, ours, calls = self._beside(str(number))
        self._keep(ours=ours / count, of_bare=ours / calls, outside=1 - clock.model / ours, hooks=clock.hooks / ours,
                   evaluations=clock.rows["unet"] / count)  # fmt: skip
        with patch.object(CapturePlan, "prefix", lambda plan, works: None):
            clock, whole, calls = self._beside(f"{number}-whole")
        self._keep(whole_of_bare=whole / calls, whole_outside=1 - clock.model / whole)
        with clocked(self.model, timer) as clock:
            plain = seconds(timer, self._one_by_one)
        self._keep(times_plain=plain / len(self.chosen) / (ours / count), plain=plain / len(self.chosen),
                   plain_evaluations=clock.rows["unet"] / len(self.chosen))  # fmt: skip

    def _beside(self, name: str) -> tuple[Clock, float, float]:
        """Run a sweep with its bare calls made beside it.

        Returns:
            Its clock, its seconds without the bare calls, and the seconds of those.
        """
        beside = Beside(self.calls, self.timer)
        with clocked(self.model, self.timer, beside.note) as clock:
            both = seconds(self.timer, lambda: self._sweep(name))
            ours = both - beside.seconds
            beside.finish()
        assert beside.rows == clock.rows
        return clock, ours, beside.seconds

    def _sweep(self, name: str) -> None:
        self.folders = sweep(self.model, self.folder / name, EXAMPLES, pool=self.pool)

    def _one_by_one(self) -> None:
        for unit in self.chosen:
            self.pictures[f"{unit.setting.name} {unit.key.digest}"] = self.plain.make(unit)

    def check(self) -> int:
        """Check the pictures made one by one against those of the last sweep.

        Only ways that make the same pictures may be compared in time.

        Returns:
            How many were compared.
        """
        compared = 0
        for folder in self.folders:
            for record in folder.records():
                wanted = self.pictures.get(f"{folder.spec.setting.name} {record.key.digest}")
                if wanted is not None:
                    assert record.image is not None, record
                    assert np.abs(folder.read_image(record.image).astype(int) - wanted).max() <= 1, record.key
                    compared += 1
        return compared


def test_sweep(benchmark: Any, model: LoadedModel, tmp_path: Path, timer: Timer, note: Callable[..., None]) -> None:
    """Measure the sweep against one by one and against the bare model calls.

    The time outside the model is noted too.
    """
    rounds = SweepRounds(model, tmp_path, timer)
    numbers = iter(range(ROUNDS))
    benchmark.pedantic(lambda: rounds.round(next(numbers)), rounds=ROUNDS)
    assert rounds.check() == len(rounds.chosen)
    middle = {name: median(figures) for name, figures in rounds.found.items()}
    note(
        "sweep", units=len(rounds.units), examples=EXAMPLES, rounds=ROUNDS, threads=torch.get_num_threads(),
        images_a_second=1 / middle["ours"], images_a_second_one_by_one=1 / middle["plain"],
        times_one_by_one=middle["times_plain"], times_one_by_one_least=min(rounds.found["times_plain"]),
        evaluations_an_image=middle["evaluations"], evaluations_one_by_one=middle["plain_evaluations"],
        of_bare_calls=middle["of_bare"], of_bare_calls_most=max(rounds.found["of_bare"]),
        of_bare_calls_nothing_shared=middle["whole_of_bare"],
        outside_model=middle["outside"], hooks=middle["hooks"], outside_model_nothing_shared=middle["whole_outside"],
    )  # fmt: skip


def test_sweep_beside_bare_calls(
    benchmark: Any, model: LoadedModel, tmp_path: Path, timer: Timer, note: Callable[..., None]
) -> None:
    """Measure the sweep against the bare calls of its networks alone.

    Both sides take turns of a second, and the ratio is the median of the rounds. After each round the same sweep is
    made in several processes, as `riebench run` makes it where there are several cores.

    What a run does once, however many examples it has, is told apart. References of edited activations are stored by a
    first run of one example. Other examples that methods look at are left out of the first ratio and counted in the
    second one.
    """
    (tasks, settings), pool = sample(EXAMPLES), load_suite("toy")
    calls = BareCalls(load_model("toy-turbo"))
    figures: dict[str, list[float]] = {name: [] for name in ("ratios", "whole", "outside", "hooks", "processes")}

    names = [f"round {number}" for number in range(ROUNDS)]

    def work(name: str, tasks: Sequence[EditTask]) -> None:
        beside, others = Beside(calls, timer, every=1.0), Seconds()
        with clocked(model, timer, beside.note) as clock, counted_apart(others, beside):
            both = seconds(
                timer,
                lambda: run_benchmark(
                    tasks, settings, model, results_root=tmp_path / name, batch_size=BATCH, pool=pool, progress=False,
                    offline=True,
                ),
            )  # fmt: skip
            ours = both - beside.seconds
            beside.finish()
        assert beside.rows == clock.rows
        figures["ratios"].append((ours - others.ours) / (beside.seconds - others.bare))
        figures["whole"].append(ours / beside.seconds)
        figures["outside"].append(1 - clock.model / ours)
        figures["hooks"].append(clock.hooks / ours)
        if name in names:
            processes = _in_processes(tasks, settings, tmp_path / f"{name} in processes")
            figures["processes"].append(processes / beside.seconds)

    with patch("riebench.runs.distribution.UNITS_PER_PICTURE", 0):
        work("warm", sample(1)[0])
    for found in figures.values():
        found.clear()
    (known,) = (tmp_path / "warm").glob("*/*/shared/distribution")
    for name in (*names, *(f"{name} in processes" for name in names)):
        shutil.copytree(known, tmp_path / name / known.relative_to(tmp_path / "warm"))
    benchmark.pedantic(lambda: work(names[len(figures["ratios"])], tasks), rounds=ROUNDS)
    note(
        "sweep beside bare calls", units=len(plan(tasks, settings)), examples=EXAMPLES, rounds=ROUNDS,
        threads=torch.get_num_threads(), of_bare_calls=median(figures["ratios"]),
        of_bare_calls_most=max(figures["ratios"]), of_bare_calls_with_others=median(figures["whole"]),
        outside_model=median(figures["outside"]), hooks=median(figures["hooks"]),
        processes=usable_cores(), in_processes=median(figures["processes"]),
        in_processes_most=max(figures["processes"]),
    )  # fmt: skip


def _in_processes(tasks: Sequence[EditTask], settings: Sequence[Setting], folder: Path) -> float:
    """Return the seconds of a run in one process for each core, once the first has its model."""
    found: list[float] = []
    original = Writer.run

    def run(writer: Writer, *args: Any) -> None:
        start = time.perf_counter()
        original(writer, *args)
        found.append(time.perf_counter() - start)

    with patch.object(Writer, "run", run):
        run_in_processes(
            tasks, settings, ModelRecipe("toy-turbo"), results_root=folder, workers=usable_cores(), batch_size=BATCH,
            pool=load_suite("toy"), progress=False, offline=True,
        )  # fmt: skip
    return found[0]


@dataclass
class Seconds:
    """Seconds of a part of a run, and of its bare calls."""

    ours: float = 0.0
    bare: float = 0.0


@contextmanager
def counted_apart(found: Seconds, beside: Beside) -> Iterator[None]:
    """Measure the runs of other examples that methods look at."""
    plain = References._generate

    def generate(references: References, *args: Any) -> Any:
        beside.finish()
        start, before = beside.timer(), beside.seconds
        made = plain(references, *args)
        beside.finish()
        bare = beside.seconds - before
        found.ours += beside.timer() - start - bare
        found.bare += bare
        return made

    with patch.object(References, "_generate", generate):
        yield


@pytest.mark.parametrize("block", BLOCKS)
def test_one_block_one_step(benchmark: Any, block: str, timer: Timer, note: Callable[..., None]) -> None:
    """Measure a single-block edit with and without its shared beginning.

    The edit is of one step; the beginning is shared with its source run.
    """
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
            with clocked(model, timer) as clock:
                generator.generate(prompts, noises, edits=[edit] * len(works), prefixes=prefixes)
            spent.append(clock.unet)
        gains.append(spent[0] / spent[1])
    benchmark.pedantic(
        generator.generate, args=(prompts, noises),
        kwargs={"edits": [edit] * len(works), "prefixes": (source.prefix,)}, rounds=3,
    )  # fmt: skip
    note(f"one block {block}", unet_gain=median(gains), prefix_megabytes_an_example=source.prefix.nbytes / 16 / 2**20)


def _captured(block: str) -> Any:
    from riebench.generation.generator import Capture

    return Capture((block,))


def _push(block: str, shape: torch.Size) -> Any:
    from riebench.generation.edits import Edit, StaticEdit, Term

    _, steps, width, height, side = shape
    values = torch.randn(steps, height * side, width, generator=torch.Generator().manual_seed(0))
    return Edit({block: StaticEdit((Term(torch.arange(height * side), values),))})


def test_scoring(benchmark: Any, model: LoadedModel, tmp_path: Path, timer: Timer, note: Callable[..., None]) -> None:
    """Measure all scores of a run against one unit and one setting at a time."""
    tasks, settings = sample(EXAMPLES, ("sae_each_sweep", "activation_patch_sweep"))
    suite = load_suite("toy")
    run_benchmark(tasks, settings, model, results_root=tmp_path / "made", batch_size=BATCH, progress=False)

    def unscored(name: str) -> list[RunFolder]:
        return find_run_folders(shutil.copytree(tmp_path / "made", tmp_path / name))

    # All networks make their first calls, which import and prepare what later ones use.
    score(unscored("warm"), suite, progress=False)
    found: dict[str, list[float]] = {"ours": [], "of_bare": []}

    def work(folders: Sequence[RunFolder]) -> None:
        with network_calls() as calls:
            # With the suite at hand, as `riebench run` scores.
            ours = seconds(timer, lambda: score(folders, suite, progress=False))
        with torch.inference_mode():
            found["of_bare"].append(ours / seconds(timer, lambda: [call() for call in calls]))
        found["ours"].append(ours)

    some = [unscored(f"round {number}") for number in range(ROUNDS)]
    benchmark.pedantic(lambda: work(some[len(found["ours"])]), rounds=ROUNDS)
    alone = unscored("plain")
    plain = seconds(timer, lambda: [score([folder], progress=False, batch_size=1) for folder in alone])
    ours, count = median(found["ours"]), sum(len(folder.records()) for folder in alone)
    note(
        "scoring", units=count, rounds=ROUNDS, units_a_second=count / ours, times_one_by_one=plain / ours,
        of_bare_calls=median(found["of_bare"]), of_bare_calls_most=max(found["of_bare"]),
    )  # fmt: skip


def test_scoring_full_size(model: LoadedModel, tmp_path: Path, timer: Timer, note: Callable[..., None]) -> None:
    """Measure all scores with a full-size CLIP against its bare calls.

    The CLIP has the size that real SDXL is scored with, and random weights.
    """
    tasks, settings = sample(3, ("sae_each_sweep",))
    single = [settings[0].model_copy(update={"strengths": (1.0,)})]
    folders = run_benchmark(tasks, single, model, results_root=tmp_path, batch_size=BATCH, progress=False)
    networks = Networks(ready={"clip": ClipScorer.from_loaded(random_clip("ViT-L-14-quickgelu"))})
    with network_calls() as calls:
        ours = seconds(timer, lambda: score(folders, progress=False, networks=networks))
    with torch.inference_mode():
        bare = seconds(timer, lambda: [call() for call in calls])
    count = sum(len(folder.records()) for folder in folders)
    note("scoring, ViT-L-14", units=count, units_a_second=count / ours, of_bare_calls=ours / bare)


def test_memory(benchmark: Any, tmp_path: Path, note: Callable[..., None]) -> None:
    """Measure peak memory of processes.

    They make ten times as many examples, and the same ones one by one and by the bare calls.
    """
    loaded, few = memory.peak("ours", 9, tmp_path / "few")
    _, many = benchmark.pedantic(memory.peak, args=("ours", 90, tmp_path / "many"), rounds=1)
    _, plain = memory.peak("one by one", 9, tmp_path / "plain")
    _, bare_calls = memory.peak("bare", 9, tmp_path / "bare")
    note(
        "memory", megabytes_9_examples=few, megabytes_90_examples=many, ratio=many / few, megabytes_loaded=loaded,
        megabytes_one_by_one=plain, megabytes_bare_calls=bare_calls, times_one_by_one=few / plain,
        of_bare_calls=few / bare_calls,
    )  # fmt: skip
