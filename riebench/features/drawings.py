"""Drawings of one feature: heat over a picture, histogram, and curves.

The same numbers give the same bytes with the same matplotlib. Lines and words take the page's own colour.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from riebench.features.activity import Float
from riebench.features.data import Means, Statistics
from riebench.utils.plots import PAGE_INK, PAGE_STYLE, new_figure, page_color, page_svg_root, page_svg_text, plot_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEAT = "inferno"


def heat_overlay(image: NDArray[np.uint8], heat: Float, largest: float) -> NDArray[np.uint8]:
    """Draw values as colour over a picture in dark grey: the brighter, the larger.

    Args:
        image: uint8 [H, W, 3].
        heat: float32 [h, w], 0 or more.
        largest: the value that is brightest.

    Returns:
        uint8 [H, W, 3]; each position of the grid is a square of its own.
    """
    import matplotlib

    height, width = image.shape[:2]
    levels = np.round(255 * np.clip(heat / largest if largest > 0 else heat * 0, 0, 1)).astype(np.uint8)
    rows, columns = np.arange(height) * heat.shape[0] // height, np.arange(width) * heat.shape[1] // width
    spread = levels[rows[:, None], columns[None, :]]
    colors = matplotlib.colormaps[HEAT](spread)[..., :3] * 255
    grey = np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2) * 0.6
    share = (0.25 + 0.6 * spread / 255)[..., None] * (spread > 0)[..., None]
    mixed: NDArray[np.uint8] = np.round(grey * (1 - share) + colors * share).astype(np.uint8)
    return mixed


def histogram_svg(statistics: Statistics, name: str) -> str:
    """Draw the histogram of a feature's values, with their mean.

    Args:
        statistics: the feature's.
        name: of the feature, in words.
    """

    def draw(axes: Sequence[Axes]) -> None:
        (axis,) = axes
        last = max((i for i, count in enumerate(statistics.histogram) if count), default=0) + 1
        left = [i * statistics.bin_width for i in range(last)]
        axis.bar(left, statistics.histogram[:last], statistics.bin_width, align="edge", color=page_color(0))
        axis.axvline(statistics.mean, color=PAGE_INK, linewidth=1, linestyle=(0, (3, 2)))
        axis.set_xlabel("value where active (dashed: mean)")
        axis.set_ylabel("positions")

    words = (
        f"Histogram of the values of {name} where it is active: mean {statistics.mean:.3g}, largest "
        f"{statistics.largest:.3g}"
    )
    return _page_svg(draw, 1, (5.2, 2.6), f"histogram {name}", words)


def curves_svg(found: Sequence[Means], name: str) -> str:
    """Draw the effect of a feature over strengths.

    It shows LPIPS and, where it was measured, the change of CLIP's cosine with the prompt.

    Args:
        found: one strength each, in order.
        name: of the feature, in words.
    """
    with_clip = all(one.clip_gain is not None for one in found)

    def draw(axes: Sequence[Axes]) -> None:
        strengths = [one.strength for one in found]
        axes[0].plot(strengths, [one.lpips for one in found], color=page_color(0), marker="o", markersize=4)
        axes[0].set_ylabel("LPIPS to the source")
        if with_clip:
            gains = [100 * (one.clip_gain or 0.0) for one in found]
            axes[1].plot(strengths, gains, color=page_color(1), marker="s", markersize=4)
            axes[1].axhline(0, color=PAGE_INK, alpha=0.4, linewidth=0.8)
            axes[1].set_ylabel("CLIP change x100")
        for axis in axes:
            axis.axvline(0, color=PAGE_INK, alpha=0.4, linewidth=0.8)
            axis.set_xlabel("off   ←   strength   →   on")

    words = f"LPIPS{' and change of CLIP' if with_clip else ''} of {name} over strengths; the table has every number"
    return _page_svg(draw, 2 if with_clip else 1, (6.4 if with_clip else 3.6, 2.6), f"strengths {name}", words)


def _page_svg(
    draw: Callable[[Sequence[Axes]], None], count: int, size: tuple[float, float], salt: str, words: str
) -> str:
    """Draw some axes side by side as the text of an SVG for a page.

    Args:
        draw: fills the axes.
        count: how many axes there are.
        size: width and height in inches.
        salt: makes identifiers unlike those of other drawings on the page.
        words: says what is drawn to those who cannot see it.
    """
    with plot_style({**PAGE_STYLE, "svg.hashsalt": salt}):
        figure = new_figure(size)
        draw(list(np.atleast_1d(figure.subplots(1, count))))
        root = page_svg_root(figure)
    _remove_unused_ids(root)
    root.set("aria-label", words)
    return page_svg_text(root)


def _remove_unused_ids(root: ElementTree.Element) -> None:
    """Remove ids that nothing in the drawing refers to.

    Those that stay are hashes, so that a page may hold several drawings.
    """
    text = page_svg_text(root)
    for element in root.iter():
        name = element.get("id")
        if name is not None and f"#{name}" not in text:
            del element.attrib["id"]
