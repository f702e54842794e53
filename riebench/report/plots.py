"""The trade-off plot: every configuration as a point, alignment against distance, with both ends and the budgets."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from markupsafe import Markup

from riebench.analysis.configurations import EVERYTHING, Configuration, whole_configurations
from riebench.analysis.tables import per_feature_share
from riebench.analysis.tradeoff import BUDGETS
from riebench.blocks import NO_BLOCKS, default_blocks
from riebench.report.data import DISTANCE, EFFECT, Group, counts, mean
from riebench.scoring.profiles import metric_format
from riebench.utils.plots import COLORS, INK, SVG

if TYPE_CHECKING:
    from matplotlib.axes import Axes


DASHES = ("-", "--", ":", "-.")
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
        """What pointing at it says."""
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
        """Colour of a setting."""
        return COLORS[series % len(COLORS)]


def plot_points(found: Sequence[Configuration]) -> tuple[list[Point], int]:
    """All configurations that have both numbers, and how many have not."""
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
    """Draws the plot of one suite and model; None without a single point.

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
    svg = _finished(_draw(points, prefix), points, prefix, title)
    ends = tuple({c.setting: None for c in found if c.method in ENDS})
    return Plot(Markup(svg), tuple(points), names, ends, tuple(e for e in ENDS if e not in methods), unscored)


def _clusters(points: Sequence[Point]) -> dict[tuple[int, str], list[Point]]:
    """(Series, block set) -> its points by strength: what is drawn in one go."""
    found: dict[tuple[int, str], list[Point]] = {}
    for point in sorted(points, key=lambda p: (p.series, p.block_set, p.strength)):
        found.setdefault((point.series, point.block_set), []).append(point)
    return found


def _gid(prefix: str, series: int, index: int) -> str:
    return f"{prefix}-s{series}-{index}"


def _draw(points: Sequence[Point], prefix: str) -> bytes:
    # Importing matplotlib takes a second: only who draws pays for it.
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "svg.fonttype": "none", "svg.hashsalt": prefix, "font.family": "sans-serif", "font.size": 10,
        "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
    }  # fmt: skip
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(7.6, 4.6), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        for budget in BUDGETS:
            axes.axvline(budget, color=INK, alpha=0.28, linewidth=0.8, linestyle=(0, (1, 3)))
        axes.axhline(0, color=INK, alpha=0.4, linewidth=0.8)
        for index, ((series, block_set), group) in enumerate(_clusters(points).items()):
            _draw_cluster(axes, block_set, group, _gid(prefix, series, index))
        axes.set_xlabel("mean LPIPS to the source picture (dotted: the budgets)")
        axes.set_ylabel(f"mean CLIP alignment gain x{metric_format(EFFECT).scale:g}")
        axes.margins(x=0.06, y=0.1)
        axes.spines[["top", "right"]].set_visible(False)
        axes.patch.set_visible(False)
        figure.patch.set_visible(False)
        buffer = io.BytesIO()
        # Without a date and with named ids, the same results give the same bytes.
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _draw_cluster(axes: Axes, block_set: str, group: Sequence[Point], gid: str) -> None:
    """Draws the points of one setting on one block set, joined if they edit all its blocks."""
    first = group[0]
    scale, color = metric_format(EFFECT).scale, COLORS[first.series % len(COLORS)]
    if first.end:
        _marks(axes, group, gid, marker="*", markersize=12, color=INK, zorder=4)
        axes.annotate(
            first.setting, (first.distance, first.gain * scale), xytext=(7, -13), textcoords="offset points",
            fontsize=9, gid=f"{gid}-name",
        )  # fmt: skip
    elif first.whole:
        dash = DASHES[first.series // len(COLORS) % len(DASHES)]
        way = [p.distance for p in group], [p.gain * scale for p in group]
        axes.plot(*way, color=color, linestyle=dash, linewidth=1.4, gid=f"{gid}-line")
        _marks(axes, group, gid, marker="o", markersize=6, color=color, zorder=3)
    else:
        marker = BLOCK_MARKERS.get(block_set, "P")
        _marks(axes, group, gid, marker=marker, markersize=5, color=color, markerfacecolor="none", zorder=2)


def _marks(axes: Axes, group: Sequence[Point], gid: str, **look: Any) -> None:
    """Draws points as markers, of which the SVG has one element each, in this order."""
    x, y = [p.distance for p in group], [p.gain * metric_format(EFFECT).scale for p in group]
    axes.plot(x, y, linestyle="none", gid=gid, **look)


def _finished(drawn: bytes, points: Sequence[Point], prefix: str, title: str) -> str:
    """Puts words to the points, and the page's colour in the place of the ink."""
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    root = ElementTree.fromstring(drawn)
    for metadata in root.findall(f"{{{SVG}}}metadata"):
        root.remove(metadata)
    for side in ("width", "height"):
        root.attrib.pop(side, None)
    root.attrib |= {"role": "img", "aria-labelledby": f"{prefix}-title", "class": "plot"}
    name = ElementTree.Element(f"{{{SVG}}}title", {"id": f"{prefix}-title"})
    name.text = title
    root.insert(0, name)
    drawn_groups = {element.get("id"): element for element in root.iter(f"{{{SVG}}}g")}
    for index, ((series, _), group) in enumerate(_clusters(points).items()):
        marks = drawn_groups[_gid(prefix, series, index)].iter(f"{{{SVG}}}use")
        for mark, point in zip(list(marks), group, strict=True):
            ElementTree.SubElement(mark, f"{{{SVG}}}title").text = point.words
    return ElementTree.tostring(root, encoding="unicode").replace(INK, "currentColor")


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
