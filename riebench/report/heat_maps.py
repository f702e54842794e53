"""The report's heat maps of blocks: tables of coloured numbers.

They show what edits of each block do in each category, and where the features that were chosen lie.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from riebench.analysis.configurations import EVERYTHING, Configuration
from riebench.analysis.tables import feature_shares
from riebench.blocks import NO_BLOCKS
from riebench.report.data import DISTANCE, EFFECT, Group, counts, mean
from riebench.report.findings import REACHED, Findings, interval_text
from riebench.scoring.profiles import metric_format

SIDES = {"add": "Share of features switched on", "remove": "Share of features switched off"}


@dataclass(frozen=True)
class Cell:
    """One coloured number."""

    text: str
    heat: float
    """-1 .. 1: sign and depth of the colour, relative to the largest of its kind in the suite and model."""
    title: str = ""
    """Small print: how many units it stands on."""
    best: bool = False
    """Whether the findings say that the block is better in this category than each other one."""


@dataclass(frozen=True)
class HeatMap:
    """One table of coloured numbers; the table is its own accessible form."""

    title: str
    signed: bool
    """Whether its numbers say good and bad; otherwise one colour says how much."""
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


@dataclass(frozen=True)
class BlockView:
    """The heat maps of one method configuration."""

    label: str
    description: str
    maps: tuple[HeatMap, ...]
    weight: tuple[bool, int, int]
    """How much there is to compare: whether shares are known, how many block sets, how few rows."""


def short_category(name: str) -> str:
    """Return a category as column headings print it."""
    return name.removeprefix("change_").removesuffix("_object")


def block_views(group: Group) -> list[BlockView]:
    """Return one view for each method configuration that edits blocks.

    Its strengths are rows of their own.
    """
    found = [c for c in group.configurations if c.block_set != NO_BLOCKS]
    categories = group.categories
    shares = _shares(group)
    largest = {metric: _largest(found, metric, categories) for metric in (EFFECT, DISTANCE)}
    views = []
    for folder in group.folders:
        setting = folder.spec.setting
        rows = [c for c in found if c.setting == setting.name]
        # A block's strengths below each other, blocks in their usual order.
        order = list(dict.fromkeys(c.block_set for c in rows))
        rows.sort(key=lambda c: (order.index(c.block_set), c.strength))
        own = shares.get(setting.name, {})
        effects = [_metric_map(rows, metric, categories, largest[metric]) for metric in (EFFECT, DISTANCE)]
        chosen = [_share_map(own, side, categories) if side in own else None for side in SIDES]
        # In twos: what an edit does, and beside it where its features lie.
        maps = tuple(m for pair in zip(effects, chosen, strict=True) for m in pair if m is not None)
        if maps:
            weight = bool(own) and len(order) > 1, len(order), -len(rows)
            views.append(BlockView(setting.name, setting.description, maps, weight))
    return views


def finding_maps(found: Findings, categories: Sequence[str]) -> tuple[HeatMap, ...]:
    """Return the heat maps beside the findings, whose cells carry their intervals.

    They show the gain, and whether the judge finds the target, or else LPIPS where no judge measured.

    Args:
        found: the findings; their best blocks are marked.
        categories: the columns.
    """
    judged = any(c.counts(REACHED)[0] for c in found.rows)
    maps = []
    for metric in (EFFECT, REACHED if judged else DISTANCE):
        one = _metric_map(found.rows, metric, categories, _largest(found.rows, metric, categories))
        if one is not None:
            rows = zip(found.rows, one.rows, strict=True)
            maps.append(replace(one, rows=tuple(_detailed(c, metric, categories, row, found) for c, row in rows)))
    return tuple(maps)


def _detailed(
    c: Configuration, metric: str, categories: Sequence[str], row: tuple[str, tuple[Cell, ...]], found: Findings
) -> tuple[str, tuple[Cell, ...]]:
    """Return a row with the best blocks marked.

    The small print of each cell holds its interval.
    """
    cells = (
        replace(cell, title=f"{interval_text(c.row(metric, category))}, {cell.title}",
                best=metric == found.metric and (c.block_set, category) in found.best)
        for cell, category in zip(row[1], (*categories, EVERYTHING), strict=True)
    )  # fmt: skip
    return c.block_set, tuple(cells)


def _largest(found: Sequence[Configuration], metric: str, categories: Sequence[str]) -> float:
    """Return the largest absolute mean of a metric in any category."""
    means = [mean(c, metric, [category]) for c in found for category in categories]
    return max((abs(value) for value in means if value is not None), default=0.0)


def _metric_map(
    rows: Sequence[Configuration], metric: str, categories: Sequence[str], largest: float
) -> HeatMap | None:
    """Return the heat map of a metric, or None if no cell has a number."""
    form = metric_format(metric)
    table = []
    for c in rows:
        cells = [_cell(c, metric, [category], largest) for category in categories]
        name = f"{c.block_set} x{c.strength:g}" if c.several_strengths else c.block_set
        table.append((name, (*cells, _cell(c, metric, None, largest))))
    if not any(cell.text != "–" for _, cells in table for cell in cells):
        return None
    return HeatMap(form.title, form.signed, (*map(short_category, categories), EVERYTHING), tuple(table))


def _cell(c: Configuration, metric: str, categories: Sequence[str] | None, largest: float) -> Cell:
    """Return one cell of a metric's heat map."""
    value = mean(c, metric, categories)
    note = f"{counts(c, metric, categories)} scored"
    if value is None:
        return Cell("–", 0.0, note)
    return Cell(metric_format(metric).number(value), round(value / largest, 3) if largest else 0.0, note)


Shares = Mapping[str, Mapping[str, Mapping[tuple[str, str], tuple[float, str]]]]
"""Setting -> side -> (block, category) -> share and units/expected."""


def _shares(group: Group) -> Shares:
    """Return the feature shares of a group by setting and side."""
    found: dict[str, dict[str, dict[tuple[str, str], tuple[float, str]]]] = {}
    for one in feature_shares(group.folders):
        cells = found.setdefault(one.setting, {}).setdefault(one.side, {})
        cells[one.block, one.category] = round(one.share, 3), f"{one.units}/{one.expected} edits"
    return found


def _share_map(
    shares: Mapping[str, Mapping[tuple[str, str], tuple[float, str]]], side: str, categories: Sequence[str]
) -> HeatMap:
    """Return the heat map of one side's feature shares."""
    cells = shares[side]
    table = []
    for block in dict.fromkeys(block for block, _ in cells):
        row = [cells.get((block, category)) for category in categories]
        table.append((block, tuple(Cell("–", 0.0) if c is None else Cell(f"{c[0]:.2f}", c[0], c[1]) for c in row)))
    return HeatMap(SIDES[side], False, tuple(map(short_category, categories)), tuple(table))
