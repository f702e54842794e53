"""The report's trade-off plot of alignment against distance.

Method configurations that differ in nothing but strengths are one line. At most eight lines have a name and a colour
(`choose_named`); the others are grey and named where a reader points at them or reaches them by keyboard.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from markupsafe import Markup

from riebench.analysis.configurations import Configuration, true_access, whole_configurations
from riebench.analysis.standings import CONTROLLED, ENDS, Entry, MethodComparison
from riebench.analysis.tradeoff import BUDGETS
from riebench.report.data import DISTANCE, EFFECT, SAE_METHOD, Group, counts, mean
from riebench.scoring.profiles import metric_format
from riebench.store.records import RunSpec
from riebench.tasks.schema import sorted_access
from riebench.utils.images import SVG
from riebench.utils.plots import DASHES, PAGE_INK, PAGE_STYLE, new_figure, page_svg_root, page_svg_text, plot_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_NAMED = 8
"""Most lines that have a name and a colour."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
"""Marks of the named lines, so that no line is told by its colour alone."""
MARKS = ("●", "■", "▲", "◆", "▼", "✚", "✖", "⬟")
"""The same as characters, for the legend."""
REST_MARKER = "."
LINE_INKS = tuple(f"#0a0b{number:02x}" for number in range(1, MOST_NAMED + 1))
"""Colours that stand for the page's own line colours while matplotlib draws."""
REST_INK = "#0a0bff"
"""Likewise, for the colour of lines without a name."""
LABEL_TURN = 0.6
"""Share of the axis beyond which a label stands to the left of its point."""


@dataclass(frozen=True)
class Point:
    """One configuration with both numbers."""

    setting: str
    block_set: str
    strength: float
    whole: bool
    """Whether it edits all blocks of its method configuration; only such points are drawn."""
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
class Line:
    """One method on the plot.

    Its configurations differ in strengths alone, or belong to one group.

    Attributes:
        name: the group, or the method configuration with most strengths.
        method: the registered method.
        access: letters of the information it uses.
        settings: its method configurations.
        strengths: number of different strengths.
        joined: whether one curve joins these; members of a group have curves of their own.
        color: its colour and mark, 0 to 7; None for a line without a name.
    """

    name: str
    method: str
    access: str
    settings: tuple[str, ...]
    strengths: int
    joined: bool = True
    color: int | None = None

    @property
    def mark(self) -> str:
        """Mark of the line as a character."""
        return "·" if self.color is None else MARKS[self.color]


@dataclass(frozen=True)
class Plot:
    """A drawn plot, its legend and its table.

    Attributes:
        svg: the drawing.
        points: all configurations, those of single blocks too.
        named: lines with a name, in the order of their colours, with their positions in the drawing.
        rest: the others.
        ends: method configurations that are the ends of the scale.
        absent: ends of the scale that these results lack.
        unscored: number of configurations without numbers, which are no points.
    """

    svg: Markup
    points: tuple[Point, ...]
    named: tuple[tuple[int, Line], ...]
    rest: tuple[tuple[int, Line], ...]
    ends: tuple[str, ...]
    absent: tuple[str, ...]
    unscored: int


def plot_points(found: Sequence[Configuration]) -> tuple[list[Point], int]:
    """Return all configurations with both numbers, and how many lack one."""
    whole = {id(c) for c in whole_configurations(found)}
    points, unscored = [], 0
    for c in found:
        distance, gain = mean(c, DISTANCE), mean(c, EFFECT)
        if distance is None or gain is None:
            unscored += 1
            continue
        points.append(
            Point(c.setting, c.block_set, c.strength, id(c) in whole, c.method in ENDS, distance, gain,
                  counts(c, EFFECT), c.run_id[:8])
        )  # fmt: skip
    return points, unscored


def group_lines(group: Group) -> list[Line]:
    """Group the method configurations of a suite and model into lines.

    Ends of the scale are left out.
    """
    whole = whole_configurations(group.configurations)
    members: dict[str, list[RunSpec]] = {}
    for folder in group.folders:
        if folder.spec.setting.method not in ENDS and any(c.setting == folder.spec.setting.name for c in whole):
            members.setdefault(_line_key(folder.spec), []).append(folder.spec)
    lines = []
    for specs in members.values():
        settings = [spec.setting for spec in specs]
        strengths = {s.name: {c.strength for c in whole if c.setting == s.name} for s in settings}
        most = max(settings, key=lambda setting: len(strengths[setting.name]))
        access = sorted_access({letter for setting in settings for letter in true_access(setting)})
        names = tuple(setting.name for setting in settings)
        number = len(set().union(*strengths.values()))
        lines.append(Line(most.group or most.name, most.method, access, names, number, most.group is None))
    return lines


def _line_key(spec: RunSpec) -> str:
    """Return a text that is equal for method configurations of one line."""
    setting = spec.setting
    if setting.group is not None:
        return f"group {setting.group}"
    same = (setting.method, setting.params, setting.blocks, setting.edit_steps, setting.plugin_sha256, spec.sae_sha256)
    return json.dumps(same, sort_keys=True, default=str)


def choose_named(lines: Sequence[Line], areas: Mapping[str, float]) -> list[Line]:
    """Give at most eight lines a name and a colour.

    First the SAE method with most strengths; then of each kind of information used the best other method that is no
    control; then the controls; then what is left of SAE methods; then what is left of the others, the best first.

    Args:
        lines: all lines.
        areas: line -> mean gain over the LPIPS budgets; lines without one come last.

    Returns:
        All lines in their order, those chosen with their colour.
    """
    by_area = sorted(lines, key=lambda line: (-areas.get(line.name, float("-inf")), line.name))
    saes = sorted((line for line in by_area if line.method == SAE_METHOD), key=lambda line: -line.strengths)
    best: dict[str, Line] = {}
    for line in by_area:
        if line.method != SAE_METHOD and line.method not in CONTROLLED:
            best.setdefault(line.access, line)
    controls = sorted(
        (line for line in by_area if line.method in CONTROLLED),
        key=lambda line: (list(CONTROLLED).index(line.method), -line.strengths),
    )
    order = [*saes[:1], *sorted(best.values(), key=by_area.index), *controls, *saes[1:], *by_area]
    colors = {name: color for color, name in enumerate(list(dict.fromkeys(line.name for line in order))[:MOST_NAMED])}
    return [replace(line, color=colors.get(line.name)) for line in lines]


def budget_gains(group: Group, lines: Sequence[Line]) -> dict[str, float]:
    """Return each line's mean gain over the LPIPS budgets.

    It is computed as for the leaderboard.

    Lines that lack a number of any example have none.
    """
    whole = whole_configurations(group.configurations)
    made = [
        Entry(line.name, line.method, line.access, "", "", tuple(c for c in whole if c.setting in line.settings))
        for line in lines
    ]
    comparison = MethodComparison(tuple(made), replicates=1)
    if not comparison.examples.ids:
        return {}
    found = {entry.name: comparison.trade_off(entry) for entry in made}
    return {name: one.area.observed.mean().item() for name, one in found.items() if one is not None}


def trade_off(group: Group, prefix: str, title: str) -> Plot | None:
    """Draw the plot of one suite and model; None without a single point.

    Args:
        group: its runs.
        prefix: begins every id in the drawing; unlike that of any other on the page.
        title: the drawing's name for those who cannot see it.
    """
    found = group.configurations
    points, unscored = plot_points(found)
    if not points:
        return None
    lines = group_lines(group)
    lines = choose_named(lines, budget_gains(group, lines))
    drawn = {point.setting for point in points if point.whole}
    placed = [(index, line) for index, line in enumerate(lines) if drawn & {*line.settings}]
    methods = {c.method for c in found}
    root = _draw(points, lines, prefix)
    _name_drawing(root, points, lines, prefix, title)
    return Plot(
        Markup(_page_colors(page_svg_text(root))),
        tuple(points),
        tuple(sorted(((i, n) for i, n in placed if n.color is not None), key=lambda one: one[1].color or 0)),
        tuple((i, n) for i, n in placed if n.color is None),
        tuple({c.setting: None for c in found if c.method in ENDS}),
        tuple(end for end in ENDS if end not in methods),
        unscored,
    )


def _page_colors(text: str) -> str:
    """Let a drawing take its lines' colours from the page."""
    for color, ink in enumerate(LINE_INKS):
        text = text.replace(ink, f"var(--line-{color})")
    return text.replace(REST_INK, "var(--rest)")


def _curves(points: Sequence[Point], line: Line) -> list[list[Point]]:
    """Return the points of each of a line's curves, sorted by strength.

    On a curve that joins several method configurations, each strength has one point: that of the configuration with
    most strengths.
    """
    of = {name: [p for p in points if p.whole and p.setting == name] for name in line.settings}
    curves = [curve for curve in of.values() if curve]
    if line.joined:
        by_strength: dict[float, Point] = {}
        for curve in sorted(curves, key=len, reverse=True):
            for point in curve:
                by_strength.setdefault(point.strength, point)
        curves = [list(by_strength.values())] if by_strength else []
    return [sorted(curve, key=lambda p: p.strength) for curve in curves]


def _curve_id(prefix: str, line: int, curve: int) -> str:
    return f"{prefix}-s{line}-{curve}"


def _draw(points: Sequence[Point], lines: Sequence[Line], prefix: str) -> ElementTree.Element:
    """Draw the plot as an SVG element; each curve is a named group in it."""
    scale = metric_format(EFFECT).scale
    with plot_style({**PAGE_STYLE, "svg.hashsalt": prefix, "font.size": 10}):
        figure = new_figure((6.6, 4.3))
        axes = figure.add_subplot()
        for budget in BUDGETS:
            axes.axvline(budget, color=PAGE_INK, alpha=0.28, linewidth=0.8, linestyle=(0, (1, 3)))
        axes.axhline(0, color=PAGE_INK, alpha=0.4, linewidth=0.8)
        drawn = [p for p in points if p.whole]
        right = max((p.distance for p in drawn), default=0.0)
        # Lines with a name lie over the others.
        for index, line in sorted(enumerate(lines), key=lambda one: one[1].color is not None):
            for number, curve in enumerate(_curves(points, line)):
                gid = _curve_id(prefix, index, number)
                _draw_curve(axes, line, curve, gid)
                if line.color is None:
                    _label(axes, curve[-1], line.name, f"{gid}-name", right, dim=True)
        for number, end in enumerate(p for p in drawn if p.end):
            gid = f"{prefix}-end-{number}"
            axes.plot([end.distance], [end.gain * scale], linestyle="none", marker="*", markersize=12, color=PAGE_INK,
                      zorder=5, gid=gid)  # fmt: skip
            _label(axes, end, end.setting, f"{gid}-name", right, dim=False)
        axes.set_xlabel("mean LPIPS to the source picture (dotted: the budgets)")
        axes.set_ylabel(f"mean CLIP alignment gain x{scale:g}")
        axes.margins(x=0.06, y=0.1)
        return page_svg_root(figure)


def _draw_curve(axes: Axes, line: Line, curve: Sequence[Point], gid: str) -> None:
    """Draw the points of one curve, joined in the order of their strengths."""
    x, y = [p.distance for p in curve], [p.gain * metric_format(EFFECT).scale for p in curve]
    joined = len(curve) > 1
    if line.color is None:
        axes.plot(x, y, linestyle="-" if joined else "none", linewidth=1.0, marker=REST_MARKER, markersize=6,
                  color=REST_INK, zorder=2, gid=gid)  # fmt: skip
        return
    axes.plot(x, y, linestyle=DASHES[line.color % 2] if joined else "none", linewidth=1.9, marker=MARKERS[line.color],
              markersize=6, color=LINE_INKS[line.color], zorder=3 + (line.color == 0), gid=gid)  # fmt: skip


def _label(axes: Axes, point: Point, text: str, gid: str, right: float, *, dim: bool) -> None:
    """Write a name beside a point, on the side that has room."""
    turned = point.distance > LABEL_TURN * right
    place = point.distance, point.gain * metric_format(EFFECT).scale
    axes.annotate(
        text, place, xytext=(-7 if turned else 7, 6 if dim or point.gain > 0 else -16), textcoords="offset points",
        ha="right" if turned else "left", fontsize=9.5, zorder=6, gid=gid, annotation_clip=False,
    )  # fmt: skip


def _name_drawing(
    root: ElementTree.Element, points: Sequence[Point], lines: Sequence[Line], prefix: str, title: str
) -> None:
    """Name the drawing, its lines and each of its marks.

    Browsers show these names and read them out.

    Lines without a name in the legend can be reached by keyboard, and hold the label that shows then.
    """
    root.set("role", "group")
    root.set("aria-labelledby", f"{prefix}-title")
    name = ElementTree.Element(f"{{{SVG}}}title", {"id": f"{prefix}-title"})
    name.text = title
    root.insert(0, name)
    groups = {element.get("id"): element for element in root.iter(f"{{{SVG}}}g")}
    parents = {child: parent for parent in root.iter() for child in parent}
    for number, end in enumerate(p for p in points if p.whole and p.end):
        _name_marks(groups[f"{prefix}-end-{number}"], [end])
        groups[f"{prefix}-end-{number}-name"].set("class", "name")
    for index, line in enumerate(lines):
        for number, curve in enumerate(_curves(points, line)):
            group = groups[_curve_id(prefix, index, number)]
            _name_marks(group, curve)
            group.set("class", "rest" if line.color is None else "named")
            if line.color is None:
                group.attrib |= {"tabindex": "0", "role": "img", "aria-label": f"{line.name}, {len(curve)} strengths"}
                _widen(group)
                label = groups[f"{_curve_id(prefix, index, number)}-name"]
                parents[label].remove(label)
                label.set("class", "name")
                group.append(label)


def _name_marks(group: ElementTree.Element, points: Sequence[Point]) -> None:
    for mark, point in zip(list(group.iter(f"{{{SVG}}}use")), points, strict=True):
        ElementTree.SubElement(mark, f"{{{SVG}}}title").text = point.words


def _widen(group: ElementTree.Element) -> None:
    """Lay a wide line that nobody sees over a thin one, so that it can be pointed at."""
    thin = group.find(f"{{{SVG}}}path")
    if thin is not None:
        wide = deepcopy(thin)
        wide.set("style", "fill: none; stroke: transparent; stroke-width: 10; pointer-events: stroke")
        group.append(wide)
