"""Z-Image's pipeline in diffusers: text and call.

A prompt is written as a chat message and read by Qwen3; the states of its tokens, as many as there are, are the text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from riebench.errors import RiebenchError
from riebench.models.families.base import TextEmbeddings, positions_in_message
from riebench.models.families.tokens.zimage.configuration import AXES_LENGTHS, PATCH, TOKENS
from riebench.models.spec import ModelSpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor

TEMPLATE_TOKENS = 8
"""Tokens of the official models' chat template around a prompt."""
MAX_SIDE = AXES_LENGTHS[1] * PATCH * 8
"""Largest picture side in pixels whose rows and columns the official models can tell apart."""
_MARK = "\u241f"
"""A character that no chat template holds."""


def embed(pipe: Any, prompt: str, device: torch.device, *, guided: bool) -> TextEmbeddings:
    """Encode a prompt.

    Under guidance the empty prompt is the negative one.
    """

    def encode(text: str) -> Tensor:
        states, _ = pipe.encode_prompt(text, device=device, do_classifier_free_guidance=False)
        found: Tensor = states[0]
        return found[None]

    negative = {"negative_prompt_embeds": encode("")} if guided else {}
    return TextEmbeddings({"prompt_embeds": encode(prompt)}, negative)


def chat_text(tokenizer: Any, prompt: str) -> str:
    """Return a prompt as the chat message that the pipeline makes of it."""
    text: str = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True, enable_thinking=True
    )
    return text


def token_positions(tokenizer: Any, prompt: str, characters: Sequence[int]) -> set[int]:
    """Return the positions of some characters of a prompt in its chat message."""
    start = chat_text(tokenizer, _MARK).index(_MARK)
    places = [start + one for one in characters]
    return positions_in_message(tokenizer, chat_text(tokenizer, prompt), places, TOKENS)


def count_tokens(tokenizer: Any, prompt: str) -> int:
    """Return the tokens of a prompt's chat message."""
    return len(tokenizer(chat_text(tokenizer, prompt), verbose=False).input_ids)


def token_counter(folder: Path | None) -> tuple[Callable[[str], int], int]:
    """Return a counter of a chat message's tokens, and how many are read.

    The message is that of a prompt. Without a folder words are counted as CLIP splits them, which is much as Qwen's
    tokenizer does.
    """
    if folder is None:
        from open_clip.tokenizer import SimpleTokenizer

        clip = SimpleTokenizer()
        return (lambda prompt: len(clip.encode(prompt)) + TEMPLATE_TOKENS), TOKENS
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder / "tokenizer"), local_files_only=True)
    return (lambda prompt: count_tokens(tokenizer, prompt)), TOKENS


def call_options(spec: ModelSpec) -> dict[str, Any]:
    """Return the arguments of the pipeline's call, text and noise apart.

    Truncation and normalisation of guidance are left at the pipeline's defaults, at which neither does anything.

    Raises:
        RiebenchError: if pictures are larger than the transformer can place tokens.
    """
    if spec.size > MAX_SIDE:
        raise RiebenchError(
            f"picture side {spec.size} is more than {MAX_SIDE}, Z-Image's largest; use a smaller --size"
        )
    return {
        "num_inference_steps": spec.steps,
        "guidance_scale": spec.guidance,
        "height": spec.size,
        "width": spec.size,
        "output_type": "latent",
    }
