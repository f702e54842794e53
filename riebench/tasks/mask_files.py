"""Masks read from pictures, for task files, data sets and feature masks alike.

A region is where a mask is visible and bright, that is above half of what the file's depth can hold. A picture that
leaves open which pixels are meant (labels, colours, several frames, a depth without a largest value) is refused, with
the way to save it. White on black, in one channel of 8 bits, is always understood.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from riebench.errors import RiebenchError, TaskFileError
from riebench.tasks.masks import Mask
from riebench.tasks.prompts import mask_file, split_negations
from riebench.tasks.schema import EditTask
from riebench.utils.images import open_image

REMEDY = "save it white (the region) on black, in one channel of 8 bits"
"""How to mend a mask that cannot be read."""

HALF_BYTE, LARGEST_BYTE, LARGEST_WORD = 127, 255, 65535
"""Half and all of 8 bits, and all of 16 bits."""

MAX_CHROMA = 32
"""Largest difference of a grey pixel's channels; lossy formats give small ones."""

MAX_COLOURED = 0.01
"""Largest share of coloured pixels in a mask of more than two colours."""

_WHITE_IS_ZERO_TAG = 262
"""TIFF tag of the photometric interpretation; its value 0 says that 0 is white."""


Pixels = NDArray[np.integer[Any]] | NDArray[np.floating[Any]]
"""Values of a picture of one channel, [H, W]."""


def mask_from_picture(picture: Image.Image) -> Mask:
    """Return the region of a picture that is a mask, bool [H, W].

    A transparent pixel shows nothing and is outside. The picture is turned upright first, as its EXIF data say.

    Args:
        picture: of any mode: 1, L, LA, P, RGB, RGBA and the like, 16 or 32 bits, or floats from 0 to 1.

    Raises:
        RiebenchError: if its mode, depth, colours or transparency leave open which pixels are meant; says how to save
            it.
    """
    frames = getattr(picture, "n_frames", 1)
    if frames > 1:
        raise RiebenchError(f"it holds {frames} pictures, and a mask is one; {REMEDY}")
    deep = picture.mode.startswith("I") or picture.mode == "F"
    if deep and (_is_inverted(picture) or "transparency" in picture.info):
        raise RiebenchError(f"a mask of mode {picture.mode} that is inverted or transparent is not read; {REMEDY}")
    largest = LARGEST_WORD if picture.mode.startswith("I;16") or picture.format == "PNG" else None
    upright = ImageOps.exif_transpose(picture)
    return _deep_region(np.asarray(upright), upright.mode, largest) if deep else _shown_region(upright)


def read_mask(path: Path) -> Mask:
    """Read a mask file, bool [H, W].

    Raises:
        RiebenchError: if it cannot be read, or as `mask_from_picture`.
    """
    try:
        with open_image(path) as picture:
            return mask_from_picture(picture)
    except (RiebenchError, OSError) as error:
        raise RiebenchError(f"the mask {path} cannot be read: {error}") from error


def read_mask_of_size(path: Path, height: int, width: int) -> Mask:
    """Read a mask file and bring it to a picture's size, bool [height, width].

    Each pixel takes the value of the nearest one.

    Raises:
        RiebenchError: as `read_mask`.
    """
    resized = Image.fromarray(read_mask(path)).resize((width, height), Image.Resampling.NEAREST)
    return np.asarray(resized, dtype=bool)


def _is_inverted(picture: Image.Image) -> bool:
    return getattr(picture, "tag_v2", {}).get(_WHITE_IS_ZERO_TAG) == 0


def _deep_region(values: Pixels, mode: str, largest: int | None) -> Mask:
    """Return the region of a mask of 16 or 32 bits, or of floats."""
    numbers = values.astype(np.float64)
    if not np.isfinite(numbers).all():
        raise RiebenchError(f"it holds values that are no numbers (NaN or infinity); {REMEDY}")
    low, high = float(numbers.min()), float(numbers.max())
    top: float | None = largest
    if mode == "F":
        top = 1.0 if low >= 0 and high <= 1 else None
    if top is not None:
        return _bright(numbers, top)
    # Nothing says how bright a value is, but with two values, one of them 0, the other one is the region.
    if low == 0 and bool(((numbers == 0) | (numbers == high)).all()):
        return numbers > 0
    kind = "floats" if mode == "F" else "32 bits"
    raise RiebenchError(f"its values, {kind} from {low:g} to {high:g}, have no known largest one; {REMEDY}")


def _shown_region(picture: Image.Image) -> Mask:
    """Return the region of a mask of 1 or 8 bits a channel, with transparency."""
    if picture.mode in ("1", "L") and not picture.has_transparency_data:
        return _bright(np.asarray(picture.convert("L")), LARGEST_BYTE)
    try:
        full = picture.convert("RGBA") if picture.has_transparency_data else picture.convert("RGB")
    except ValueError as error:
        raise RiebenchError(f"a mask of mode {picture.mode} is not read ({error}); {REMEDY}") from error
    transparent = full.mode == "RGBA" and full.getchannel("A").getextrema() != (LARGEST_BYTE, LARGEST_BYTE)
    if full.mode == "RGBA":
        full = Image.alpha_composite(Image.new("RGBA", full.size, "black"), full).convert("RGB")
    # Two colours are a mask, such as yellow on black; more are a photograph, a drawing or labels.
    if full.getcolors(2) is None:
        channels = np.asarray(full)
        coloured = float((channels.max(axis=2) - channels.min(axis=2) > MAX_CHROMA).mean())
        if coloured > MAX_COLOURED:
            raise RiebenchError(f"it is no mask but a picture in colours ({coloured:.0%} of its pixels); {REMEDY}")
    grey = np.asarray(full.convert("L"))
    if transparent and not grey.any():
        raise RiebenchError(f"only its transparency varies, and what is visible is black; {REMEDY}")
    return _bright(grey, LARGEST_BYTE)


def _bright(values: Pixels, top: float) -> Mask:
    """Return where values are above half of the largest one that their depth can hold."""
    region: Mask = values > (HALF_BYTE if top == LARGEST_BYTE else top / 2)
    highest = float(values.max())
    if highest > 0 and not region.any():
        hint = " (labels, or a mask of another depth?)" if highest < top / 4 else ""
        raise RiebenchError(f"its brightest pixel is {highest:g} of {top:g}, so no pixel is bright{hint}; {REMEDY}")
    return region


def mask_reading(path: Path) -> str:
    """Return what tells apart two readings of one mask file; "" for plain ones.

    Transparent, turned and deep pictures were once read by their brightness in 8 bits alone. Where that gave another
    region, the hash of an example says so, and masks that were stored then are not used again.
    """
    try:
        with open_image(path) as picture:
            deep = picture.mode.startswith("I") or picture.mode == "F"
            turned = picture.getexif().get(ExifTags.Base.Orientation, 1) != 1
            if not (deep or turned or picture.has_transparency_data):
                return ""
            bright = np.asarray(picture if deep else picture.convert("L")) > HALF_BYTE
            return "" if np.array_equal(mask_from_picture(picture), bright) else "shown"
    except (RiebenchError, OSError, ValueError):
        return ""


def check_masks(tasks: Iterable[EditTask]) -> list[str]:
    """Read every mask file that tasks name.

    Returns:
        A remark each on masks that cover the whole picture, cover nothing, or are not square.

    Raises:
        TaskFileError: for a mask that cannot be read, naming task, example, key and reason.
    """
    whole: list[str] = []
    empty: list[str] = []
    odd: list[str] = []
    for task in tasks:
        for example in task.examples:
            for key in ("source_region", "target_region"):
                region = getattr(example, key)
                file = mask_file(region)
                if file is None:
                    continue
                where = f"{task.suite}/{task.name}.yaml: {example.id}: {key}"
                try:
                    mask = read_mask((task.folder or Path()) / file)
                except RiebenchError as error:
                    raise TaskFileError(f"{where}: {error}") from error
                # With `not:` the other pixels are the region.
                covered = ~mask if split_negations(region)[0] % 2 else mask
                for names, found in ((whole, covered.all()), (empty, not covered.any())):
                    if found:
                        names.append(f"{example.id} ({key})")
                if mask.shape[0] != mask.shape[1]:
                    odd.append(f"{example.id} ({key})")
    return [
        *_remark(whole, "covers the whole picture", "cover the whole picture"),
        *_remark(empty, "covers nothing, so its example is skipped", "cover nothing, so their examples are skipped"),
        *_remark(odd, "is not square and is stretched", "are not square and are stretched"),
    ]


def _remark(names: list[str], one: str, many: str) -> list[str]:
    if not names:
        return []
    return [f"{len(names)} masks {many}, first {names[0]}" if len(names) > 1 else f"the mask of {names[0]} {one}"]
