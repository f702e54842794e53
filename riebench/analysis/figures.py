"""Figures for papers: the trade-off plot and the heat maps of blocks by categories, as SVG and PNG.

The same results give the same bytes with the same matplotlib: ids are salted, and no date or version is written.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from riebench.analysis.configurations import EVERYTHING, Configuration, present_categories, whole_configurations
from riebench.analysis.standings import DISTANCE, ENDS, GAIN
from riebench.analysis.tradeoff import BUDGETS
from riebench.blocks import NO_BLOCKS
from riebench.scoring.profiles import metric_format

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLE: dict[Any, Any] = {
    "svg.hashsalt": "riebench", "svg.fonttype": "path", "font.family": "DejaVu Sans", "font.size": 9,
    "axes.spines.top": False, "axes.spines.right": False, "savefig.facecolor": "white",
}  # fmt: skip
DPI = 200
DASHES = ("-", "--", ":", "-.")
COLORS = 10
"""Colours of matplotlib's usual cycle; with the dashes they tell 40 settings apart."""


def figure_files(found: Sequence[Configuration]) -> dict[str, bytes]:
    """All figures of one suite and model.

    Args:
        found: its configurations in the default profile.

    Returns:
        File name -> content; nothing for what has no numbers.
    """
    # Importing matplotlib takes a second: only who draws pays for it.
    import matplotlib

    files: dict[str, bytes] = {}
    with matplotlib.rc_context(STYLE):
        drawn = {"trade_off": _trade_off(found)}
        for label in dict.fromkeys(c.label for c in found):
            rows = [c for c in found if c.label == label and c.block_set != NO_BLOCKS]
            drawn[f"blocks_{label.replace(' ', '_')}"] = _heat_map(rows, label)
        for name, figure in drawn.items():
            if figure is not None:
                files |= {f"{name}.svg": _saved(figure, "svg"), f"{name}.png": _saved(figure, "png")}
    return files


def _saved(figure: Figure, kind: str) -> bytes:
    buffer = io.BytesIO()
    metadata: dict[str, Any] = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    figure.savefig(buffer, format=kind, dpi=DPI, metadata=metadata)
    return buffer.getvalue()


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _mean(configuration: Configuration, metric: str, category: str = EVERYTHING) -> float | None:
    value = configuration.row(metric, category).mean
    return None if value is None else value * metric_format(metric).scale


def _trade_off(found: Sequence[Configuration]) -> Figure | None:
    """Mean gain against mean LPIPS of every configuration that edits all blocks of its setting."""
    points: dict[str, list[tuple[float, float]]] = {}
    ends: dict[str, tuple[float, float]] = {}
    for c in sorted(whole_configurations(found), key=lambda c: (c.setting, c.strength)):
        distance, gain = _mean(c, DISTANCE), _mean(c, GAIN)
        if distance is None or gain is None:
            continue
        if c.method in ENDS:
            ends[c.setting] = (distance, gain)
        else:
            points.setdefault(c.setting, []).append((distance, gain))
    if not points and not ends:
        return None
    figure = _figure(7.2, 4.4)
    axes = figure.add_subplot()
    for budget in BUDGETS:
        axes.axvline(budget, color="0.75", linewidth=0.6, linestyle=":", zorder=0)
    axes.axhline(0, color="0.6", linewidth=0.6, zorder=0)
    for index, (name, its) in enumerate(points.items()):
        style = DASHES[index // COLORS % len(DASHES)]
        axes.plot(*zip(*its, strict=True), color=f"C{index % COLORS}", linestyle=style, marker="o", markersize=4,
                  linewidth=1.2, label=name)  # fmt: skip
    for name, place in ends.items():
        axes.plot(*place, color="black", marker="*", markersize=10, linestyle="none")
        axes.annotate(name, place, xytext=(6, -12), textcoords="offset points", fontsize=8)
    axes.set_xlabel("mean LPIPS to the source picture (dotted: budgets)")
    axes.set_ylabel(f"mean CLIP alignment gain x{metric_format(GAIN).scale:g}")
    if points:
        figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return figure


def _heat_map(rows: Sequence[Configuration], label: str) -> Figure | None:
    """Blocks by categories: gain and LPIPS side by side; None where there are not two block sets to compare."""
    if len(rows) < 2 or not any(c.values.get(GAIN) for c in rows):
        return None
    categories = [*present_categories(rows), EVERYTHING]
    figure = _figure(2.6 + 0.9 * len(categories), 1.5 + 0.32 * len(rows))
    left, right = figure.subplots(1, 2, sharey=True)
    _cells(left, rows, GAIN, categories, "RdBu")
    _cells(right, rows, DISTANCE, categories, "Greys")
    figure.suptitle(label)
    return figure


def _cells(axes: Axes, rows: Sequence[Configuration], metric: str, categories: Sequence[str], colors: str) -> None:
    values = [[_mean(c, metric, category) for category in categories] for c in rows]
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
