"""Speed of full-size SDXL with random weights on one device, and its use.

    python -m benchmarks.speed.device --size 512 --steps 4 --json fullsize.json
    python -m benchmarks.speed.device --size 1024 --steps 20 --guidance 5

Every example gets 32 edited pictures (four blocks, eight strengths). Measured: the device's rate in bfloat16 matrix
products; the sweep at doubling batch sizes until memory ends, with its U-Net compiled block by block and without; and
the same pictures one by one in float32, three generations each, as the published scripts make them. No download.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.sdxl.architecture import POOLED_WIDTH, TEXT_WIDTH, TOKENS, random_sdxl
from benchmarks.sdxl.measure import machine
from riebench.errors import RiebenchError
from riebench.generation.generator import Capture, Generator
from riebench.models.families.sdxl.names import BLOCKS
from riebench.models.loading import LoadedModel
from riebench.models.placement import out_of_memory
from riebench.runs.runner import run_benchmark
from riebench.tasks.schema import EditExample, EditTask, Setting
from riebench.utils.machine import pick_device

STRENGTHS = tuple(0.25 * number for number in range(1, 9))
SWEEP = Setting(name="patch", method="activation_patch", block_mode="each", strengths=STRENGTHS)
MATRIX_SIDES = (4096, 8192, 16384)


@dataclass(frozen=True)
class Speed:
    """Speed of one way to make pictures.

    Attributes:
        way: "sweep" or "one by one".
        dtype: number format.
        batch: pictures at a time.
        compiled: whether the U-Net's blocks were compiled.
        pictures: edited ones.
        seconds: wall time of all.
        unet_seconds: of that, in the U-Net.
        unet_rate: floating-point operations a second in the U-Net, in runs that share nothing.
        peak_bytes: most memory of the device; 0 where it is not known.
    """

    way: str
    dtype: str
    batch: int
    compiled: bool
    pictures: int
    seconds: float
    unet_seconds: float
    unet_rate: float
    peak_bytes: int

    def line(self, matrix_rate: float) -> str:
        """Return the figures as a line of text.

        Args:
            matrix_rate: operations a second of bfloat16 matrix products.
        """
        return (
            f"{self.way:<10} {self.dtype:<8} batch {self.batch:>3}  compiled {'yes' if self.compiled else 'no ':<3}  "
            f"{self.pictures / self.seconds:8.3f} pictures/s  U-Net {self.unet_rate / 1e12:7.2f} TFLOP/s = "
            f"{100 * self.unet_rate / matrix_rate:5.1f} % of the matrix rate  outside it "
            f"{100 * (1 - self.unet_seconds / self.seconds):5.1f} %  {self.peak_bytes / 1e9:6.2f} GB"
        )


def synchronize(device: str) -> None:
    """Wait until a device has finished all work given to it."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def matrix_rate(device: str, sides: Sequence[int] = MATRIX_SIDES, seconds: float = 1.0) -> float:
    """Measure operations a second of bfloat16 matrix products.

    It is the best rate of some sizes.

    Args:
        device: where.
        sides: of square matrices.
        seconds: for each size, about.
    """
    rates = []
    for side in sides:
        first, second = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
        out = torch.empty_like(first)
        torch.mm(first, second, out=out)
        synchronize(device)
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            for _ in range(4):
                torch.mm(first, second, out=out)
            synchronize(device)
            count += 4
        rates.append(2 * side**3 * count / (time.perf_counter() - start))
    return max(rates)


@contextlib.contextmanager
def watched(unet: nn.Module, device: str) -> Iterator[dict[str, float]]:
    """Measure seconds and rows of all U-Net calls inside the `with` block."""
    seen = {"seconds": 0.0, "rows": 0.0, "start": 0.0}

    def before(_module: Any, args: Any) -> None:
        synchronize(device)
        seen["start"] = time.perf_counter()

    def after(_module: Any, args: Any, output: Any) -> None:
        synchronize(device)
        seen["seconds"] += time.perf_counter() - seen["start"]
        seen["rows"] += args[0].shape[0]

    handles = [unet.register_forward_pre_hook(before), unet.register_forward_hook(after)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def examples(count: int) -> EditTask:
    """Return a task of examples with made-up prompts."""
    found = tuple(EditExample(id=f"e{i}", source=f"source {i}", target=f"target {i}") for i in range(count))
    return EditTask(name="change_object", version=1, category="change_object", suite="fullsize", examples=found)


def operations_of(model: LoadedModel) -> int:
    """Count floating-point operations of one U-Net evaluation of one row."""
    device, dtype = model.device, model.pipe.unet.dtype
    side = model.spec.size // model.pipe.vae_scale_factor
    added = {
        "text_embeds": torch.zeros(1, POOLED_WIDTH, device=device, dtype=dtype),
        "time_ids": torch.zeros(1, 6, device=device, dtype=dtype),
    }
    text = torch.zeros(1, TOKENS, TEXT_WIDTH, device=device, dtype=dtype)
    latents = torch.zeros(1, 4, side, side, device=device, dtype=dtype)
    # Not in inference mode, where operations are not seen one by one.
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.denoiser(latents, 1, text, added_cond_kwargs=added, return_dict=False)
    return counter.get_total_flops()


def _peak(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device.startswith("cuda") else 0


def whole_rate(model: LoadedModel, batch: int, operations: int) -> float:
    """Measure operations a second in the U-Net at a batch size.

    The first generation is not counted: there kernels are chosen, and blocks compiled for the shape.
    """
    prompts = [f"source {number}" for number in range(batch)]
    Generator(model).generate(prompts, range(batch))
    with watched(model.denoiser, str(model.device)) as seen:
        Generator(model).generate(prompts, range(batch))
    return seen["rows"] * operations / seen["seconds"]


def sweep(
    model: LoadedModel, batch: int, count: int, *, compiled: bool, operations: int, setting: Setting = SWEEP
) -> Speed:
    """Measure all pictures of some examples, made as `riebench run` makes them.

    Args:
        model: generates.
        batch: pictures at a time.
        count: examples.
        compiled: what to note.
        operations: of one evaluation.
        setting: what is made of each example.

    Raises:
        RiebenchError: if memory does not suffice or a unit fails.
    """
    device = str(model.device)
    rate = whole_rate(model, batch, operations)
    with tempfile.TemporaryDirectory(prefix="riebench-speed-") as folder, watched(model.denoiser, device) as seen:
        synchronize(device)
        if device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        task = examples(count)
        (made,) = run_benchmark(
            [task], [setting], model, results_root=Path(folder), batch_size=batch, progress=False, accept_sae=True
        )
        spent = time.perf_counter() - start
        records = made.records()
        sizes = {record.batch_size for record in records}
    failed = [record.reason for record in records if record.status != "ok"]
    if failed:
        raise RiebenchError(failed[0])
    return Speed(
        "sweep", model.spec.dtype, max(sizes), compiled, len(records), spent, seen["seconds"], rate, _peak(device)
    )


def one_by_one(model: LoadedModel, count: int, operations: int) -> Speed:
    """Measure edited pictures made one at a time, with nothing kept.

    Each takes three generations.
    """
    device = str(model.device)
    with watched(model.denoiser, device) as seen:
        synchronize(device)
        start = time.perf_counter()
        for number in range(count):
            for prompt, capture in ((f"source {number}", Capture(BLOCKS)), (f"target {number}", Capture(BLOCKS))):
                Generator(model).generate([prompt], [number], capture=capture)
            Generator(model).generate([f"source {number}"], [number])
        synchronize(device)
        spent = time.perf_counter() - start
    rate = seen["rows"] * operations / seen["seconds"]
    return Speed("one by one", model.spec.dtype, 1, False, count, spent, seen["seconds"], rate, _peak(device))


Build = Callable[[str], LoadedModel]
"""Number format -> model."""


def measure(build: Build, batches: Sequence[int], *, modes: Sequence[bool] = (False, True), rate: float,
            single: int = 3, setting: Setting = SWEEP, say: Callable[[str], None] = print) -> list[Speed]:  # fmt: skip
    """Measure all ways, one after the other.

    The largest batches are left out where memory ends.

    Args:
        build: makes the model in a number format.
        batches: to try, ascending.
        modes: compiled or not.
        rate: of `matrix_rate`.
        single: pictures made one by one.
        setting: what is made of each example.
        say: takes a line for each result.
    """
    found: list[Speed] = []

    def note(one: Speed) -> None:
        found.append(one)
        say(one.line(rate))

    plain = build("float32")
    operations = operations_of(plain)
    one_by_one(plain, 1, operations)
    note(one_by_one(plain, single, operations))
    del plain
    model = build("bfloat16")
    for compiled in modes:
        if compiled:
            model.pipe.unet.compile_repeated_blocks(fullgraph=True)
        for batch in batches:
            try:
                count = max(1, batch // 4)
                note(sweep(model, batch, count, compiled=compiled, operations=operations, setting=setting))
            except (RiebenchError, RuntimeError) as error:
                if not isinstance(error, RiebenchError) and not out_of_memory(error):
                    raise
                say(f"batch {batch}: {str(error).partition(chr(10))[0]}")
                break
    first, *sweeps = found
    if not sweeps:
        return found
    best = max(sweeps, key=lambda one: one.pictures / one.seconds)
    gain = best.pictures / best.seconds / (first.pictures / first.seconds)
    say(f"best: batch {best.batch}, compiled {best.compiled}: {gain:.1f} times one by one in float32")
    return found


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--guidance", type=float, default=0.0)
    parser.add_argument("--batches", default="1,2,4,8,16,32,64", help="with commas between, ascending")
    parser.add_argument("--no-compile", action="store_true", help="leave the compiled U-Net out")
    parser.add_argument("--json", type=Path, help="writes all figures there")
    asked = parser.parse_args()
    device = pick_device(asked.device)
    rate = matrix_rate(device, MATRIX_SIDES if device != "cpu" else MATRIX_SIDES[:1])
    print(f"bfloat16 matrix products: {rate / 1e12:.1f} TFLOP/s on {device}")
    found = measure(
        lambda dtype: random_sdxl(device, dtype, steps=asked.steps, guidance=asked.guidance, size=asked.size),
        [int(batch) for batch in asked.batches.split(",")], modes=(False,) if asked.no_compile else (False, True),
        rate=rate,
    )  # fmt: skip
    if asked.json:
        figures = {"machine": machine(device), "matrix_rate": rate, "speeds": [asdict(one) for one in found]}
        asked.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
