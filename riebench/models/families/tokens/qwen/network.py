"""Hooks on Qwen-Image's transformer: attention to the text.

Blocks are called with keywords alone and give (text, image).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from riebench.models.families.tokens.streams import head_vectors, reading_of_text


def attention_map(layer: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """Compute how much each image token reads each text token.

    Queries of the image and keys of the text are computed as the layer computes them, with their norms and rotary
    positions. What image tokens read of each other, and padding of the text, is left out: the text tokens alone sum to
    1.

    Returns:
        float32 [B, positions, tokens], mean over heads; sums to 1 over the tokens.
    """
    names = (
        "hidden_states",
        "encoder_hidden_states",
        "encoder_hidden_states_mask",
        "attention_mask",
        "image_rotary_emb",
    )
    named = dict(zip(names, args, strict=False)) | dict(kwargs)
    width, turns = layer.inner_dim // layer.heads, named.get("image_rotary_emb") or (None, None)
    query = head_vectors(layer.to_q(named["hidden_states"]), width, layer.norm_q, turns[0])
    key = head_vectors(layer.add_k_proj(named["encoder_hidden_states"]), width, layer.norm_added_k, turns[1])
    mask = named.get("encoder_hidden_states_mask")
    return reading_of_text(query, key, None if mask is None else mask.bool())
