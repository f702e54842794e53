"""What a process takes at most that makes pictures: our way, one by one, or by the bare model calls alone.

    python -m benchmarks.speed.memory ours 90 FOLDER

All ways import and load the same; what is printed is the size with the model loaded and the largest size, in MB.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.speed.bare import BareCalls
from benchmarks.speed.onebyone import OneByOne
from benchmarks.speed.workload import sample
from riebench.models.loading import LoadedModel, load_model
from riebench.runs.plan import plan
from riebench.runs.runner import run_benchmark
from riebench.tasks.schema import EditTask, Setting
from riebench.utils.machine import peak_ram

WAYS = ("ours", "one by one", "bare")
BATCH = 8
"""Pictures generated at once, but for one by one."""


def work(
    way: str, model: LoadedModel, tasks: Sequence[EditTask], settings: Sequence[Setting], folder: Path,
    saes: str | None = None,
) -> None:  # fmt: skip
    """Makes the pictures of some examples.

    Args:
        way: one of `WAYS`; "bare" makes as many pictures of nothing.
        model: generates.
        tasks: the examples.
        settings: each gives pictures of all examples.
        folder: gets the pictures.
        saes: where the SAEs are; None for the model's own.
    """
    units = plan(tasks, settings)
    if way == "ours":
        run_benchmark(
            tasks, settings, model, results_root=folder, saes_source=saes, batch_size=BATCH, progress=False,
            offline=True,
        )  # fmt: skip
    elif way == "one by one":
        folder.mkdir(parents=True)
        plain = OneByOne(model, folder, saes, tasks, settings)
        for unit in units:
            plain.make(unit)
    else:
        batches = [BATCH] * (len(units) // BATCH) + [rest for rest in (len(units) % BATCH,) if rest]
        BareCalls(model, BATCH).make(batches * model.spec.steps, len(units))


def peak(way: str, examples: int, folder: Path) -> tuple[float, float]:
    """Megabytes with the model loaded, and at most, of a process of its own.

    Args:
        way: one of `WAYS`.
        examples: how many.
        folder: gets the pictures.
    """
    line = [sys.executable, "-m", "benchmarks.speed.memory", way, str(examples), str(folder)]
    told = subprocess.run(line, check=True, capture_output=True, text=True).stdout.split()
    return float(told[-2]), float(told[-1])


def main(way: str, examples: str, folder: str) -> None:
    """Makes single-block SAE edits of one step on the toy model, and prints both sizes."""
    tasks, settings = sample(int(examples), ["sae_each_sweep"])
    model = load_model("toy-turbo", steps=1)
    loaded = peak_ram()
    work(way, model, tasks, [settings[0].model_copy(update={"strengths": (1.0,)})], Path(folder))
    print(loaded / 2**20, peak_ram() / 2**20)


if __name__ == "__main__":
    main(*sys.argv[1:])
