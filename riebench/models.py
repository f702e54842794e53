"""Generating models: loading a preset, a folder, a single file or a hub id."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.utils import logging as diffusers_logging
from torch import nn
from transformers.utils import logging as transformers_logging

from riebench.errors import RiebenchError, near_match
from riebench.files import file_sha256
from riebench.naming import model_label, short_name
from riebench.presets import ASSET, PRESETS, Preset
from riebench.schema import ModelSpec

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


@dataclass(frozen=True)
class LoadedModel:
    """A pipeline in memory with what identifies it.

    Attributes:
        pipe: the pipeline; its U-Net and text encoders in the model's number format, its autoencoder in float32.
        spec: what enters a run's identity.
        preset: the preset it was loaded by, if any.
    """

    pipe: Any
    spec: ModelSpec
    preset: Preset | None = None

    @property
    def unet(self) -> nn.Module:
        """The U-Net."""
        unet: nn.Module = self.pipe.unet
        return unet

    @property
    def device(self) -> torch.device:
        """Where the U-Net is."""
        return next(self.unet.parameters()).device

    @property
    def guided(self) -> bool:
        """Whether the U-Net sees an unconditional half; scales up to 1 run without."""
        return self.spec.guidance > 1


def load_model(
    name_or_path: str,
    *,
    steps: int | None = None,
    guidance: float | None = None,
    dtype: str | None = None,
    size: int | None = None,
    device: str = "cpu",
    offline: bool = False,
    config: str | None = None,
) -> LoadedModel:
    """Loads a model.

    Args:
        name_or_path: a preset's name, a folder in diffusers' layout, a `.safetensors` single file, or a hub id with
            or without "@REVISION".
        steps: instead of the preset's.
        guidance: instead of the preset's.
        dtype: instead of the preset's; a key of `DTYPES`.
        size: picture side in pixels, instead of the preset's.
        device: "cpu", "cuda", "cuda:1", ...
        offline: uses only what is on this machine.
        config: for a single file, the folder with `model_index.json`, configurations and tokenizers of its model.

    Raises:
        RiebenchError: if there is no such model or it cannot be loaded.
    """
    preset = PRESETS.get(name_or_path)
    number_format = dtype or (preset.dtype if preset else "float32")
    if number_format not in DTYPES:
        raise RiebenchError(f"unknown dtype {number_format!r}{near_match(number_format, DTYPES)}")
    pipe, source, revision = _load(name_or_path, preset, number_format, offline, config)
    pipe.set_progress_bar_config(disable=True)
    for part in (pipe.unet, pipe.vae, pipe.text_encoder, pipe.text_encoder_2):
        part.requires_grad_(False).eval()
    try:
        pipe.to(device)
    except (RuntimeError, AssertionError) as error:
        raise RiebenchError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from error
    few_steps = getattr(pipe.scheduler.config, "timestep_spacing", "") == "trailing"
    spec = ModelSpec(
        name=model_label(
            preset.name if preset else short_name(name_or_path),
            steps=steps,
            guidance=guidance,
            size=size,
            dtype=dtype,
        ),
        source=source,
        revision=revision,
        steps=steps or (preset.steps if preset else 4 if few_steps else 20),
        guidance=guidance if guidance is not None else (preset.guidance if preset else 0.0 if few_steps else 5.0),
        size=size or (preset.size if preset else _default_size(pipe)),
        dtype=number_format,
    )
    if spec.size % pipe.vae_scale_factor:
        raise RiebenchError(f"picture side {spec.size} is no multiple of {pipe.vae_scale_factor}")
    return LoadedModel(pipe, spec, preset)


def _load(
    name: str, preset: Preset | None, dtype: str, offline: bool, config: str | None
) -> tuple[Any, str, str | None]:
    if preset is not None and preset.source.startswith(ASSET):
        from riebench.toyworld.assets import asset_folder

        folder = asset_folder(preset.source.removeprefix(ASSET))
        return _from_folder(folder, dtype), preset.spec_source, folder_sha256(folder)
    path = Path(name).expanduser()
    if preset is None and path.is_dir():
        return _from_folder(path, dtype), path.resolve().name, folder_sha256(path)
    if preset is None and path.is_file():
        return _from_single_file(path, dtype, config), path.name, file_sha256(path)
    if preset is None and (name.count("/") != 1 or name.startswith((".", "/", "~"))):
        known = near_match(name, PRESETS)
        raise RiebenchError(f"no model {name!r}{known}; give a preset, a folder, a file or a hub id OWNER/NAME")
    source, _, revision = (preset.source, "", preset.revision) if preset else name.partition("@")
    return _from_hub(source, revision or None, dtype, offline), source, revision or None


def _from_folder(folder: Path, dtype: str) -> Any:
    if not (folder / "model_index.json").is_file():
        raise RiebenchError(f"{folder} is no model folder: model_index.json is missing")
    half = dtype != "float32" and any(folder.glob("unet/*.fp16.safetensors"))
    return _guarded(str(folder), dtype, variant="fp16" if half else None, local_files_only=True)


def _from_hub(source: str, revision: str | None, dtype: str, offline: bool) -> Any:
    variant = "fp16" if dtype == "float16" else None
    return _guarded(source, dtype, revision=revision, variant=variant, local_files_only=offline)


def _guarded(source: str, dtype: str, **options: Any) -> Any:
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    try:
        # Without dtype, transformers follows the stored half precision for the text encoders alone; without
        # add_watermarker, pixels depend on which packages are installed.
        return StableDiffusionXLPipeline.from_pretrained(
            source, dtype=_formats(dtype), add_watermarker=False, **options
        )
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RiebenchError(f"cannot load the model {source}: {reason}") from error


def _formats(dtype: str) -> dict[str, torch.dtype]:
    # Half precision overflows in SDXL's autoencoder, and its rounding would show in every metric.
    return {"default": DTYPES[dtype], "vae": torch.float32}


def _from_single_file(path: Path, dtype: str, config: str | None) -> Any:
    if config is None:
        raise RiebenchError(f"{path.name} is a single file; say with config which model's folder describes it")
    try:
        # The file alone cannot tell SDXL Turbo from SDXL Base, so scheduler and size come from the folder.
        return StableDiffusionXLPipeline.from_single_file(
            str(path), config=config, local_files_only=True, dtype=_formats(dtype), add_watermarker=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise RiebenchError(f"cannot load the model {path}: {str(error).splitlines()[0]}") from error


def folder_sha256(folder: Path) -> str:
    """One hash over a model folder's weights and configurations, by relative name and content."""
    files = [path for path in sorted(folder.rglob("*")) if path.suffix in (".safetensors", ".json", ".txt")]
    lines = [f"{path.relative_to(folder).as_posix()} {file_sha256(path)}\n" for path in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _default_size(pipe: Any) -> int:
    return int(pipe.unet.config.sample_size * pipe.vae_scale_factor)
