"""The report's trade-off plot and heat maps of blocks.

The plot shows every configuration as a point, alignment against distance, with both ends of the scale and the budgets.
Heat maps are tables of coloured numbers: what edits of each block do, and where chosen features lie.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from markupsafe import Markup

from riebench.analysis.configurations import EVERYTHING, Configuration, whole_configurations
from riebench.analysis.tables import feature_shares
from riebench.analysis.tradeoff import BUDGETS
from riebench.blocks import NO_BLOCKS, default_blocks
from riebench.report.data import DISTANCE, EFFECT, Group, counts, mean
from riebench.scoring.profiles import metric_format
from riebench.utils.images import SVG
from riebench.utils.plots import (
    DASHES,
    PAGE_COLORS,
    PAGE_INK,
    PAGE_STYLE,
    new_figure,
    page_color,
    page_svg_root,
    page_svg_text,
    plot_style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


ENDS = ("no_edit", "target_prompt")
BLOCK_MARKERS = dict(zip(default_blocks(), "^vsD", strict=True))
MARKS = dict(zip(default_blocks(), "△▽□◇", strict=True))
"""The same as characters, for the text beside the plot."""


@dataclass(frozen=True)
class Point:
    """One configuration on the plot."""

    series: int
    """Position of its setting in the legend."""
    setting: str
    block_set: str
    strength: float
    whole: bool
    """Whether it edits all blocks of its setting."""
    end: bool
    """Whether it is one of the two ends of the scale."""
    distance: float
    gain: float
    counts: str
    run: str

    @property
    def words(self) -> str:
        """Text that a browser shows when the reader points at the mark."""
        gain, distance = metric_format(EFFECT).number(self.gain), metric_format(DISTANCE).number(self.distance)
        return f"{self.setting}, blocks {self.block_set}, strength {self.strength:g}: gain {gain}, LPIPS {distance}"


@dataclass(frozen=True)
class Plot:
    """A drawn plot and its table."""

    svg: Markup
    points: tuple[Point, ...]
    settings: tuple[str, ...]
    """The legend, in the order of the series."""
    ends: tuple[str, ...]
    """Settings that are the ends of the scale."""
    absent: tuple[str, ...]
    """Ends of the scale that these results lack."""
    unscored: int
    """Configurations without numbers, which are no points."""

    def color(self, series: int) -> str:
        """Return the colour of a setting."""
        return page_color(series)


def plot_points(found: Sequence[Configuration]) -> tuple[list[Point], int]:
    """Return all configurations with both numbers, and how many lack one."""
    whole = {id(c) for c in whole_configurations(found)}
    names = list(dict.fromkeys(c.setting for c in found))
    points, unscored = [], 0
    for c in found:
        distance, gain = mean(c, DISTANCE), mean(c, EFFECT)
        if distance is None or gain is None:
            unscored += 1
            continue
        points.append(
            Point(names.index(c.setting), c.setting, c.block_set, c.strength, id(c) in whole, c.method in ENDS,
                  distance, gain, counts(c, EFFECT), c.run_id[:8])
        )  # fmt: skip
    return points, unscored


def trade_off(found: Sequence[Configuration], prefix: str, title: str) -> Plot | None:
    """Draw the plot of one suite and model; None without a single point.

    Args:
        found: its configurations.
        prefix: begins every id in the drawing; unlike that of any other on the page.
        title: the drawing's name for those who cannot see it.
    """
    points, unscored = plot_points(found)
    if not points:
        return None
    names = tuple(dict.fromkeys(c.setting for c in found))
    methods = {c.method for c in found}
    root = _draw(points, prefix)
    _add_titles(root, points, prefix, title)
    ends = tuple({c.setting: None for c in found if c.method in ENDS})
    return Plot(
        Markup(page_svg_text(root)), tuple(points), names, ends, tuple(e for e in ENDS if e not in methods), unscored
    )


def _clusters(points: Sequence[Point]) -> dict[tuple[int, str], list[Point]]:
    """Group points by series and block set, sorted by strength.

    The points of one group are drawn in one go.
    """
    found: dict[tuple[int, str], list[Point]] = {}
    for point in sorted(points, key=lambda p: (p.series, p.block_set, p.strength)):
        found.setdefault((point.series, point.block_set), []).append(point)
    return found


def _group_id(prefix: str, series: int, index: int) -> str:
    return f"{prefix}-s{series}-{index}"


def _draw(points: Sequence[Point], prefix: str) -> ElementTree.Element:
    """Draw the plot as an SVG element.

    Its groups are named, so that the marks of each can be found again.
    """
    with plot_style({**PAGE_STYLE, "svg.hashsalt": prefix, "font.size": 10}):
        figure = new_figure((7.6, 4.6))
        axes = figure.add_subplot()
        for budget in BUDGETS:
            axes.axvline(budget, color=PAGE_INK, alpha=0.28, linewidth=0.8, linestyle=(0, (1, 3)))
        axes.axhline(0, color=PAGE_INK, alpha=0.4, linewidth=0.8)
        for index, ((series, block_set), group) in enumerate(_clusters(points).items()):
            _draw_cluster(axes, block_set, group, _group_id(prefix, series, index))
        axes.set_xlabel("mean LPIPS to the source picture (dotted: the budgets)")
        axes.set_ylabel(f"mean CLIP alignment gain x{metric_format(EFFECT).scale:g}")
        axes.margins(x=0.06, y=0.1)
        return page_svg_root(figure)


def _draw_cluster(axes: Axes, block_set: str, group: Sequence[Point], gid: str) -> None:
    """Draw the points of one setting on one block set.

    A line joins them if they edit all blocks of the setting.
    """
    first = group[0]
    scale, color = metric_format(EFFECT).scale, page_color(first.series)
    if first.end:
        _draw_marks(axes, group, gid, marker="*", markersize=12, color=PAGE_INK, zorder=4)
        axes.annotate(
            first.setting, (first.distance, first.gain * scale), xytext=(7, -13), textcoords="offset points",
            fontsize=9, gid=f"{gid}-name",
        )  # fmt: skip
    elif first.whole:
        dash = DASHES[first.series // len(PAGE_COLORS) % len(DASHES)]
        path = [p.distance for p in group], [p.gain * scale for p in group]
        axes.plot(*path, color=color, linestyle=dash, linewidth=1.4, gid=f"{gid}-line")
        _draw_marks(axes, group, gid, marker="o", markersize=6, color=color, zorder=3)
    else:
        marker = BLOCK_MARKERS.get(block_set, "P")
        _draw_marks(axes, group, gid, marker=marker, markersize=5, color=color, markerfacecolor="none", zorder=2)


def _draw_marks(axes: Axes, group: Sequence[Point], gid: str, **look: Any) -> None:
    """Draw points as markers; the SVG has one element for each, in this order."""
    x, y = [p.distance for p in group], [p.gain * metric_format(EFFECT).scale for p in group]
    axes.plot(x, y, linestyle="none", gid=gid, **look)


def _add_titles(root: ElementTree.Element, points: Sequence[Point], prefix: str, title: str) -> None:
    """Give the drawing and each of its marks a title.

    Browsers show titles and read them out.
    """
    root.set("aria-labelledby", f"{prefix}-title")
    name = ElementTree.Element(f"{{{SVG}}}title", {"id": f"{prefix}-title"})
    name.text = title
    root.insert(0, name)
    drawn_groups = {element.get("id"): element for element in root.iter(f"{{{SVG}}}g")}
    for index, ((series, _), group) in enumerate(_clusters(points).items()):
        marks = drawn_groups[_group_id(prefix, series, index)].iter(f"{{{SVG}}}use")
        for mark, point in zip(list(marks), group, strict=True):
            ElementTree.SubElement(mark, f"{{{SVG}}}title").text = point.words


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
    """Return a category as column headings print it."""
    return name.removeprefix("change_").removesuffix("_object")


def block_views(group: Group) -> list[BlockView]:
    """Return one view for each setting that edits blocks.

    The strengths of a setting are rows of their own.
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
