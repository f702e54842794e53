"""Time, memory and disk of a run, estimated from stored times or stated assumptions, without loading a model.

Operations and activations follow, rounded, what `riebench.counting` counts on SDXL's full architecture.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from riebench.blocks import BLOCKS
from riebench.errors import RiebenchError
from riebench.generation.memory import activation_bytes, examples_together, footprint
from riebench.generation.regions.options import DEFAULT_REGIONS, RegionSpec, parse_regions
from riebench.methods.base import get_method
from riebench.models.presets import weight_bytes
from riebench.models.shapes import SDXL, Shape
from riebench.models.spec import ModelOptions, ModelSpec
from riebench.runs.plan import Unit, Work
from riebench.store.folder import ALONE, RunFolder, run_folders
from riebench.tasks.prompts import BACKGROUND, innermost, region_words

SDXL_TERAFLOP = 6.5
"""Work of one evaluation of SDXL's U-Net on one picture of 1024 px; scaled by parameters and latents."""
DECODER_TERAFLOP = 10.5
"""Work of decoding one picture of 1024 px with SDXL's autoencoder."""
ASSUMED_RATES: dict[str, tuple[float, float]] = {"cuda": (50.0, 12.0), "mps": (4.0, 3.0), "cpu": (0.03, 0.03)}
"""Device -> assumed TFLOP a second in half precision and in float32; for a processor per core."""
PNG_SHARE = 0.7
"""Size of a stored picture as a share of its three bytes per pixel, where no stored one tells."""


@dataclass(frozen=True)
class Request:
    """What is to be forecast.

    Attributes:
        model: as it would be loaded.
        shape: its measures.
        device: where it would run.
        batch_size: pictures at a time.
        units: all planned units.
        done: setting name -> digests of its units that need no work.
        results: where records of earlier runs tell how long things take.
        sae_bytes: SAEs in memory.
        options: how the model would be loaded.
        regions: who finds words in pictures.
        masked: example id and seed of those whose masks are stored.
        shard: (i, n) if these are the units of the i-th of n parts alone.
    """

    model: ModelSpec
    shape: Shape
    device: str
    batch_size: int
    units: Sequence[Unit]
    done: Mapping[str, set[str]] = field(default_factory=dict)
    results: Path = Path("results")
    sae_bytes: int = 0
    options: ModelOptions = field(default_factory=ModelOptions)
    regions: RegionSpec = field(default_factory=lambda: parse_regions(DEFAULT_REGIONS))
    masked: frozenset[tuple[str, int]] = frozenset()
    shard: tuple[int, int] = ALONE


def per_picture(model: ModelSpec) -> int:
    """U-Net evaluations that one picture takes; guidance above 1 evaluates twice a step."""
    return model.steps * (2 if model.guidance > 1 else 1)


def work_bytes(request: Request) -> int:
    """Estimated peak of activations of one batch: of the U-Net, or of the decoder, whichever needs more."""
    return activation_bytes(request.shape, request.model, request.options, request.batch_size)


@dataclass(frozen=True)
class Held:
    """What is captured of examples while they are in work.

    Attributes:
        nbytes: of one example's source and target run.
        together: examples in memory at a time.
        metered: feed-forward units are too many to be kept: the pair is generated once more to rank them.
    """

    nbytes: int
    together: int
    metered: bool


def held(request: Request, works: Sequence[Work]) -> Held:
    """What is captured of some examples, as `riebench.generation.memory` decides it for the run itself."""
    shape, model = request.shape, request.model
    usual = tuple(block for block in BLOCKS if block in shape.blocks)
    settings = {unit.setting.name: unit.setting for work in works for unit in work.units}.values()
    updates = {block for setting in settings if get_method(setting.method).needs for block in setting.blocks}
    units = {block for setting in settings if "units" in get_method(setting.method).needs for block in setting.blocks}
    # Region models of their own look at pictures; only without them is attention captured.
    looked = usual if not request.regions.models and any(is_searched(work) for work in works) else ()
    common = footprint(shape, model.size, model.steps, usual, usual, usual)
    own = footprint(shape, model.size, model.steps, updates, units, looked)
    metered = bool(units) and (common.metered or own.metered)
    nbytes = own.nbytes(long=common.long or own.long, metered=metered)
    return Held(nbytes, min(len(works), examples_together(nbytes, request.batch_size)), metered)


@dataclass(frozen=True)
class Memory:
    """Peak memory of the device that generates, in bytes.

    Attributes:
        weights: model, autoencoder and SAEs.
        work: activations of one batch.
        traces: what is captured of the examples in work.
    """

    weights: int
    work: int
    traces: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.work + self.traces


def memory(request: Request, works: Sequence[Work]) -> Memory:
    """Estimated memory of making some examples."""
    captured = held(request, works)
    weights = weight_bytes(request.shape.parameters, request.model.dtype, request.options)
    return Memory(weights + request.sae_bytes, work_bytes(request), captured.nbytes * captured.together)


def is_searched(work: Work) -> bool:
    """Whether words have to be found in an example's pictures."""
    regions = (work.example.source_region, work.example.target_region)
    return any(innermost(region) == BACKGROUND or region_words(region) is not None for region in regions)


def run_seconds(request: Request, evaluations: int, pictures: int) -> tuple[float, str]:
    """Estimated time of generating, and what it is estimated from.

    Args:
        request: what would be run.
        evaluations: U-Net evaluations of one picture.
        pictures: how many are decoded.
    """
    stored = stored_rate(request)
    if stored is not None:
        seconds, count = stored
        return seconds * evaluations, f"{count} stored times of this model on this kind of device"
    kind = request.device.split(":")[0]
    half, full = ASSUMED_RATES.get(kind, ASSUMED_RATES["cpu"])
    cores = (os.cpu_count() or 1) if kind == "cpu" else 1
    rate = full if request.model.dtype == "float32" or kind == "cpu" else half
    shape = request.shape
    latents = (request.model.size // shape.vae_factor / SDXL.sample) ** 2
    pixels = (request.model.size / (SDXL.sample * SDXL.vae_factor)) ** 2
    work = evaluations * SDXL_TERAFLOP * latents * _share(shape, "unet") / rate
    decoding = pictures * DECODER_TERAFLOP * pixels * _share(shape, "vae") / full
    words = f"assumed {rate * cores:g} TFLOP/s in {request.model.dtype}; nothing of this model is stored yet"
    return (work + decoding) / cores, words


def _share(shape: Shape, part: str) -> float:
    return shape.parameters[part] / SDXL.parameters[part]


def stored_rate(request: Request) -> tuple[float, int] | None:
    """Seconds per U-Net evaluation in earlier runs of the same weights on the same kind of device, and from how many.

    Runs of another step count or guidance serve too; those of another size or number format do not.
    """
    try:
        rates = [
            record.seconds / per_picture(folder.spec.model)
            for folder in _alike(request)
            for record in folder.records()
            if record.seconds > 0
        ]
    except RiebenchError:
        # A damaged folder is no reason to give no estimate; its own run will name it.
        return None
    return (median(rates), len(rates)) if rates else None


def _alike(request: Request) -> Iterator[RunFolder]:
    wanted = request.model
    for folder in run_folders(request.results):
        model = folder.spec.model
        same = (model.source, model.size, model.dtype) == (wanted.source, wanted.size, wanted.dtype)
        if same and folder.provenance.get("device", "").split(":")[0] == request.device.split(":")[0]:
            yield folder


def disk_bytes(request: Request, pictures: int) -> int:
    """Pictures on disk."""
    return math.ceil(pictures * request.model.size**2 * 3 * PNG_SHARE)
