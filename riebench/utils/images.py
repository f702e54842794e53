"""Pictures: opened from untrusted files, encoded as PNG, laid out in grids.

Only plain formats are opened, only intact files, and only sizes that memory can hold. Stored pictures are named by
records, which may come from anyone: `picture_path` and `stored_picture` alone turn such a name into a file.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError

from riebench.errors import RiebenchError, StoreError
from riebench.utils.files import file_inside, file_sha256, read_regular

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
"""Picture formats that are read, as Pillow calls them.

Other formats need external programs (PostScript would be run by Ghostscript) or are no pictures at all.
"""

STORED_FORMATS = ("PNG",)
"""Picture formats that riebench itself writes."""

SVG = "http://www.w3.org/2000/svg"
"""Namespace of SVG."""

DRAWING_ELEMENTS = frozenset(
    f"{{{SVG}}}{name}" for name in ("svg", "g", "defs", "style", "path", "rect", "text", "use", "clipPath")
)
"""Elements of an SVG that draw, as far as riebench's own figures have them."""

_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
"""Last bytes of every PNG file; Pillow does not check all of them."""

MAX_SIDE = 16384
"""Longest side of a picture that is read, in pixels."""

MAX_PIXELS = 2**26
"""Most pixels of a picture that is read (8192 x 8192); a small file can claim far more than memory holds."""

CELL_SIZE = 128
"""Side of one picture in a grid, in pixels."""

GAP, MARGIN_TOP, MARGIN_LEFT = 6, 22, 132
"""Space between pictures, above them and left of them, in pixels."""

Picture = NDArray[np.uint8]
"""Pixels of a picture, uint8 [H, W, 3]."""


@contextmanager
def open_image(path: Path, formats: tuple[str, ...] = IMAGE_FORMATS) -> Iterator[Image.Image]:
    """Open a picture file that is intact.

    Every checksum that the file has is compared.

    Args:
        path: the file.
        formats: the accepted formats, as Pillow calls them.

    Yields:
        The opened picture; its pixels are not decoded yet.

    Raises:
        RiebenchError: if it is no intact picture of such a format, is too large, or fails while it is decoded.
        FileNotFoundError: if there is no such file.
    """
    try:
        data = _file_bytes(path)
    except FileNotFoundError:
        raise
    except (OSError, MemoryError) as error:
        raise RiebenchError(f"it cannot be read: {error}") from error
    with decode_image(data, formats) as picture:
        yield picture


@contextmanager
def decode_image(
    data: bytes, formats: tuple[str, ...] = IMAGE_FORMATS, *, checksums: bool = True
) -> Iterator[Image.Image]:
    """Open a picture as `open_image` does, given the content of its file.

    Args:
        data: the content.
        formats: the accepted formats, as Pillow calls them.
        checksums: False for content whose hash is known to be right.
    """
    try:
        if formats == STORED_FORMATS and not data.endswith(_PNG_END):
            raise RiebenchError("its end is missing")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if checksums:
                # Decoding alone skips a PNG's checksums, so that a flipped bit would give another picture.
                with Image.open(io.BytesIO(data), formats=formats) as picture:
                    _check_size(picture)
                    picture.verify()
            with Image.open(io.BytesIO(data), formats=formats) as picture:
                _check_size(picture)
                yield picture
    except RiebenchError:
        raise
    except Exception as error:
        # Each format's decoder has errors of its own.
        detail = "" if isinstance(error, UnidentifiedImageError) else f": {str(error)[:200]}"
        raise RiebenchError(f"it is no whole picture of a known format{detail}") from error


def _file_bytes(path: Path) -> bytes:
    if not path.is_file():
        if path.exists():
            raise RiebenchError(f"{path} is no file")
        raise FileNotFoundError(f"{path}: no such file")
    return read_regular(path)


def _check_size(picture: Image.Image) -> None:
    """Refuse a picture that claims more pixels than are read."""
    width, height = picture.size
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise RiebenchError(f"it claims {width} x {height} pixels; at most {MAX_PIXELS} are read")


def is_intact(path: Path, formats: tuple[str, ...] = STORED_FORMATS) -> bool:
    """Return whether a file is an intact picture of an accepted format.

    Its checksums are compared; its pixels are not decoded.

    Raises:
        OSError: if it cannot be read, which leaves its content unknown.
    """
    try:
        with decode_image(_file_bytes(path), formats):
            return True
    except (RiebenchError, FileNotFoundError):
        return False


def picture_path(folder: Path, name: str) -> Path:
    """Return the path of a picture that a record names; it need not exist.

    Args:
        folder: the folder that the name is relative to, in which the picture must lie, also when links are followed.
        name: the path as the record states it.

    Raises:
        StoreError: if it leads out of the folder or can be no path.
    """
    try:
        return file_inside(folder, name, "the picture", "it")
    except RiebenchError as error:
        raise StoreError(
            f"{folder} names a picture outside itself ({name}); delete that record, or the link that leads there"
        ) from error


def stored_picture(folder: Path, name: str, sha256: str | None = None) -> Path | None:
    """Return the file of a picture that a record names, checked to be one.

    Args:
        folder: the folder that the name is relative to.
        name: the path as the record states it.
        sha256: hash of the file, where the record states it.

    Returns:
        Its path, or None if there is no such file.

    Raises:
        StoreError: if it lies outside the folder, is no intact picture, or is not the one that was recorded.
    """
    path = picture_path(folder, name)
    if not path.exists():
        return None
    if not path.is_file() or not is_intact(path):
        raise StoreError(f"{path} is no whole picture; delete it and repeat `riebench run`")
    if sha256 is not None and file_sha256(path) != sha256:
        raise StoreError(f"{path} is not the picture that was recorded; repeat `riebench run` to make it again")
    return path


def is_plain_drawing(data: bytes) -> bool:
    """Return whether an SVG file only draws, so that a page may hold it.

    It has no scripts, no links and no handlers, and refers to nothing but its own parts.

    Args:
        data: content of the file.
    """
    try:
        root = ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError):
        return False
    return b"<!" not in data and all(_only_draws(element) for element in root.iter())


def _only_draws(element: ElementTree.Element) -> bool:
    """Return whether an element of an SVG only draws, and leads nowhere else."""
    if element.tag not in DRAWING_ELEMENTS:
        return False
    # The words of a text and of a label are only read; in all else a reference out of the file would be followed.
    followed = {name: value.lower() for name, value in element.attrib.items() if name != "aria-label"}
    if element.tag != f"{{{SVG}}}text":
        followed["content"] = (element.text or "").lower()
    return all(
        not name.lower().startswith("on")
        and (name.rpartition("}")[2] != "href" or value.startswith("#"))
        and value.count("url(") == value.count("url(#")
        and not {"@", "\\"} & {*value}
        for name, value in followed.items()
    )


def read_image(folder: Path, name: str, sha256: str | None = None) -> Picture:
    """Read a stored picture as uint8 [H, W, 3].

    The file is read once: what is hashed is what is decoded.

    Args:
        folder: the folder in which it must lie (see `picture_path`).
        name: its path relative to the folder.
        sha256: hash of the file, where the record states it.

    Raises:
        StoreError: if the file is missing, no picture, outside the folder, or not the one that was recorded.
    """
    path = picture_path(folder, name)
    try:
        data = _file_bytes(path)
        # The hash says more than a file's own checksums, which are then not computed.
        is_recorded = sha256 is not None and hashlib.sha256(data).hexdigest() == sha256
        with decode_image(data, STORED_FORMATS, checksums=not is_recorded) as picture:
            pixels: Picture = np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))
    except FileNotFoundError as error:
        raise StoreError(f"{path} is missing; make it again with the same `riebench run`") from error
    except (RiebenchError, OSError) as error:
        raise StoreError(f"{path} cannot be read ({error}); delete it and repeat `riebench run`") from error
    if sha256 is not None and not is_recorded:
        raise StoreError(f"{path} is not the picture that was recorded; repeat `riebench run` to make it again")
    return pixels


def encode_png(pixels: Picture) -> bytes:
    """Return the bytes of a lossless PNG file.

    Args:
        pixels: uint8 [H, W, 3].

    Raises:
        ValueError: for any other type or shape.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"a picture is uint8 [H, W, 3], not {pixels.dtype} {list(pixels.shape)}")
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def grid(columns: Sequence[str], rows: Sequence[tuple[str, list[Picture | None]]]) -> Picture:
    """Arrange pictures in labelled rows under column headings.

    Args:
        columns: the headings of the columns.
        rows: (label, one picture per column; None leaves the cell empty); pictures are uint8 [H, W, 3].

    Returns:
        uint8 [H, W, 3].
    """
    width = MARGIN_LEFT + len(columns) * (CELL_SIZE + GAP)
    canvas = Image.new("RGB", (width, MARGIN_TOP + len(rows) * (CELL_SIZE + GAP)), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=13)
    for i, name in enumerate(columns):
        draw.text((MARGIN_LEFT + i * (CELL_SIZE + GAP) + CELL_SIZE // 2, 4), name, fill="black", font=font, anchor="ma")
    for j, (name, pictures) in enumerate(rows):
        top = MARGIN_TOP + j * (CELL_SIZE + GAP)
        draw.text((MARGIN_LEFT - 8, top + CELL_SIZE // 2), name, fill="black", font=font, anchor="rm")
        for i, picture in enumerate(pictures):
            if picture is not None:
                canvas.paste(_fit_to_cell(picture), (MARGIN_LEFT + i * (CELL_SIZE + GAP), top))
    return np.asarray(canvas)


def _fit_to_cell(picture: Picture) -> Image.Image:
    """Return a picture resized to the cell of a grid."""
    # Small pictures are enlarged pixel by pixel, so that their pixels stay visible.
    method = Image.Resampling.NEAREST if max(picture.shape) <= CELL_SIZE else Image.Resampling.LANCZOS
    return Image.fromarray(picture).resize((CELL_SIZE, CELL_SIZE), method)
