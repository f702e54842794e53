"""Compare our SAE trainer with dictionary_learning's on collected updates, and store what was found.

    riebench sae collect --model toy-turbo --toy-captions 1000 --blocks mid.0,up.0.1 --out updates
    python -m benchmarks.trainers updates
    riebench sae collect --model toy-turbo --toy-captions 4000 --blocks mid.0,up.0.1 --out more
    python -m benchmarks.trainers more --steps 3000 --epochs 13
    python -m benchmarks.trainers.tables

Every trainer gets the same batches of 1024 positions, and is measured on the same positions held out by the same meter.
Times are processor times. What is there already is not measured again; `--redo` begins anew. It needs the
dictionary_learning library (`pip install dictionary-learning==0.1.0`), and says so where that is missing.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.sdxl.measure import machine
from benchmarks.trainers.trainees import CASES, CHANGES, LIBRARY, LONG, Maker, Trainee
from riebench.saes.figures import Meter
from riebench.training.batches import Batches, DataPass
from riebench.training.collection import Collection

RESULTS = Path(__file__).parents[1] / "results" / "trainers.json"
BATCH, BUFFER, SAMPLE = 1024, 65_536, 100_000
SEEDS = (0, 1, 2)
BLOCKS = ("mid.0", "up.0.1")
SHORT = 1000
"""Runs of fewer steps get all cases, longer ones only some."""
TIMED = 10
"""Steps that are taken in turns when two trainers are timed."""


def missing_library() -> str:
    """Return why nothing can be compared; "" if it can."""
    if find_spec(LIBRARY) is None:
        return f"nothing is compared: {LIBRARY} is not installed (pip install dictionary-learning==0.1.0)"
    return ""


class Data:
    """The batches of one block in one order, and its positions held out.

    Args:
        collection: the updates.
        block: short name.
        epochs: how often each position is used.
        steps: number of batches; None for all there are.
        seed: of the order.
    """

    def __init__(self, collection: Collection, block: str, epochs: int, steps: int | None, seed: int) -> None:
        plan = DataPass(BATCH, epochs, steps, BUFFER, seed=seed)
        training, held_out = plan.split(collection.data(block))
        self.batches = Batches(training, plan)
        self.steps = self.batches.steps
        self.sample = self.batches.sample(SAMPLE).float()
        self.held_out = held_out.read(0, len(held_out)).float()

    def figures(self, trainee: Trainee) -> dict[str, float]:
        """Measure a trainee on the positions held out."""
        meter = Meter(trainee.autoencoder())
        meter.add(self.held_out)
        found = meter.figures()
        return {"ev": found.explained_variance, "l0": found.l0, "dead": found.dead_share, "positions": found.positions}

    def train(self, make: Maker, seed: int, steps: int | None = None) -> dict[str, float]:
        """Train one case and measure it."""
        begin = time.process_time()
        trainee = make(self.sample, steps or self.steps, BATCH, seed)
        seconds = time.process_time() - begin
        for number, x in enumerate(self.batches.batches()):
            if number == steps:
                break
            seconds += _timed(trainee, number, x.float())
        return {**self.figures(trainee), "steps": steps or self.steps, "seconds": round(seconds, 2)}


def _timed(trainee: Trainee, number: int, x: Tensor) -> float:
    begin = time.process_time()
    trainee.step(number, x)
    return time.process_time() - begin


def in_turns(data: Data, seed: int) -> dict[str, float]:
    """Time whole trainings by ours and by the library, some steps of each in turns.

    Returns:
        Seconds of each, with its setting up.
    """
    names = ("topk, standard", f"topk, {LIBRARY}")
    seconds, trainees = dict.fromkeys(names, 0.0), {}
    for name in names:
        begin = time.process_time()
        trainees[name] = CASES[name](data.sample, data.steps, BATCH, seed)
        seconds[name] = time.process_time() - begin
    batches = [x.float() for x in data.batches.batches()]
    for first in range(0, data.steps, TIMED):
        for name in names if first // TIMED % 2 else reversed(names):
            for number in range(first, min(first + TIMED, data.steps)):
                seconds[name] += _timed(trainees[name], number, batches[number])
    return {"ours": round(seconds[names[0]], 3), "library": round(seconds[names[1]], 3)}


def equal_time(collection: Collection, block: str, epochs: int, seed: int) -> dict[str, float]:
    """Train ours for as many steps as the library's time allows."""
    times = in_turns(Data(collection, block, epochs, None, seed), seed)
    steps = Data(collection, block, epochs, None, seed).steps
    allowed = max(1, int(steps * times["library"] / times["ours"]))
    longer = Data(collection, block, epochs * (1 + allowed // steps), allowed, seed)
    return {**times, **longer.train(CASES["topk, standard"], seed, allowed)}


def compare(options: argparse.Namespace) -> None:
    """Measure what is missing, and store each result at once."""
    collection = Collection.open(options.updates)
    stored: dict[str, Any] = {}
    if options.json.exists() and not options.redo:
        stored = json.loads(options.json.read_text(encoding="utf-8"))
    for block in BLOCKS:
        for seed in SEEDS if options.steps is None else SEEDS[:1]:
            data = Data(collection, block, options.epochs, options.steps, seed)
            names = CASES if data.steps < SHORT else LONG
            part = stored.setdefault(f"{data.steps} steps", {"pictures": collection.pictures, "epochs": options.epochs})
            wanted = {("equal steps", name): CASES[name] for name in names}
            if data.steps < SHORT and not seed:
                wanted |= {("changes", name): make for name, make in CHANGES.items()}
            for (group, name), make in wanted.items():
                place = part.setdefault(group, {}).setdefault(name, {}).setdefault(block, {})
                if str(seed) not in place:
                    place[str(seed)] = data.train(make, seed)
                    _keep(options.json, stored, f"{group}: {name}, {block}, seed {seed}: {place[str(seed)]}")
            place = part.setdefault("equal time", {}).setdefault(block, {})
            if data.steps < SHORT and str(seed) not in place:
                place[str(seed)] = equal_time(collection, block, options.epochs, seed)
                _keep(options.json, stored, f"equal time, {block}, seed {seed}: {place[str(seed)]}")


def _keep(path: Path, stored: dict[str, Any], line: str) -> None:
    print(line, flush=True)
    facts = {"machine": machine("cpu"), LIBRARY: version("dictionary-learning"), "torch": torch.__version__}
    path.write_text(json.dumps({**stored, **facts}, indent=1) + "\n", encoding="utf-8")


def main() -> int:
    """Read the command line and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("updates", type=Path, help="folder that `riebench sae collect` wrote")
    parser.add_argument("--steps", type=int, help="steps of a run; by default all that the data give")
    parser.add_argument("--epochs", type=int, default=4, help="how often each position is used")
    parser.add_argument("--json", type=Path, default=RESULTS, help="file of the results")
    parser.add_argument("--redo", action="store_true", help="measure everything anew")
    options = parser.parse_args()
    reason = missing_library()
    if reason:
        print(reason, file=sys.stderr)
        return 0
    torch.set_num_threads(1)
    compare(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
