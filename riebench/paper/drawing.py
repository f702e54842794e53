"""What the figures share: panels, one colour a block, intervals as bands or bars."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from riebench.paper.artefact import HIGH, LOW, Row, picked, values_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEIGHT = 3.2
WIDTH = 2.6


def panels(figure: Figure, count: int, *, apart: Sequence[bool] = ()) -> list[Axes]:
    """Axes side by side with one vertical scale.

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
    """The label of the vertical axis, whole steps below, and the lines' names at the right."""
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
    """A cell as it is drawn; nothing is drawn of a missing one."""
    value = row.get(name)
    return float(value) if isinstance(value, int | float) else float("nan")


def by_block(axes: Axes, rows: Sequence[Row], x: str, y: str, *, dashed: bool = False) -> None:
    """One line a block with its interval as a band; dashed lines carry no label."""
    for index, block in enumerate(values_of(rows, "block")):
        line(axes, picked(list(rows), block=block), x, y, color=f"C{index}", dashed=dashed, label=str(block))


def line(axes: Axes, rows: Sequence[Row], x: str, y: str, *, color: str, dashed: bool, label: str) -> None:
    """One line with its interval as a band."""
    at = [number(row, x) for row in rows]
    axes.plot(at, [number(row, y) for row in rows], color=color, marker="o", markersize=3, linewidth=1.2,
              linestyle="--" if dashed else "-", label=None if dashed else label)  # fmt: skip
    axes.fill_between(at, [number(row, y + LOW) for row in rows], [number(row, y + HIGH) for row in rows],
                      color=color, alpha=0.18, linewidth=0)  # fmt: skip


def bars(axes: Axes, rows: Sequence[Row], name: str, *, color: str, label: str | None = None) -> None:
    """Horizontal bars, one a row, with their intervals."""
    values = [number(row, name) for row in rows]
    ends = [
        [max(0.0, value - number(row, name + LOW)) for value, row in zip(values, rows, strict=True)],
        [max(0.0, number(row, name + HIGH) - value) for value, row in zip(values, rows, strict=True)],
    ]
    axes.barh(range(len(rows)), values, height=0.8, color=color, label=label, xerr=ends,
              error_kw={"linewidth": 0.7, "ecolor": "0.2"})  # fmt: skip
