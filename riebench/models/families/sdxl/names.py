"""The blocks of SDXL's U-Net."""

from __future__ import annotations

from riebench.models.families.unet.names import UNetNames

SDXL_BLOCKS: tuple[str, ...] = (
    "down.0.res.0", "down.0.res.1",
    "down.1.res.0", "down.1.0", "down.1.res.1", "down.1.1",
    "down.2.res.0", "down.2.0", "down.2.res.1", "down.2.1",
    "mid.res.0", "mid.0", "mid.res.1",
    "up.0.res.0", "up.0.0", "up.0.res.1", "up.0.1", "up.0.res.2", "up.0.2",
    "up.1.res.0", "up.1.0", "up.1.res.1", "up.1.1", "up.1.res.2", "up.1.2",
    "up.2.res.0", "up.2.res.1", "up.2.res.2",
)  # fmt: skip
"""All blocks in the order in which a picture passes through them."""
BLOCKS: tuple[str, ...] = ("down.2.1", "mid.0", "up.0.0", "up.0.1")
"""The four blocks of the published experiments."""


class SdxlNames(UNetNames):
    """SDXL's 28 blocks, 11 of them with attention."""

    known = SDXL_BLOCKS
    default = BLOCKS
