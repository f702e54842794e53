"""The figures of docs/validity-saes.md: measures against rungs, and their taus."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from riebench.analysis.validity.plots import INK, RIGHT, WRONG, FigurePlan
from riebench.analysis.validity.units import Cell
from riebench.sae_validity.document.sentences import AREA_KEY, best_without_judge
from riebench.sae_validity.measures import JUDGE, TRUTH
from riebench.sae_validity.study.bars import LEAST_TAU, MeasureStudy, Study
from riebench.sae_validity.study.statistics import TRAINED, TWIN, UNTRAINED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 3
"""Significant digits of what is drawn."""
GREY = "#8c8c8c"


def ladder_figure(study: Study) -> FigurePlan:
    """Plan the panels of measures against rungs."""
    found = {one.key: one for one in study.measures}
    best = best_without_judge(study)
    keys = [TRUTH, JUDGE, *(one.key for one in study.official), *([best.key] if best is not None else []), AREA_KEY]
    panels = [_panel(study, found[key]) for key in dict.fromkeys(keys) if key in found]
    numbers = {
        "rungs": [rung.name for rung in study.rungs],
        "colors": [_color(rung.name, rung.family) for rung in study.rungs],
        "families": [rung.family for rung in study.rungs],
        "panels": panels,
    }
    alt = (
        f"{len(panels)} panels, one for each of {', '.join(panel['name'] for panel in panels)}: the mean of every rung "
        "with its interval, and each SAE as a small dot. The numbers of the rungs are in the table below."
    )
    return FigurePlan(alt, numbers, _draw_ladder, (9.2, 1.7 * len(panels) + 1.2))


def _color(name: str, family: str) -> str:
    if name == TRAINED:
        return RIGHT
    return WRONG if name in UNTRAINED or family == TWIN else INK


def _panel(study: Study, one: MeasureStudy) -> dict[str, Any]:
    scale = one.measure.scale
    means = study.means(one.key)
    dots: dict[str, list[float]] = {}
    if means is not None:
        for rung, place in means.places.items():
            dots[rung] = [_short(one.measure.sign * float(value) * scale) for value in means.means[0, place]]
    return {
        "name": one.key,
        "title": f"{one.key}: {one.measure.title}",
        "judge": one.measure.judge,
        "means": [_shown(one.means[rung.name], scale) for rung in study.rungs],
        "dots": [dots.get(rung.name, []) for rung in study.rungs],
    }


def _shown(cell: Cell, scale: float = 1) -> list[float | None]:
    """Return a number with the ends of its interval, rounded.

    None stands where there is none.
    """
    return [None if one is None else _short(one * scale) for one in (cell.value, cell.low, cell.high)]


def _short(value: float) -> float:
    return float(f"{value:.{SHOWN}g}")


def _draw_ladder(figure: Figure, numbers: Any) -> None:
    panels = figure.subplots(len(numbers["panels"]), 1, sharex=True, squeeze=False)[:, 0]
    names, families = numbers["rungs"], numbers["families"]
    for axes, panel in zip(panels, numbers["panels"], strict=True):
        for place, (mean, dots, color) in enumerate(zip(panel["means"], panel["dots"], numbers["colors"], strict=True)):
            axes.plot([place + 0.18] * len(dots), dots, ".", color=GREY, markersize=4, zorder=2)
            value, low, high = mean
            if value is not None and low is not None and high is not None:
                axes.plot([place, place], [low, high], color=color, linewidth=1.4, zorder=3)
            if value is not None:
                axes.plot([place], [value], "o", color=color, markersize=5, zorder=4)
        for place in range(1, len(names)):
            if families[place] != families[place - 1]:
                axes.axvline(place - 0.5, color="#d0d0d0", linewidth=1, zorder=1)
        axes.set_title(panel["title"], loc="left", fontsize=9, fontweight="bold" if panel["judge"] else "normal")
        axes.grid(axis="y", color="#eeeeee")
        axes.set_axisbelow(True)
        axes.set_xticks(range(len(names)), [name.replace("_", " ") for name in names], rotation=45, ha="right")
        axes.tick_params(axis="x", length=0)
        axes.margins(y=0.12)
    figure.supxlabel(
        "Blue: the fully trained SAE. Red: frozen twins and what was not trained. Lines: 95 % intervals. Small dots: "
        "single SAEs. Bold titles: truths of the toy world.", fontsize=8,
    )  # fmt: skip


def order_figure(study: Study) -> FigurePlan:
    """Plan the chart of Kendall's tau of every measure with the known order."""
    ranked = sorted(study.measures, key=lambda one: one.order.value if one.order.value is not None else -2.0)
    numbers = {
        "bar": LEAST_TAU,
        "rows": [
            [one.key, _shown(one.order), one.measure.official, one.measure.judge, one.bars.passed] for one in ranked
        ],
    }
    alt = "Dot chart: Kendall's tau of every measure with the known order of rungs. The numbers are in the table below."
    return FigurePlan(alt, numbers, _draw_order, (7.4, 1.1 + 0.2 * len(ranked)))


def _draw_order(figure: Figure, numbers: Any) -> None:
    axes = figure.subplots()
    axes.axvline(numbers["bar"], color=GREY, linestyle="--", linewidth=1)
    axes.axvline(0, color="#d0d0d0", linewidth=1)
    for place, (_, (value, low, high), _, _, passed) in enumerate(numbers["rows"]):
        color = RIGHT if passed else INK
        if low is not None and high is not None:
            axes.plot([low, high], [place, place], color=color, linewidth=1.4)
        if value is not None:
            axes.plot([value], [place], "o", color=color, markersize=5)
    labels = [f"{key} (toy world)" if judge else key for key, _, _, judge, _ in numbers["rows"]]
    axes.set_yticks(range(len(labels)), labels)
    for label, (_, _, official, _, _) in zip(axes.get_yticklabels(), numbers["rows"], strict=True):
        label.set_fontweight("bold" if official else "normal")
    axes.set_xlim(-1.05, 1.05)
    axes.set_ylim(-0.7, len(labels) - 0.3)
    axes.grid(axis="x", color="#eeeeee")
    axes.set_axisbelow(True)
    axes.set_xlabel(f"Kendall's tau with the known order; dashed: the bar, {numbers['bar']:g}")
    figure.supxlabel(
        "Blue: passes all four bars. Bold: official. (toy world): needs its judge or its truth. Lines: 95 % intervals.",
        fontsize=8,
    )


FIGURES: Mapping[str, Callable[[Study], FigurePlan]] = {"ladder": ladder_figure, "order": order_figure}
"""Name of a figure -> what plans it."""
