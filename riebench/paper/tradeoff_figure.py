"""The trade-off figure: all categories at the left, by the score and by the truth, and a small panel for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from riebench.analysis.standings import DISTANCE
from riebench.paper.artefact import Artefact, Row, values_of
from riebench.scoring.profiles import DEFAULT, PROFILES, metric_format

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DASHES = ("-", "--", "-.", ":")
ENDS = ("no edit", "target prompt")
TRUTH = "judge_target"


def draw_trade_off(figure: Figure, artefact: Artefact, colors: Mapping[str, str]) -> None:
    """Draws the artefact's points.

    Args:
        figure: an empty one.
        artefact: with the tables "" and "categories".
        colors: what the table calls a method -> its colour.
    """
    figure.set_size_inches(11.0, 6.2)
    rank = PROFILES[str(artefact.settings.get("profile", DEFAULT))].rank
    overall = artefact.table().rows
    split = [row for table in artefact.tables if table.name == "categories" for row in table.rows]
    parts = figure.subfigures(1, 2, width_ratios=(2, 3), squeeze=False)[0]
    left, right = parts[0], parts[1]
    judged = any(row.get(TRUTH) is not None for row in overall)
    panels = left.subplots(2 if judged else 1, 1, sharex=True, squeeze=False)[:, 0]
    _panel(panels[0], overall, rank, colors)
    panels[0].set_title("all categories", fontsize=9)
    panels[0].set_ylabel(_axis(rank), fontsize=8)
    if judged:
        _panel(panels[1], overall, TRUTH, colors)
        panels[1].set_ylabel("target reached, % (judge)", fontsize=8)
    panels[-1].set_xlabel("mean LPIPS", fontsize=8)
    categories = values_of(split, "category")
    columns = 3
    grid = right.subplots(max(1, -(-len(categories) // columns)), columns, sharex=True, squeeze=False)
    for axes, category in zip(grid.flat, categories, strict=False):
        _panel(axes, [row for row in split if row["category"] == category], rank, colors, size=2.5)
        axes.set_title(str(category).replace("_", " "), fontsize=8)
        axes.tick_params(labelsize=7)
    for axes in list(grid.flat)[len(categories) :]:
        axes.set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize=7)


def _axis(metric: str) -> str:
    form = metric_format(metric)
    name = form.title.partition(" (")[0]
    return name if f"x{form.scale:g}" in name or form.scale == 1 else f"{name} x{form.scale:g}"


def _panel(axes: Axes, rows: Sequence[Row], metric: str, colors: Mapping[str, str], size: float = 4) -> None:
    axes.axhline(0, color="0.8", linewidth=0.6, zorder=0)
    for method in values_of(rows, "method"):
        mine = [row for row in rows if row["method"] == method]
        for index, setting in enumerate(values_of(mine, "setting")):
            points = [_place(row, metric) for row in mine if row["setting"] == setting]
            known = [point for point in points if point is not None]
            if not known or (len(points) == 1 and method not in ENDS):
                # A single level is no curve: it is there for a switch, and in the table.
                continue
            style: dict[str, Any] = {"color": colors.get(str(method), "0.3"), "markersize": size, "label": setting}
            if method in ENDS:
                style |= {"marker": "*", "markersize": 2.2 * size, "linestyle": "none", "color": "black"}
                style["markerfacecolor"] = "white" if method == ENDS[0] else "black"
            else:
                style |= {"marker": "o", "linewidth": 1.1, "linestyle": DASHES[index % len(DASHES)]}
            axes.plot(*zip(*known, strict=True), **style)


def _place(row: Row, metric: str) -> tuple[float, float] | None:
    distance, value = row.get(DISTANCE), row.get(metric)
    if not isinstance(distance, int | float) or not isinstance(value, int | float):
        return None
    return float(distance), float(value) * metric_format(metric).scale
