"""Hooks on Stable Diffusion 3's transformer: streams and text attention.

Blocks are called with keywords alone and give (text, image); the last one gives (None, image).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from riebench.blocks import TEXT
from riebench.models.families.blocks import Site
from riebench.models.families.tokens import streams
from riebench.models.families.tokens.sd3.names import NAMES


def site(transformer: nn.Module, name: str) -> Site:
    """Return a site of a transformer by its short name.

    Raises:
        AttributeError: if the transformer has no such module, or its last block is asked for its text stream.
    """
    found = streams.site(transformer, NAMES, name)
    if NAMES.kind(name) == TEXT and getattr(found.module, "context_pre_only", False):
        raise AttributeError(f"{name}: the last block gives no text")
    return found


def text_attention(block: nn.Module) -> tuple[nn.Module, ...]:
    """Return the joint attention of a block.

    The second attention of a dual block reads the picture alone.
    """
    attention: Any = getattr(block, "attn", None)
    return () if getattr(attention, "added_kv_proj_dim", None) is None else (attention,)


def attention_map(layer: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """Compute how much each image token reads each text token, CLIP's first.

    Returns:
        float32 [B, positions, tokens], mean over heads; sums to 1 over the tokens.
    """
    named = dict(zip(("hidden_states", "encoder_hidden_states"), args, strict=False)) | dict(kwargs)
    return streams.joint_attention(layer, named["hidden_states"], named["encoder_hidden_states"])
