"""Loading of generating models: a preset, a folder, a single file or a hub id."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from riebench.errors import RiebenchError, near_match
from riebench.models.families.base import Family, family_of_pipeline, note_family
from riebench.models.families.blocks import BatchLayout
from riebench.models.files import (
    INDEX,
    check_additions,
    check_folder,
    check_schedule,
    check_single_config,
    check_single_file,
    config_folder,
    family_of_folder,
    folder_sha256,
    hub_folder,
    model_folder,
    other_parts,
    single_file_configs,
    variant,
    weight_files,
)
from riebench.models.parts import add_loras, call_loader, exchange_denoiser, load_autoencoder, put_autoencoder
from riebench.models.placement import place
from riebench.models.presets import PRESETS
from riebench.models.spec import ASSET, TILE, ModelOptions, ModelSpec, Preset, model_label, source_name
from riebench.utils.files import file_sha256
from riebench.utils.hub import offline_mode, split_revision
from riebench.utils.machine import keep_freed_memory
from riebench.utils.weights import tensor_names

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


@dataclass(frozen=True)
class LoadedModel:
    """A pipeline in memory together with its identity.

    Attributes:
        pipe: the pipeline; its denoiser and text encoders in the model's number format, its autoencoder in float32
            unless it is one that was made for float16.
        spec: what enters a run's identity.
        preset: the preset it was loaded by, if any.
        options: how it was placed.
        offloaded_to: where it computes, if its weights are kept elsewhere.
    """

    pipe: Any = field(repr=False)
    spec: ModelSpec
    preset: Preset | None = None
    options: ModelOptions = field(default_factory=ModelOptions)
    offloaded_to: torch.device | None = None

    @cached_property
    def family(self) -> Family:
        """The model's family."""
        return family_of_pipeline(self.pipe)

    @property
    def denoiser(self) -> nn.Module:
        """The network whose blocks are edited."""
        return self.family.denoiser(self.pipe)

    @property
    def device(self) -> torch.device:
        """The device on which the denoiser computes."""
        return self.offloaded_to or next(self.denoiser.parameters()).device

    @property
    def guided(self) -> bool:
        """True if the denoiser sees an unconditional half.

        Guidance scales up to 1 run without it, as do denoisers that are told the scale.
        """
        return self.family.is_guided(self.pipe, self.spec.guidance)

    @property
    def layout(self) -> BatchLayout:
        """The layout of a denoiser step in calls and rows."""
        return self.family.layout(self.guided)


def load_model(
    name_or_path: str,
    *,
    steps: int | None = None,
    guidance: float | None = None,
    dtype: str | None = None,
    device: str = "cpu",
    offline: bool = False,
    options: ModelOptions | None = None,
) -> LoadedModel:
    """Load a model.

    On the CPU this process keeps freed memory from then on (`riebench.utils.machine`).

    Args:
        name_or_path: a preset's name, a folder in diffusers' layout, a `.safetensors` single file, or a hub id with
            or without "@REVISION".
        steps: instead of the preset's.
        guidance: instead of the preset's.
        dtype: instead of the preset's; a key of `DTYPES`.
        device: "cpu", "cuda", "cuda:1", ...
        offline: uses only what is on this machine.
        options: picture side, configuration, autoencoder and placement; None for the usual ones.

    Raises:
        RiebenchError: if there is no such model, it cannot be loaded or does not fit.
    """
    chosen = options or ModelOptions()
    preset = PRESETS.get(name_or_path)
    number_format = dtype or (preset.dtype if preset else "float32")
    if number_format not in DTYPES:
        raise RiebenchError(f"unknown dtype {number_format!r}{near_match(number_format, DTYPES)}")
    if chosen.offload != "none" and torch.device(device).type == "cpu":
        raise RiebenchError(f"--offload {chosen.offload} keeps weights off a GPU, but the device is cpu; leave it out")
    with offline_mode(offline):
        usual_steps = steps or (preset.steps if preset else None)
        loaded = _load(_Request(name_or_path, preset, number_format, usual_steps, offline, chosen))
        pipe, vae = loaded.pipe, loaded.vae
        family = family_of_pipeline(pipe)
        note_family(family.denoiser(pipe), family)
        check_additions(family, chosen)
        if chosen.vae is not None and vae is None:
            found, vae = load_autoencoder(family, chosen.vae, number_format, offline=offline)
            put_autoencoder(pipe, found)
        exchanged = exchange_denoiser(pipe, family, chosen.unet)
        added = add_loras(pipe, family, chosen.loras)
    family.prepare(pipe)
    pipe.set_progress_bar_config(disable=True)
    for part in family.networks(pipe):
        part.requires_grad_(False).eval()
    spec = _spec(
        name_or_path, preset, pipe, family, loaded.source, loaded.revision, vae, chosen, steps, guidance, dtype
    )
    spec = spec.model_copy(update={"unet": exchanged, "loras": added})
    place(pipe, family, device, chosen, spec.name)
    if torch.device(device).type == "cpu":
        keep_freed_memory()
    where = torch.device(device) if chosen.offload != "none" else None
    return LoadedModel(pipe, spec, preset, chosen, where)


def _spec(
    name: str, preset: Preset | None, pipe: Any, family: Family, source: str, revision: str, vae: str | None,
    options: ModelOptions, steps: int | None, guidance: float | None, dtype: str | None,
) -> ModelSpec:  # fmt: skip
    usual = family.usual_sampling(pipe.scheduler.config)
    size = options.size or (preset.size if preset else family.native_size(pipe))
    step = family.shape_of_pipeline(pipe).size_step
    if size % step:
        raise RiebenchError(f"picture side {size} is no multiple of {step}")
    if options.vae_tiling and size <= TILE:
        raise RiebenchError(f"--vae-tiling changes nothing at {size} px, which is one tile; leave it out")
    return ModelSpec.checked(
        name=model_label(
            preset.name if preset else source_name(name),
            steps=steps,
            guidance=guidance,
            size=options.size,
            dtype=dtype,
            vae=options.vae,
            vae_tiling=options.vae_tiling,
            unet=options.unet,
            loras=options.loras,
        ),
        source=source,
        revision=revision,
        steps=steps or (preset.steps if preset else usual[0]),
        guidance=guidance if guidance is not None else (preset.guidance if preset else usual[1]),
        size=size,
        dtype=dtype or (preset.dtype if preset else "float32"),
        vae=vae,
        vae_tiling=options.vae_tiling,
    )


@dataclass(frozen=True)
class _Request:
    """A model to be loaded, as the user named it.

    Attributes:
        name: of the model.
        preset: the preset of that name, if any.
        dtype: number format of denoiser and text encoders.
        steps: denoising steps; None for the model's own.
        offline: uses only what is on this machine.
        options: picture side, configuration, exchanged parts.
    """

    name: str
    preset: Preset | None
    dtype: str
    steps: int | None
    offline: bool
    options: ModelOptions


@dataclass(frozen=True)
class _Loaded:
    """A pipeline with its source and revision in a run's identity.

    The name of the autoencoder is that of an exchanged one.
    """

    pipe: Any
    source: str
    revision: str
    vae: str | None = None


def _load(wanted: _Request) -> _Loaded:
    name, preset = wanted.name, wanted.preset
    path = Path(name).expanduser()
    if preset is None and path.is_file():
        return _from_single_file(path, wanted)
    if wanted.options.config is not None:
        raise RiebenchError(f"--single-file-config is for single files; {name} brings its own configuration")
    if preset is not None and preset.source.startswith(ASSET):
        from riebench.models.assets import asset_folder

        folder = asset_folder(preset.source.removeprefix(ASSET))
        return _Loaded(_from_folder(folder, wanted, name), preset.spec_source, _folder_identity(folder, None))
    if preset is not None and preset.folder is not None:
        path = model_folder(preset)
    if path.is_dir() and (preset is None or preset.folder is not None):
        pipe = _from_folder(path, wanted, name)
        called = preset.spec_source if preset else path.resolve().name
        return _Loaded(pipe, called, _folder_identity(path, _variant(path, wanted.dtype, name)))
    if preset is None and (name.count("/") != 1 or name.startswith((".", "/", "~"))):
        known = near_match(name, PRESETS)
        raise RiebenchError(f"no model {name!r}{known}; give a preset, a folder, a file or a hub id OWNER/NAME")
    source, revision = (preset.source, preset.revision) if preset else split_revision(name)
    folder = hub_folder(source, revision, wanted.dtype, offline=wanted.offline)
    # The snapshot's name is the commit, also where a branch or nothing was given.
    return _Loaded(_from_folder(folder, wanted, source), source, folder.name)


def _folder_identity(folder: Path, which: str | None) -> str:
    return folder_sha256(folder, which, parts=family_of_folder(folder, str(folder)).parts)


def _variant(folder: Path, dtype: str, shown: str) -> str | None:
    return variant(folder, dtype, family_of_folder(folder, shown).parts)


def _from_folder(folder: Path, wanted: _Request, shown: str) -> Any:
    if not (folder / INDEX).is_file():
        raise RiebenchError(f"{folder} is no model folder: {INDEX} is missing")
    check_schedule(folder, shown, wanted.steps)
    which = _variant(folder, wanted.dtype, shown)
    family = check_folder(folder, which, shown)
    return _pipeline(folder, family, family.parts, which, wanted.dtype, shown)


def _pipeline(
    folder: Path, family: Family, parts: Sequence[str], which: str | None, dtype: str, shown: str, **built: Any
) -> Any:
    """Load a folder's pipeline.

    Args:
        folder: in diffusers' layout.
        family: of the model.
        parts: parts with weights that are read from the folder.
        which: precision of their weights.
        dtype: number format of denoiser and text encoders.
        shown: what the user called the folder.
        built: parts that are loaded already.
    """
    # Without dtype, transformers follows the stored half precision for the text encoders alone.
    formats = {"default": DTYPES[dtype], "vae": torch.float32}
    pipe = call_loader(
        shown, family.pipeline_type().from_pretrained, str(folder), dtype=formats, variant=which,
        local_files_only=True, **built, **family.loading_options(), **dict.fromkeys(family.unused_parts),
    )  # fmt: skip
    for part in parts:
        # Libraries fill what is missing with random numbers.
        stored = set().union(*(tensor_names(file) for file in weight_files(folder / part, which)))
        family.check_names(part, stored, getattr(pipe, part).state_dict(), shown)
    return pipe


def _from_single_file(path: Path, wanted: _Request) -> _Loaded:
    own_autoencoder = wanted.options.vae is None
    family = check_single_file(path, own_autoencoder=own_autoencoder)
    if wanted.options.config is None:
        raise RiebenchError(
            f"{path.name} is a single file, which does not say how it was trained; say with "
            f"{single_file_configs(family)}"
        )
    others = other_parts(family, path, wanted.options)
    folder = config_folder(wanted.options.config, family, others, wanted.dtype, offline=wanted.offline)
    family = check_single_config(family, path, folder, wanted.options.config, wanted.steps)
    if family.file_parts(tensor_names(path)) is not None:
        return _from_parts(path, folder, family, others, wanted)
    options = {"config": str(folder), "local_files_only": True}
    called = None
    if wanted.options.vae is not None:
        vae, called = load_autoencoder(family, wanted.options.vae, wanted.dtype, offline=wanted.offline)
    else:
        # A pipeline from a single file knows one number format only, so the autoencoder is read apart.
        vae = call_loader(
            path.name, family.autoencoder_type().from_single_file, str(path), subfolder="vae", dtype=torch.float32,
            **options,
        )  # fmt: skip
    pipe = call_loader(
        path.name, family.pipeline_type().from_single_file, str(path), dtype=DTYPES[wanted.dtype], vae=vae,
        **family.loading_options(), **dict.fromkeys(family.unused_parts), **options,
    )  # fmt: skip
    described = f"{file_sha256(path)} {folder_sha256(folder, weights=False)}"
    return _Loaded(pipe, path.name, hashlib.sha256(described.encode()).hexdigest(), called)


def _from_parts(path: Path, folder: Path, family: Family, others: Sequence[str], wanted: _Request) -> _Loaded:
    """Load a single file whose other parts come from the folder that describes it."""
    which = variant(folder, wanted.dtype, others) if others else None
    for part in others:
        family.check_weights(folder, part, weight_files(folder / part, which), wanted.options.config or "")
    read = [part for part in family.parts if part not in others and not (part == "vae" and wanted.options.vae)]
    dtypes = {part: torch.float32 if part == "vae" else DTYPES[wanted.dtype] for part in read}
    built = call_loader(path.name, family.load_file_parts, path, folder, dtypes)
    called = None
    if wanted.options.vae is not None:
        built["vae"], called = load_autoencoder(family, wanted.options.vae, wanted.dtype, offline=wanted.offline)
    pipe = _pipeline(folder, family, others, which, wanted.dtype, wanted.options.config or "", **built)
    unread = [part for part in family.parts if part not in others]
    described = f"{file_sha256(path)} {folder_sha256(folder, which, parts=others, unread=unread)}"
    return _Loaded(pipe, path.name, hashlib.sha256(described.encode()).hexdigest(), called)
