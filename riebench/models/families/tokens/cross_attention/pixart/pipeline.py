"""PixArt-Sigma's pipeline in diffusers: text, call and latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from riebench.models.families.base import TextEmbeddings
from riebench.models.families.tokens.cross_attention.text import TOKENS
from riebench.models.spec import ModelSpec

TEXT_NAMES = ("prompt_embeds", "prompt_attention_mask")
"""What the pipeline calls the text embeddings and their mask."""
LATENTS = "latents"


def embed(pipe: Any, prompt: str, device: torch.device, *, guided: bool) -> TextEmbeddings:
    """Encode a prompt; under guidance the empty one is the negative prompt.

    The pipeline's cleaning of captions from the web is off: it depends on what packages are installed.
    """
    found = pipe.encode_prompt(
        prompt, do_classifier_free_guidance=guided, negative_prompt="", device=device, clean_caption=False,
        max_sequence_length=TOKENS,
    )  # fmt: skip
    conditional = dict(zip(TEXT_NAMES, found[:2], strict=True))
    if not guided:
        return TextEmbeddings(conditional, {})
    return TextEmbeddings(
        conditional, {f"negative_{name}": values for name, values in zip(TEXT_NAMES, found[2:], strict=True)}
    )


def call_options(spec: ModelSpec) -> dict[str, Any]:
    """Return the arguments of the pipeline's call, text and noise apart.

    Sizes are taken as they are: the pipeline would otherwise make a picture of its own size and scale it. Its own
    negative prompt, the empty text, is refused beside embeddings.
    """
    return {
        "num_inference_steps": spec.steps,
        "guidance_scale": spec.guidance,
        "height": spec.size,
        "width": spec.size,
        "negative_prompt": None,
        "use_resolution_binning": False,
        "output_type": "latent",
    }


def step_options(callback: Callable[..., dict[str, Tensor]], names: Sequence[str]) -> dict[str, Any]:
    """Return the arguments with which the call runs a callback after each step.

    The pipeline shows latents and takes nothing back, so that changed ones are written into those that it shows.

    Args:
        callback: see `riebench.models.families.base.Family.step_options`.
        names: of the tensors that it needs.
    """

    def after(step: int, time: Any, latents: Tensor) -> None:
        changed = callback(None, step, time, {LATENTS: latents} if LATENTS in names else {})
        if LATENTS in changed and changed[LATENTS] is not latents:
            latents.copy_(changed[LATENTS])

    return {"callback": after, "callback_steps": 1}


def decode(vae: Any, latents: Tensor) -> Tensor:
    """Decode latents [B, c, h, w] in the autoencoder's own number format.

    Returns [B, 3, H, W] in -1 to 1.
    """
    pixels: Tensor = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor, return_dict=False)[0]
    return pixels


def encode(vae: Any, pixels: Tensor, device: torch.device) -> Tensor:
    """Encode pictures [B, 3, H, W] in -1 to 1.

    Returns float32 [B, c, h, w]: the mean of the answer, scaled for the transformer.
    """
    latents: Tensor = vae.encode(pixels.to(device, vae.dtype)).latent_dist.mode().float()
    return latents * vae.config.scaling_factor
