"""What a run would do: units, generations, time, memory and disk, found without loading a model.

Counts are exact, except that pictures which turn out to equal the source picture (a region that is not found, an edit
that changes nothing) are generated less often than counted here. Time and memory are estimates and say from what.
"""

from __future__ import annotations

import inspect
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from riebench.estimates import Memory, Request, disk_bytes, held, is_searched, memory, per_picture, run_seconds
from riebench.generation.memory import FLOAT
from riebench.methods.activations import UNIT_BUDGET
from riebench.methods.base import get_method
from riebench.models.spec import ModelSpec
from riebench.runs.plan import Unit, Work, works_of
from riebench.tasks.schema import Setting


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
    return 2 * int(str(chosen)) * positions * request.model.steps * FLOAT > UNIT_BUDGET
