"""Masks as PIE-Bench writes them: a flat list of start and length, row by row over 512 x 512."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from riebench.errors import RiebenchError

Mask = NDArray[np.bool_]

SIDE = 512
"""Side of PIE-Bench's pictures and masks in pixels."""


def decode(runs: Any, height: int = SIDE, width: int = SIDE) -> Mask:
    """The mask of a list of runs.

    The benchmark's own evaluation also sets the outer frame of one pixel; that belongs to its profile, not to the data,
    and is not done here.

    Args:
        runs: [start, length, start, length, ...], or the same numbers as text with spaces between. A run that leaves
            the picture is cut at its end.
        height: of the picture.
        width: of the picture.

    Returns:
        bool [height, width].

    Raises:
        RiebenchError: if it is no such list.
    """
    numbers = _numbers(runs)
    if len(numbers) % 2:
        raise RiebenchError(f"a mask is pairs of start and length, but this one has {len(numbers)} numbers")
    flat = np.zeros(height * width, dtype=bool)
    for start, length in zip(numbers[::2], numbers[1::2], strict=True):
        if start < 0 or length < 0:
            raise RiebenchError(f"a mask's run {start}+{length} is negative")
        flat[start : start + length] = True
    return flat.reshape(height, width)


def _numbers(runs: Any) -> list[int]:
    if isinstance(runs, str):
        try:
            return [int(part) for part in runs.split()]
        except ValueError as error:
            raise RiebenchError(f"a mask's text is numbers with spaces between, not {runs[:40]!r}") from error
    if not isinstance(runs, list):
        raise RiebenchError(f"a mask is a list of numbers, not {type(runs).__name__}")
    odd = [number for number in runs if not isinstance(number, int) or isinstance(number, bool)]
    if odd:
        raise RiebenchError(f"a mask is a list of whole numbers; {odd[0]!r} is none")
    return runs


def mask_png(mask: Mask) -> bytes:
    """A mask as a PNG file's bytes, white where it is true; the picture that `file:` regions read."""
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, format="PNG")
    return buffer.getvalue()
