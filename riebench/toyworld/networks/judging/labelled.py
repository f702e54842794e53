"""Edited pictures with labels by eye: a sheet of pictures and a table of labels."""

from __future__ import annotations

import csv
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from riebench.errors import RiebenchError
from riebench.scoring.metrics.base import UNREADABLE
from riebench.scoring.metrics.judge_network import ATTRIBUTES, UNREADABLE_LABEL, Values
from riebench.toyworld.networks.judging.damage import NO_LABEL, LabelledPool
from riebench.toyworld.render import SIZE

PARTS = 4
"""Examples are split into this many parts by their name; one of them, with all its pictures, is for calibration."""
CALIBRATION_PART = 2
DOUBTFUL = "doubtful"
"""Label on which looks differ: those of two labellers, or two of one labeller."""


@dataclass(frozen=True)
class LabelledPictures:
    """Edited pictures with labels by eye.

    Attributes:
        images: uint8 [N, 64, 64, 3].
        labels: for each picture attribute -> value or `UNREADABLE`.
        origins: for each picture where it comes from: setting, example, seed, blocks, strength.
        values: those of the world that the pictures show.
        second: for each picture attribute -> value, `UNREADABLE` or `DOUBTFUL` by a second labeller, if there is one.
    """

    images: NDArray[np.uint8]
    labels: list[dict[str, str]]
    origins: list[dict[str, str]]
    values: Values
    second: list[dict[str, str]] | None = None

    def agreed(self) -> list[dict[str, str]]:
        """Return the labels, and `DOUBTFUL` where a second labeller gave another."""
        if self.second is None:
            return self.labels
        return [
            {name: one[name] if one[name] == other[name] else DOUBTFUL for name in self.values}
            for one, other in zip(self.labels, self.second, strict=True)
        ]

    def pools(self) -> tuple[LabelledPool, LabelledPool]:
        """Return pictures to train on, and others, of other examples, to calibrate on.

        Where labels are doubtful there is nothing to learn, and a judge should say "unreadable".
        """
        labels = np.array([[self._label(*item) for item in one.items()] for one in self.agreed()], dtype=np.int8)
        held_out = np.array([is_held_out(origin["example"]) for origin in self.origins])
        wanted = np.where(labels == NO_LABEL, UNREADABLE_LABEL, labels).astype(np.int8)
        return (
            LabelledPool(self.images[~held_out], labels[~held_out]),
            LabelledPool(self.images[held_out], wanted[held_out]),
        )

    def _label(self, name: str, value: str) -> int:
        if value == DOUBTFUL:
            return NO_LABEL
        return UNREADABLE_LABEL if value == UNREADABLE else self.values[name].index(value)


def is_held_out(example: str) -> bool:
    """Return whether the pictures of an example are kept for calibration."""
    return int(hashlib.sha1(example.encode(), usedforsecurity=False).hexdigest(), 16) % PARTS == CALIBRATION_PART


def read_labelled(folder: Path, attributes: Values = ATTRIBUTES) -> LabelledPictures:
    """Read pictures labelled by eye.

    They lie in `pictures.webp`, row by row; `labels.csv` has their labels, and `second.csv` those of a second labeller,
    if there is one. A column such as `material_again` holds the labels of a second look.

    Args:
        folder: with these files.
        attributes: of the world that the pictures show.

    Raises:
        RiebenchError: if a file is missing or a label is no value of its attribute.
    """
    for name in ("labels.csv", "pictures.webp"):
        if not (folder / name).is_file():
            raise RiebenchError(f"{folder / name} is missing: name a folder such as benchmarks/labelled/training")
    rows = _rows(folder / "labels.csv", attributes)
    second = _rows(folder / "second.csv", attributes) if (folder / "second.csv").is_file() else None
    if second is not None and len(second) != len(rows):
        raise RiebenchError(f"{folder / 'second.csv'} must have the {len(rows)} rows of labels.csv, not {len(second)}")
    sheet = np.asarray(Image.open(folder / "pictures.webp").convert("RGB"))
    tiles = sheet.reshape(sheet.shape[0] // SIZE, SIZE, sheet.shape[1] // SIZE, SIZE, 3).swapaxes(1, 2)
    images = np.ascontiguousarray(tiles.reshape(-1, SIZE, SIZE, 3)[: len(rows)])
    return LabelledPictures(
        images,
        [{name: row[name] for name in attributes} for row in rows],
        [{key: value for key, value in row.items() if key not in attributes} for row in rows],
        attributes,
        None if second is None else [{name: _of_two_looks(row, name) for name in attributes} for row in second],
    )


def _rows(path: Path, attributes: Values) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        for name, values in attributes.items():
            if row.get(name) not in (*values, UNREADABLE):
                raise RiebenchError(
                    f"{path}, picture {row.get('picture')}: {name} must be {', '.join(values)} or {UNREADABLE}, not "
                    f"{row.get(name)!r}"
                )
    return rows


def _of_two_looks(row: dict[str, str], name: str) -> str:
    return row[name] if row.get(f"{name}_again", row[name]) == row[name] else DOUBTFUL
