"""The figure of docs/architecture.md: layers, and the way of one edited picture.

`python docs/images/architecture.py [--png FILE]` writes architecture.svg beside this file.
"""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

MAKING, MEASURING, SHARED = "#dbe7f6", "#fbe3cd", "#eeeeee"
EDGE, TEXT, WAY = "#5b6570", "#1d2329", "#b3261e"
LEFT, WHOLE, RIGHT = (1.1, 5.0), (1.1, 11.0), (7.1, 5.0)
HEIGHT, STEP = 0.62, 0.8


@dataclass(frozen=True)
class Box:
    """One layer, or one of two packages that share a layer.

    Attributes:
        row: counted from below.
        span: left end and width.
        name: of the package.
        what: what it holds, in a few words.
        color: of the box.
    """

    row: int
    span: tuple[float, float]
    name: str
    what: str
    color: str = SHARED

    @property
    def middle(self) -> tuple[float, float]:
        """Centre of the box."""
        return self.span[0] + self.span[1] / 2, self.row * STEP + HEIGHT / 2


BOXES = (
    Box(15, WHOLE, "cli", "commands, their options, one-line errors"),
    Box(14, WHOLE, "api", "the Python interface: runs, results, single edits"),
    Box(13, LEFT, "paper", "the paper's tables and figures"),
    Box(13, RIGHT, "sae_validity", "SAEs of known quality"),
    Box(12, LEFT, "difference", "why two runs differ"),
    Box(12, RIGHT, "elastic", "evenly spaced strengths"),
    Box(11, WHOLE, "jobs", "a command's work from request to tables; forecasts; doctor"),
    Box(10, WHOLE, "report", "the page with every picture", MEASURING),
    Box(9, WHOLE, "toyworld", "the small world with a known truth, its networks"),
    Box(8, LEFT, "features", "single features by hand", MAKING),
    Box(8, RIGHT, "training", "SAEs from a model's updates"),
    Box(7, LEFT, "runs", "plan, loop, engines", MAKING),
    Box(7, RIGHT, "analysis", "intervals, tables, leaderboard", MEASURING),
    Box(6, LEFT, "methods", "from an example to an edit", MAKING),
    Box(6, RIGHT, "scoring", "metrics, networks, profiles", MEASURING),
    Box(5, LEFT, "generation", "pictures, hooks, edits, masks", MAKING),
    Box(4, LEFT, "saes", "stored SAEs and their formats", MAKING),
    Box(4, RIGHT, "store", "records, scores, seals", MEASURING),
    Box(3, WHOLE, "models", "model families, weights, placement"),
    Box(2, WHOLE, "tasks", "task and setting files, prompts, importers"),
    Box(1, WHOLE, "utils", "files, YAML, hub, machine, pictures"),
    Box(0, WHOLE, "registry, blocks, errors", "names of what can be plugged in, names of blocks, messages"),
)
STATIONS = ((2, 0.55), (7, 0.55), (6, 0.55), (5, 0.55), (4, 12.65), (6, 12.65), (7, 12.65), (10, 12.65))
"""Row and horizontal place of the stations 1 to 8 of a picture's way."""
CROSSING = 4
"""The station after which the way leaves the making side for the measuring side."""


def draw_way(axes: Axes) -> None:
    """Draw the numbered way of one edited picture.

    It goes up to the loop, down to the generator, across to the store, and up again.
    """
    points = [(x, row * STEP + HEIGHT / 2) for row, x in STATIONS]
    style = {"arrowstyle": "-|>", "color": WAY, "linewidth": 2.2, "mutation_scale": 14}
    for number, (start, end) in enumerate(pairwise(points), start=1):
        if number == CROSSING:
            continue
        # The way up to the loop passes the stations that follow, so it swings out to the left.
        bend = "arc3,rad=-0.22" if number == 1 else "arc3,rad=0"
        axes.annotate(
            "", xy=end, xytext=start, arrowprops={**style, "connectionstyle": bend, "shrinkA": 11, "shrinkB": 12}
        )
    (left, width), right = LEFT, RIGHT[0]
    gap, above, below = (left + width + right) / 2, points[CROSSING - 1][1], points[CROSSING][1]
    axes.plot([left + width, gap, gap], [above, above, below], color=WAY, linewidth=2.2)
    axes.annotate("", xy=(right, below), xytext=(gap, below), arrowprops={**style, "shrinkA": 0, "shrinkB": 0})
    for number, (x, y) in enumerate(points, start=1):
        axes.plot([x], [y], marker="o", markersize=19, color=WAY, zorder=3)
        axes.text(x, y, str(number), color="white", ha="center", va="center_baseline", weight="bold", zorder=4)


def draw() -> Figure:
    """Return the figure."""
    figure = Figure(figsize=(10.6, 10.6), facecolor="white")
    axes = figure.add_axes((0.01, 0.01, 0.98, 0.98))
    axes.set_xlim(0, 13.2)
    axes.set_ylim(-0.25, 13.95)
    axes.axis("off")
    for box in BOXES:
        x, y = box.span[0], box.row * STEP
        axes.add_patch(
            FancyBboxPatch(
                (x, y), box.span[1], HEIGHT, boxstyle="round,pad=0,rounding_size=0.08", facecolor=box.color,
                edgecolor=EDGE, linewidth=1,
            )
        )  # fmt: skip
        axes.text(x + 0.18, box.middle[1], box.name, fontsize=11.5, weight="bold", color=TEXT, va="center")
        axes.text(x + box.span[1] - 0.18, box.middle[1], box.what, fontsize=9.5, color=TEXT, va="center", ha="right")
    draw_way(axes)
    top = (max(box.row for box in BOXES) + 1) * STEP + 0.1
    axes.text(LEFT[0], top + 0.5, "Each layer imports from the layers below it only.", fontsize=11, color=TEXT)
    for x, color, name in ((1.1, MAKING, "making"), (3.3, MEASURING, "measuring"), (5.9, SHARED, "used by both")):
        axes.add_patch(FancyBboxPatch((x, top + 0.02), 0.4, 0.26, boxstyle="round,pad=0,rounding_size=0.05",
                                      facecolor=color, edgecolor=EDGE, linewidth=1))  # fmt: skip
        axes.text(x + 0.55, top + 0.14, name, fontsize=10.5, color=TEXT, va="center")
    axes.plot([8.6, 9.2], [top + 0.14, top + 0.14], color=WAY, linewidth=2.2)
    axes.text(9.35, top + 0.14, "way of one edited picture", fontsize=10.5, color=TEXT, va="center")
    return figure


def digest() -> str:
    """Return the SHA-256 of this file."""
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


def main() -> None:
    """Write the figure as SVG, and as PNG where asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--png", type=Path, help="also write a PNG")
    options = parser.parse_args()
    # The same bytes on every machine: no date, and no random names inside.
    matplotlib.rcParams["svg.hashsalt"] = "riebench"
    figure = draw()
    # The digest says which state of this file was drawn; a test compares it.
    metadata = {"Date": None, "Description": f"drawn by architecture.py {digest()}"}
    figure.savefig(Path(__file__).with_suffix(".svg"), metadata=metadata)
    if options.png is not None:
        figure.savefig(options.png, dpi=110)


if __name__ == "__main__":
    main()
