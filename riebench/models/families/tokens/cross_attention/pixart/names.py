"""Short names of the blocks of PixArt's transformer.

Its blocks are `block.0` to `block.27`. A block's feed-forward units are `block.3.ff.0`. There is no text stream: the
text is read by cross-attention and does not change from block to block.
"""

from __future__ import annotations

from riebench.models.families.tokens.cross_attention.names import CrossAttentionNames

LAYERS = 28
"""Blocks of the transformer."""
BLOCKS = ("block.6", "block.13", "block.20", "block.27")
"""Blocks that experiments edit where none are named: the ends of the four quarters.

No SAEs of PixArt-Sigma have been published that would say otherwise."""
PIXART_NAMES = CrossAttentionNames(LAYERS, "ff.net.0", BLOCKS)
