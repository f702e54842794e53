"""Boolean masks of regions: where an edit adds and removes, and changes pixels.

`make_masks` turns an example's regions into masks with a `RegionProvider`, `attention_regions` is the provider that
needs no further model, `to_grid` and `enlarge` change resolution, `overlay` and `mask_overlay` show masks.

A region is "whole", "file:PATH" (a picture, read by `riebench.tasks.mask_files`), "background" (everything but the
foreground), "not: REGION", or words, which a provider finds: words of the prompt, or "seen: WORDS" that it lacks. Masks
are made at the picture's resolution, once per model, example and seed, and stored as run lengths; blocks see them on
their own grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from riebench.errors import MissingWordsError, RiebenchError
from riebench.registry import REGIONS
from riebench.tasks.mask_files import read_mask_of_size
from riebench.tasks.masks import Mask, RegionMasks
from riebench.tasks.prompts import (
    BACKGROUND,
    FILE,
    SEEN,
    WHOLE,
    mask_file,
    seen_words,
    split_negations,
    without_negations,
)

CELL_COVER = 0.3
"""A grid cell belongs to a region if at least this share of its pixels does."""

EQUAL_VALUES = 2e-6
"""Attention that differs by at most this share of the largest is on one side of the cut between two classes."""
EQUAL_CUTS = 1e-3
"""Cuts between two classes are equally good if their variances differ by what values that move by `EQUAL_VALUES` can
explain, and by this share of the larger one at most."""
EQUAL_GAPS = 1e-3
"""Gaps between neighbouring values are equally wide if they differ by less than this share of the wider one."""

TINT = np.array([255, 64, 32], dtype=np.float64)
"""Colour of a region."""
TINT_SHARE = 0.45
"""Share of the tint in a tinted pixel."""


@dataclass(frozen=True)
class View:
    """One picture as a region provider may see it.

    Attributes:
        prompt: what it was generated from.
        image: uint8 [H, W, 3].
        attention: float32 [h*w, tokens], attention of each position to each token (mean over blocks and steps), or
            None if it was not captured.
        grid: (h, w) of the attention.
        positions: words of the prompt -> their token positions; None stands for all of the prompt's words.
    """

    prompt: str
    image: NDArray[np.uint8]
    attention: Tensor | None
    grid: tuple[int, int]
    positions: Callable[[str | None], Sequence[int]]


class RegionProvider(Protocol):
    """A finder of words in a picture."""

    def __call__(self, words: str | None, view: View) -> Mask:
        """Return a mask, bool [H, W]: true where the words are.

        None stands for the foreground. All false if the words are nowhere.
        """


def needs_attention(regions: Sequence[str]) -> bool:
    """Return whether any of the regions has to be searched by its words."""
    return any(without_negations(region) != WHOLE and mask_file(region) is None for region in regions)


def make_masks(
    rule: str, source_region: str, target_region: str, source: View, target: View, provider: str | RegionProvider,
    folder: Path = Path(),
) -> RegionMasks:  # fmt: skip
    """Make an example's masks under its category's rule.

    Args:
        rule: "edit" takes each run's own region; "add" the target's for both; "delete" the source's for both.
        source_region: region in the source picture.
        target_region: region in the target picture.
        source: the source run.
        target: the target run.
        provider: finds words; one in `REGIONS` may be named.
        folder: where the paths of mask files begin.

    Raises:
        RiebenchError: if a region cannot be read, or the words are not in the prompt.
    """
    finder: RegionProvider = REGIONS.get(provider) if isinstance(provider, str) else provider
    if rule == "add":
        mask = _find_if_seen(target_region, target, finder, folder)
        return RegionMasks(mask, mask)
    mask = _find_if_seen(source_region, source, finder, folder)
    return RegionMasks(mask, mask if rule == "delete" else _find_if_seen(target_region, target, finder, folder))


def _find_if_seen(region: str, view: View, provider: RegionProvider, folder: Path) -> Mask:
    """Find a region; return an empty mask if the prompt lacks a "seen:" region.

    This matters only for a provider that reads the prompt alone; otherwise as `find_region`.
    """
    try:
        return find_region(region, view, provider, folder)
    except MissingWordsError:
        if seen_words(region) is None:
            raise
        return np.zeros(view.image.shape[:2], dtype=bool)


def find_region(region: str, view: View, provider: RegionProvider, folder: Path = Path()) -> Mask:
    """Find one region in one picture, bool [H, W].

    The paths of mask files begin in `folder`.

    Raises:
        RiebenchError: if the region cannot be read, or the words are not in the prompt.
    """
    negations, region = split_negations(region)
    found = _find_plain(region, view, provider, folder)
    return ~found if negations % 2 else found


def _find_plain(region: str, view: View, provider: RegionProvider, folder: Path) -> Mask:
    """Find a region without `not:`, as `find_region` does."""
    height, width = view.image.shape[:2]
    if region == WHOLE:
        return np.ones((height, width), dtype=bool)
    if region == BACKGROUND:
        return ~provider(None, view)
    if region.startswith(FILE):
        return read_mask_of_size(folder / region.removeprefix(FILE).strip(), height, width)
    if region.startswith(SEEN):
        return provider(region.removeprefix(SEEN).strip(), view)
    return provider(region, view)


@REGIONS.register("attention")
def attention_regions(words: str | None, view: View) -> Mask:
    """Find words by the model's own text attention.

    Positions are divided in two classes by their attention; the higher one is the region.

    Raises:
        RiebenchError: if the prompt does not contain the words.
    """
    if view.attention is None:
        raise RiebenchError("text attention was not captured, so regions by words cannot be found")
    chosen = view.attention[:, list(view.positions(words))].sum(-1)
    grid = split_otsu(chosen).reshape(view.grid).cpu().numpy()
    return enlarge(grid, view.image.shape[0], view.image.shape[1])


def split_otsu(values: Tensor) -> Tensor:
    """Split values in two classes with the largest variance between them (Otsu).

    The cut does not hang on rounding. It lies in a gap of more than `EQUAL_VALUES` of the largest magnitude, so that
    nearly equal values stay together (unless no gap is as wide); and of cuts that are equally good (see `EQUAL_CUTS`)
    the one in the widest gap is taken, of equally wide ones the lowest.

    Args:
        values: [N].

    Returns:
        bool [N], true for the upper class; all false if all values are nearly equal.
    """
    ordered = values.double().sort().values
    # Differences of the order of rounding are no structure.
    if len(ordered) < 2 or (spread := ordered[-1] - ordered[0]) <= EQUAL_VALUES * (largest := ordered.abs().max()):
        return torch.zeros_like(values, dtype=torch.bool)
    count = torch.arange(1, len(ordered), dtype=torch.float64, device=values.device)
    below = ordered.cumsum(0)[:-1]
    low, high = below / count, (ordered.sum() - below) / (len(ordered) - count)
    between = count * (len(ordered) - count) * (high - low) ** 2
    gaps = ordered.diff()
    wide = gaps > EQUAL_VALUES * largest
    between = torch.where(wide if bool(wide.any()) else gaps > 0, between, 0.0)
    alike = (4 * EQUAL_VALUES * largest / spread).clamp(max=EQUAL_CUTS)
    near = between >= (1 - alike) * between.max()
    widest = torch.where(near, gaps, 0.0)
    cut = int((widest >= (1 - EQUAL_GAPS) * widest.max()).nonzero()[0])
    # Halfway, where a value on either side may move by half the gap.
    return values.double() > (ordered[cut] + ordered[cut + 1]) / 2


def enlarge(grid: Mask, height: int, width: int) -> Mask:
    """Enlarge a grid's mask to a picture's resolution.

    Each pixel takes its cell's value.
    """
    rows = np.arange(height) * grid.shape[0] // height
    columns = np.arange(width) * grid.shape[1] // width
    enlarged: Mask = grid[rows[:, None], columns[None, :]]
    return enlarged


def to_grid(mask: Mask, grid: tuple[int, int]) -> Tensor:
    """Reduce a picture's mask to a block's grid.

    A region too small for any cell keeps the cells that it covers most, so that it is never lost.

    Args:
        mask: bool [H, W].
        grid: (h, w).

    Returns:
        bool [h, w].
    """
    cover = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(mask).float()[None, None], grid)[0, 0]
    cells = cover >= CELL_COVER
    return cells if bool(cells.any()) else (cover == cover.max()) & (cover > 0)


def overlay(picture: NDArray[np.uint8], mask: Mask) -> NDArray[np.uint8]:
    """Return a picture with a region tinted.

    Args:
        picture: uint8 [H, W, 3].
        mask: bool [H, W].

    Returns:
        uint8 [H, W, 3]; untouched outside the region.
    """
    tinted = (1 - TINT_SHARE) * picture + TINT_SHARE * TINT
    return np.where(mask[..., None], tinted, picture).round().astype(np.uint8)


def mask_overlay(source: NDArray[np.uint8], target: NDArray[np.uint8], masks: RegionMasks) -> NDArray[np.uint8]:
    """Return an example's two pictures side by side, their regions tinted.

    The source picture is on the left.

    Args:
        source: uint8 [H, W, 3].
        target: likewise.
        masks: their regions.

    Returns:
        uint8 [H, 2 W, 3].
    """
    return np.concatenate([overlay(source, masks.source), overlay(target, masks.target)], axis=1)
