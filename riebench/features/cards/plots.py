"""Plots of activation densities, and of features found again over training seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from riebench.features.cards.card import BINS_PER_DECADE, DECADES, Measurement, SaeCard, condition_text
from riebench.features.cards.stability import BINS, FOUND, BlockStability, block_title
from riebench.utils.plots import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DENSITY_PLOT, STABILITY_PLOT = "densities", "stability"
"""Names of the plots' files, without ending."""
DEAD_COLOUR, ALIVE_COLOUR, RANDOM_COLOUR = "0.65", "C0", "0.5"
ROW_HEIGHT, PANEL_WIDTH = 1.7, 2.9
"""Inches of one histogram."""


def density_figure(card: SaeCard) -> Figure:
    """Draw one histogram for each SAE (down) and condition (across)."""
    columns = list(dict.fromkeys((one.model, one.steps, one.guidance) for one in card.measurements))
    rows = list(dict.fromkeys((one.sae, one.signal) for one in card.measurements))
    cells = {((one.sae, one.signal), (one.model, one.steps, one.guidance)): one for one in card.measurements}
    lowest = min((_lowest_power(one) for one in card.measurements), default=-1)
    figure = new_figure((PANEL_WIDTH * len(columns) + 0.8, ROW_HEIGHT * len(rows) + 0.9))
    grid = figure.subplots(len(rows), len(columns), sharex=True, sharey="row", squeeze=False)
    for row, line in zip(rows, grid, strict=True):
        block = card.saes[row[0]].block or "not stated"
        line[0].set_ylabel(f"SAE {row[0] + 1}, {block}\nfeatures", fontsize=8)
        for column, axes in zip(columns, line, strict=True):
            _draw_densities(axes, cells[row, column], card.saes[row[0]].features, lowest)
    for (model, steps, guidance), axes in zip(columns, grid[0], strict=True):
        axes.set_title(f"{model}\n{condition_text(steps, guidance)}", fontsize=8, pad=14)
    figure.supxlabel("activation density: share of positions at which a feature is active (log scale)", fontsize=9)
    return figure


def _lowest_power(one: Measurement) -> int:
    """Return the power of ten at or below all densities that are not 0."""
    first = next((place for place, count in enumerate(one.densities.histogram) if count), len(one.densities.histogram))
    return min(-1, first // BINS_PER_DECADE - DECADES)


def _draw_densities(axes: Axes, one: Measurement, features: int, lowest: int) -> None:
    """Draw the histogram of active features, with a bar of dead ones at its left."""
    found = one.densities
    left = [place / BINS_PER_DECADE - DECADES for place in range(len(found.histogram))]
    axes.bar(left, found.histogram, 1 / BINS_PER_DECADE, align="edge", color=ALIVE_COLOUR)
    axes.bar([lowest - 1], [found.dead], 0.5, color=DEAD_COLOUR, hatch="//", edgecolor="white", linewidth=0)
    dead = f"{found.dead / features:.1%} dead"
    axes.text(1, 1.02, dead, transform=axes.transAxes, ha="right", va="bottom", fontsize=7)
    powers = range(0, lowest - 1, -1 if lowest > -4 else -2)
    axes.set_xticks([lowest - 1, *powers], ["dead", *(f"$10^{{{power}}}$" if power else "1" for power in powers)])
    axes.set_xlim(lowest - 1.5, 0.1)
    axes.tick_params(labelsize=7)


def stability_figure(found: Sequence[BlockStability]) -> Figure:
    """Draw pairwise shares and cosines of matched features, a row for each block."""
    size = max(len(one.saes) for one in found)
    figure = new_figure((3.0 + 0.45 * size + 4.2, max(2.2, 1.2 + 0.4 * size) * len(found)))
    grid = figure.subplots(len(found), 2, squeeze=False, width_ratios=[1 + 0.15 * size, 1.7])
    for one, (left, right) in zip(found, grid, strict=True):
        _draw_shares(left, one)
        _draw_cosines(right, one)
    return figure


def _draw_shares(axes: Axes, found: BlockStability) -> None:
    count = len(found.saes)
    values = [[float("nan")] * count for _ in range(count)]
    for pair in found.pairs:
        for row, column in ((pair.first, pair.second), (pair.second, pair.first)):
            values[row - 1][column - 1] = 100 * pair.figures.share_found
    axes.imshow(values, cmap="Blues", vmin=0, vmax=100)
    for y, line in enumerate(values):
        for x, value in enumerate(line):
            if x != y:
                color = "white" if value > 60 else "black"
                axes.text(x, y, f"{value:.0f}", ha="center", va="center", fontsize=7, color=color)
    names = [str(number) for number in range(1, count + 1)]
    axes.set_xticks(range(count), names, fontsize=7)
    axes.set_yticks(range(count), names, fontsize=7)
    axes.set_xlabel("SAE", fontsize=8)
    axes.set_ylabel("SAE", fontsize=8)
    axes.set_title(f"{block_title(found)}\nfeatures found again, % (cosine ≥ {FOUND:g})", fontsize=8)
    axes.spines[:].set_visible(False)


def _draw_cosines(axes: Axes, found: BlockStability) -> None:
    left = [place / BINS for place in range(BINS)]
    totals = [sum(column) for column in zip(*(pair.histogram for pair in found.pairs), strict=True)]
    random = [sum(column) for column in zip(*(pair.random_histogram for pair in found.pairs), strict=True)]
    axes.bar(left, totals, 1 / BINS, align="edge", color=ALIVE_COLOUR, label="SAEs")
    axes.stairs(random, [*left, 1.0], color=RANDOM_COLOUR, label="random directions")
    axes.axvline(FOUND, color="black", linewidth=0.8, linestyle=":")
    axes.set_xlim(0, 1)
    axes.set_xlabel(f"cosine of matched decoder rows (dotted: {FOUND:g})", fontsize=8)
    axes.set_ylabel("pairs of features", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.legend(fontsize=7, frameon=False)
