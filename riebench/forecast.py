"""What a run would do: units, generations, time, memory and disk, found without loading a model.

Counts are exact, except that pictures which turn out to equal the source picture (a region that is not found, an edit
that changes nothing) are generated less often than counted here. Time and memory are estimates and say from what.
"""

from __future__ import annotations

import inspect
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import get_type_hints

from riebench.errors import RiebenchError
from riebench.methods.activations import UNIT_BUDGET
from riebench.methods.base import Method, Reuse, get_method
from riebench.needs import HALF_DTYPES, weight_bytes
from riebench.options import FP16_FIX, TILE, ModelOptions
from riebench.phrases import BACKGROUND, innermost, region_words
from riebench.planning import Unit, Work, works_of
from riebench.schema import BLOCKS, ModelSpec
from riebench.shapes import SDXL, Shape
from riebench.store import RunFolder, run_folders

FLOAT = 4
TRACE_BYTES = 4
"""Bytes of one captured number."""
TOKENS = 77
"""Tokens a text attention map has."""
SDXL_TERAFLOP = 6.0
"""Work of one evaluation of SDXL's U-Net on one picture of 1024 px; scaled by parameters and picture area."""
DECODER_TERAFLOP = 10.0
"""Work of decoding one picture of 1024 px with SDXL's autoencoder."""
REFERENCE = 1024
UNET_TENSORS = 24
"""Tensors of the U-Net's finest level that are in memory at its peak."""
DECODER_TENSORS = 4
"""Tensors of full resolution that are in memory while the last level of the decoder runs."""
LARGEST_BATCH_DECODED = 64
"""Latents up to this side are decoded as a batch; larger ones one by one."""
ASSUMED_RATES: dict[str, tuple[float, float]] = {"cuda": (50.0, 12.0), "mps": (4.0, 3.0), "cpu": (0.03, 0.03)}
"""Device -> assumed TFLOP a second in half precision and in float32; for a processor per core."""
PNG_SHARE = 0.7
"""Size of a stored picture as a share of its three bytes per pixel, where no stored one tells."""


@dataclass(frozen=True)
class Line:
    """The units of one setting in one category.

    Attributes:
        setting: its name.
        category: the edit category.
        units: planned.
        done: stored already.
        equal: of those to make, copies of the source or target picture by construction.
    """

    setting: str
    category: str
    units: int
    done: int
    equal: int

    @property
    def missing(self) -> int:
        """Units to make."""
        return self.units - self.done


@dataclass(frozen=True)
class Forecast:
    """What a run would do; sizes in bytes, time in seconds.

    Attributes:
        model: the generating model as its results would be named.
        device: where it would run.
        batch_size: pictures at a time.
        lines: units by setting and category.
        pairs: examples and seeds whose source and target run are generated, once for all settings.
        edited: pictures generated with an edit.
        beside: further runs, at most, that large neuron edits read while they are applied.
        seconds: estimated time of generating.
        basis: what the time is estimated from.
        weights: model, autoencoder and SAEs in memory.
        work: activations of one batch, at their peak.
        traces: what is captured of the examples in work.
        disk: pictures to be stored.
    """

    model: ModelSpec
    device: str
    batch_size: int
    lines: tuple[Line, ...]
    pairs: int
    edited: int
    beside: int
    seconds: float
    basis: str
    weights: int
    work: int
    traces: int
    disk: int

    @property
    def units(self) -> int:
        """All planned units."""
        return sum(line.units for line in self.lines)

    @property
    def missing(self) -> int:
        """Units to make."""
        return sum(line.missing for line in self.lines)

    @property
    def equal(self) -> int:
        """Units that are copies of a picture generated anyway."""
        return sum(line.equal for line in self.lines)

    @property
    def generations(self) -> int:
        """Pictures to generate, runs beside them not counted."""
        return 2 * self.pairs + self.edited

    @property
    def evaluations(self) -> int:
        """U-Net evaluations of one picture: every generation times steps, doubled under guidance."""
        return (self.generations + self.beside) * per_picture(self.model)

    @property
    def memory(self) -> int:
        """Peak memory, on the device that generates."""
        return self.weights + self.work + self.traces


def per_picture(model: ModelSpec) -> int:
    """U-Net evaluations that one picture takes; guidance above 1 evaluates twice a step."""
    return model.steps * (2 if model.guidance > 1 else 1)


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


def forecast(request: Request) -> Forecast:
    """Counts and estimates.

    Args:
        request: what would be run.
    """
    missing = [unit for unit in request.units if unit.key.digest not in request.done.get(unit.setting.name, ())]
    works = works_of(missing)
    edited = [unit for unit in missing if not reuses(get_method(unit.setting.method))]
    beside = sum(_beside(work, request) for work in works)
    generations = 2 * len(works) + len(edited)
    evaluations = (generations + beside) * per_picture(request.model)
    seconds, basis = _time(request, evaluations, generations)
    return Forecast(
        model=request.model,
        device=request.device,
        batch_size=request.batch_size,
        lines=_lines(request.units, missing),
        pairs=len(works),
        edited=len(edited),
        beside=beside,
        seconds=seconds,
        basis=basis,
        weights=weight_bytes(request.shape.parameters, request.model.dtype, request.options) + request.sae_bytes,
        work=work_bytes(request),
        traces=trace_bytes(request, works),
        disk=_disk(request, len(missing) + 2 * len(works)),
    )


def reuses(method: Method) -> bool:
    """Whether a method's result is always a picture that is generated anyway."""
    return get_type_hints(method.function)["return"] is Reuse


def _lines(units: Sequence[Unit], missing: Sequence[Unit]) -> tuple[Line, ...]:
    planned = Counter((unit.setting.name, unit.key.category) for unit in units)
    to_make = Counter((unit.setting.name, unit.key.category) for unit in missing)
    equal = {unit.setting.name: reuses(get_method(unit.setting.method)) for unit in units}
    return tuple(
        Line(setting, category, count, count - to_make[setting, category],
             to_make[setting, category] if equal[setting] else 0)
        for (setting, category), count in planned.items()
    )  # fmt: skip


def _beside(work: Work, request: Request) -> int:
    """Further runs, at most, of one example: large neuron edits read its source and target run in each batch."""
    paired = sum(_is_paired(unit, request) for unit in work.units)
    batches = min(paired, math.ceil(paired / request.batch_size) + 1)
    return 2 * batches


def _is_paired(unit: Unit, request: Request) -> bool:
    method = get_method(unit.setting.method)
    if "units" not in method.needs:
        return False
    chosen = unit.setting.params.get("n_units", inspect.signature(method.function).parameters["n_units"].default)
    positions = max(request.shape.positions(block, request.model.size) for block in unit.blocks)
    return 2 * int(str(chosen)) * positions * request.model.steps * FLOAT > UNIT_BUDGET


def number_bytes(dtype: str) -> int:
    """Bytes of one number of a format."""
    return 2 if dtype in HALF_DTYPES else FLOAT


def work_bytes(request: Request) -> int:
    """Estimated peak of activations of one batch: of the U-Net, or of the decoder, whichever needs more."""
    shape, model, options = request.shape, request.model, request.options
    latents = model.size // shape.vae_factor
    rows = request.batch_size * (2 if model.guidance > 1 else 1)
    unet = rows * latents**2 * shape.channels[0] * UNET_TENSORS * number_bytes(model.dtype)
    decoded = request.batch_size if latents <= LARGEST_BATCH_DECODED and not options.vae_slicing else 1
    side = min(model.size, TILE) if options.vae_tiling else model.size
    width = number_bytes(model.dtype) if options.vae == FP16_FIX else FLOAT
    return max(unet, decoded * side**2 * shape.vae_width * DECODER_TENSORS * width)


def trace_bytes(request: Request, works: Sequence[Work]) -> int:
    """What is captured of the examples that are in work together."""
    shape, model = request.shape, request.model
    together = works[: max(1, request.batch_size // 2)]
    settings = {unit.setting.name: unit.setting for work in together for unit in work.units}
    updates: set[str] = set()
    units: set[str] = set()
    for setting in settings.values():
        needs = get_method(setting.method).needs
        updates |= set(setting.blocks) if needs else set()
        units |= set(setting.blocks) if "units" in needs else set()
    numbers = sum(shape.width(block) * shape.positions(block, model.size) for block in updates)
    numbers += sum(shape.units(block) * shape.positions(block, model.size) for block in units)
    if any(_is_searched(work) for work in together):
        numbers += sum(TOKENS * shape.positions(block, model.size) for block in BLOCKS)
    return 2 * len(together) * model.steps * numbers * TRACE_BYTES


def _is_searched(work: Work) -> bool:
    regions = (work.example.source_region, work.example.target_region)
    return any(innermost(region) == BACKGROUND or region_words(region) is not None for region in regions)


def _time(request: Request, evaluations: int, pictures: int) -> tuple[float, str]:
    stored = stored_rate(request)
    if stored is not None:
        seconds, count = stored
        return seconds * evaluations, f"{count} stored times of this model on this kind of device"
    kind = request.device.split(":")[0]
    half, full = ASSUMED_RATES.get(kind, ASSUMED_RATES["cpu"])
    cores = (os.cpu_count() or 1) if kind == "cpu" else 1
    rate = full if request.model.dtype == "float32" or kind == "cpu" else half
    area = (request.model.size / REFERENCE) ** 2
    shape = request.shape
    work = evaluations * SDXL_TERAFLOP * area * _share(shape, "unet") / rate
    decoding = pictures * DECODER_TERAFLOP * area * _share(shape, "vae") / full
    words = f"assumed {rate * cores:g} TFLOP/s in {request.model.dtype}; nothing of this model is stored yet"
    return (work + decoding) / cores, words


def _share(shape: Shape, part: str) -> float:
    return shape.parameters[part] / SDXL.parameters[part]


def stored_rate(request: Request) -> tuple[float, int] | None:
    """Seconds per U-Net evaluation in earlier runs of the same weights on the same kind of device, and from how many.

    Runs of another step count or guidance serve too; those of another size or number format do not.
    """
    rates = [
        record.seconds / per_picture(folder.spec.model)
        for folder in _alike(request)
        for record in folder.records()
        if record.seconds > 0
    ]
    return (median(rates), len(rates)) if rates else None


def _alike(request: Request) -> Iterator[RunFolder]:
    wanted = request.model
    # A damaged folder elsewhere is no reason to give no estimate; its own run will name it.
    with suppress(RiebenchError):
        for folder in run_folders(request.results):
            model = folder.spec.model
            same = (model.source, model.size, model.dtype) == (wanted.source, wanted.size, wanted.dtype)
            if same and folder.provenance.get("device", "").split(":")[0] == request.device.split(":")[0]:
                yield folder


def _disk(request: Request, pictures: int) -> int:
    return math.ceil(pictures * request.model.size**2 * 3 * PNG_SHARE)
