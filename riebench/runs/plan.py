"""Contents of a run: its units, grouped by example and seed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice, zip_longest

from riebench.blocks import NO_BLOCKS, block_set_name
from riebench.errors import RiebenchError
from riebench.methods.base import get_method
from riebench.store.folder import REDO_MODES
from riebench.store.records import UnitKey, noise_seed
from riebench.tasks.schema import EditExample, EditTask, Setting
from riebench.tasks.settings import load_setting_plugin

CHECKED_EXAMPLES = 4
"""Source pictures on which the SAEs of a run are measured, or all of a run that has fewer."""


@dataclass(frozen=True)
class Unit:
    """One edited picture to make.

    Attributes:
        setting: the method with its parameters.
        task: the example's task.
        example: the edit.
        blocks: blocks that are edited together.
        key: its identity in the run folder.
    """

    setting: Setting
    task: EditTask
    example: EditExample
    blocks: tuple[str, ...]
    key: UnitKey


@dataclass
class ExampleWork:
    """The units of one example with one seed."""

    task: EditTask
    example: EditExample
    seed: int
    units: list[Unit]
    fixed_noise: bool = False

    @property
    def plain(self) -> EditExample:
        """The example as pictures are generated from it: prompts without brackets."""
        return self.example.plain

    @property
    def noise(self) -> int:
        """The seed of the example's noise."""
        return self.seed if self.fixed_noise else noise_seed(self.example.id, self.seed)


def plan(
    tasks: Sequence[EditTask],
    settings: Sequence[Setting],
    seeds: Sequence[int] = (0,),
    limit: int | None = None,
    *,
    usual: Sequence[str] = (),
) -> list[Unit]:
    """List all units of a benchmark, examples outside, configurations inside.

    Args:
        tasks: tasks with the examples to edit.
        settings: methods with their parameters.
        seeds: indices of the seeds of each example.
        limit: largest number of examples of each task.
        usual: blocks of the model that together are called "all" (`riebench.blocks.usual_blocks`).
    """
    return [
        Unit(setting, task, example, blocks, _key(task, example, block_set_name(blocks, usual), strength, seed))
        for task in tasks
        for example in task.examples[:limit]
        for seed in seeds
        for setting in settings
        for blocks in _block_sets(setting)
        for strength in setting.strengths
    ]


def _block_sets(setting: Setting) -> tuple[tuple[str, ...], ...]:
    # A method that reads no blocks changes none, whatever blocks its configuration names.
    load_setting_plugin(setting)
    return setting.block_sets if get_method(setting.method).reads_blocks else ((),)


def _key(task: EditTask, example: EditExample, block_set: str, strength: float, seed: int) -> UnitKey:
    return UnitKey(
        task=task.name, task_version=task.version, category=task.category, example_id=example.id,
        example_hash=example.content_hash, block_set=block_set, strength=strength, seed=seed,
    )  # fmt: skip


def check_request(tasks: Sequence[EditTask], settings: Sequence[Setting], redo: str, shard: tuple[int, int]) -> None:
    """Refuse a request that cannot be run.

    Raises:
        RiebenchError: with one line that names the error.
    """
    if not tasks or not settings:
        raise RiebenchError(f"nothing to do: {len(tasks)} tasks and {len(settings)} configurations")
    suites = sorted({task.suite for task in tasks})
    if len(suites) > 1:
        raise RiebenchError(f"tasks of several suites ({', '.join(suites)}); run one suite at a time")
    names = [setting.name for setting in settings]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise RiebenchError(f"configurations named twice: {', '.join(repeated)}")
    if redo not in REDO_MODES:
        raise RiebenchError(f"unknown redo mode {redo!r}; known: {', '.join(REDO_MODES)}")
    if not 1 <= shard[0] <= shard[1]:
        raise RiebenchError(f"shard {shard[0]}/{shard[1]}: the first number is 1 to the second")


def works_of(units: Sequence[Unit], *, fixed_noise: bool = False) -> list[ExampleWork]:
    """Group units of the same example and seed.

    Args:
        units: units of a plan.
        fixed_noise: True if a seed is the same noise for all examples (see `ModelSpec`).
    """
    found: dict[tuple[str, str, int], ExampleWork] = {}
    for unit in units:
        place = (unit.task.name, unit.example.id, unit.key.seed)
        if place not in found:
            found[place] = ExampleWork(unit.task, unit.example, unit.key.seed, [], fixed_noise)
        found[place].units.append(unit)
    return list(found.values())


def checked_works(units: Sequence[Unit], *, fixed_noise: bool = False) -> list[ExampleWork]:
    """Return the examples of a run on whose source pictures its SAEs are measured.

    They are the first example of each task, then the second of each, and so on, `CHECKED_EXAMPLES` with the first
    seed. So they are the same for every shard and worker, and for most values of `--limit`.

    Args:
        units: all units of the run, those of all shards.
        fixed_noise: see `works_of`.
    """
    tasks: dict[str, dict[str, ExampleWork]] = {}
    for work in works_of(units, fixed_noise=fixed_noise):
        tasks.setdefault(work.task.name, {}).setdefault(work.example.id, work)
    rounds = zip_longest(*(works.values() for works in tasks.values()))
    return list(islice((work for one in rounds for work in one if work is not None), CHECKED_EXAMPLES))


def shard_works(works: Sequence[ExampleWork], shard: tuple[int, int]) -> list[ExampleWork]:
    """Select the share of the work that one of several processes makes.

    All shares together are all works, each once.

    Works are distributed in the order of a hash, so that shares are equally large and no pattern of the plan (every
    other work has another seed, say) makes one of them more expensive. They stay in the order of the plan.

    Args:
        works: all works, whatever is done already, so that every process divides them alike.
        shard: (i, n) for the i-th of n shares, from 1.
    """
    places = [f"riebench-shard-v1:{work.task.name}:{work.example.id}:{work.seed}".encode() for work in works]
    shuffled = sorted(range(len(works)), key=lambda index: hashlib.sha256(places[index]).digest())
    return [works[index] for index in sorted(shuffled[shard[0] - 1 :: shard[1]])]


def shard_units(units: Sequence[Unit], shard: tuple[int, int]) -> list[Unit]:
    """Select the units that one of several processes makes.

    What is done already does not count (see `shard_works`).

    Args:
        units: units of a plan.
        shard: (i, n) for the i-th of n parts, from 1.
    """
    return [unit for work in shard_works(works_of(units), shard) for unit in work.units]


def reference_work(work: ExampleWork, example: EditExample) -> ExampleWork:
    """Return another example of the same task with the same seed, as a reference.

    It is looked at; its unit is never made.
    """
    key = _key(work.task, example, NO_BLOCKS, 1.0, work.seed)
    return replace(work, example=example, units=[replace(work.units[0], example=example, blocks=(), key=key)])
