"""A U-Net's pipeline in diffusers: call, latents, pictures and inversion."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from riebench.errors import RiebenchError
from riebench.models.spec import ModelSpec


def token_counter(folder: Path | None) -> tuple[Callable[[str], int], int]:
    """Return a counter of a prompt's tokens, and how many tokens are read.

    Start and end count too.
    """
    if folder is None:
        from open_clip.tokenizer import SimpleTokenizer

        clip = SimpleTokenizer()
        return (lambda prompt: len(clip.encode(prompt)) + 2), int(clip.context_length)
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(str(folder / "tokenizer"), local_files_only=True)
    return (lambda prompt: len(tokenizer(prompt, verbose=False).input_ids)), int(tokenizer.model_max_length)


def call_options(spec: ModelSpec) -> dict[str, Any]:
    """Return the arguments of the pipeline's call, text and noise apart."""
    return {
        "num_inference_steps": spec.steps,
        "guidance_scale": spec.guidance,
        "height": spec.size,
        "width": spec.size,
        "output_type": "latent",
    }


def decode(vae: Any, latents: Tensor) -> Tensor:
    """Decode latents [B, 4, h, w] in the autoencoder's own number format.

    Returns [B, 3, H, W] in -1 to 1.
    """
    config, spread = vae.config, _channel_spread(vae, latents.device)
    scaled = latents.float() / config.scaling_factor
    if spread is not None:
        scaled = latents.float() * spread[1] / config.scaling_factor + spread[0]
    pixels: Tensor = vae.decode(scaled.to(vae.dtype), return_dict=False)[0]
    return pixels


def encode(vae: Any, pixels: Tensor, device: torch.device) -> Tensor:
    """Encode pictures [B, 3, H, W] in -1 to 1.

    Returns float32 [B, 4, h, w]: the mean of the answer, scaled for the U-Net.
    """
    latents = vae.encode(pixels.to(device, vae.dtype)).latent_dist.mode().float()
    factor, spread = float(vae.config.scaling_factor), _channel_spread(vae, latents.device)
    return latents * factor if spread is None else (latents - spread[0]) * factor / spread[1]


def _channel_spread(vae: Any, device: torch.device) -> tuple[Tensor, Tensor] | None:
    """Return mean and standard deviation of the autoencoder's channels.

    They are [1, 4, 1, 1] each. As in diffusers' pipeline, there are some only where the configuration states both.
    """
    stated = getattr(vae.config, "latents_mean", None), getattr(vae.config, "latents_std", None)
    if stated[0] is None or stated[1] is None:
        return None
    mean, deviation = (torch.tensor(values, device=device).float().view(1, -1, 1, 1) for values in stated)
    return mean, deviation


def inversion_scheduler(scheduler: Any) -> Any:
    """Return the scheduler with which LEDITS++ inverts, made from a model's own.

    The pipeline would make it itself, with a warning; its state is its own, and so is its spacing.
    """
    import diffusers

    make: Any = diffusers.DPMSolverMultistepScheduler.from_config
    return make(scheduler.config, algorithm_type="sde-dpmsolver++", solver_order=2)


def check_inversion(pipe: Any) -> None:
    """Refuse models whose noise LEDITS++ would not describe.

    Its scheduler is made from the model's betas.

    Raises:
        RiebenchError: naming the scheduler or the key.
    """
    config, name = pipe.scheduler.config, type(pipe.scheduler).__name__
    if config.get("beta_start") is None:
        raise RiebenchError(f"ledits_pp inverts models whose noise follows from betas; {name} has none")
    if config.get("use_flow_sigmas") or "flow" in str(config.get("prediction_type", "")):
        raise RiebenchError(f"ledits_pp inverts models whose noise follows from betas; {name} has flow sigmas")
    if pipe.unet.config.time_cond_proj_dim is not None:
        raise RiebenchError("ledits_pp guides by two texts, but this U-Net is told the scale (time_cond_proj_dim)")
