"""Block by category: how much an edit of each block does, beside where the features were chosen."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from riebench.analysis.configurations import EVERYTHING, Configuration
from riebench.analysis.tables import per_feature_share
from riebench.blocks import NO_BLOCKS
from riebench.report.reading import DISTANCE, EFFECT, Group, counts, mean
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
    """The heat maps of one setting."""

    label: str
    description: str
    maps: tuple[HeatMap, ...]
    weight: tuple[bool, int, int]
    """How much there is to compare: whether shares are known, how many block sets, how few rows."""


def short_category(name: str) -> str:
    """A category as column headings say it."""
    return name.removeprefix("change_").removesuffix("_object")


def block_views(group: Group) -> list[BlockView]:
    """One view per setting that edits blocks; its strengths are rows of their own."""
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
        effects = [_map(rows, metric, categories, largest[metric]) for metric in (EFFECT, DISTANCE)]
        chosen = [_share_map(own, side, categories) if side in own else None for side in SIDES]
        # In twos: what an edit does, and beside it where its features lie.
        maps = tuple(m for pair in zip(effects, chosen, strict=True) for m in pair if m is not None)
        if maps:
            weight = bool(own) and len(order) > 1, len(order), -len(rows)
            views.append(BlockView(setting.name, setting.description, maps, weight))
    return views


def _largest(found: Sequence[Configuration], metric: str, categories: Sequence[str]) -> float:
    means = [mean(c, metric, [category]) for c in found for category in categories]
    return max((abs(value) for value in means if value is not None), default=0.0)


def _map(rows: Sequence[Configuration], metric: str, categories: Sequence[str], largest: float) -> HeatMap | None:
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
    value = mean(c, metric, categories)
    note = f"{counts(c, metric, categories)} scored"
    if value is None:
        return Cell("–", 0.0, note)
    return Cell(metric_format(metric).number(value), round(value / largest, 3) if largest else 0.0, note)


Shares = Mapping[str, Mapping[str, Mapping[tuple[str, str], tuple[float, str]]]]
"""Setting -> side -> (block, category) -> share and units/expected."""


def _shares(group: Group) -> Shares:
    found: dict[str, dict[str, dict[tuple[str, str], tuple[float, str]]]] = {}
    for row in csv.DictReader(io.StringIO(per_feature_share(group.folders)[1])):
        cells = found.setdefault(row["setting"], {}).setdefault(row["side"], {})
        cells[row["block"], row["category"]] = float(row["share"]), f"{row['units']}/{row['expected']} edits"
    return found


def _share_map(
    shares: Mapping[str, Mapping[tuple[str, str], tuple[float, str]]], side: str, categories: Sequence[str]
) -> HeatMap:
    cells = shares[side]
    table = []
    for block in dict.fromkeys(block for block, _ in cells):
        row = [cells.get((block, category)) for category in categories]
        table.append((block, tuple(Cell("–", 0.0) if c is None else Cell(f"{c[0]:.2f}", c[0], c[1]) for c in row)))
    return HeatMap(SIDES[side], False, tuple(map(short_category, categories)), tuple(table))
