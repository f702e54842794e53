"""Time and memory of all work on SDXL's full architecture with random weights.

`python -m benchmarks.sdxl` needs no download. Pictures come out as noise; times and memory are those of the real
model, text encoders left out. `--device meta` counts operations and activations without computing anything.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from riebench.cli.common import DeviceOption, friendly, say
from riebench.errors import RiebenchError
from riebench.utils.machine import peak_ram

FEATURES, SPARSITY, WIDTH = 5120, 160, 1280
"""Size of the published SAEs, and the channels they are made for."""
CHOSEN, UNITS = 160, 5000
"""Features and feed-forward units that an edit switches each way."""
BASE_GUIDANCE = 5.0
MEMORY_POLL = Path("/proc/self/clear_refs")
EDITS: dict[str, dict[str, Any]] = {"sae": {"n_features": CHOSEN}, "neurons": {"n_units": UNITS}}


@dataclass(frozen=True)
class Configuration:
    """Configuration of a run of the model.

    Fields are named as the options of `riebench run`; `batch` pictures are made at once.
    """

    dtype: str
    size: int
    steps: int
    guidance: float
    batch: int


@dataclass(frozen=True)
class Measure:
    """Cost of one piece of work.

    Attributes:
        what: "generate" (pictures with all four blocks captured), "sae" or "neurons" (source, target and edit).
        configuration: of the model.
        pictures: examples made.
        evaluations: U-Net evaluations, rows of a batch counted one by one.
        seconds: wall time.
        processor_seconds: time of all processor cores together; what a busy machine leaves alone.
        peak_bytes: most memory of the device (on a CPU: of the process) at any time, weights included.
    """

    what: str
    configuration: Configuration
    pictures: int
    evaluations: int
    seconds: float
    processor_seconds: float
    peak_bytes: int


CUDA_CONFIGURATIONS = tuple(
    Configuration(dtype, *rest)
    for dtype in ("float16", "bfloat16")
    for rest in ((512, 1, 0.0, 1), (512, 1, 0.0, 8), (512, 4, 0.0, 8), (1024, 20, 5.0, 1), (1024, 20, 5.0, 4))
)
CPU_CONFIGURATIONS = (Configuration("bfloat16", 512, 1, 0.0, 1), Configuration("bfloat16", 1024, 1, 0.0, 1))


def measure(configurations: Sequence[Configuration], device: str) -> Iterator[Measure]:
    """Measure all work in all configurations.

    The U-Net is built once per number format.

    Raises:
        RiebenchError: if a block has another shape than SDXL's, or a unit fails.
    """
    from benchmarks.sdxl.architecture import build_unet, build_vae, random_sdxl

    vae = build_vae(device)
    with tempfile.TemporaryDirectory(prefix="riebench-fullsize-") as folder:
        saes = _random_saes(Path(folder) / "saes")
        for dtype in dict.fromkeys(one.dtype for one in configurations):
            unet = build_unet(device, dtype)
            for number, one in enumerate(configurations):
                if one.dtype == dtype:
                    model = random_sdxl(
                        device, dtype, steps=one.steps, guidance=one.guidance, size=one.size, parts=(unet, vae)
                    )
                    yield _generation(model, one, device)
                    for edit in EDITS:
                        yield _edit(model, one, device, edit, saes, Path(folder) / str(number))
            del unet, model


def _generation(model: Any, one: Configuration, device: str) -> Measure:
    from riebench.generation.generator import Capture, Generator
    from riebench.models.families.sdxl.names import BLOCKS

    generator = Generator(model)
    prompts = [f"picture {number}" for number in range(one.batch)]
    if device.startswith("cuda"):
        generator.generate(prompts, range(one.batch))  # the first call chooses kernels
    with _watched(model, device) as seen:
        trace = generator.generate(prompts, range(one.batch), capture=Capture(BLOCKS)).trace
    side = one.size // 32
    for block in BLOCKS:
        shape = tuple(trace.get(block).shape)
        if shape != (one.batch, one.steps, WIDTH, side, side):
            raise RiebenchError(
                f"{block} gave updates of shape {shape}, not those of SDXL; use diffusers 0.40 or newer"
            )
    return Measure("generate", one, one.batch, **seen)


def _edit(model: Any, one: Configuration, device: str, name: str, saes: Path, results: Path) -> Measure:
    from riebench.runs.runner import run_benchmark
    from riebench.tasks.schema import EditExample, EditTask, Setting

    examples = tuple(EditExample(id=f"e{i}", source=f"source {i}", target=f"target {i}") for i in range(one.batch))
    task = EditTask(name="change_object", version=1, category="change_object", suite="fullsize", examples=examples)
    setting = Setting(name=name, method=name, params=EDITS[name], sae=str(saes))
    with _watched(model, device) as seen:
        (folder,) = run_benchmark(
            [task],
            [setting],
            model,
            results_root=results,
            batch_size=one.batch,
            progress=False,
            offline=True,
            # The weights are random, and so are the SAEs.
            accept_sae=True,
        )
    for record in folder.records():
        if record.status != "ok":
            raise RiebenchError(f"{name} at {one.size} px, {one.steps} steps, {one.dtype}: {record.reason}")
        source, edited = folder.shared.read_image(str(record.source_image)), folder.read_image(str(record.image))
        if source.tobytes() == edited.tobytes():
            raise RiebenchError(f"{name} at {one.size} px, {one.steps} steps, {one.dtype} changed nothing")
    return Measure(name, one, one.batch, **seen)


@contextmanager
def _watched(model: Any, device: str) -> Iterator[dict[str, Any]]:
    """Measure what happens inside the `with` block.

    Yields:
        A dictionary that holds all measured fields of `Measure` once the block has been left.
    """
    import torch

    seen: dict[str, Any] = {"evaluations": 0}

    def count(_module: Any, args: Any) -> None:
        seen["evaluations"] += args[0].shape[0]

    cuda = device.startswith("cuda")
    handle = model.denoiser.register_forward_pre_hook(count)
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    elif MEMORY_POLL.exists():
        MEMORY_POLL.write_text("5")  # resets the peak that the kernel keeps
    start, worked = time.perf_counter(), time.process_time()
    try:
        yield seen
    finally:
        handle.remove()
    if cuda:
        torch.cuda.synchronize()
    seen["seconds"], seen["processor_seconds"] = time.perf_counter() - start, time.process_time() - worked
    seen["peak_bytes"] = torch.cuda.max_memory_allocated() if cuda else peak_ram()


def _random_saes(root: Path) -> Path:
    import torch

    from riebench.models.families.sdxl.names import BLOCKS
    from riebench.saes.formats import folder_name, save_sdxl_unbox

    generator = torch.Generator().manual_seed(0)
    for block in BLOCKS:
        decoder = torch.nn.functional.normalize(torch.randn(WIDTH, FEATURES, generator=generator), dim=0)
        save_sdxl_unbox(
            root / folder_name(block, SPARSITY, FEATURES) / "final", encoder=decoder.T.contiguous(), decoder=decoder,
            pre_bias=torch.zeros(WIDTH), latent_bias=torch.zeros(FEATURES), k=SPARSITY,
        )  # fmt: skip
    return root


def machine(device: str) -> dict[str, Any]:
    """Return processor, memory, device and versions of this machine."""
    import torch

    from riebench.store.invocations import package_versions

    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "cpu": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": memory,
        "python": platform.python_version(),
        "versions": package_versions(),
    }


def _counted(sizes: Sequence[int]) -> list[dict[str, Any]]:
    from benchmarks.sdxl.counting import decode_cost, unet_cost

    rows = []
    for size in sizes:
        for what, cost in (("unet, float16", unet_cost(size)), ("decoder, float32", decode_cost(size))):
            say(
                f"{size:>5} px  {what:<16}  {cost.operations / 1e12:6.2f} TFLOP  "
                f"{cost.activation_bytes / 1e9:6.2f} GB of activations"
            )
            rows.append({"what": what, "size": size, **asdict(cost)})
    return rows


@friendly
def main(
    device: DeviceOption = "auto",
    dtype: Annotated[str | None, typer.Option(help="float32, float16 or bfloat16. [default: by device]")] = None,
    size: Annotated[int | None, typer.Option(help="Picture side in pixels. [default: 512 and 1024]")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps; from 10 on SDXL Base's.")] = None,
    guidance: Annotated[float | None, typer.Option(min=0, help="Guidance scale. [default: by steps]")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Pictures at once.")] = None,
    file: Annotated[Path | None, typer.Option("--json", help="Writes all figures there.")] = None,
) -> None:
    """Run SDXL's full-size architecture with random weights.

    Capture, SAE edit and neuron edit are measured in seconds and memory.
    """
    if device == "meta":
        figures: dict[str, Any] = {"counted": _counted([size] if size else [512, 1024])}
    else:
        from benchmarks.sdxl.architecture import MANY_STEPS
        from riebench.utils.machine import pick_device

        device = pick_device(device)
        usual = CUDA_CONFIGURATIONS if device.startswith("cuda") else CPU_CONFIGURATIONS
        wanted = {"dtype": dtype, "size": size, "steps": steps, "guidance": guidance, "batch": batch}
        chosen = {name: value for name, value in wanted.items() if value is not None}
        if steps is not None and guidance is None:
            chosen["guidance"] = BASE_GUIDANCE if steps >= MANY_STEPS else 0.0
        configurations = list(dict.fromkeys(Configuration(**{**asdict(one), **chosen}) for one in usual))
        figures = {"machine": machine(device), "measures": []}
        for one in measure(configurations, device):
            figures["measures"].append(asdict(one))
            say(_line(one))
    if file is not None:
        file.write_text(json.dumps(figures, indent=2) + "\n")


def _line(one: Measure) -> str:
    how = one.configuration
    return (
        f"{how.dtype:<8} {how.size:>5} px {how.steps:>3} steps  guidance {how.guidance:g}  batch {how.batch}  "
        f"{one.what:<8} {one.seconds:8.1f} s ({one.processor_seconds:.1f} s of processor)  "
        f"{one.evaluations:>4} evaluations  {one.peak_bytes / 1e9:6.2f} GB"
    )


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
app.command()(main)
