"""Figures for papers: the trade-off plot and heat maps of blocks by categories.

Each is written as SVG and PNG.

The same results give the same bytes with the same matplotlib (`riebench.utils.plots`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from riebench.analysis.configurations import EVERYTHING, Configuration, present_categories, whole_configurations
from riebench.analysis.standings import DISTANCE, ENDS, GAIN
from riebench.analysis.tradeoff import BUDGETS
from riebench.blocks import NO_BLOCKS
from riebench.scoring.profiles import metric_format
from riebench.utils.plots import KINDS, figure_bytes, new_figure, plot_style, series_look

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def figure_files(found: Sequence[Configuration]) -> dict[str, bytes]:
    """Draw all figures of one suite and model.

    Args:
        found: its configurations in the default profile.

    Returns:
        File name -> content; nothing for what has no numbers.
    """
    files: dict[str, bytes] = {}
    with plot_style():
        figures = {"trade_off": _trade_off(found)}
        for label in dict.fromkeys(c.label for c in found):
            rows = [c for c in found if c.label == label and c.block_set != NO_BLOCKS]
            figures[f"blocks_{label.replace(' ', '_')}"] = _heat_map(rows, label)
        for name, figure in figures.items():
            if figure is not None:
                files |= {f"{name}.{kind}": figure_bytes(figure, kind) for kind in KINDS}
    return files


def _scaled_mean(configuration: Configuration, metric: str, category: str = EVERYTHING) -> float | None:
    """Return a mean in the unit in which its metric is printed."""
    value = configuration.row(metric, category).mean
    return None if value is None else value * metric_format(metric).scale


def _trade_off(found: Sequence[Configuration]) -> Figure | None:
    """Draw mean gain against mean LPIPS, one line a setting.

    It shows the configurations that edit all blocks of their setting; None if none has both numbers.
    """
    points: dict[str, list[tuple[float, float]]] = {}
    ends: dict[str, tuple[float, float]] = {}
    for c in sorted(whole_configurations(found), key=lambda c: (c.setting, c.strength)):
        distance, gain = _scaled_mean(c, DISTANCE), _scaled_mean(c, GAIN)
        if distance is None or gain is None:
            continue
        if c.method in ENDS:
            ends[c.setting] = (distance, gain)
        else:
            points.setdefault(c.setting, []).append((distance, gain))
    if not points and not ends:
        return None
    figure = new_figure((7.2, 4.4))
    axes = figure.add_subplot()
    for budget in BUDGETS:
        axes.axvline(budget, color="0.75", linewidth=0.6, linestyle=":", zorder=0)
    axes.axhline(0, color="0.6", linewidth=0.6, zorder=0)
    for index, (name, its_points) in enumerate(points.items()):
        axes.plot(*zip(*its_points, strict=True), **series_look(index), marker="o", markersize=4, linewidth=1.2,
                  label=name)  # fmt: skip
    for name, place in ends.items():
        axes.plot(*place, color="black", marker="*", markersize=10, linestyle="none")
        axes.annotate(name, place, xytext=(6, -12), textcoords="offset points", fontsize=8)
    axes.set_xlabel("mean LPIPS to the source picture (dotted: budgets)")
    axes.set_ylabel(f"mean CLIP alignment gain x{metric_format(GAIN).scale:g}")
    if points:
        figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return figure


def _heat_map(rows: Sequence[Configuration], label: str) -> Figure | None:
    """Draw gain and LPIPS of blocks by categories side by side.

    Returns None where there are not two block sets to compare.
    """
    if len(rows) < 2 or not any(c.values.get(GAIN) for c in rows):
        return None
    categories = [*present_categories(rows), EVERYTHING]
    figure = new_figure((2.6 + 0.9 * len(categories), 1.5 + 0.32 * len(rows)))
    left, right = figure.subplots(1, 2, sharey=True)
    _draw_cells(left, rows, GAIN, categories, "RdBu")
    _draw_cells(right, rows, DISTANCE, categories, "Greys")
    figure.suptitle(label)
    return figure


def _draw_cells(axes: Axes, rows: Sequence[Configuration], metric: str, categories: Sequence[str], colors: str) -> None:
    """Draw a heat map with a number in each cell, blocks down, categories across."""
    values = [[_scaled_mean(c, metric, category) for category in categories] for c in rows]
    largest = max((abs(v) for row in values for v in row if v is not None), default=0.0) or 1.0
    shown = [[float("nan") if v is None else v for v in row] for row in values]
    lowest = -largest if metric_format(metric).signed else 0.0
    axes.imshow(shown, cmap=colors, vmin=lowest, vmax=largest, aspect="auto")
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            decimals = metric_format(metric).decimals
            # Adding zero takes the minus from what is rounded to zero.
            text = "–" if value is None else f"{round(value, decimals) + 0.0:.{decimals}f}"
            dark = value is not None and abs(value) > 0.6 * largest
            axes.text(x, y, text, ha="center", va="center", fontsize=6, color="white" if dark else "black")
    names = [category.removeprefix("change_").removesuffix("_object") for category in categories]
    axes.set_xticks(range(len(categories)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(rows)), [c.block_set for c in rows])
    axes.set_title(metric_format(metric).title, fontsize=8)
    axes.spines[:].set_visible(False)
