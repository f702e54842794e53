"""Cells of a data set that hold a picture: as the `datasets` library gives them undecoded, opened with care."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from riebench.errors import RiebenchError
from riebench.importers.rows import Place
from riebench.utils.images import decoded


def opened_cell(value: Any, place: Place) -> Any:
    """A cell; one that holds a picture becomes that picture, upright.

    Args:
        value: as the library gives it.
        place: the data set: a picture's file must lie in it.

    Raises:
        RiebenchError: if a picture lies elsewhere, is no whole picture of a plain format, or is too large.
    """
    if not isinstance(value, dict) or set(value) != {"bytes", "path"}:
        return value
    if value["bytes"] is None and value["path"] is None:
        return None
    data = value["bytes"] if value["bytes"] is not None else _content(str(value["path"]), place)
    if not isinstance(data, bytes):
        return value
    try:
        with decoded(data) as picture:
            upright: Image.Image = ImageOps.exif_transpose(picture)
            return upright
    except RiebenchError as error:
        raise RiebenchError(f"{place.name}: a picture cannot be read: {error}") from error


def _content(path: str, place: Place) -> bytes:
    """The bytes of a picture's file, which may lie in an archive of the data set."""
    from datasets import config
    from datasets.utils.file_utils import xopen
    from huggingface_hub.constants import HF_HUB_CACHE

    outermost = path.split("::")[-1]
    if place.local is None:
        inside = outermost.startswith((f"hf://datasets/{place.name}@", f"hf://datasets/{place.name}/"))
        folders = [Path(config.HF_DATASETS_CACHE), Path(HF_HUB_CACHE)]
    else:
        inside = False
        folders = [place.local if place.local.is_dir() else place.local.parent]
    where = Path(outermost).resolve()
    if not inside and not any(where.is_relative_to(folder.resolve()) for folder in folders):
        raise RiebenchError(f"{place.name}: the picture {path!r} lies outside the data set")
    try:
        with xopen(path, "rb") as file:
            data: bytes = file.read()
            return data
    except (OSError, ValueError) as error:
        raise RiebenchError(f"{place.name}: the picture {path!r} cannot be read ({error})") from error
