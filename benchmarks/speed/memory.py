"""Peak memory of a process that makes pictures in one of three ways.

    python -m benchmarks.speed.memory ours 90 FOLDER

The ways are ours, one by one, and the bare model calls alone. All import and load the same. The printed figures are the
size with the model loaded and the largest size, in MB.
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
    """Make the pictures of some examples.

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
        names = [*["unet"] * model.spec.steps, "decoder"]
        BareCalls(model).make([(name, rows) for rows in batches for name in names])


def peak(way: str, examples: int, folder: Path) -> tuple[float, float]:
    """Measure the memory of a process of its own, in MB.

    Args:
        way: one of `WAYS`.
        examples: how many.
        folder: gets the pictures.

    Returns:
        The size with the model loaded, and the largest size.
    """
    line = [sys.executable, "-m", "benchmarks.speed.memory", way, str(examples), str(folder)]
    output = subprocess.run(line, check=True, capture_output=True, text=True).stdout.split()
    return float(output[-2]), float(output[-1])


def main(way: str, examples: str, folder: str) -> None:
    """Make SAE edits on the toy model and print both sizes of the process.

    Edits are of one step and a single block.
    """
    tasks, settings = sample(int(examples), ["sae_each_sweep"])
    model = load_model("toy-turbo", steps=1)
    loaded = peak_ram()
    work(way, model, tasks, [settings[0].model_copy(update={"strengths": (1.0,)})], Path(folder))
    print(loaded / 2**20, peak_ram() / 2**20)


if __name__ == "__main__":
    main(*sys.argv[1:])
