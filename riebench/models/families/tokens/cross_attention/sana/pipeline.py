"""SANA's pipelines in diffusers: text, call, latents and pictures."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from riebench.models.families.base import TextEmbeddings, positions_of
from riebench.models.families.tokens.cross_attention.text import TOKENS, places_in_plain_text, plain_text
from riebench.models.spec import ModelSpec

TEXT_NAMES = ("prompt_embeds", "prompt_attention_mask")
"""What the pipelines call the text embeddings and their mask."""


def usual(pipeline: Any, name: str) -> Any:
    """Return what a pipeline's call takes where an argument is not given."""
    return inspect.signature(pipeline.__call__).parameters[name].default


def instruction(pipe: Any) -> list[str]:
    """Return the lines that a pipeline's call puts before every prompt by default."""
    return list(usual(type(pipe), "complex_human_instruction"))


def embed(pipe: Any, prompt: str, device: torch.device, *, guided: bool) -> TextEmbeddings:
    """Encode a prompt behind the pipeline's instruction, as its call does it.

    Under guidance the empty prompt is the negative one, without the instruction.
    """
    more = {"negative_prompt": "", "do_classifier_free_guidance": True} if guided else {}
    known = inspect.signature(pipe.encode_prompt).parameters
    if not guided and "do_classifier_free_guidance" in known:
        more = {"do_classifier_free_guidance": False}
    found = pipe.encode_prompt(
        prompt, device=device, max_sequence_length=TOKENS, complex_human_instruction=instruction(pipe), **more
    )
    conditional = dict(zip(TEXT_NAMES, found[:2], strict=True))
    if not guided:
        return TextEmbeddings(conditional, {})
    return TextEmbeddings(
        conditional, {f"negative_{name}": values for name, values in zip(TEXT_NAMES, found[2:], strict=True)}
    )


def token_positions(pipe: Any, prompt: str, characters: Sequence[int]) -> set[int]:
    """Return the positions of characters of a prompt in what the transformer reads.

    Instruction and prompt are encoded together. Of their tokens the transformer reads the first one and the last
    `TOKENS` - 1, padding among them, so that the last token of the instruction stays in front of the prompt.
    """
    before = "\n".join(instruction(pipe))
    count = len(pipe.tokenizer.encode(before))
    places = [len(before) + place for place in places_in_plain_text(prompt, characters)]
    whole = count + TOKENS - 2
    skipped = whole - TOKENS
    found = positions_of(pipe.tokenizer, before + plain_text(prompt), places, whole)
    return {position - skipped for position in found if position > skipped}


def call_options(spec: ModelSpec) -> dict[str, Any]:
    """Return the arguments of both pipelines' calls, text and noise apart.

    Sizes are taken as they are: the pipeline would otherwise make a picture of its own size and scale it.
    """
    return {
        "num_inference_steps": spec.steps,
        "guidance_scale": spec.guidance,
        "height": spec.size,
        "width": spec.size,
        "use_resolution_binning": False,
        "output_type": "latent",
    }


def sprint_schedule(pipeline: type[Any], steps: int) -> dict[str, Any]:
    """Return what SANA-Sprint's call sets its times with.

    The time between two steps is the pipeline's own; with another number of steps times are at equal distances.
    """
    between = usual(pipeline, "intermediate_timesteps") if steps == 2 else None
    return {"max_timesteps": usual(pipeline, "max_timesteps"), "intermediate_timesteps": between}


def decode(vae: Any, latents: Tensor) -> Tensor:
    """Decode latents [B, c, h, w] in the autoencoder's own number format.

    Returns [B, 3, H, W] in -1 to 1.
    """
    pixels: Tensor = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor, return_dict=False)[0]
    return pixels


def encode(vae: Any, pixels: Tensor, device: torch.device) -> Tensor:
    """Encode pictures [B, 3, H, W] in -1 to 1.

    Returns float32 [B, c, h, w], scaled for the transformer; the autoencoder draws nothing.
    """
    latents: Tensor = vae.encode(pixels.to(device, vae.dtype), return_dict=False)[0]
    return latents.float() * vae.config.scaling_factor
