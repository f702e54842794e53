"""Operations of a U-Net, counted from its measures.

A multiplication and an addition are two operations. Norms, activations and other work that grows with the numbers alone
is left out: it is below one percent at full size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

TIME_WIDTHS = 4
"""The time is embedded in this many times as many numbers as the finest level has channels."""
LATENT_CHANNELS, TOKENS = 4, 77
"""Channels of latents, and tokens of a text."""


class Measures(Protocol):
    """Measures of a U-Net that its work follows from, as `UNetShape` has them."""

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels, level by level from the finest grid to the coarsest."""

    @property
    def text_width(self) -> int:
        """Numbers of a text token."""

    @property
    def blocks(self) -> tuple[str, ...]:
        """Short names of the blocks."""

    def depth(self, block: str) -> int:
        """Return the transformer layers of an attention block."""


def unet_operations(shape: Measures, side: int) -> int:
    """Return the operations of one call on one picture.

    Args:
        shape: of the U-Net.
        side: of the latents.
    """
    channels = shape.channels
    last = len(channels) - 1
    time = TIME_WIDTHS * channels[0]
    sides = [-(-side // 2**level) for level in range(len(channels))]
    total = 2 * time * (channels[0] + time) + _convolution(LATENT_CHANNELS, channels[0], side)
    now, skips = channels[0], [channels[0]]
    for level, width in enumerate(channels):
        for attention in _followers(shape.blocks, f"down.{level}."):
            total += _residual(now, width, time, sides[level])
            total += _attention(shape, attention, width, sides[level]) if attention else 0
            now = width
            skips.append(now)
        if level < last:
            total += _convolution(now, now, sides[level + 1])
            skips.append(now)
    for attention in _followers(shape.blocks, "mid."):
        total += _residual(now, now, time, sides[last])
        total += _attention(shape, attention, now, sides[last]) if attention else 0
    for level, width in enumerate(reversed(channels)):
        grid = sides[last - level]
        for attention in _followers(shape.blocks, f"up.{level}."):
            total += _residual(now + skips.pop(), width, time, grid)
            total += _attention(shape, attention, width, grid) if attention else 0
            now = width
        if level < last:
            total += _convolution(now, now, sides[last - level - 1])
    return total + _convolution(now, LATENT_CHANNELS, side)


def _followers(blocks: Sequence[str], stem: str) -> list[str]:
    """Return the attention block behind each residual block of a level.

    It is "" where there is none.
    """
    residual = [block for block in blocks if block.startswith(f"{stem}res.")]
    return [other if (other := block.replace("res.", "")) in blocks else "" for block in residual]


def _convolution(given: int, made: int, side: int) -> int:
    return 2 * 9 * given * made * side**2


def _residual(given: int, made: int, time: int, side: int) -> int:
    shortcut = 2 * given * made * side**2 if given != made else 0
    return _convolution(given, made, side) + _convolution(made, made, side) + shortcut + 2 * time * made


def _attention(shape: Measures, block: str, width: int, side: int) -> int:
    positions, text = side**2, TOKENS
    projections = 2 * 2 * positions * width**2
    own = 4 * 2 * positions * width**2 + 4 * positions**2 * width
    cross = 2 * 2 * positions * width**2 + 2 * 2 * text * shape.text_width * width + 4 * positions * text * width
    # Gated units: twice four times the width on the way in, four times on the way out.
    forward = 2 * positions * width * 12 * width
    return projections + shape.depth(block) * (own + cross + forward)
