"""Heat maps of blocks by categories: where features lie, and what each block does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from riebench.paper.artefact import Artefact, Row, picked, values_of
from riebench.scoring.profiles import DEFAULT, PROFILES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

VARIANTS = {"pooled": "activations of all blocks pooled", "per_block": "shares of each block before ranking"}
WIDTH, HEIGHT = 4.6, 1.9


def draw_shares(figure: Figure, artefact: Artefact) -> None:
    """One row of two maps, on and off, for each variant; of each variant the setting with fewest features."""
    rows = artefact.table().rows
    variants = values_of(rows, "variant")
    figure.set_size_inches(2 * WIDTH, HEIGHT * max(1, len(variants)) + 0.6)
    grid = figure.subplots(max(1, len(variants)), 2, sharex=True, sharey=True, squeeze=False)
    for line, variant in zip(grid, variants, strict=False):
        mine = picked(rows, variant=variant)
        setting = min(values_of(mine, "setting"), key=lambda name: _switched(mine, name))
        for axes, side in zip(line, ("on", "off"), strict=True):
            heat_map(axes, picked(mine, setting=setting, side=side), "share", 1, 2, signed=False)
            told = f"switched {side}, {VARIANTS.get(str(variant), str(variant))}"
            axes.set_title(f"{told}\n({setting})", fontsize=8)


def _switched(rows: Sequence[Row], setting: object) -> float:
    found = next((row["switched"] for row in rows if row["setting"] == setting), None)
    return float(found) if isinstance(found, int | float) else 0.0


def draw_blocks(figure: Figure, artefact: Artefact) -> None:
    """The area of each block set by category, and the true area beside it where there is one."""
    table = artefact.table()
    judged = any(row.get("true_area") is not None for row in table.rows)
    rank = PROFILES[str(artefact.settings.get("profile", DEFAULT))].rank
    key = "area" if any(column.name == "area" for column in table.columns) else rank
    rows = [row for row in table.rows if row.get("strength") in (None, _least(table.rows))]
    column = table.column(key)
    figure.set_size_inches((2 if judged else 1) * WIDTH + 0.4, HEIGHT + 0.9)
    panels = figure.subplots(1, 2 if judged else 1, sharey=True, squeeze=False)[0]
    heat_map(panels[0], rows, key, column.scale, column.decimals or 0, signed=column.signed)
    panels[0].set_title(f"{column.heading} of a block edited alone", fontsize=8)
    if judged:
        heat_map(panels[1], rows, "true_area", 100, 0, signed=False)
        panels[1].set_title("true area, %", fontsize=8)


def _least(rows: Sequence[Row]) -> object:
    return min((s for row in rows if isinstance(s := row.get("strength"), float)), default=None)


def heat_map(axes: Axes, rows: Sequence[Row], key: str, scale: float, decimals: int, *, signed: bool) -> None:
    """Blocks down, categories across, a number in each cell.

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
    values = [[_scaled(cells.get((block, category)), scale) for category in categories] for block in blocks]
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


def _scaled(value: object, scale: float) -> float | None:
    return float(value) * scale if isinstance(value, int | float) else None
