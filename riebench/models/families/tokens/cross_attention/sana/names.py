"""Short names of the blocks of SANA's transformer.

Its blocks are `block.0` to `block.19` (1.6B) or `block.27` (0.6B). A block's feed-forward units are `block.3.ff.0`.
There is no text stream: the text is read by cross-attention and does not change from block to block.
"""

from __future__ import annotations

from riebench.models.families.tokens.cross_attention.names import CrossAttentionNames

LAYERS, LAYERS_SMALL = 20, 28
"""Blocks of the transformers of 1.6 and of 0.6 billion parameters."""
BLOCKS = ("block.4", "block.9", "block.14", "block.19")
"""Blocks that experiments edit where none are named: the ends of the four quarters of the larger model.

No SAEs of SANA have been published that would say otherwise."""
UNITS_LAYER = "ff.conv_point"
"""The layer that the feed-forward units enter: no module gives their gated values."""
SANA_NAMES = CrossAttentionNames(LAYERS_SMALL, UNITS_LAYER, BLOCKS)
