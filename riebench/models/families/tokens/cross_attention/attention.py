"""Cross-attention of a transformer's blocks: layers that read text and their maps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def text_attention(block: nn.Module) -> tuple[nn.Module, ...]:
    """Return the one layer of a block in which positions read the text."""
    layer = getattr(block, "attn2", None)
    return () if layer is None else (layer,)


def text_projections(transformer: nn.Module) -> tuple[nn.Module, ...]:
    """Return the layers whose only input is the text.

    They are its projection, and the projections to keys and values of all blocks.
    """
    found: list[nn.Module] = []
    projection = getattr(transformer, "caption_projection", None)
    if projection is not None:
        found.append(projection)
    for block in transformer.get_submodule("transformer_blocks").children():
        layers: list[Any] = [*text_attention(block)]
        found += [part for layer in layers for part in (layer.to_k, layer.to_v)]
    return tuple(found)


def attention_map(layer: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """Compute how much each position reads each token in one call of a layer.

    Padding is masked as the layer masks it, and queries and keys are normed as the layer does it.

    Returns:
        float32 [B, positions, tokens], mean over heads; sums to 1 over the tokens.
    """
    named = dict(zip(("hidden_states", "encoder_hidden_states", "attention_mask"), args, strict=False)) | dict(kwargs)
    query, key = layer.to_q(named["hidden_states"]), layer.to_k(named["encoder_hidden_states"])
    if layer.norm_q is not None:
        query = layer.norm_q(query)
    if layer.norm_k is not None:
        key = layer.norm_k(key)
    query, key = (part.float().unflatten(-1, (layer.heads, -1)) for part in (query, key))
    products = torch.einsum("bphc,bthc->bhpt", query, key) * layer.scale
    mask = named.get("attention_mask")
    if mask is not None:
        # [B, 1, tokens], which is added to the products of all heads and positions.
        products = products + mask[:, None].float()
    return torch.softmax(products, dim=-1).mean(1)
