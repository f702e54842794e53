"""Time, memory and disk of a run, estimated without loading a model.

Estimates come from stored times or stated assumptions. `forecast` counts the units and runs of `PlannedWork` and puts
all estimates together.

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

from riebench.blocks import usual_blocks
from riebench.errors import RiebenchError
from riebench.generation.memory import FULL, HALF, examples_together, footprint
from riebench.generation.regions.options import DEFAULT_REGIONS, RegionSpec, parse_regions
from riebench.generation.units import examples_with_units
from riebench.methods.activations import UNIT_BUDGET
from riebench.methods.base import get_method
from riebench.models.families.sizes import Shape
from riebench.models.spec import ModelOptions, ModelSpec
from riebench.registry import DEFAULT_FAMILY, MODEL_FAMILIES
from riebench.runs.plan import ExampleWork, Unit, works_of
from riebench.store.folder import SINGLE_SHARD, RunFolder, find_run_folders
from riebench.tasks.prompts import BACKGROUND, region_words, without_negations
from riebench.tasks.schema import Setting

ASSUMED_RATES: dict[str, tuple[float, float]] = {"cuda": (50.0, 12.0), "mps": (4.0, 3.0), "cpu": (0.03, 0.03)}
"""Device -> assumed TFLOP a second in half precision and in float32; for a processor per core."""
PNG_SHARE = 0.7
"""Size of a stored picture as a share of its three bytes per pixel, where no stored picture gives it."""


@dataclass(frozen=True)
class PlannedWork:
    """The work to forecast.

    Attributes:
        model: the model as it would be loaded.
        shape: the model's measures.
        device: device that it would run on.
        batch_size: pictures at a time.
        units: all planned units.
        done: setting name -> digests of its units that need no work.
        results: results folder, whose records of earlier runs give times.
        sae_bytes: bytes of the SAEs in memory.
        options: options for loading the model.
        regions: the region provider.
        stored_masks: example id and seed of the examples whose masks are stored.
        shard: (i, n) if these are the units of the i-th of n parts alone.
        sae_runs: source pictures that are generated first to measure SAEs.
        family: name of the model's family.
        left_out: official configurations that the family cannot run -> why.
    """

    model: ModelSpec
    shape: Shape
    device: str
    batch_size: int
    units: Sequence[Unit]
    done: Mapping[str, set[str]] = field(default_factory=dict)
    results: Path = Path("runs")
    sae_bytes: int = 0
    options: ModelOptions = field(default_factory=ModelOptions)
    regions: RegionSpec = field(default_factory=lambda: parse_regions(DEFAULT_REGIONS))
    stored_masks: frozenset[tuple[str, int]] = frozenset()
    shard: tuple[int, int] = SINGLE_SHARD
    sae_runs: int = 0
    family: str = DEFAULT_FAMILY
    left_out: Mapping[str, str] = field(default_factory=dict)


def per_picture(model: ModelSpec, shape: Shape) -> int:
    """Return the evaluations of the denoiser that one picture takes.

    Under classifier-free guidance it is evaluated twice a step.
    """
    return model.steps * shape.calls(model.guidance)


def work_bytes(planned: PlannedWork) -> int:
    """Estimate the peak bytes of one batch's activations.

    It is that of the denoiser or of the decoder, whichever needs more.
    """
    return planned.shape.activation_bytes(planned.model, planned.options, planned.batch_size)


@dataclass(frozen=True)
class CaptureCost:
    """Memory of the activations captured of the examples in work.

    Attributes:
        nbytes: bytes of one example's source and target run.
        together: examples in memory at a time.
        metered: True if feed-forward units are too many for the traces.
        units: bytes of one example's units that are kept in the host's memory instead; 0 if there are none or its free
            memory does not suffice, so that the pair is generated once more to rank and read them.
    """

    nbytes: int
    together: int
    metered: bool
    units: int

    @property
    def repeated(self) -> bool:
        """True if runs are generated again for their units."""
        return self.metered and not self.units


def capture_cost(planned: PlannedWork, works: Sequence[ExampleWork]) -> CaptureCost:
    """Compute the memory of captured activations for some examples.

    It is decided as `riebench.generation.memory` decides it for the run itself.
    """
    shape, model = planned.shape, planned.model
    names = MODEL_FAMILIES.get(planned.family).names
    usual = usual_blocks([block for block in shape.blocks if names.reads_text(block)], planned.family)
    settings = {unit.setting.name: unit.setting for work in works for unit in work.units}.values()
    updates = {block for setting in settings if get_method(setting.method).needs for block in setting.blocks}
    units = {block for setting in settings if "units" in get_method(setting.method).needs for block in setting.blocks}
    # Region models of their own look at pictures; only without them is attention captured.
    attention = usual if not planned.regions.models and any(is_searched(work) for work in works) else ()
    common = footprint(shape, model.size, model.steps, usual, usual, usual)
    own = footprint(shape, model.size, model.steps, updates, units, attention)
    metered = bool(units) and (common.metered or own.metered)
    nbytes = own.nbytes(long=common.long or own.long, metered=metered)
    together = min(len(works), examples_together(nbytes, planned.batch_size))
    on_host = own.unit_bytes(FULL if model.dtype == "float32" else HALF) if metered else 0
    fitting = examples_with_units(on_host, together) if metered else 0
    return CaptureCost(nbytes, fitting or together, metered, on_host if fitting else 0)


@dataclass(frozen=True)
class Memory:
    """Peak memory of the device that generates, in bytes.

    Attributes:
        weights: model, autoencoder and SAEs.
        work: activations of one batch.
        traces: activations captured of the examples in work.
        units: feed-forward units of these that are kept in the host's memory, which is not in the sum unless the host
            generates.
        on_host: True if the host generates.
    """

    weights: int
    work: int
    traces: int
    units: int = 0
    on_host: bool = False

    @property
    def total(self) -> int:
        """The sum of the parts on the device that generates, in bytes."""
        return self.weights + self.work + self.traces + (self.units if self.on_host else 0)


def memory(planned: PlannedWork, works: Sequence[ExampleWork]) -> Memory:
    """Estimate the memory of making some examples."""
    captured = capture_cost(planned, works)
    weights = planned.shape.weight_bytes(planned.model.dtype, planned.options)
    traces, units = captured.nbytes * captured.together, captured.units * captured.together
    return Memory(weights + planned.sae_bytes, work_bytes(planned), traces, units, on_host=planned.device == "cpu")


def is_searched(work: ExampleWork) -> bool:
    """Check whether words have to be found in an example's pictures."""
    regions = (work.example.source_region, work.example.target_region)
    return any(without_negations(region) == BACKGROUND or region_words(region) is not None for region in regions)


def run_seconds(planned: PlannedWork, evaluations: int, pictures: int) -> tuple[float, str]:
    """Estimate the time of generating; also return the basis of the estimate.

    Args:
        planned: the work to forecast.
        evaluations: evaluations of the denoiser.
        pictures: number of decoded pictures.
    """
    stored = stored_rate(planned)
    if stored is not None:
        seconds, count = stored
        return seconds * evaluations, f"{count} stored times of this model on this kind of device"
    kind = planned.device.split(":")[0]
    half, full = ASSUMED_RATES.get(kind, ASSUMED_RATES["cpu"])
    cores = (os.cpu_count() or 1) if kind == "cpu" else 1
    rate = full if planned.model.dtype == "float32" or kind == "cpu" else half
    shape, size = planned.shape, planned.model.size
    work = evaluations * shape.evaluation_teraflop(size) / rate
    decoding = pictures * shape.decoding_teraflop(size) / full
    words = f"assumed {rate * cores:g} TFLOP/s in {planned.model.dtype}; nothing of this model is stored yet"
    return (work + decoding) / cores, words


def stored_rate(planned: PlannedWork) -> tuple[float, int] | None:
    """Compute seconds per evaluation from earlier runs, and their number.

    Earlier runs count if they are of the same weights on the same kind of device. None if there are none.

    Runs of another step count or guidance serve too; those of another size or number format do not.
    """
    try:
        rates = [
            record.seconds / per_picture(folder.spec.model, planned.shape)
            for folder in _similar_runs(planned)
            for record in folder.records()
            if record.seconds > 0
        ]
    except RiebenchError:
        # A damaged folder does not prevent an estimate; a run that uses the folder names the damage.
        return None
    return (median(rates), len(rates)) if rates else None


def _similar_runs(planned: PlannedWork) -> Iterator[RunFolder]:
    wanted = planned.model
    for folder in find_run_folders(planned.results):
        model = folder.spec.model
        same = (model.source, model.size, model.dtype) == (wanted.source, wanted.size, wanted.dtype)
        if same and folder.provenance.get("device", "").split(":")[0] == planned.device.split(":")[0]:
            yield folder


def disk_bytes(planned: PlannedWork, pictures: int) -> int:
    """Estimate the bytes of some pictures on disk."""
    return math.ceil(pictures * planned.model.size**2 * 3 * PNG_SHARE)


@dataclass(frozen=True)
class CategoryCount:
    """The numbers of units of one setting in one category.

    Attributes:
        setting: the setting's name.
        category: the edit category.
        units: planned units.
        done: units stored already.
        copies: units to make that are copies of the source or target picture by construction.
    """

    setting: str
    category: str
    units: int
    done: int
    copies: int

    @property
    def missing(self) -> int:
        """The number of units to make."""
        return self.units - self.done


@dataclass(frozen=True)
class Forecast:
    """Forecast of a run; sizes in bytes, time in seconds.

    Attributes:
        model: the generating model as its results would be named.
        device: device that it would run on.
        batch_size: pictures at a time.
        lines: units by setting and category.
        pairs: examples and seeds whose source and target run are generated, once for all settings.
        edited: pictures generated with an edit.
        region_pairs: pairs generated first because region models look for words in them.
        extra_runs: further runs, at most, for ranking many units, large neuron edits and looking at other examples.
        seconds: estimated time of generating.
        basis: words for the source of that time.
        memory: estimated peak on the device that generates.
        disk: pictures to be stored.
        shard: (i, n) if all this is of the i-th of n parts alone.
        per_picture: evaluations of the denoiser that one picture takes.
        denoiser: what people call it.
        sae_runs: source pictures that are generated first to measure SAEs; none of the other numbers counts them.
        left_out: official configurations that the model's family cannot run -> why.
    """

    model: ModelSpec
    device: str
    batch_size: int
    lines: tuple[CategoryCount, ...]
    pairs: int
    edited: int
    region_pairs: int
    extra_runs: int
    seconds: float
    basis: str
    memory: Memory
    disk: int
    shard: tuple[int, int]
    per_picture: int
    denoiser: str
    sae_runs: int = 0
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def units(self) -> int:
        """The number of all planned units."""
        return sum(line.units for line in self.lines)

    @property
    def missing(self) -> int:
        """The number of units to make."""
        return sum(line.missing for line in self.lines)

    @property
    def copies(self) -> int:
        """The number of units that are copies of a picture generated anyway."""
        return sum(line.copies for line in self.lines)

    @property
    def generations(self) -> int:
        """The number of pictures to generate, without `extra_runs`."""
        return 2 * (self.pairs + self.region_pairs) + self.edited

    @property
    def evaluations(self) -> int:
        """The number of evaluations of the denoiser, each of one picture.

        Every generation and every extra run takes one per step, or two under guidance.
        """
        return (self.generations + self.extra_runs) * self.per_picture


def forecast(planned: PlannedWork) -> Forecast:
    """Count a run's units and generations, and estimate time, memory and disk.

    Args:
        planned: the work to forecast.
    """
    missing = [unit for unit in planned.units if unit.key.digest not in planned.done.get(unit.setting.name, ())]
    works = works_of(missing)
    edited = [unit for unit in missing if not get_method(unit.setting.method).copies]
    region_pairs = sum(_needs_region_pair(work, planned) for work in works)
    captured = capture_cost(planned, works)
    extra_runs = sum(_extra_runs(work, planned, captured) for work in works) + _reference_runs(works)
    generations = 2 * (len(works) + region_pairs) + len(edited)
    evaluations = (generations + extra_runs) * per_picture(planned.model, planned.shape)
    seconds, basis = run_seconds(planned, evaluations, generations)
    return Forecast(
        model=planned.model,
        device=planned.device,
        batch_size=planned.batch_size,
        lines=_category_counts(planned.units, missing),
        pairs=len(works),
        edited=len(edited),
        region_pairs=region_pairs,
        extra_runs=extra_runs,
        seconds=seconds,
        basis=basis,
        memory=memory(planned, works),
        disk=disk_bytes(planned, len(missing) + 2 * len(works)),
        shard=planned.shard,
        sae_runs=planned.sae_runs,
        left_out=planned.left_out,
        per_picture=per_picture(planned.model, planned.shape),
        denoiser=MODEL_FAMILIES.get(planned.family).denoiser_title,
    )


def _category_counts(units: Sequence[Unit], missing: Sequence[Unit]) -> tuple[CategoryCount, ...]:
    planned = Counter((unit.setting.name, unit.key.category) for unit in units)
    to_make = Counter((unit.setting.name, unit.key.category) for unit in missing)
    copies = {unit.setting.name: get_method(unit.setting.method).copies for unit in units}
    return tuple(
        CategoryCount(setting, category, count, count - to_make[setting, category],
                      to_make[setting, category] if copies[setting] else 0)
        for (setting, category), count in planned.items()
    )  # fmt: skip


def _needs_region_pair(work: ExampleWork, planned: PlannedWork) -> bool:
    unseen = (work.example.id, work.seed) not in planned.stored_masks
    return bool(planned.regions.models) and unseen and is_searched(work)


def _extra_runs(work: ExampleWork, planned: PlannedWork, captured: CaptureCost) -> int:
    """Count the further runs, at most, of one example.

    They rank its units, and read them in each batch of large edits, where the units are not kept.
    """
    if captured.units:
        return 0
    ranked = captured.repeated and any("units" in get_method(unit.setting.method).needs for unit in work.units)
    paired = sum(_reads_pairs(unit, planned, captured.repeated) for unit in work.units)
    return 2 * ranked + 2 * min(paired, math.ceil(paired / planned.batch_size) + 1)


def _reference_runs(works: Sequence[ExampleWork]) -> int:
    """Count the runs, at most, of examples that methods look at as references."""
    found = 0
    shared: dict[tuple[str, int], int] = {}
    for work in works:
        settings = {unit.setting.name: unit.setting for unit in work.units}
        users = [setting for setting in settings.values() if "others" in get_method(setting.method).needs]
        counts = [_example_count(setting) for setting in users]
        # A method with a number of examples looks at the same ones for the whole task; any other looks at one per work.
        found += 2 * counts.count(None)
        place = (work.task.name, work.seed)
        shared[place] = max([shared.get(place, 0), *(2 * (count + 1) for count in counts if count is not None)])
    return found + sum(shared.values())


def _example_count(setting: Setting) -> int | None:
    """Return how many examples a method looks at; None for one each.

    Of a method that divides a category into folds, as many as all folds together learn from.
    """
    known = inspect.signature(get_method(setting.method).function).parameters
    stated = {name: setting.params.get(name, known[name].default) for name in ("examples", "folds") if name in known}
    if stated.get("examples") is None:
        return None
    count, folds = int(str(stated["examples"])), stated.get("folds")
    if folds is None or int(str(folds)) < 2:
        return count
    return math.ceil(count * int(str(folds)) / (int(str(folds)) - 1)) - 1


def _reads_pairs(unit: Unit, planned: PlannedWork, metered: bool) -> bool:
    method = get_method(unit.setting.method)
    if "units" not in method.needs or metered:
        return "units" in method.needs
    chosen = unit.setting.params.get("n_units", inspect.signature(method.function).parameters["n_units"].default)
    positions = max(planned.shape.positions(block, planned.model.size) for block in unit.blocks)
    return 2 * int(str(chosen)) * positions * planned.model.steps * FULL > UNIT_BUDGET
