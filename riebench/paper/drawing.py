"""Parts that the paper's figures share: panels, lines, bars and heat maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from riebench.paper.artefact import HIGH, LOW, Artefact, Row, select_rows, values_of
from riebench.scoring.profiles import DEFAULT, PROFILES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


HEIGHT = 3.2
WIDTH = 2.6


def panels(figure: Figure, count: int, *, apart: Sequence[bool] = ()) -> list[Axes]:
    """Add axes side by side with one vertical scale.

    Args:
        figure: empty.
        count: how many.
        apart: which have a scale of their own; none if empty.
    """
    figure.set_size_inches(max(4.0, WIDTH * count + 1.4), HEIGHT)
    made: list[Axes] = []
    shared: Axes | None = None
    for index in range(count):
        alone = bool(apart) and apart[index]
        axes = figure.add_subplot(1, count, index + 1, sharey=None if alone else shared)
        if not alone:
            axes.tick_params(labelleft=shared is None)
            shared = shared or axes
        made.append(axes)
    return made


def finish(figure: Figure, label: str) -> None:
    """Finish a figure's axes and legend.

    It gets the label of the vertical axis, whole steps on the horizontal ones, and the lines' names at the right.
    """
    from matplotlib.ticker import MaxNLocator

    first = figure.axes[0]
    first.set_ylabel(label)
    for axes in figure.axes:
        if axes.get_xscale() == "linear":
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
            low, high = axes.get_xlim()
            if high - low < 1:
                axes.set_xlim(low - 0.5, high + 0.5)
                axes.set_xticks([round((low + high) / 2)])
    handles, labels = first.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8)


def number(row: Row, name: str) -> float:
    """Return a cell as it is drawn; a missing one is nan, of which nothing is drawn."""
    value = row.get(name)
    return float(value) if isinstance(value, int | float) else float("nan")


def by_block(axes: Axes, rows: Sequence[Row], x: str, y: str, *, dashed: bool = False) -> None:
    """Draw one line a block with its interval as a band.

    Each block has its own colour; dashed lines carry no label.
    """
    for index, block in enumerate(values_of(rows, "block")):
        line(axes, select_rows(list(rows), block=block), x, y, color=f"C{index}", dashed=dashed, label=str(block))


def line(axes: Axes, rows: Sequence[Row], x: str, y: str, *, color: str, dashed: bool, label: str) -> None:
    """Draw one line with its interval as a band."""
    at = [number(row, x) for row in rows]
    axes.plot(at, [number(row, y) for row in rows], color=color, marker="o", markersize=3, linewidth=1.2,
              linestyle="--" if dashed else "-", label=None if dashed else label)  # fmt: skip
    axes.fill_between(at, [number(row, y + LOW) for row in rows], [number(row, y + HIGH) for row in rows],
                      color=color, alpha=0.18, linewidth=0)  # fmt: skip


def bars(axes: Axes, rows: Sequence[Row], name: str, *, color: str, label: str | None = None) -> None:
    """Draw horizontal bars, one a row, with their intervals."""
    values = [number(row, name) for row in rows]
    ends = [
        [max(0.0, value - number(row, name + LOW)) for value, row in zip(values, rows, strict=True)],
        [max(0.0, number(row, name + HIGH) - value) for value, row in zip(values, rows, strict=True)],
    ]
    axes.barh(range(len(rows)), values, height=0.8, color=color, label=label, xerr=ends,
              error_kw={"linewidth": 0.7, "ecolor": "0.2"})  # fmt: skip


VARIANTS = {"pooled": "activations of all blocks pooled", "per_block": "shares of each block before ranking"}
SHARE_WIDTH, SHARE_HEIGHT = 4.6, 1.9


def draw_shares(figure: Figure, artefact: Artefact) -> None:
    """Draw where switched features lie: a row of two maps for each variant.

    The maps are of features switched on and off, of the configuration of the variant with fewest features.
    """
    rows = artefact.table().rows
    variants = values_of(rows, "variant")
    figure.set_size_inches(2 * SHARE_WIDTH, SHARE_HEIGHT * max(1, len(variants)) + 0.6)
    grid = figure.subplots(max(1, len(variants)), 2, sharex=True, sharey=True, squeeze=False)
    for line, variant in zip(grid, variants, strict=False):
        mine = select_rows(rows, variant=variant)
        setting = min(values_of(mine, "setting"), key=lambda name: _switched(mine, name))
        for axes, side in zip(line, ("on", "off"), strict=True):
            heat_map(axes, select_rows(mine, setting=setting, side=side), "share", 1, 2, signed=False)
            panel = f"switched {side}, {VARIANTS.get(str(variant), str(variant))}"
            axes.set_title(f"{panel}\n({setting})", fontsize=8)


def _switched(rows: Sequence[Row], setting: object) -> float:
    """Return how many features a configuration switches; 0 if that is not stored."""
    found = next((row["switched"] for row in rows if row["setting"] == setting), None)
    return float(found) if isinstance(found, int | float) else 0.0


def draw_blocks(figure: Figure, artefact: Artefact) -> None:
    """Draw the mean gain of each block set by category.

    The mean success is beside it where there is one.
    """
    table = artefact.table()
    judged = any(row.get("true_area") is not None for row in table.rows)
    rank = PROFILES[str(artefact.settings.get("profile", DEFAULT))].rank
    key = "area" if any(column.name == "area" for column in table.columns) else rank
    rows = [row for row in table.rows if row.get("strength") in (None, _least(table.rows))]
    column = table.column(key)
    figure.set_size_inches((2 if judged else 1) * SHARE_WIDTH + 0.4, SHARE_HEIGHT + 0.9)
    panels = figure.subplots(1, 2 if judged else 1, sharey=True, squeeze=False)[0]
    heat_map(panels[0], rows, key, column.scale, column.decimals or 0, signed=column.signed)
    panels[0].set_title(f"{column.heading} of a block edited alone", fontsize=8)
    if judged:
        heat_map(panels[1], rows, "true_area", 100, 0, signed=False)
        panels[1].set_title("mean success over LPIPS budgets, %", fontsize=8)


def _least(rows: Sequence[Row]) -> object:
    """Return the smallest strength of some rows, or None if they have none."""
    return min((s for row in rows if isinstance(s := row.get("strength"), float)), default=None)


def heat_map(axes: Axes, rows: Sequence[Row], key: str, scale: float, decimals: int, *, signed: bool) -> None:
    """Draw blocks down, categories across, and a number in each cell.

    Args:
        axes: empty ones.
        rows: with "block", "category" and the number.
        key: of the number.
        scale: its factor.
        decimals: as printed.
        signed: whether its sign means good and bad.
    """
    blocks, categories = values_of(rows, "block"), values_of(rows, "category")
    cells = {(row["block"], row["category"]): row.get(key) for row in rows}
    values = [[_scale(cells.get((block, category)), scale) for category in categories] for block in blocks]
    largest = max((abs(v) for line in values for v in line if v is not None), default=0.0) or 1.0
    shown = [[float("nan") if v is None else v for v in line] for line in values]
    axes.imshow(
        shown, cmap="RdBu" if signed else "Blues", vmin=-largest if signed else 0.0, vmax=largest, aspect="auto"
    )
    for y, line in enumerate(values):
        for x, value in enumerate(line):
            # Adding zero takes the minus from what is rounded to zero.
            text = "–" if value is None else f"{round(value, decimals) + 0.0:.{decimals}f}"
            dark = value is not None and abs(value) > 0.6 * largest
            axes.text(x, y, text, ha="center", va="center", fontsize=6, color="white" if dark else "black")
    names = [str(category).removeprefix("change_").removesuffix("_object") for category in categories]
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=7)
    axes.set_yticks(range(len(blocks)), [str(block) for block in blocks], fontsize=7)
    axes.spines[:].set_visible(False)


def _scale(value: object, scale: float) -> float | None:
    return float(value) * scale if isinstance(value, int | float) else None
