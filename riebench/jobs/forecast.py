"""Time, memory and disk of a run, estimated from stored times or stated assumptions, without loading a model.

Operations and activations of a model are those that its family states (`riebench.models.families`).
"""

from __future__ import annotations

import inspect
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from riebench.blocks import default_blocks
from riebench.errors import RiebenchError
from riebench.generation.memory import FULL, examples_together, footprint
from riebench.generation.regions.options import DEFAULT_REGIONS, RegionSpec, parse_regions
from riebench.methods.activations import UNIT_BUDGET
from riebench.methods.base import get_method
from riebench.models.families.base import Shape
from riebench.models.spec import ModelOptions, ModelSpec
from riebench.runs.plan import Unit, Work, works_of
from riebench.store.folder import ALONE, RunFolder, run_folders
from riebench.tasks.prompts import BACKGROUND, innermost, region_words
from riebench.tasks.schema import Setting

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
    return request.shape.activation_bytes(request.model, request.options, request.batch_size)


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
    usual = tuple(block for block in default_blocks() if block in shape.blocks)
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
    weights = request.shape.weight_bytes(request.model.dtype, request.options)
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
    shape, size = request.shape, request.model.size
    work = evaluations * shape.evaluation_teraflop(size) / rate
    decoding = pictures * shape.decoding_teraflop(size) / full
    words = f"assumed {rate * cores:g} TFLOP/s in {request.model.dtype}; nothing of this model is stored yet"
    return (work + decoding) / cores, words


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
        looked: pairs generated before all else because region models look for words in them.
        beside: further runs, at most, that ranking many units, large neuron edits and looking at other examples take.
        seconds: estimated time of generating.
        basis: what the time is estimated from.
        memory: estimated peak on the device that generates.
        disk: pictures to be stored.
        shard: (i, n) if all this is of the i-th of n parts alone.
    """

    model: ModelSpec
    device: str
    batch_size: int
    lines: tuple[Line, ...]
    pairs: int
    edited: int
    looked: int
    beside: int
    seconds: float
    basis: str
    memory: Memory
    disk: int
    shard: tuple[int, int]

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
        return 2 * (self.pairs + self.looked) + self.edited

    @property
    def evaluations(self) -> int:
        """U-Net evaluations of one picture: every generation times steps, doubled under guidance."""
        return (self.generations + self.beside) * per_picture(self.model)


def forecast(request: Request) -> Forecast:
    """Counts and estimates.

    Args:
        request: what would be run.
    """
    missing = [unit for unit in request.units if unit.key.digest not in request.done.get(unit.setting.name, ())]
    works = works_of(missing)
    edited = [unit for unit in missing if not get_method(unit.setting.method).copies]
    looked = sum(_is_looked_at(work, request) for work in works)
    captured = held(request, works)
    beside = sum(_beside(work, request, captured.metered) for work in works) + _others(works)
    generations = 2 * (len(works) + looked) + len(edited)
    evaluations = (generations + beside) * per_picture(request.model)
    seconds, basis = run_seconds(request, evaluations, generations)
    return Forecast(
        model=request.model,
        device=request.device,
        batch_size=request.batch_size,
        lines=_lines(request.units, missing),
        pairs=len(works),
        edited=len(edited),
        looked=looked,
        beside=beside,
        seconds=seconds,
        basis=basis,
        memory=memory(request, works),
        disk=disk_bytes(request, len(missing) + 2 * len(works)),
        shard=request.shard,
    )


def _lines(units: Sequence[Unit], missing: Sequence[Unit]) -> tuple[Line, ...]:
    planned = Counter((unit.setting.name, unit.key.category) for unit in units)
    to_make = Counter((unit.setting.name, unit.key.category) for unit in missing)
    equal = {unit.setting.name: get_method(unit.setting.method).copies for unit in units}
    return tuple(
        Line(setting, category, count, count - to_make[setting, category],
             to_make[setting, category] if equal[setting] else 0)
        for (setting, category), count in planned.items()
    )  # fmt: skip


def _is_looked_at(work: Work, request: Request) -> bool:
    unseen = (work.example.id, work.seed) not in request.masked
    return bool(request.regions.models) and unseen and is_searched(work)


def _beside(work: Work, request: Request, metered: bool) -> int:
    """Further runs, at most, of one example: to rank its units, and to read them in each batch of large edits."""
    ranked = metered and any("units" in get_method(unit.setting.method).needs for unit in work.units)
    paired = sum(_is_paired(unit, request, metered) for unit in work.units)
    return 2 * ranked + 2 * min(paired, math.ceil(paired / request.batch_size) + 1)


def _others(works: Sequence[Work]) -> int:
    """Runs, at most, of examples that methods look at beside the edited one."""
    found = 0
    shared: dict[tuple[str, int], int] = {}
    for work in works:
        settings = {unit.setting.name: unit.setting for unit in work.units}
        users = [setting for setting in settings.values() if "others" in get_method(setting.method).needs]
        counts = [_examples(setting) for setting in users]
        # A method with a number of examples looks at the same ones for the whole task; another has one of its own.
        found += 2 * counts.count(None)
        place = (work.task.name, work.seed)
        shared[place] = max([shared.get(place, 0), *(2 * (count + 1) for count in counts if count is not None)])
    return found + sum(shared.values())


def _examples(setting: Setting) -> int | None:
    known = inspect.signature(get_method(setting.method).function).parameters.get("examples")
    return None if known is None else int(str(setting.params.get("examples", known.default)))


def _is_paired(unit: Unit, request: Request, metered: bool) -> bool:
    method = get_method(unit.setting.method)
    if "units" not in method.needs or metered:
        return "units" in method.needs
    chosen = unit.setting.params.get("n_units", inspect.signature(method.function).parameters["n_units"].default)
    positions = max(request.shape.positions(block, request.model.size) for block in unit.blocks)
    return 2 * int(str(chosen)) * positions * request.model.steps * FULL > UNIT_BUDGET
