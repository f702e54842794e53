"""Puts the trained parts together as folders that diffusers' own `StableDiffusionXLPipeline` loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)

from riebench.toyworld.text import build_encoders, build_tokenizers

_SCHEDULE = {
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction", "steps_offset": 1,
}  # fmt: skip


def scheduler(name: str) -> Any:
    """SDXL's scheduler for "toy-base" (Euler, leading) or SDXL Turbo's for "toy-turbo" (ancestral, trailing).

    The one difference from SDXL is v-prediction: it stays well-behaved at the last noise level, where one-step
    generation starts.
    """
    if name == "toy-turbo":
        return EulerAncestralDiscreteScheduler(timestep_spacing="trailing", **_SCHEDULE)
    return EulerDiscreteScheduler(timestep_spacing="leading", **_SCHEDULE)


def assemble(name: str, unet: UNet2DConditionModel, vae: AutoencoderKL) -> StableDiffusionXLPipeline:
    """A whole pipeline from its trained parts; `name` is "toy-base" or "toy-turbo"."""
    tokenizers = build_tokenizers()
    encoders = build_encoders(tokenizers)
    return StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=encoders[0],
        text_encoder_2=encoders[1],
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        unet=unet,
        scheduler=scheduler(name),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )


def export(name: str, unet: UNet2DConditionModel, vae: AutoencoderKL, folder: Path) -> None:
    """Writes a pipeline in half precision, as the package ships it (it is loaded in float32)."""
    pipe = assemble(name, unet, vae)
    for part in (pipe.unet, pipe.vae, pipe.text_encoder, pipe.text_encoder_2):
        part.to(torch.float16)
    pipe.save_pretrained(folder, safe_serialization=True)
    for part in ("unet", "vae"):
        # Where its weights lay while it was trained is nobody's business.
        config = folder / part / "config.json"
        kept = {name: value for name, value in json.loads(config.read_text()).items() if name != "_name_or_path"}
        config.write_text(json.dumps(kept, indent=2) + "\n")
    for part in (pipe.unet, pipe.vae):
        part.to(torch.float32)
