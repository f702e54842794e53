"""How much of an example's source and target run is kept in memory, and in which form.

Updates and text attention: in float32 up to `SHORT_RUN`, with feature values and edits as tensors. Above it in 16 bits;
feature values are computed again whenever a step needs them, and edits read the trace instead of keeping values.

Feed-forward units: in float32 up to `UNITS_KEPT`. Above it they are not kept: source and target are generated once more
and give the means that ranking needs, and edits read the units from runs generated beside the edited picture.

Examples in memory together: half a batch, or as many as fit into `HELD_TOGETHER`, at least one.

The limits are compared with the float32 size, which follows from model, steps and size alone, so that a setting is
treated alike on every machine.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from riebench.models.shapes import Shape

RUNS = 2
"""Source and target."""
FULL, HALF = 4, 2
"""Bytes of a number in float32 and in 16 bits."""
LATENT_CHANNELS = 4
TOKENS = 77
"""Tokens a text attention map has."""

SHORT_RUN = 64 * 2**20
"""Bytes of one example's updates and attention in float32 up to which they are kept so. SDXL Turbo's four blocks at 4
steps need 44 MB; SDXL Base's at 20 steps and 1024 pixels would need 840 MB."""
UNITS_KEPT = 128 * 2**20
"""Bytes of one example's feed-forward units in float32 up to which they are kept."""
PREFIX_KEPT = 256 * 2**20
"""Bytes of one source run up to which what edited runs share with it (`riebench.prefix`) is kept: SDXL Turbo needs
24 MB in 16 bits, SDXL Base at 20 steps and 1024 pixels about 150 MB."""
PREFIX_STEPS = 8
"""Steps from an edit's first one to the last up to which part of the first one is worth keeping."""
HELD_TOGETHER = 2**30
"""Bytes of traces in memory at a time, unless one example alone needs more."""


@dataclass(frozen=True)
class Footprint:
    """What one example's source and target run leave behind.

    Attributes:
        numbers: of updates and attention.
        units: numbers of feed-forward units.
    """

    numbers: int
    units: int = 0

    @property
    def long(self) -> bool:
        """Whether 16 bits are kept of each number."""
        return self.numbers * FULL > SHORT_RUN

    @property
    def metered(self) -> bool:
        """Whether only means of the units are kept."""
        return self.units * FULL > UNITS_KEPT

    def nbytes(self, *, long: bool, metered: bool) -> int:
        """Bytes of the trace, kept in 16 bits if `long`, without units if `metered`."""
        return (self.numbers + (0 if metered else self.units)) * (HALF if long else FULL)


def examples_together(nbytes: int, batch_size: int) -> int:
    """How many examples of a size are in memory together."""
    return max(1, min(batch_size // 2, HELD_TOGETHER // max(1, nbytes)))


def footprint(
    shape: Shape, size: int, steps: int, updates: Iterable[str], units: Iterable[str] = (),
    attention: Iterable[str] = (),
) -> Footprint:  # fmt: skip
    """What one example leaves behind.

    Args:
        shape: the model's measures.
        size: picture side in pixels.
        steps: denoising steps.
        updates: blocks whose updates are captured.
        units: blocks whose feed-forward units methods ask for.
        attention: blocks whose text attention is captured.
    """
    places = RUNS * steps
    return Footprint(
        numbers=places * sum(shape.width(block) * shape.positions(block, size) for block in updates)
        + places * sum(TOKENS * shape.positions(block, size) for block in attention),
        units=places * sum(shape.units(block) * shape.positions(block, size) for block in units),
    )


def prefix_bytes(
    shape: Shape, size: int, steps: int, blocks: Iterable[str], starts: int, width: int, *, guided: bool
) -> int:
    """Bytes of what edited runs can share with one source run.

    Args:
        shape: the model's measures.
        size: picture side in pixels.
        steps: denoising steps.
        blocks: blocks that may be the first changed one.
        starts: number of steps that may be the first changed one.
        width: bytes of a number.
        guided: whether there is an unconditional half.
    """
    latents = (size // shape.vae_factor) ** 2
    grids = [latents // 4**level for level in range(len(shape.channels))]
    # What upward blocks read: the first convolution, two blocks a level, and the way down to the next level.
    skips = shape.channels[0] * latents + sum(2 * c * grid for c, grid in zip(shape.channels, grids, strict=True))
    skips += sum(c * grid for c, grid in zip(shape.channels[:-1], grids[1:], strict=True))
    # The input of such a block may be that of two joined; beside it lies its update.
    kept = sum(2 * shape.width(block) * shape.positions(block, size) for block in blocks)
    return (LATENT_CHANNELS * latents * steps + starts * (skips + kept)) * width * (2 if guided else 1)
