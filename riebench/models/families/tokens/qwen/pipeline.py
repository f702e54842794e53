"""Qwen-Image's pipeline in diffusers: text, call, latents and pictures.

A prompt is written into a chat message and read by Qwen2.5-VL. The states of its tokens are padded to a fixed number
and masked, so that all prompts can be exchanged between the steps and no row depends on the other texts of its batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from riebench.models.families.base import TextEmbeddings, positions_in_message
from riebench.models.families.tokens.autoencoder import unpack_latents
from riebench.models.families.tokens.qwen.configuration import TOKENS
from riebench.models.spec import ModelSpec

NEGATIVE = " "
"""The negative prompt of diffusers' examples."""
TEXT_NAMES = ("prompt_embeds", "prompt_embeds_mask")
"""What the pipeline calls the text embeddings."""
TEMPLATE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
"""The chat message that the pipeline makes of a prompt."""
LEFT_OUT = 34
"""Tokens at the beginning of the message that the transformer is not given."""
END_TOKENS = 5
"""Tokens behind the prompt in the message."""


def embed(pipe: Any, prompt: str, device: torch.device, *, guided: bool) -> TextEmbeddings:
    """Encode a prompt, and under guidance the usual negative one."""

    def encode(text: str) -> tuple[Tensor, Tensor]:
        states, mask = pipe.encode_prompt(text, device=device, max_sequence_length=TOKENS)
        # The pipeline leaves out a mask of ones alone.
        known = torch.ones(states.shape[:2], dtype=torch.long, device=states.device) if mask is None else mask
        missing = TOKENS - states.shape[1]
        return pad(states, (0, 0, 0, missing)), pad(known, (0, missing))

    conditional = dict(zip(TEXT_NAMES, encode(prompt), strict=True))
    if not guided:
        return TextEmbeddings(conditional, {})
    negative = {f"negative_{name}": values for name, values in zip(TEXT_NAMES, encode(NEGATIVE), strict=True)}
    return TextEmbeddings(conditional, negative)


def token_positions(tokenizer: Any, prompt: str, characters: Sequence[int]) -> set[int]:
    """Return the positions of some characters of a prompt in its chat message."""
    places = [TEMPLATE.index("{}") + one for one in characters]
    return positions_in_message(tokenizer, TEMPLATE.format(prompt), places, TOKENS + LEFT_OUT, LEFT_OUT)


def count_tokens(tokenizer: Any, prompt: str) -> int:
    """Return the tokens of a prompt's chat message, without those left out."""
    return len(tokenizer(TEMPLATE.format(prompt), verbose=False).input_ids) - LEFT_OUT


def token_counter(folder: Path | None) -> tuple[Callable[[str], int], int]:
    """Return a counter of a chat message's tokens, and how many are read.

    The message is that of a prompt. The beginning that the transformer is not given does not count. Without a folder
    words are counted as CLIP splits them, which is much as Qwen's tokenizer does.
    """
    if folder is None:
        from open_clip.tokenizer import SimpleTokenizer

        clip = SimpleTokenizer()
        return (lambda prompt: len(clip.encode(prompt)) + END_TOKENS), TOKENS
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder / "tokenizer"), local_files_only=True)
    return (lambda prompt: count_tokens(tokenizer, prompt)), TOKENS


def call_options(spec: ModelSpec) -> dict[str, Any]:
    """Return the arguments of the pipeline's call, text and noise apart."""
    return {
        "num_inference_steps": spec.steps,
        "true_cfg_scale": spec.guidance,
        "height": spec.size,
        "width": spec.size,
        "output_type": "latent",
    }


def decode(vae: Any, latents: Tensor) -> Tensor:
    """Decode packed latents in the autoencoder's own number format.

    They are one picture of a film.

    Returns [B, 3, H, W] in -1 to 1.
    """
    mean, deviation = _statistics(vae, latents)
    scaled = unpack_latents(latents).float() * deviation + mean
    pixels: Tensor = vae.decode(scaled.to(vae.dtype).unsqueeze(2), return_dict=False)[0]
    return pixels[:, :, 0]


def encode(vae: Any, pixels: Tensor, device: torch.device) -> Tensor:
    """Encode pictures [B, 3, H, W] in -1 to 1.

    Returns float32 [B, c, h, w]: the mean of the answer, less the latents' mean, by their deviation.
    """
    latents: Tensor = vae.encode(pixels.to(device, vae.dtype).unsqueeze(2)).latent_dist.mode()[:, :, 0].float()
    mean, deviation = _statistics(vae, latents)
    return (latents - mean) / deviation


def _statistics(vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the latents, float32 [c, 1, 1]."""
    mean, deviation = (
        torch.tensor(numbers, dtype=torch.float32, device=like.device)[:, None, None]
        for numbers in (vae.config.latents_mean, vae.config.latents_std)
    )
    return mean, deviation
