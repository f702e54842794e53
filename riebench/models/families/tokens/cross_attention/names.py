"""Names of the blocks of transformers that read the text by cross-attention."""

from __future__ import annotations

from collections.abc import Sequence

from riebench.models.families.tokens.names import BlockList, TokenNames

SIDE, FOLDER = "block", "transformer_blocks"
"""The word that short names begin with, and the path of the blocks inside the transformer."""


class CrossAttentionNames(TokenNames):
    """Names `block.0`, `block.1` and so on, of blocks without a text stream.

    Args:
        count: blocks of the largest model of the family.
        units: path of the feed-forward units inside a block.
        default: blocks that experiments edit where none are named.
    """

    def __init__(self, count: int, units: str, default: Sequence[str]) -> None:
        super().__init__([BlockList(SIDE, FOLDER, count, units, has_text=False)], default)

    def long_name(self, short: str) -> str:
        """Return the short name.

        A path alone would be read as a block of a family with two streams.
        """
        return short
