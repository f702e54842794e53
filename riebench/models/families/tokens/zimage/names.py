"""Short names of the blocks of Z-Image's transformer.

`layers.0` to `layers.29` work on image and text tokens in one sequence. Before them `refiner.0` and `refiner.1` work on
each of the two alone: `refiner.0` is the block of the image tokens (`noise_refiner.0`), and its text stream
`refiner.0/text` is the block of the text tokens (`context_refiner.0`).
"""

from __future__ import annotations

import re

from riebench.models.families.tokens.names import TEXT_END, BlockList, TokenNames

LAYERS, REFINERS = 30, 2
"""Blocks of the full-size transformer."""
BLOCKS: tuple[str, ...] = ("layers.6", "layers.12", "layers.18", "layers.24")
"""Blocks that stand for all: four at equal distances, since no SAE of this family has been published yet."""
UNITS = "feed_forward.w2"
"""The layer inside a block that the feed-forward units enter."""
LISTS = (
    BlockList("refiner", "noise_refiner", REFINERS, UNITS, reads_text=False, counted="refiners"),
    BlockList("layers", "layers", LAYERS, UNITS),
)
TEXT_REFINER = "context_refiner"
"""Path of the blocks of the text tokens alone."""

_TEXT_PATH = re.compile(rf"(?:transformer\.)?{TEXT_REFINER}\.(\d+)")


class ZImageNames(TokenNames):
    """Z-Image's 32 blocks of image tokens, all with attention."""

    def __init__(self) -> None:
        super().__init__(LISTS, BLOCKS)
        self.prefixes = (*self.prefixes, "noise_refiner", TEXT_REFINER)

    def short_name(self, name: str) -> str | None:
        """Return the short name of a module path.

        A block of the text tokens alone is the text stream of the refiner of the same number.
        """
        match = _TEXT_PATH.fullmatch(name)
        return super().short_name(name) if match is None else f"refiner.{match[1]}{TEXT_END}"

    def module_path(self, short: str) -> str:
        """Return the module path inside the transformer.

        The text stream of a layer has its block's path, that of a refiner a path of its own.
        """
        path = super().module_path(short)
        if short.startswith("refiner.") and short.endswith(TEXT_END):
            return path.replace("noise_refiner", TEXT_REFINER)
        return path
