"""Masks: the regions of a picture that an edit may change.

Masks are boolean arrays in memory and run lengths in files. Making them from words of a prompt is done by
`riebench.generation.regions`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from riebench.errors import RiebenchError
from riebench.tasks.schema import StoredModel
from riebench.utils.images import MAX_PIXELS, MAX_SIDE

Mask = NDArray[np.bool_]
"""A region of a picture, bool [H, W]."""


class MaskShare(StoredModel):
    """Share of the picture that the example's regions cover."""

    source: float = Field(ge=0, le=1)
    """Share of the source region, 0 to 1."""
    target: float = Field(ge=0, le=1)
    """Share of the target region, 0 to 1."""


@dataclass(frozen=True)
class RegionMasks:
    """Regions in which one example's edit removes and adds features.

    They follow the region rule of its category.

    Attributes:
        source: bool [H, W], where the source run's features are removed.
        target: bool [H, W], where the target run's features are added.
    """

    source: Mask
    target: Mask

    @property
    def editable(self) -> Mask:
        """Pixels that the edit may change, bool [H, W]."""
        return self.source | self.target

    @property
    def empty(self) -> bool:
        """True if a region was not found at all.

        Every configuration skips such an example.
        """
        return not (self.source.any() and self.target.any())

    @cached_property
    def share(self) -> MaskShare:
        """Share of the picture that the regions cover."""
        return MaskShare(source=float(self.source.mean()), target=float(self.target.mean()))

    def to_json(self, provider: str) -> dict[str, Any]:
        """Return the stored form: run lengths, row by row."""
        return {
            "provider": provider,
            "size": [*self.source.shape],
            "source": run_lengths(self.source),
            "target": run_lengths(self.target),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> RegionMasks:
        """Return the masks of a stored form.

        Raises:
            RiebenchError: if it is not one.
        """
        try:
            height, width = value["size"]
            if not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE and height * width <= MAX_PIXELS):
                raise ValueError(f"its size is {height} x {width}")
            source, target = (from_run_lengths(value[name], height, width) for name in ("source", "target"))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RiebenchError(f"a stored mask is damaged ({error}); delete it and repeat `riebench run`") from error
        return cls(source, target)


def run_lengths(mask: Mask) -> list[int]:
    """Return [start, length, start, length, ...] of the true runs, row by row."""
    padded = np.concatenate([[False], mask.ravel(), [False]])
    edges = np.flatnonzero(padded[1:] != padded[:-1])
    starts, ends = edges[::2], edges[1::2]
    return [int(number) for pair in zip(starts, ends - starts, strict=True) for number in pair]


def from_run_lengths(runs: Sequence[int], height: int, width: int) -> Mask:
    """Return the mask of run lengths; the inverse of `run_lengths`.

    Raises:
        ValueError: if a run leaves the picture.
    """
    flat = np.zeros(height * width, dtype=bool)
    for start, length in zip(runs[::2], runs[1::2], strict=True):
        if start < 0 or length < 0 or start + length > flat.size:
            raise ValueError(f"run {start}+{length} leaves a picture of {height} x {width}")
        flat[start : start + length] = True
    return flat.reshape(height, width)
