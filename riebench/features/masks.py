"""Where features are switched: a drawn mask, a picture file, or a region in words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from riebench.errors import RiebenchError
from riebench.tasks.masks import Mask
from riebench.utils.images import open_image


def as_mask(mask: Any, size: int, region: Callable[[str], Mask]) -> Mask | None:
    """Reads what a user gives as a mask.

    Args:
        mask: None for everywhere; a bool array or tensor [size, size]; a PIL picture or the path of a picture file of
            that size, bright where features are switched; or a region as task files write it, such as "house",
            "not: house", "background" or "file:mask.png".
        size: the picture's side in pixels.
        region: finds a region in words.

    Returns:
        bool [size, size], or None for everywhere.

    Raises:
        RiebenchError: if it has another size, is empty, or is nothing of this kind.
    """
    if mask is None:
        return None
    what = "the mask"
    if isinstance(mask, str) and not Path(mask).is_file():
        what = f"the region {mask!r}"
        found = region(mask)
    elif isinstance(mask, str | Path):
        what = f"the mask {mask}"
        found = _read(Path(mask))
    elif isinstance(mask, Image.Image):
        found = _picture(mask)
    else:
        found = _array(mask)
    if found.shape != (size, size):
        shape = " x ".join(map(str, found.shape))
        raise RiebenchError(f"{what} is {shape}, the picture {size} x {size}; draw it at the picture's size")
    if not found.any():
        raise RiebenchError(f"{what} is empty: no pixel of the picture belongs to it; leave it out for everywhere")
    return found


def _read(path: Path) -> Mask:
    try:
        with open_image(path) as picture:
            return _picture(picture)
    except (RiebenchError, OSError) as error:
        raise RiebenchError(f"the mask {path} cannot be read ({error})") from error


def _picture(picture: Image.Image) -> Mask:
    bright: Mask = np.asarray(picture.convert("L")) > 127
    return bright


def _array(mask: Any) -> Mask:
    try:
        array = np.asarray(mask.cpu() if hasattr(mask, "cpu") else mask)
    except (TypeError, ValueError, RuntimeError) as error:
        raise RiebenchError(f"a {type(mask).__name__} is no mask ({error}); give a bool array") from error
    if array.dtype != np.bool_:
        raise RiebenchError(f"a mask is a bool array, not {array.dtype}; write mask > 0, or whatever is meant")
    return array
