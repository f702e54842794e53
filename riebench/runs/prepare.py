"""Preparation of a run, before anything is generated.

Configurations are checked against a model and made ready (`prepare_setting`), run folders are opened (`open_folders`),
prompts are checked (`check_prompts`), and software and device are described for run.json (`environment_notes`).
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from riebench.blocks import ATTENTION, block_of, kind, short_name, usual_blocks
from riebench.errors import IdentityError, RiebenchError, StoreError
from riebench.generation.hooks import known_sites
from riebench.methods.base import Method, get_method
from riebench.models.families.base import Family
from riebench.models.spec import ModelSpec
from riebench.registry import METHODS, MODEL_FAMILIES, SAE_FORMATS
from riebench.runs.plan import ExampleWork, Unit, shard_units, works_of
from riebench.saes.sources import model_saes
from riebench.store.folder import Redo, RunFolder, run_path
from riebench.store.invocations import package_versions
from riebench.store.records import RunSpec
from riebench.store.shared import MODEL_FILE
from riebench.tasks.schema import EditTask, Setting, step_window
from riebench.tasks.settings import load_setting_plugin

if TYPE_CHECKING:
    from riebench.models.loading import LoadedModel
    from riebench.saes.sae import SparseAutoencoder


RUN_FILE_PACKAGES = ("riebench", "torch", "diffusers", "transformers")
"""Packages whose versions every run.json names."""


@dataclass
class PreparedSetting:
    """One configuration, ready to run.

    Attributes:
        setting: the method with its parameters.
        method: the method that makes the edits.
        folder: the run folder of records and pictures.
        saes: block -> SAE.
        window: first changed step, and the one after the last; None for every step.
        sae_source: the SAEs' place as the user named it; None for those of the model preset.
    """

    setting: Setting
    method: Method
    folder: RunFolder
    saes: dict[str, SparseAutoencoder] = field(default_factory=dict)
    window: tuple[int, int] | None = None
    sae_source: str | None = None


SaeCache = dict[tuple[str | None, str], "SparseAutoencoder"]
"""SAEs in memory, by source and block: configurations that name the same ones share them and their code statistics."""


def prepare_setting(
    setting: Setting,
    suite: str,
    model: LoadedModel,
    root: Path,
    source: str | None,
    regions: str,
    offline: bool,
    sae_cache: SaeCache | None = None,
) -> PreparedSetting:
    """Check a configuration against the model, load its SAEs and open its folder.

    Args:
        setting: the method with its parameters.
        suite: name of the suite.
        model: the generating model.
        root: results folder.
        source: SAEs for every configuration; None for the configuration's own, or else the model's.
        regions: identity of the region provider.
        offline: True to fetch nothing.
        sae_cache: SAEs that other configurations loaded; those loaded here are added.

    Raises:
        RiebenchError: if parameters, blocks, SAEs or folder do not fit.
    """
    load_setting_plugin(setting)
    method = get_method(setting.method)
    method.check(setting.params)
    method.check_strengths(setting.strengths)
    blocks, window = check_places(setting, known_sites(model.denoiser), model.spec, model.family)
    saes = {}
    if "saes" in method.needs:
        named, sae_cache = source or setting.sae, {} if sae_cache is None else sae_cache
        missing = [block for block in blocks if (named, block) not in sae_cache]
        if missing:
            found = model_saes(named, model, missing, offline=offline)
            sae_cache |= {(named, block): sae for block, sae in found.items()}
        saes = {block: sae_cache[named, block] for block in blocks}
    # Only the file's name is stored: its path is private to this machine, and its hash identifies it.
    stored = setting.model_copy(update={"plugin": Path(setting.plugin).name}) if setting.plugin else setting
    spec = RunSpec(
        suite=suite, model=model.spec, setting=stored, regions=regions,
        sae_sha256={block: sae.sha256 for block, sae in saes.items()},
        packages=packages_of(setting.method, model.family.name, saes.values()),
    )  # fmt: skip
    folder = RunFolder(run_path(root, suite, model.spec.name, setting.name), spec)
    return PreparedSetting(setting, method, folder, saes, window, source or setting.sae)


def prepare_all(
    settings: Sequence[Setting], suite: str, model: LoadedModel, root: Path, source: str | None, regions: str,
    offline: bool,
) -> dict[str, PreparedSetting]:  # fmt: skip
    """Prepare all configurations of a run, which share their SAEs.

    Args:
        settings: configurations with different names.
        suite: as in `prepare_setting`, as is what follows.
        model: likewise.
        root: likewise.
        source: likewise.
        regions: likewise.
        offline: likewise.

    Returns:
        Configuration name -> configuration, ready to run.

    Raises:
        RiebenchError: if parameters, blocks, SAEs or a folder do not fit.
    """
    sae_cache: SaeCache = {}
    return {
        setting.name: prepare_setting(setting, suite, model, root, source, regions, offline, sae_cache)
        for setting in settings
    }


def usual_blocks_of_model(model: LoadedModel) -> tuple[str, ...]:
    """Return the blocks that experiments on a loaded model use where none are named."""
    return usual_blocks(known_sites(model.denoiser), model.family.name)


def packages_of(method: str, family: str, saes: Iterable[SparseAutoencoder]) -> dict[str, str]:
    """Return the installed packages whose code a run depends on: name -> version.

    Args:
        method: the configuration's method.
        family: the model's family.
        saes: read for it; a reader of a package decides what an SAE computes.
    """
    made_by = (METHODS.package(method), MODEL_FAMILIES.package(family))
    found = [*made_by, *(SAE_FORMATS.package(sae.format) for sae in saes)]
    return {package.name: package.version for package in found if package is not None}


def check_places(
    setting: Setting, sites: Sequence[str], model: ModelSpec, family: Family
) -> tuple[tuple[str, ...], tuple[int, int] | None]:
    """Compare a configuration's blocks and steps with a model's.

    Args:
        setting: the method with its parameters.
        sites: short names of the model's blocks.
        model: the model.
        family: the model's family.

    Returns:
        The blocks to look at, and the steps to change (see `PreparedSetting.window`).

    Raises:
        RiebenchError: naming configuration, model and what does not fit.
    """
    method = get_method(setting.method)
    if method.name in family.refused_methods:
        why = family.refused_methods[method.name]
        raise RiebenchError(
            f"configuration {setting.name!r}: {method.name} cannot be used on {family.title} ({model.name}): {why}"
        )
    blocks = tuple(short_name(block) for block in setting.blocks) if method.reads_blocks else ()
    missing = [block for block in blocks if block_of(block) not in sites]
    if missing:
        raise RiebenchError(f"configuration {setting.name!r}: {model.name} has no block {', '.join(missing)}")
    others = [block for block in blocks if kind(block) != ATTENTION]
    if {"saes", "units"} & method.needs and others:
        raise RiebenchError(
            f"configuration {setting.name!r}: method {setting.method!r} works on attention blocks, not on "
            f"{', '.join(others)}"
        )
    try:
        method.check_size(model.size)
    except RiebenchError as error:
        raise RiebenchError(f"configuration {setting.name!r}: {error}") from error
    try:
        return blocks, None if setting.edit_steps is None else step_window(setting.edit_steps, model.steps)
    except RiebenchError as error:
        raise RiebenchError(f"configuration {setting.name!r}: edit_steps: {error}") from error


def check_prompts(model: LoadedModel, tasks: Sequence[EditTask]) -> None:
    """Refuse prompts that the model would cut off.

    Raises:
        RiebenchError: naming the first of them.
    """
    from riebench.tasks.suites import check_prompt_lengths

    tokenizer = model.family.tokenizers(model.pipe)[0]
    limit = model.family.token_limit(model.pipe, tokenizer)
    check_prompt_lengths(tasks, lambda prompt: model.family.count_tokens(model.pipe, prompt), limit)


def claim_shared(folder: RunFolder, model: ModelSpec, regions: str) -> None:
    """Record which model and regions the shared pictures and masks belong to.

    A folder that belongs to another model or other regions is refused.

    Raises:
        IdentityError: naming the fields that differ.
        StoreError: if `MODEL_FILE` is damaged.
    """
    shared = folder.shared
    here = {**model.identity, "regions": regions}
    if shared.read_json(MODEL_FILE) is None:
        shared.write_json(MODEL_FILE, {"model": model.identity, "regions": regions})
    stored = shared.read_json(MODEL_FILE)
    if not isinstance(stored, dict) or not isinstance(stored.get("model"), dict):
        raise StoreError(f"{shared.path / MODEL_FILE} is damaged; delete it and repeat `riebench run`")
    there = {**stored["model"], "regions": stored.get("regions")}
    differing = [f"{name} is {there.get(name)} there and {here.get(name)} here" for name in {**there, **here}
                 if there.get(name) != here.get(name)]  # fmt: skip
    if differing:
        raise IdentityError(
            f"{shared.path} holds pictures of another model: {'; '.join(differing)}; use another --results folder"
        )


@contextmanager
def open_folders(
    folders: Mapping[str, RunFolder], units: Sequence[Unit], model: ModelSpec, regions: str, notes: Mapping[str, Any],
    *, redo: Redo, shard: tuple[int, int],
) -> Iterator[list[ExampleWork]]:  # fmt: skip
    """Open the folders of a run for writing, and close them in any case.

    Args:
        folders: configuration name -> its folder.
        units: all units of the run, those of all shards.
        model: the generating model.
        regions: identity of the region provider.
        notes: description of software and device, for run.json.
        redo: the recorded units to make again.
        shard: (i, n) to make the i-th of n parts, from 1.

    Yields:
        The works that this process has to make.

    Raises:
        RiebenchError: if a folder is in use or holds something else.
    """
    first = next(iter(folders.values()))
    claim_shared(first, model, regions)
    with ExitStack() as stack:
        for name, folder in folders.items():
            keys = [unit.key for unit in units if unit.setting.name == name]
            stack.enter_context(folder.open_for_writing(dict(notes), keys, shard))
        # Divided before anything is left out, so that every part is the same whatever is done already.
        mine = shard_units(units, shard)
        digests: dict[str, dict[str, Unit]] = {name: {} for name in folders}
        for unit in mine:
            digests[unit.setting.name][unit.key.digest] = unit
        # The files that configurations share are checked once for all of them.
        whole = cache(first.shared.is_intact)
        done = {name: folder.finished_units(redo, digests[name], whole) for name, folder in folders.items()}
        left = [unit for unit in mine if unit.key.digest not in done[unit.setting.name]]
        works = works_of(left, fixed_noise=model.fixed_noise)
        for work in works:
            # Also files that no record of these folders names yet: other configurations may have made them.
            first.drop_damaged(work.units[0].key)
        yield works


def environment_notes(model: LoadedModel) -> dict[str, Any]:
    """Describe the software and the device of this process, for run.json.

    Args:
        model: the loaded model, whose device is noted.
    """
    versions = dict.fromkeys(RUN_FILE_PACKAGES, "unknown") | package_versions(RUN_FILE_PACKAGES)
    return {"versions": versions, "python": platform.python_version(), "device": str(model.device)}
