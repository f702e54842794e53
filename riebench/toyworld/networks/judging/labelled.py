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
from riebench.toyworld.networks.judging.damage import LabelledPool
from riebench.toyworld.render import SIZE

PARTS = 4
"""Examples are split into this many parts by their name; one of them, with all its pictures, is for calibration."""
CALIBRATION_PART = 2


@dataclass(frozen=True)
class LabelledPictures:
    """Edited pictures with labels by eye.

    Attributes:
        images: uint8 [N, 64, 64, 3].
        labels: for each picture attribute -> value or `UNREADABLE`.
        origins: for each picture where it comes from: setting, example, seed, blocks, strength.
    """

    images: NDArray[np.uint8]
    labels: list[dict[str, str]]
    origins: list[dict[str, str]]

    def pools(self) -> tuple[LabelledPool, LabelledPool]:
        """Return pictures to train on, and others, of other examples, to calibrate on."""
        labels = np.array([[_label(name, one[name]) for name in ATTRIBUTES] for one in self.labels], dtype=np.int8)
        held_out = np.array([is_held_out(origin["example"]) for origin in self.origins])
        return (
            LabelledPool(self.images[~held_out], labels[~held_out]),
            LabelledPool(self.images[held_out], labels[held_out]),
        )


def _label(name: str, value: str) -> int:
    return UNREADABLE_LABEL if value == UNREADABLE else ATTRIBUTES[name].index(value)


def is_held_out(example: str) -> bool:
    """Return whether the pictures of an example are kept for calibration."""
    return int(hashlib.sha1(example.encode(), usedforsecurity=False).hexdigest(), 16) % PARTS == CALIBRATION_PART


def read_labelled(folder: Path, attributes: Values = ATTRIBUTES) -> LabelledPictures:
    """Read labelled pictures: `pictures.webp`, row by row, and `labels.csv`.

    Args:
        folder: with both files.
        attributes: of the world that the pictures show.

    Raises:
        RiebenchError: if a file is missing or a label is no value of its attribute.
    """
    for name in ("labels.csv", "pictures.webp"):
        if not (folder / name).is_file():
            raise RiebenchError(f"{folder / name} is missing: name a folder such as benchmarks/labelled/training")
    with (folder / "labels.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        for name, values in attributes.items():
            if row.get(name) not in (*values, UNREADABLE):
                raise RiebenchError(
                    f"{folder / 'labels.csv'}, picture {row.get('picture')}: {name} must be {', '.join(values)} or "
                    f"{UNREADABLE}, not {row.get(name)!r}"
                )
    sheet = np.asarray(Image.open(folder / "pictures.webp").convert("RGB"))
    tiles = sheet.reshape(sheet.shape[0] // SIZE, SIZE, sheet.shape[1] // SIZE, SIZE, 3).swapaxes(1, 2)
    images = np.ascontiguousarray(tiles.reshape(-1, SIZE, SIZE, 3)[: len(rows)])
    return LabelledPictures(
        images,
        [{name: row[name] for name in attributes} for row in rows],
        [{key: value for key, value in row.items() if key not in attributes} for row in rows],
    )
