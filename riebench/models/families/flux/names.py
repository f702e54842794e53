"""Short names of the blocks of FLUX's transformer.

Blocks with two streams are `double.0` to `double.18`, blocks of one joined stream `single.0` to `single.37`. A block's
name stands for its image stream; its text stream is `double.3/text`. The feed-forward units of its image tokens are
`double.3.ff.0` and `single.9.ff.0`.
"""

from __future__ import annotations

from riebench.models.families.tokens.names import BlockList, TokenNames

DOUBLE, SINGLE = 19, 38
"""Blocks of the full-size transformer."""
LISTS = (
    BlockList("double", "transformer_blocks", DOUBLE, "ff.net.0", counted="double"),
    # A block of one joined stream does not keep its text tokens apart: attention to them cannot be looked at.
    BlockList("single", "single_transformer_blocks", SINGLE, "act_mlp", reads_text=False, counted="single"),
)
FLUX_BLOCKS: tuple[str, ...] = tuple(name for one in LISTS for name in one.blocks)
"""All blocks in the order in which a picture passes through them."""
BLOCKS: tuple[str, ...] = ("double.18", "single.9")
"""Blocks that SAEs of FLUX.1-schnell have been published for."""


class FluxNames(TokenNames):
    """FLUX's 57 blocks, all with attention."""

    def __init__(self) -> None:
        super().__init__(LISTS, BLOCKS)
