"""What a run consists of: its units, and settings checked and made ready before anything is generated."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from riebench.blocks import ATTENTION, kind, short_name
from riebench.errors import IdentityError, RiebenchError
from riebench.hooks import known_sites
from riebench.intervals import step_window
from riebench.methods.base import Method, get_method
from riebench.methods.foreign import Editor
from riebench.plugins import load_setting_plugin
from riebench.records import UnitKey, noise_seed
from riebench.saes.sources import model_saes
from riebench.schema import EditExample, EditTask, ModelSpec, RunSpec, Setting, block_set_name
from riebench.store import REDO_MODES, RunFolder, run_path

if TYPE_CHECKING:
    from riebench.models import LoadedModel
    from riebench.saes.core import SparseAutoencoder

MODEL_FILE = "model.json"
PACKAGES = ("riebench", "torch", "diffusers", "transformers")
SMALL_PICTURE = 128
"""Pictures up to this side are generated 32 at a time unless told otherwise."""


@dataclass(frozen=True)
class Unit:
    """One image to make.

    Attributes:
        setting: the method with its parameters.
        task: where the example comes from.
        example: the edit.
        blocks: edited together.
        key: its identity in the run folder.
    """

    setting: Setting
    task: EditTask
    example: EditExample
    blocks: tuple[str, ...]
    key: UnitKey


@dataclass
class Work:
    """What is to be made of one example with one seed."""

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
        """Seed of its noise."""
        return self.seed if self.fixed_noise else noise_seed(self.example.id, self.seed)


@dataclass
class Prepared:
    """One setting, ready to run.

    Attributes:
        setting: the method with its parameters.
        method: what makes the edits.
        folder: where records and pictures go.
        saes: block -> SAE.
        window: first changed step, and the one after the last; None for every step.
    """

    setting: Setting
    method: Method
    folder: RunFolder
    saes: dict[str, SparseAutoencoder] = field(default_factory=dict)
    window: tuple[int, int] | None = None


def plan(
    tasks: Sequence[EditTask], settings: Sequence[Setting], seeds: Sequence[int] = (0,), limit: int | None = None
) -> list[Unit]:
    """All images of a benchmark, examples outside, settings inside.

    Args:
        tasks: what to edit.
        settings: how.
        seeds: indices of the seeds of each example.
        limit: at most this many examples of each task.
    """
    return [
        Unit(setting, task, example, blocks, _key(task, example, blocks, strength, seed))
        for task in tasks
        for example in task.examples[:limit]
        for seed in seeds
        for setting in settings
        for blocks in _block_sets(setting)
        for strength in setting.strengths
    ]


def _block_sets(setting: Setting) -> tuple[tuple[str, ...], ...]:
    # A method that looks into no block changes none, whatever blocks its setting was left with.
    load_setting_plugin(setting)
    return setting.block_sets if get_method(setting.method).reads_blocks else ((),)


def _key(task: EditTask, example: EditExample, blocks: tuple[str, ...], strength: float, seed: int) -> UnitKey:
    return UnitKey(
        task=task.name, task_version=task.version, category=task.category, example_id=example.id,
        example_hash=example.content_hash, block_set=block_set_name(blocks), strength=strength, seed=seed,
    )  # fmt: skip


def check_request(tasks: Sequence[EditTask], settings: Sequence[Setting], redo: str, shard: tuple[int, int]) -> None:
    """Refuses what cannot be run.

    Raises:
        RiebenchError: with one line on what is wrong.
    """
    if not tasks or not settings:
        raise RiebenchError(f"nothing to do: {len(tasks)} tasks and {len(settings)} settings")
    suites = sorted({task.suite for task in tasks})
    if len(suites) > 1:
        raise RiebenchError(f"tasks of several suites ({', '.join(suites)}); run one suite at a time")
    names = [setting.name for setting in settings]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise RiebenchError(f"settings named twice: {', '.join(repeated)}")
    if redo not in REDO_MODES:
        raise RiebenchError(f"unknown redo mode {redo!r}; known: {', '.join(REDO_MODES)}")
    if not 1 <= shard[0] <= shard[1]:
        raise RiebenchError(f"shard {shard[0]}/{shard[1]}: the first number is 1 to the second")


Shelf = dict[tuple[str | None, str], "SparseAutoencoder"]
"""SAEs in memory, by source and block: settings that name the same ones share them and what is known of their codes."""


def prepare(
    setting: Setting,
    suite: str,
    model: LoadedModel,
    root: Path,
    source: str | None,
    regions: str,
    offline: bool,
    shelf: Shelf | None = None,
) -> Prepared:
    """Checks a setting against the model, loads its SAEs and opens its folder.

    Args:
        setting: the method with its parameters.
        suite: name of the suite.
        model: the generating model.
        root: results folder.
        source: SAEs for every setting; None for the setting's own, or else the model's.
        regions: identity of the region provider.
        offline: fetches nothing.
        shelf: SAEs that other settings loaded; what is loaded here is added.

    Raises:
        RiebenchError: if parameters, blocks, SAEs or folder do not fit.
    """
    load_setting_plugin(setting)
    method = get_method(setting.method)
    method.check(setting.params)
    method.check_strengths(setting.strengths)
    blocks, window = check_places(setting, known_sites(model.unet), model.spec)
    saes = {}
    if "saes" in method.needs:
        named, shelf = source or setting.sae, {} if shelf is None else shelf
        missing = [block for block in blocks if (named, block) not in shelf]
        if missing:
            found = model_saes(named, model, missing, offline=offline)
            shelf |= {(named, block): sae for block, sae in found.items()}
        saes = {block: shelf[named, block] for block in blocks}
    # Where a user's file lies on this machine is nobody's business; its hash says which it was.
    stored = setting.model_copy(update={"plugin": Path(setting.plugin).name}) if setting.plugin else setting
    spec = RunSpec(
        suite=suite, model=model.spec, setting=stored, regions=regions,
        sae_sha256={block: sae.sha256 for block, sae in saes.items()},
    )  # fmt: skip
    folder = RunFolder(run_path(root, suite, model.spec.name, setting.name), spec)
    return Prepared(setting, method, folder, saes, window)


def check_places(
    setting: Setting, sites: Sequence[str], model: ModelSpec
) -> tuple[tuple[str, ...], tuple[int, int] | None]:
    """Compares a setting's blocks and steps with a model's.

    Args:
        setting: the method with its parameters.
        sites: short names of the model's blocks.
        model: the model.

    Returns:
        The blocks to look at, and the steps to change (see `Prepared.window`).

    Raises:
        RiebenchError: naming setting, model and what does not fit.
    """
    method = get_method(setting.method)
    blocks = tuple(short_name(block) for block in setting.blocks) if method.reads_blocks else ()
    missing = [block for block in blocks if block not in sites]
    if missing:
        raise RiebenchError(f"setting {setting.name!r}: {model.name} has no block {', '.join(missing)}")
    others = [block for block in blocks if kind(block) != ATTENTION]
    if {"saes", "units"} & method.needs and others:
        raise RiebenchError(
            f"setting {setting.name!r}: method {setting.method!r} works on attention blocks, not on {', '.join(others)}"
        )
    try:
        if isinstance(method, Editor):
            method.check_size(model.size)
    except RiebenchError as error:
        raise RiebenchError(f"setting {setting.name!r}: {error}") from error
    try:
        return blocks, None if setting.edit_steps is None else step_window(setting.edit_steps, model.steps)
    except RiebenchError as error:
        raise RiebenchError(f"setting {setting.name!r}: edit_steps: {error}") from error


def claim_shared(folder: RunFolder, model: ModelSpec, regions: str) -> None:
    """Notes which model and regions the shared pictures and masks belong to, or refuses those of another."""
    model_fields = model.identity
    wanted = {"model": model_fields, "regions": regions}
    if folder.shared.read_json(MODEL_FILE) is None:
        folder.shared.write_json(MODEL_FILE, wanted)
    stored = folder.shared.read_json(MODEL_FILE) or {}
    if stored != wanted:
        there, here = (
            {**stored.get("model", {}), "regions": stored.get("regions")},
            {**model_fields, "regions": regions},
        )
        parts = [f"{name} is {there.get(name)} there and {here.get(name)} here" for name in {**there, **here}
                 if there.get(name) != here.get(name)]  # fmt: skip
        raise IdentityError(
            f"{folder.shared.path} holds pictures of another model: {'; '.join(parts)}; use another --results folder"
        )


def versions(model: LoadedModel) -> dict[str, Any]:
    """What ran, for run.json."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "unknown"
    return {"versions": found, "python": platform.python_version(), "device": str(model.device)}


def usual_batch_size(size: int) -> int:
    """Pictures of a side in pixels that are generated at a time unless told otherwise."""
    return 32 if size <= SMALL_PICTURE else 4


def works_of(units: Sequence[Unit], *, fixed_noise: bool = False) -> list[Work]:
    """Units of the same example and seed, together.

    Args:
        units: of a plan.
        fixed_noise: whether a seed is the same noise for all examples (see `ModelSpec`).
    """
    found: dict[tuple[str, str, int], Work] = {}
    for unit in units:
        place = (unit.task.name, unit.example.id, unit.key.seed)
        if place not in found:
            found[place] = Work(unit.task, unit.example, unit.key.seed, [], fixed_noise)
        found[place].units.append(unit)
    return list(found.values())


def share(works: Sequence[Work], shard: tuple[int, int]) -> list[Work]:
    """The works that one of several processes makes; all their shares together are all works, each once.

    Works are dealt out in the order of a hash, so that shares are equally large and no pattern of the plan (every other
    work has another seed, say) makes one of them dearer. They stay in the order of the plan.

    Args:
        works: all of them, whatever is done already, so that every process deals alike.
        shard: (i, n) for the i-th of n shares, from 1.
    """
    places = [f"riebench-shard-v1:{work.task.name}:{work.example.id}:{work.seed}".encode() for work in works]
    dealt = sorted(range(len(works)), key=lambda index: hashlib.sha256(places[index]).digest())
    return [works[index] for index in sorted(dealt[shard[0] - 1 :: shard[1]])]


def reference_work(work: Work, example: EditExample) -> Work:
    """Another example of the same task with the same seed, to be looked at; its unit is never made."""
    key = _key(work.task, example, (), 1.0, work.seed)
    return replace(work, example=example, units=[replace(work.units[0], example=example, blocks=(), key=key)])
