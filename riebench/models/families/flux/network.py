"""Hooks on FLUX's transformer: streams, feed-forward units, text attention.

Blocks are called with keywords alone and give (text, image), also those of one joined stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor, nn

from riebench.models.families.blocks import Site
from riebench.models.families.flux.names import FluxNames
from riebench.models.families.tokens import streams
from riebench.models.families.tokens.streams import JoinedUnits, TokenUnits

NAMES = FluxNames()


def site(transformer: nn.Module, name: str) -> Site:
    """Return a site of a transformer by its short name.

    Raises:
        AttributeError: if the transformer has no such module.
    """
    return streams.site(transformer, NAMES, name, TokenUnits if name.startswith("double.") else JoinedUnits)


def text_attention(block: nn.Module) -> tuple[nn.Module, ...]:
    """Return the joint attention of a block with two streams.

    A block of one joined stream has none: its attention does not know where the text ends.
    """
    attention: Any = getattr(block, "attn", None)
    return () if getattr(attention, "added_kv_proj_dim", None) is None else (attention,)


def attention_map(layer: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """Compute how much each image token reads each text token.

    Returns:
        float32 [B, positions, tokens], mean over heads; sums to 1 over the tokens.
    """
    named = dict(zip(("hidden_states", "encoder_hidden_states", "attention_mask", "image_rotary_emb"), args,
                     strict=False)) | dict(kwargs)  # fmt: skip
    image, text = named["hidden_states"], named["encoder_hidden_states"]
    rotary: Any = named.get("image_rotary_emb")

    def rotate(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        tokens = text.shape[1]
        return (
            apply_rotary_emb(query, tuple(part[tokens:] for part in rotary), sequence_dim=1),
            apply_rotary_emb(key, tuple(part[:tokens] for part in rotary), sequence_dim=1),
        )

    return streams.joint_attention(layer, image, text, *(() if rotary is None else (rotate,)))
