"""Picture files from anywhere, opened with care: only plain formats, whole, and of a size that memory can hold."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from riebench.errors import RiebenchError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
"""What is read. Others need programs outside (PostScript would be run by Ghostscript) or are no pictures at all."""
STORED = ("PNG",)
"""What riebench itself writes."""
_END = b"\0\0\0\0IEND\xaeB`\x82"
"""How every PNG file ends; Pillow stops before it looks at all of this."""
LARGEST_SIDE = 16384
MOST_PIXELS = 2**26
"""A picture of 8192 x 8192; a small file can claim far more than memory holds."""


@contextmanager
def opened(path: Path, formats: tuple[str, ...] = FORMATS) -> Iterator[Image.Image]:
    """A picture whose file is whole: every check sum that it has was compared.

    Args:
        path: the file.
        formats: those that are accepted, as Pillow calls them.

    Yields:
        The picture, not decoded yet.

    Raises:
        RiebenchError: if it is no such picture, or too large; whatever happens while it is decoded, too.
        FileNotFoundError: if there is no such file.
    """
    try:
        data = _content(path)
    except FileNotFoundError:
        raise
    except (OSError, MemoryError) as error:
        raise RiebenchError(f"it cannot be read: {error}") from error
    with decoded(data, formats) as picture:
        yield picture


def _content(path: Path) -> bytes:
    if not path.is_file():
        if path.exists():
            raise RiebenchError(f"{path} is no file")
        raise FileNotFoundError(f"{path}: no such file")
    return path.read_bytes()


@contextmanager
def decoded(data: bytes, formats: tuple[str, ...] = FORMATS) -> Iterator[Image.Image]:
    """As `opened`, from a file's content."""
    try:
        if formats == STORED and not data.endswith(_END):
            raise RiebenchError("its end is missing")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Decoding alone skips a PNG's check sums, so that a flipped bit would be another picture.
            with Image.open(io.BytesIO(data), formats=formats) as picture:
                _check_size(picture)
                picture.verify()
            with Image.open(io.BytesIO(data), formats=formats) as picture:
                yield picture
    except RiebenchError:
        raise
    except Exception as error:
        # Each format's decoder has errors of its own.
        said = "" if isinstance(error, UnidentifiedImageError) else f": {str(error)[:200]}"
        raise RiebenchError(f"it is no whole picture of a known format{said}") from error


def _check_size(picture: Image.Image) -> None:
    width, height = picture.size
    if max(width, height) > LARGEST_SIDE or width * height > MOST_PIXELS:
        raise RiebenchError(f"it claims {width} x {height} pixels; at most {MOST_PIXELS} are read")


def read_rgb(path: Path, formats: tuple[str, ...] = STORED) -> NDArray[np.uint8]:
    """A picture as uint8 [H, W, 3].

    Args:
        path: the file.
        formats: those that are accepted.

    Raises:
        RiebenchError: see `opened`.
        FileNotFoundError: if there is no such file.
    """
    with opened(path, formats) as picture:
        return np.asarray(picture.convert("RGB"))


def is_whole(path: Path, formats: tuple[str, ...] = STORED) -> bool:
    """Whether a file is there, is such a picture, and has the check sums it should have; it is not decoded.

    Raises:
        OSError: if it cannot be read, which says nothing of what it holds.
    """
    try:
        with decoded(_content(path), formats):
            return True
    except (RiebenchError, FileNotFoundError):
        return False
