"""Properties of single features, computed from finished pictures.

Each function takes finished pictures, or their embeddings, and returns one number. The pictures are those in which a
feature is strongest, or the same picture without and with the feature switched. `random_directions` makes the SAE that
a feature's effect is held against.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from riebench.features.activity import Float
from riebench.saes.sae import SparseAutoencoder
from riebench.scoring.metrics.base import UNREADABLE
from riebench.utils.files import content_digest

Image = NDArray[np.uint8]
Bool = NDArray[np.bool_]

OCTAVES = 3
"""Bands of detail that `texture_change` looks at, the finest ones."""


def mean_pairwise_cosine(embeddings: NDArray[np.float64]) -> float:
    """Compute the mean cosine of all pairs of different pictures.

    Args:
        embeddings: [N, D] of length 1, N at least 2.

    Returns:
        -1 to 1.
    """
    count = len(embeddings)
    total = embeddings.sum(axis=0)
    # The square of the sum holds every pair twice and every picture with itself once.
    return float((total @ total - (embeddings * embeddings).sum()) / (count * (count - 1)))


def purity(attributes: Sequence[Mapping[str, str]]) -> float:
    """Compute the share of pictures that agree on the attribute they agree on most.

    Args:
        attributes: attribute -> value, for each picture.

    Returns:
        0 to 1; pictures in which an attribute is `UNREADABLE` do not agree on it.
    """
    counts = [Counter(one[name] for one in attributes if one[name] != UNREADABLE) for name in attributes[0]]
    return max(max(found.values(), default=0) for found in counts) / len(attributes)


def change_map(clean: Image, edited: Image) -> NDArray[np.float64]:
    """Compute each pixel's absolute difference, summed over channels on [0, 1].

    Args:
        clean: [H, W, 3].
        edited: the same shape.

    Returns:
        [H, W], 0 to 3.
    """
    return np.abs(clean.astype(np.float64) - edited).sum(axis=-1) / 255


def active_region(heat: Float, side: tuple[int, int]) -> Bool:
    """Return the pixels of the positions at which a feature is active.

    Args:
        heat: [h, w], a feature's largest size at each position; each is a rectangle of pixels.
        side: height and width of the picture.
    """
    rows, columns = (np.arange(pixels) * cells // pixels for pixels, cells in zip(side, heat.shape, strict=True))
    return np.asarray(heat[rows[:, None], columns[None, :]] > 0)


def locality(clean: Image, edited: Image, region: Bool) -> float | None:
    """Compute the share of change that lies inside a region of the picture.

    It is a / (a + b) with a and b the mean change of a pixel inside and outside, so that the region's size plays no
    part: 1 if all change lies inside, 0.5 if both sides change alike, 0 if all change lies outside.

    Args:
        clean: [H, W, 3].
        edited: the same shape.
        region: [H, W].

    Returns:
        0 to 1; None if the region is empty or everything, or if nothing changed.
    """
    if region.all() or not region.any():
        return None
    change = change_map(clean, edited)
    inside, outside = float(change[region].mean()), float(change[~region].mean())
    return inside / (inside + outside) if inside + outside > 0 else None


def color_change(clean: Image, edited: Image) -> float:
    """Compute the distance of two pictures' mean colors.

    Args:
        clean: [H, W, 3].
        edited: the same shape.

    Returns:
        Absolute differences of the three channels' means on [0, 1], added: 0 to 3.
    """
    return float(np.abs(clean.mean(axis=(0, 1)) - edited.mean(axis=(0, 1))).sum() / 255)


def texture_change(clean: Image, edited: Image) -> float:
    """Compute the distance of two pictures' amounts of fine detail.

    The amount of a band of detail is the mean size of what is lost when a grey picture is averaged over squares of two
    by two pixels; the next band is that of the averaged picture. It does not depend on where in the picture detail is.

    Args:
        clean: [H, W, 3]; sides of at least 2^`OCTAVES` pixels.
        edited: the same shape.

    Returns:
        Absolute differences of the `OCTAVES` finest bands' amounts on [0, 1], added: 0 or more.
    """
    return float(np.abs(_detail(clean) - _detail(edited)).sum())


def _detail(image: Image) -> NDArray[np.float64]:
    """Return the amount of detail in each band, [OCTAVES], finest first."""
    level = image.mean(axis=-1) / 255
    # What does not fill a square of the last band is cut off.
    height, width = (side - side % 2**OCTAVES for side in level.shape)
    level = level[:height, :width]
    amounts = []
    for _ in range(OCTAVES):
        squares = level.reshape(level.shape[0] // 2, 2, level.shape[1] // 2, 2)
        coarse = squares.mean(axis=(1, 3))
        amounts.append(np.abs(squares - coarse[:, None, :, None]).mean())
        level = coarse
    return np.array(amounts)


def random_directions(sae: SparseAutoencoder, features: Sequence[int]) -> SparseAutoencoder:
    """Return an SAE in which some features write along random directions.

    Features are active where they were, with the values they had; each writes along a direction of length 1 that is
    drawn evenly from all, the same one for the same SAE and feature.

    Args:
        sae: the SAE, which stays as it is.
        features: indices.
    """
    made = copy.deepcopy(sae)
    for index in features:
        seed = int(content_digest(["random direction", sae.sha256, index])[:15], 16)
        drawn = torch.randn(sae.directions.shape[1], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        made.directions[index] = (drawn / drawn.norm()).to(made.directions)
    return made
