"""Models by name, found in folders and in the hub's cache alone.

`look_up` says what a model's name stands for and `ModelRecipe` keeps a name with all settings until the model is
loaded. Nothing is loaded or fetched for a look-up.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from riebench.blocks import as_named, default_blocks, usual_blocks
from riebench.errors import RiebenchError, near_match
from riebench.models.families.base import Family, family_of_repository
from riebench.models.families.sizes import Shape
from riebench.models.files import (
    INDEX,
    SCHEDULER,
    check_additions,
    check_schedule,
    check_single_config,
    check_single_file,
    family_of_file,
    family_of_folder,
    is_described,
    model_folder,
    refuse_known,
    single_file_configs,
)
from riebench.models.presets import PRESETS
from riebench.models.spec import ASSET, TILE, ModelOptions, ModelSpec, Preset, check_format, model_label, source_name
from riebench.registry import DEFAULT_FAMILY, MODEL_FAMILIES, families_left_out
from riebench.utils.hub import split_revision
from riebench.utils.weights import tensor_shapes

if TYPE_CHECKING:
    from riebench.models.loading import LoadedModel

_UNNAMED = ModelSpec(name="", source="", revision=None, steps=1, guidance=0.0, size=8, dtype="float32")
"""Placeholder until `look_up` knows all that enters a model's spec."""


@dataclass(frozen=True)
class ModelInfo:
    """A model as far as it is known without its weights.

    Attributes:
        spec: as its results would be named; `revision` of local files is None, since nothing is hashed here.
        family: its model family; the default one where its files are not at hand.
        shape: its measures; those of the family's full-size model where its files are not at hand.
        preset: the preset it is named by, if any.
        folder: its files on this machine: a folder, or a snapshot in the hub's cache.
        file: its single file.
        repo: its hub id.
        revision: the commit asked for; None for the newest.
    """

    spec: ModelSpec
    family: Family
    shape: Shape
    preset: Preset | None = None
    folder: Path | None = None
    file: Path | None = None
    repo: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class ModelRecipe:
    """All that is needed to load a model.

    See `riebench.models.loading.load_model` for more about each setting.

    Attributes:
        name: a preset, a folder, a single file or a hub id.
        steps: instead of the model's own.
        guidance: likewise.
        dtype: likewise.
        device: where it runs; "auto" is decided where it is loaded.
        offline: fetches nothing.
        options: how it is placed.
        fixed_noise: ends the model's name where a seed is the same noise for all examples, whose pictures get a
            folder of their own; empty where each example has noise of its own.
    """

    name: str
    steps: int | None = None
    guidance: float | None = None
    dtype: str | None = None
    device: str = "auto"
    offline: bool = False
    options: ModelOptions = field(default_factory=ModelOptions)
    fixed_noise: str = ""

    @property
    def spec(self) -> ModelSpec:
        """The model's spec, known without loading it; its revision may be missing.

        Raises:
            RiebenchError: if the name stands for nothing.
        """
        found = look_up(self.name, steps=self.steps, guidance=self.guidance, dtype=self.dtype, options=self.options)
        return found.spec.with_fixed_noise(self.fixed_noise)

    def load(self) -> LoadedModel:
        """Load the model.

        Raises:
            RiebenchError: if it cannot be loaded, or there is no such device.
        """
        from riebench.models.loading import load_model
        from riebench.utils.machine import pick_device

        model = load_model(
            self.name, steps=self.steps, guidance=self.guidance, dtype=self.dtype, device=pick_device(self.device),
            offline=self.offline, options=self.options,
        )  # fmt: skip
        return replace(model, spec=model.spec.with_fixed_noise(self.fixed_noise))


def look_up(
    name: str,
    *,
    steps: int | None = None,
    guidance: float | None = None,
    dtype: str | None = None,
    options: ModelOptions | None = None,
) -> ModelInfo:
    """Find out what a model's name stands for.

    Args:
        name: a preset, a folder, a single file or a hub id with or without "@REVISION".
        steps: instead of the model's own.
        guidance: likewise.
        dtype: likewise.
        options: how it would be loaded.

    Raises:
        RiebenchError: if the name stands for nothing, or a folder is no model.
    """
    preset = PRESETS.get(name)
    chosen = options or ModelOptions()
    if dtype is not None:
        check_format(dtype)
    place = _find_files(name, preset)
    if chosen.config is not None and place.file is None:
        raise RiebenchError(f"--single-file-config is for single files; {name} brings its own configuration")
    place = _as_described(place, chosen.config)
    usual = _usual_sampling(place, chosen.config)
    _check_files(place, name, preset, chosen, steps or (preset.steps if preset else usual[0]))
    spec = ModelSpec.checked(
        name=model_label(
            preset.name if preset else source_name(name), steps=steps, guidance=guidance, size=chosen.size, dtype=dtype,
            vae=chosen.vae, vae_tiling=chosen.vae_tiling, unet=chosen.unet, loras=chosen.loras,
        ),
        source=place.repo or (preset.spec_source if preset else source_name(name)),
        revision=place.revision,
        steps=steps or (preset.steps if preset else usual[0]),
        guidance=guidance if guidance is not None else preset.guidance if preset else usual[1],
        size=chosen.size or (preset.size if preset else _native_size(place, chosen.config)),
        dtype=dtype or (preset.dtype if preset else "float32"),
    )  # fmt: skip
    if chosen.vae_tiling and spec.size <= TILE:
        raise RiebenchError(f"--vae-tiling changes nothing at {spec.size} px, which is one tile; leave it out")
    if spec.size % place.shape.size_step:
        raise RiebenchError(f"picture side {spec.size} is no multiple of {place.shape.size_step}")
    return replace(place, spec=spec, preset=preset)


def _find_files(name: str, preset: Preset | None) -> ModelInfo:
    if preset is not None and preset.source.startswith(ASSET):
        from riebench.models.assets import asset_folder

        folder = asset_folder(preset.source.removeprefix(ASSET))
        return _info_of_folder(folder, str(folder))
    if preset is not None and preset.folder is not None:
        return _info_of_folder(model_folder(preset), name)
    path = Path(name).expanduser()
    if preset is None and path.is_dir():
        if not (path / INDEX).is_file():
            raise RiebenchError(f"{path} is no model folder: {INDEX} is missing")
        return _info_of_folder(path, str(path))
    if preset is None and path.is_file():
        family = family_of_file(path)
        return ModelInfo(_UNNAMED, family, family.shape_of_file(path), file=path)
    check_name(name)
    repo, _, revision = name.partition("@") if preset is None else (preset.source, "", preset.revision or "")
    refuse_known(repo)
    folder_here = cached_snapshot(repo, INDEX, revision or None)
    family = MODEL_FAMILIES.get(preset.family) if preset else family_of_repository(repo)
    official = next((one.name for one in family.presets if one.source == repo), repo)
    shape = family.shape_of_preset(official)
    found = ModelInfo(_UNNAMED, family, shape, folder=folder_here, repo=repo, revision=revision or None)
    if folder_here is None:
        return found
    family = family_of_folder(folder_here, repo)
    try:
        shape = family.shape_of_folder(folder_here)
    except RiebenchError:
        # Nothing can be read from half a download; the checks of files name what is missing.
        return replace(found, family=family, shape=family.full_shape)
    return replace(found, family=family, shape=shape)


def _as_described(place: ModelInfo, config: str | None) -> ModelInfo:
    """Return a single file's place with the family and measures of what describes it."""
    if place.file is None or config is None:
        return place
    folder, preset = _config_here(config), PRESETS.get(config)
    try:
        if folder is not None:
            family = family_of_folder(folder, f"--single-file-config {config}")
            shape = family.shape_of_file(place.file, folder) if is_described(place.family, family) else None
        elif preset is not None:
            family = MODEL_FAMILIES.get(preset.family)
            official = family.shape_of_preset(preset.name) if is_described(place.family, family) else None
            shape = official if official is not None and official.blocks == place.shape.blocks else None
        else:
            return place
    except RiebenchError:
        # The checks of files name what is wrong.
        return place
    return place if shape is None else replace(place, family=family, shape=shape)


def blocks_of(name: str) -> tuple[str, ...]:
    """Return the short names of a model's blocks.

    They are those of the full-size model where its files are not at hand.

    Args:
        name: as for `look_up`.

    Raises:
        RiebenchError: if the name stands for nothing.
    """
    return _find_files(name, PRESETS.get(name)).shape.blocks


def usual_blocks_of(name: str) -> tuple[str, ...]:
    """Return the blocks that experiments on a model use where none are named.

    Args:
        name: as for `look_up`.

    Raises:
        RiebenchError: if the name stands for nothing.
    """
    found = _find_files(name, PRESETS.get(name))
    return usual_blocks(found.shape.blocks, found.family.name)


def blocks_on_model(name: str, blocks: tuple[str, ...]) -> tuple[str, ...]:
    """Return the blocks that a configuration means on a model.

    The usual blocks of the default family stand for the usual ones of a model of another family; all others are meant
    as they are named, in the model's own words where a path was given that several families have. A model that cannot
    be found changes nothing here: `look_up` says what is wrong with it.

    Args:
        name: as for `look_up`.
        blocks: of the configuration.
    """
    if set(blocks) != set(default_blocks()):
        return own_names(name, blocks)
    try:
        if _family_of_name(name).name == DEFAULT_FAMILY:
            return blocks
        return usual_blocks_of(name)
    except RiebenchError:
        return blocks


def own_names(name: str, blocks: tuple[str, ...]) -> tuple[str, ...]:
    """Return blocks by a model's own names, where a path is that of several families.

    A model that cannot be found changes nothing here: `look_up` says what is wrong with it.

    Args:
        name: as for `look_up`.
        blocks: by any of their names.
    """
    try:
        if not blocks or _family_of_name(name).name == DEFAULT_FAMILY:
            return blocks
        known = blocks_of(name)
    except RiebenchError:
        return blocks
    return tuple(as_named(block, known) for block in blocks)


def refused_methods(name: str) -> Mapping[str, str]:
    """Return the methods that cannot work on a model's family -> why.

    A model that cannot be found has none here: `look_up` says what is wrong with it.

    Args:
        name: as for `look_up`.
    """
    try:
        return _family_of_name(name).refused_methods
    except RiebenchError:
        return {}


def _family_of_name(name: str) -> Family:
    preset, path = PRESETS.get(name), Path(name).expanduser()
    if preset is not None:
        family: Family = MODEL_FAMILIES.get(preset.family)
        return family
    if path.is_dir():
        return family_of_folder(path, name)
    if path.is_file():
        return family_of_file(path)
    if name.count("/") != 1:
        return _default_family()
    repo = name.partition("@")[0]
    here = cached_snapshot(repo, INDEX, name.partition("@")[2] or None)
    return family_of_repository(repo) if here is None else family_of_folder(here, repo)


def check_name(name: str) -> None:
    """Refuse a name that stands for no model.

    No file is read, and the hub is not asked.

    Raises:
        RiebenchError: if it is no preset, no folder or file here, and no hub id; names the nearest preset.
    """
    path = Path(name).expanduser()
    if name not in PRESETS and not path.exists() and (name.count("/") != 1 or name.startswith((".", "/", "~"))):
        known = near_match(name, PRESETS)
        raise RiebenchError(
            f"no model {name!r}{known}; give a preset, a folder, a file or a hub id OWNER/NAME{families_left_out()}"
        )


def _check_files(place: ModelInfo, name: str, preset: Preset | None, options: ModelOptions, steps: int) -> None:
    """Refuse what loading would refuse, as far as it shows without weights.

    Models that ship with the package are as they were tested.
    """
    if place.file is not None:
        try:
            tensor_shapes(place.file)
        except RiebenchError:
            # Damage is for the checks of files to name, beside all else that is missing.
            return
        family = check_single_file(place.file, own_autoencoder=options.vae is None)
        folder = _config_here(options.config or "")
        if folder is not None:
            check_single_config(family, place.file, folder, options.config or "", steps)
    elif place.folder is not None and not (preset is not None and preset.source.startswith(ASSET)):
        # A hub's snapshot may hold only what was asked for so far.
        described = all((place.folder / config).is_file() for config in place.family.config_files)
        if described or place.repo is None:
            check_schedule(place.folder, name, steps)
    check_additions(place.family, options)


def _config_here(config: str) -> Path | None:
    """Return the folder that `--single-file-config` names, if it is on this machine."""
    folder = Path(config).expanduser()
    if folder.is_dir():
        return folder if (folder / INDEX).is_file() else None
    preset = PRESETS.get(config)
    if not preset.on_hub if preset else config.count("/") != 1:
        return None
    repo, revision = (preset.source, preset.revision) if preset else split_revision(config)
    found = cached_snapshot(repo, INDEX, revision)
    return found if found is not None and (found / SCHEDULER).is_file() else None


def _info_of_folder(folder: Path, shown: str) -> ModelInfo:
    family = family_of_folder(folder, shown)
    return ModelInfo(_UNNAMED, family, family.shape_of_folder(folder), folder=folder)


def _default_family() -> Family:
    family: Family = MODEL_FAMILIES.get(DEFAULT_FAMILY)
    return family


def cached_file(repo: str, name: str, revision: str | None = None) -> Path | None:
    """Return a file of a repository in the hub's cache, or None if it is not there.

    The network is not asked.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(repo, name, revision=revision)
    except HFValidationError as error:
        raise RiebenchError(f"{repo!r} is no hub id: {str(error).splitlines()[0]}") from error
    return Path(found) if isinstance(found, str) else None


def cached_snapshot(repo: str, name: str, revision: str | None = None) -> Path | None:
    """Return the cached snapshot with a file in its root, or None.

    The snapshot lies in the hub's cache; None says that none of the repository holds the file.
    """
    found = cached_file(repo, name, revision)
    return None if found is None else found.parent


def _usual_sampling(place: ModelInfo, config: str | None) -> tuple[int, float]:
    """Return the usual steps and guidance of a model.

    Those of a single file are the ones of the model that `--single-file-config` names.
    """
    if place.file is None:
        return place.family.usual_sampling(_scheduler(place.folder))
    if config is None:
        raise RiebenchError(
            f"{place.file.name} is a single file, which does not say how it was trained; say with "
            f"{single_file_configs(place.family)}"
        )
    preset = PRESETS.get(config)
    if preset is not None:
        return preset.steps, preset.guidance
    return place.family.usual_sampling(_scheduler(_config_here(config)))


def _native_size(place: ModelInfo, config: str | None) -> int:
    """Return the picture side that a model was made for.

    That of a single file is the one of the model that `--single-file-config` names.
    """
    if place.file is not None and config is not None:
        if config in PRESETS:
            return PRESETS[config].size
        folder = _config_here(config)
        if folder is not None:
            return place.family.described_size(folder)
    return place.shape.native_size


def _scheduler(folder: Path | None) -> Mapping[str, Any]:
    if folder is None:
        return {}
    try:
        config = json.loads((folder / SCHEDULER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}
