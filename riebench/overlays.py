"""Masks as people look at them: laid over the pictures they were found in."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from riebench.tasks.masks import Mask, RegionMasks

TINT = np.array([255, 64, 32], dtype=np.float64)
"""Colour of a region."""
STRENGTH = 0.45
"""How much of it is mixed in."""


def overlay(picture: NDArray[np.uint8], mask: Mask) -> NDArray[np.uint8]:
    """A picture with a region tinted.

    Args:
        picture: uint8 [H, W, 3].
        mask: bool [H, W].

    Returns:
        uint8 [H, W, 3]; untouched outside the region.
    """
    tinted = (1 - STRENGTH) * picture + STRENGTH * TINT
    return np.where(mask[..., None], tinted, picture).round().astype(np.uint8)


def mask_overlay(source: NDArray[np.uint8], target: NDArray[np.uint8], masks: RegionMasks) -> NDArray[np.uint8]:
    """An example's two pictures beside each other, source left, each with its region tinted.

    Args:
        source: uint8 [H, W, 3].
        target: likewise.
        masks: their regions.

    Returns:
        uint8 [H, 2 W, 3].
    """
    return np.concatenate([overlay(source, masks.source), overlay(target, masks.target)], axis=1)
