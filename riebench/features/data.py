"""The stored data of a feature: the JSON file beside its page, and its folder.

The module needs no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from riebench.errors import StoreError
from riebench.tasks.schema import Count, StoredModel
from riebench.utils.files import content_digest, read_regular
from riebench.utils.images import is_plain_drawing, picture_path, stored_picture

DATA, PAGE = "feature.json", "index.html"
HISTOGRAM, CURVES, STRIP = "histogram.svg", "strengths.svg", "strip.png"
VERSION = 1
"""Raised whenever the same features would get other numbers or pictures."""

SAMPLE = 64
"""Prompts of a suite that features are measured on by default."""


class Statistics(StoredModel):
    """Figures of a feature's values over positions and steps.

    A value is the distance by which the feature moves the block's update.
    """

    pictures: Count
    """Number of generated pictures."""
    positions: Count
    """Number of values: pictures x steps x positions of the grid."""
    rate: float
    """Share of the positions at which the feature is not zero."""
    picture_rate: float
    """Share of the pictures with such a position."""
    step_rates: tuple[float, ...]
    """`rate` at each step."""
    mean: float
    """Mean size where it is not zero."""
    std: float
    """Standard deviation there."""
    largest: float
    """The largest size."""
    histogram: tuple[Count, ...]
    """Values where it is not zero, by size, in bins from 0 on."""
    bin_width: float
    """Width of a bin."""
    stored_mean: float | None = None
    """The mean that the SAE's own files state, if they do."""
    stored_std: float | None = None
    """The standard deviation that they state, likewise."""


class TopPicture(StoredModel):
    """A picture in which the feature is strong."""

    prompt: str
    seed: Count
    value: float
    """The feature's largest value in it, over steps and positions."""
    share: float
    """Share of its positions at which the feature is not zero at some step."""
    image: str
    heat: str
    """The picture in grey, with the largest value of each position over the steps as colour."""


class Cell(StoredModel):
    """One picture of the strip."""

    strength: float
    image: str
    lpips: float
    clip_gain: float | None = None
    """Change of the cosine with its own prompt."""
    clip_image: float | None = None
    """Cosine with the unchanged picture."""


class Row(StoredModel):
    """One picture at every strength."""

    prompt: str
    seed: Count
    active: bool
    """Whether it is one of those in which the feature is strongest, or one of those in which it is weakest."""
    cells: tuple[Cell, ...]


class Means(StoredModel):
    """The scores of one strength, mean over the rows."""

    strength: float
    lpips: float
    clip_gain: float | None = None
    clip_image: float | None = None


class NearFeature(StoredModel):
    """Another feature of the block, and its similarity: a cosine, or a share."""

    index: Count
    value: float


class Neighbours(StoredModel):
    """The nearest features, nearest first."""

    decoder: tuple[NearFeature, ...]
    """By the cosine of what they write."""
    encoder: tuple[NearFeature, ...]
    """By the cosine of what they read."""
    together: tuple[NearFeature, ...]
    """By the share of positions with either at which there are both."""


class FeatureData(StoredModel):
    """Everything on a feature's page."""

    made_of: dict[str, Any]
    """All that could change a number or a picture."""
    model: str
    steps: Count
    guidance: float
    size: Count
    block: str
    index: Count
    features: Count
    """Number of features of the SAE."""
    sae_format: str
    sae_sha256: str
    sae_reads: str = "update"
    """What the SAE reads of the block: its update, output or input."""
    scorer: str
    """The CLIP that measured; "" for none."""
    statistics: Statistics
    top: tuple[TopPicture, ...]
    rows: tuple[Row, ...]
    """Empty for a feature that was never active."""
    means: tuple[Means, ...]
    neighbours: Neighbours

    @property
    def files(self) -> tuple[str, ...]:
        """Names of all files beside the data."""
        shown = [name for one in self.top for name in (one.image, one.heat)]
        shown += [cell.image for row in self.rows for cell in row.cells]
        drawn = [HISTOGRAM, *([CURVES, STRIP] if self.rows else [])]
        return (*dict.fromkeys(shown), *drawn)


def feature_folder(model: str, block: str, sae_sha256: str, index: int) -> str:
    """Return a feature's folder, relative to the folder of all pages.

    Features of two SAEs never share a folder.
    """
    return f"{model}/{block}-{sae_sha256[:8]}/{index}"


def read_feature(folder: Path) -> FeatureData | None:
    """Read a feature's folder; None if it is incomplete and must be made again."""
    try:
        data = FeatureData.model_validate_json((folder / DATA).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    # The folder may come from anyone: its page shows only what lies in it, and only what is a picture.
    return data if all(_is_whole(folder, name) for name in data.files) else None


def _is_whole(folder: Path, name: str) -> bool:
    """Return whether a file is a picture, or a drawing that a page may hold."""
    if Path(name).name != name:
        return False
    try:
        if name not in (HISTOGRAM, CURVES):
            return stored_picture(folder, name) is not None
        return is_plain_drawing(read_regular(picture_path(folder, name)))
    except (OSError, StoreError):
        return False


def is_current(folder: Path, made_of: dict[str, Any]) -> bool:
    """Return whether a folder is complete and made of the given inputs."""
    found = read_feature(folder)
    return found is not None and content_digest(found.made_of) == content_digest(made_of)


def all_features(root: Path) -> list[tuple[Path, FeatureData]]:
    """List every complete feature below the folder of all pages.

    Returns:
        Folder and data of each, ordered by model, block and index.
    """
    folders = [path.parent for path in root.glob(f"*/*/*/{DATA}")]
    found = [(folder, data) for folder in folders if (data := read_feature(folder)) is not None]
    return sorted(found, key=lambda one: (one[1].model, one[0].parent.name, one[1].index))
