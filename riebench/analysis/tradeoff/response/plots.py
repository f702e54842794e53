"""Drawings of response curves, one panel a curve, for documents and for the page."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from riebench.analysis.tradeoff.response.measures import ARTIFACT_LIMIT, CurveMeasures
from riebench.analysis.validity.plots import INK, RIGHT, WRONG, FigurePlan
from riebench.utils.images import SVG
from riebench.utils.plots import PAGE_INK, PAGE_STYLE, new_figure, page_color, page_svg_root, page_svg_text, plot_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 4
PANEL = (2.75, 1.95)
"""Width and height of a panel in inches."""
ALT = (
    "One panel for each method configuration: mean gain with its interval (solid) and the share of pictures that are "
    "artifacts (dashed), by edit strength. All numbers are in the tables below."
)


def curves_plan(measures: Sequence[CurveMeasures]) -> FigurePlan:
    """Plan the figure of all curves of one suite and model."""
    return FigurePlan(ALT, _numbers(measures), _draw, _size(len(measures)))


def page_drawing(measures: Sequence[CurveMeasures], salt: str, title: str) -> str:
    """Return the same figure as SVG for a page, in the page's own colours.

    Args:
        measures: of all curves; not empty.
        salt: unlike that of any other drawing on the page.
        title: the drawing's name for those who cannot see it.
    """
    with plot_style({**PAGE_STYLE, "svg.hashsalt": salt}):
        figure = new_figure(_size(len(measures)))
        _draw(figure, {**_numbers(measures), "colors": [page_color(0), page_color(1), PAGE_INK]})
        root = page_svg_root(figure)
    root.set("aria-label", title)
    name = ElementTree.Element(f"{{{SVG}}}title")
    name.text = title
    root.insert(0, name)
    return page_svg_text(root)


def _size(panels: int) -> tuple[float, float]:
    return COLUMNS * PANEL[0], 0.5 + ceil(panels / COLUMNS) * PANEL[1]


def _numbers(measures: Sequence[CurveMeasures]) -> dict[str, Any]:
    """Return everything that is drawn, rounded as it is shown."""
    return {
        "colors": [RIGHT, WRONG, INK],
        "panels": [
            {
                "name": one.curve.name,
                "falling": not one.curve.starts_at_zero,
                "range": round(one.strength_range.value, 3) if one.strength_range.reached else None,
                "points": [
                    [
                        point.strength, *(None if value is None else round(100 * value, 2) for value in
                                          (point.gain.mean, point.gain.low, point.gain.high)),
                        round(100 * point.artifacts, 1), None if point.far is None else round(100 * point.far, 1),
                    ]
                    for point in one.points
                ],
            }
            for one in measures
        ],
    }  # fmt: skip


def _draw(figure: Figure, numbers: Any) -> None:
    panels = numbers["panels"]
    grid = figure.subplots(ceil(len(panels) / COLUMNS), COLUMNS, squeeze=False, sharey=True)
    for place, axes in enumerate(grid.flat):
        if place < len(panels):
            _draw_panel(axes, panels[place], numbers["colors"], last=place % COLUMNS == COLUMNS - 1)
        else:
            axes.set_axis_off()
    figure.supxlabel("edit strength", fontsize=9)
    figure.supylabel("mean gain x100 (solid, with its interval)", fontsize=9)


def _draw_panel(axes: Axes, panel: Any, colors: Sequence[str], *, last: bool) -> None:
    gain, artifact, ink = colors
    x = [point[0] for point in panel["points"]]
    means, lows, highs = ([point[column] for point in panel["points"]] for column in (1, 2, 3))
    axes.axhline(0, color=ink, linewidth=0.6, alpha=0.5)
    if None not in lows:
        axes.fill_between(x, lows, highs, color=gain, alpha=0.2, linewidth=0)
    axes.plot(x, means, color=gain, marker="o", markersize=3, linewidth=1.3)
    beside = axes.twinx()
    beside.plot(x, [point[4] for point in panel["points"]], color=artifact, linestyle="--", linewidth=1.1)
    measured = [(point[0], point[5]) for point in panel["points"] if point[5] is not None]
    if measured:
        beside.plot(*zip(*measured, strict=True), color=ink, linestyle=":", linewidth=1.1)
    beside.set_ylim(0, 100)
    beside.spines["right"].set_visible(True)
    beside.tick_params(labelsize=7, labelright=last, right=last)
    if last:
        beside.set_ylabel("% (dashed, dotted)", fontsize=7)
    if panel["range"] is not None:
        axes.axvline(panel["range"], color=artifact, linewidth=0.9)
    if panel["falling"]:
        axes.invert_xaxis()
    axes.tick_params(labelsize=7)
    axes.set_title(panel["name"], fontsize=8)


def reading_words(measures: Sequence[CurveMeasures]) -> str:
    """Return what the lines of the panels stand for."""
    words = (
        "Solid: mean gain with its interval. Dashed: share of pictures that are artifacts. Upright: where they begin "
        f"to exceed {100 * ARTIFACT_LIMIT:g} %."
    )
    if any(point.far is not None for one in measures for point in one.points):
        words += " Dotted: share of edited positions whose activations are farther out than 99 % of unedited ones."
    return words
