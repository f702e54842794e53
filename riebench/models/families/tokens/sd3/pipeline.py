"""Stable Diffusion 3's pipeline in diffusers: text and call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from riebench.models.families.base import TextEmbeddings
from riebench.models.families.tokens.sd3.configuration import T5_TOKENS
from riebench.models.spec import ModelSpec

TEXT_NAMES = ("prompt_embeds", "pooled_prompt_embeds")
"""What the pipeline calls the text embeddings."""


def embed(pipe: Any, prompt: str, device: torch.device, *, guided: bool) -> TextEmbeddings:
    """Encode a prompt with all three text encoders.

    CLIP's tokens come first, then T5's. Under guidance the empty prompt is the negative one.
    """
    embeds, negative, pooled, negative_pooled = pipe.encode_prompt(
        prompt, None, None, device=device, do_classifier_free_guidance=guided, max_sequence_length=T5_TOKENS
    )
    conditional = dict(zip(TEXT_NAMES, (embeds, pooled), strict=True))
    other = zip(TEXT_NAMES, (negative, negative_pooled), strict=True)
    return TextEmbeddings(conditional, {f"negative_{name}": values for name, values in other if values is not None})


def token_counter(folder: Path | None) -> tuple[Callable[[str], int], int]:
    """Return a counter of a prompt's tokens, and how many tokens are read.

    They are CLIP's, whose texts are cut first; start and end count too.
    """
    if folder is None:
        from open_clip.tokenizer import SimpleTokenizer

        clip = SimpleTokenizer()
        return (lambda prompt: len(clip.encode(prompt)) + 2), int(clip.context_length)
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(str(folder / "tokenizer"), local_files_only=True)
    return (lambda prompt: len(tokenizer(prompt, verbose=False).input_ids)), int(tokenizer.model_max_length)


def call_options(spec: ModelSpec) -> dict[str, Any]:
    """Return the arguments of the pipeline's call, text and noise apart.

    Guidance by skipped layers is left out: it would be a third call of the transformer in some steps.
    """
    return {
        "num_inference_steps": spec.steps,
        "guidance_scale": spec.guidance,
        "skip_guidance_layers": None,
        "height": spec.size,
        "width": spec.size,
        "output_type": "latent",
    }
