"""FLUX's pipeline in diffusers: text and call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from riebench.models.families.base import TextEmbeddings
from riebench.models.families.flux.configuration import text_tokens
from riebench.models.spec import ModelSpec

TEXT_NAMES = ("prompt_embeds", "pooled_prompt_embeds")
"""What the pipeline calls the text embeddings before the first step."""


def token_limit(pipe: Any) -> int:
    """Return how many tokens of a text the transformer reads."""
    return text_tokens(pipe.tokenizer_2.model_max_length, guidance_embeds=pipe.transformer.config.guidance_embeds)


def embed(pipe: Any, prompt: str, device: torch.device, *, guided: bool) -> TextEmbeddings:
    """Encode a prompt with both text encoders.

    Under guidance the empty prompt is the negative one.
    """
    limit = token_limit(pipe)

    def encode(text: str) -> tuple[Tensor, Tensor]:
        embeds, pooled, _ = pipe.encode_prompt(text, device=device, max_sequence_length=limit)
        return embeds, pooled

    conditional = dict(zip(TEXT_NAMES, encode(prompt), strict=True))
    if not guided:
        return TextEmbeddings(conditional, {})
    return TextEmbeddings(
        conditional, {f"negative_{name}": values for name, values in zip(TEXT_NAMES, encode(""), strict=True)}
    )


def token_counter(folder: Path | None) -> tuple[Callable[[str], int], int]:
    """Return a counter of a prompt's tokens, and how many tokens are read.

    The end counts too. Without a folder words are counted as CLIP splits them, which is much as T5 does.
    """
    if folder is None:
        from open_clip.tokenizer import SimpleTokenizer

        clip = SimpleTokenizer()
        return (lambda prompt: len(clip.encode(prompt)) + 1), text_tokens(None, guidance_embeds=False)
    from transformers import AutoTokenizer

    from riebench.models.families.flux.configuration import guidance_embeds

    tokenizer = AutoTokenizer.from_pretrained(str(folder / "tokenizer_2"), local_files_only=True)
    limit = text_tokens(tokenizer.model_max_length, guidance_embeds=guidance_embeds(folder))
    return (lambda prompt: len(tokenizer(prompt, verbose=False).input_ids)), limit


def call_options(spec: ModelSpec) -> dict[str, Any]:
    """Return the arguments of the pipeline's call, text and noise apart.

    A transformer that is told the guidance scale reads the first of the two scales. The second one counts where there
    is a negative prompt, which only others get.
    """
    return {
        "num_inference_steps": spec.steps,
        "guidance_scale": spec.guidance,
        "true_cfg_scale": spec.guidance,
        "height": spec.size,
        "width": spec.size,
        "output_type": "latent",
    }
