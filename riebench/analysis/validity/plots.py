"""The figures of docs/validity.md: trust in scores, and two rankings of methods.

A picture carries a hash of the numbers it was drawn from, so that one that is out of date is found without drawing it
again: another version of the plotting library draws other pixels from the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from riebench.analysis.standings import GAIN
from riebench.analysis.validity.findings import INTENDED_TRUTHS, Findings, classify
from riebench.analysis.validity.ranking import AREA, AREA_SUCCESS
from riebench.analysis.validity.units import SCORES, SUCCESS, TRUTHS, Cell
from riebench.utils.files import content_digest, out_of_date, write_atomic
from riebench.utils.plots import figure_bytes, new_figure, plot_style, png_digest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 130
RIGHT, WRONG, INK, PALE = "#2166ac", "#b2182b", "#222222", "#e6e6e6"
TRUTH_TITLES = {
    "target": "Truth: the target attribute is there",
    "kept": "Truth: the other attributes are as before",
    "success": "Truth: both (success)",
}


@dataclass(frozen=True)
class FigurePlan:
    """A figure before it is drawn.

    Attributes:
        alt: what it shows, for those who do not see it.
        numbers: everything that is drawn, rounded as it is shown.
        draw: puts the numbers on an empty figure.
        size: width and height in inches.
    """

    alt: str
    numbers: Any
    draw: Callable[[Figure, Any], None]
    size: tuple[float, float]

    @property
    def digest(self) -> str:
        """Hash of the numbers."""
        return content_digest(self.numbers)

    def png(self) -> bytes:
        """Draw the figure as a PNG; the same numbers give the same bytes."""
        with plot_style({"text.color": INK, "axes.edgecolor": "#888888"}):
            figure = new_figure(self.size)
            self.draw(figure, self.numbers)
            return figure_bytes(figure, "png", dpi=DPI, digest=self.digest)

    def update(self, path: Path, command: str, *, check: bool) -> None:
        """Write the picture if its numbers have changed, or only check it.

        Args:
            path: the file.
            command: that generates it.
            check: only looks.

        Raises:
            RiebenchError: with `check`, if the picture is out of date.
        """
        if png_digest(path.read_bytes() if path.exists() else b"") != self.digest:
            if check:
                raise out_of_date(path, command)
            write_atomic(path, self.png())


def trust_heat_maps(findings: Findings) -> FigurePlan:
    """Plan the heat maps of scores by categories, one for each truth."""
    tables = {called: findings.preference(truth) for called, truth in TRUTHS.items()}
    columns, scores = [*next(iter(tables.values()))], findings.judged.units.scores
    numbers = {
        "columns": [name.removeprefix("change_").replace("_", " ") for name in columns],
        "rows": [*scores],
        "meant": [
            [score, called] for score in scores for called, truth in TRUTHS.items() if truth in INTENDED_TRUTHS[score]
        ],
        "panels": {
            called: [[_heat_cell(table[column][score]) for column in columns] for score in scores]
            for called, table in tables.items()
        },
    }
    alt = (
        "Three heat maps, scores by categories: how often the score prefers the picture that is truly better. "
        "All numbers are in the tables below."
    )
    return FigurePlan(alt, numbers, _draw_trust, (9.2, 7.4 + 0.9 * (len(scores) - len(SCORES))))


def _heat_cell(cell: Cell) -> list[Any] | None:
    """Return a share and whether its interval holds one half."""
    return None if cell.value is None else [round(cell.value, 2), classify(cell) == "unclear"]


def _draw_trust(figure: Figure, numbers: Any) -> None:
    import numpy as np
    from matplotlib.colors import LinearSegmentedColormap

    scale = LinearSegmentedColormap.from_list("trust", [WRONG, "#f4a582", "#f7f7f7", "#92c5de", RIGHT])
    colors = scale.with_extremes(bad=PALE)
    panels = figure.subplots(len(numbers["panels"]), 1, sharex=True)
    for axes, (called, rows) in zip(panels, numbers["panels"].items(), strict=True):
        values = np.array([[np.nan if cell is None else cell[0] for cell in row] for row in rows])
        image = axes.imshow(values, cmap=colors, vmin=0, vmax=1, aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            _name_cell(axes, rows[row][column], float(value), row, column)
        axes.set_title(TRUTH_TITLES[called], loc="left", fontsize=10, fontweight="bold")
        axes.set_yticks(range(len(numbers["rows"])), numbers["rows"])
        for label, score in zip(axes.get_yticklabels(), numbers["rows"], strict=True):
            label.set_fontweight("bold" if [score, called] in numbers["meant"] else "normal")
        axes.set_xticks(range(len(numbers["columns"])), [name.replace(" ", "\n") for name in numbers["columns"]])
        axes.tick_params(length=0, labelbottom=True)
        axes.axvline(len(numbers["columns"]) - 1.5, color="white", linewidth=3)
        axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=panels, shrink=0.5, aspect=30, pad=0.015)
    bar.set_label("share of pairs in which the better picture scores higher")
    bar.outline.set_visible(False)
    figure.supxlabel(
        "Bold: the score is meant for this truth. In brackets: the 95 % interval holds 0.5. Distances are turned "
        "round. –: no value.", fontsize=8,
    )  # fmt: skip


def _name_cell(axes: Axes, cell: list[Any] | None, value: float, row: int, column: int) -> None:
    text = "–" if cell is None else f"({value:.2f})" if cell[1] else f"{value:.2f}"
    strong = cell is not None and abs(value - 0.5) > 0.36
    axes.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if strong else INK)


def rank_scatter(findings: Findings) -> FigurePlan:
    """Plan the scatter of the methods' ranks by score and by truth.

    One panel compares means over LPIPS budgets, the other means over all edit strengths.
    """
    found = findings.ranking
    panels = []
    for score, truth, name, true_name in (
        (AREA, AREA_SUCCESS, "mean gain over LPIPS budgets", "success over LPIPS budgets"),
        (GAIN, SUCCESS, "mean clip_gain", "mean true success"),
    ):
        first, second = found.ranks(score), found.ranks(truth)
        points: list[list[Any]] = []
        if first is not None and second is not None:
            points = [[*point] for point in zip(first.tolist(), second.tolist(), found.methods, strict=True)]
        tau = found.agreement(score, truth).text()
        panels.append({"score": name, "truth": true_name, "tau": tau, "points": points})
    alt = "Two scatter plots: each method's rank by score against its rank by truth; on the diagonal the two agree."
    height = max(3.4, 1.6 + 0.28 * len(found.methods))
    return FigurePlan(alt, panels, _draw_ranks, (9.2, height))


def _draw_ranks(figure: Figure, numbers: Any) -> None:
    for axes, panel in zip(figure.subplots(1, len(numbers)), numbers, strict=True):
        n = max(len(panel["points"]), 1)
        axes.plot([0.5, n + 0.5], [0.5, n + 0.5], color="#bbbbbb", linewidth=1, zorder=1)
        for by_score, by_truth, name in panel["points"]:
            color = INK if abs(by_score - by_truth) < 1 else RIGHT if by_truth < by_score else WRONG
            axes.plot(by_score, by_truth, "o", color=color, markersize=6, zorder=3)
            # Names stand where there is room: right of a point in the left half, left of it in the right one.
            left = by_score > (n + 1) / 2
            axes.annotate(
                name, (by_score, by_truth), xytext=(-7 if left else 7, 0), textcoords="offset points",
                ha="right" if left else "left", va="center", fontsize=8, color=color, zorder=2,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
            )  # fmt: skip
        axes.set_xlim(0.4, n + 0.6)
        axes.set_ylim(n + 0.6, 0.4)
        axes.set_xticks(range(1, n + 1))
        axes.set_yticks(range(1, n + 1))
        axes.grid(color="#eeeeee")
        axes.set_axisbelow(True)
        axes.set_xlabel(f"rank by {panel['score']}")
        axes.set_ylabel(f"rank by {panel['truth']}")
        axes.set_title(f"Kendall's tau {panel['tau']}", loc="left", fontsize=9)
    figure.supxlabel(
        "1 is best. Blue: better in truth than by score; red: worse in truth than by score, by a rank or more.",
        fontsize=8,
    )


FIGURE_PLANS: dict[str, Callable[[Findings], FigurePlan]] = {"trust": trust_heat_maps, "ranks": rank_scatter}
"""Name of a figure -> what plans it."""
