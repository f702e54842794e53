"""The blocks of the U-Net of Stable Diffusion 1 and 2."""

from __future__ import annotations

from riebench.models.families.unet.names import UNetNames

SD_BLOCKS: tuple[str, ...] = (
    "down.0.res.0", "down.0.0", "down.0.res.1", "down.0.1",
    "down.1.res.0", "down.1.0", "down.1.res.1", "down.1.1",
    "down.2.res.0", "down.2.0", "down.2.res.1", "down.2.1",
    "down.3.res.0", "down.3.res.1",
    "mid.res.0", "mid.0", "mid.res.1",
    "up.0.res.0", "up.0.res.1", "up.0.res.2",
    "up.1.res.0", "up.1.0", "up.1.res.1", "up.1.1", "up.1.res.2", "up.1.2",
    "up.2.res.0", "up.2.0", "up.2.res.1", "up.2.1", "up.2.res.2", "up.2.2",
    "up.3.res.0", "up.3.0", "up.3.res.1", "up.3.1", "up.3.res.2", "up.3.2",
)  # fmt: skip
"""All blocks in the order in which a picture passes through them."""
BLOCKS: tuple[str, ...] = ("down.2.1", "mid.0", "up.1.1", "up.1.2")
"""Blocks that are used where none are named: the last before the middle, the middle, and the two behind it for which
SAEs have been published."""


class SdNames(UNetNames):
    """The 38 blocks, 16 of them with attention."""

    known = SD_BLOCKS
    default = BLOCKS
