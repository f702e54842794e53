"""Training curves as a figure."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from riebench.analysis.figures import COLORS, DASHES, DPI, STYLE
from riebench.saes.many import Point

PANELS = (("ev", "explained variance"), ("loss", "loss"), ("l0", "features active (L0)"), ("dead_share", "dead share"))
"""Field of a point -> what is written beside its axis."""


def curve_files(block: str, curves: Sequence[tuple[str, Sequence[Point]]]) -> dict[str, bytes]:
    """The curves of several SAEs of one block; the same curves give the same bytes with the same matplotlib.

    Args:
        block: short name.
        curves: label and points of each.

    Returns:
        File name -> content, as SVG and PNG.
    """
    # Importing matplotlib takes a second: only who draws pays for it.
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 6), layout="constrained")
        for axes, (name, words) in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
            for number, (label, points) in enumerate(curves):
                axes.plot(
                    [point.positions for point in points], [getattr(point, name) for point in points], label=label,
                    color=f"C{number % COLORS}", linestyle=DASHES[number // COLORS % len(DASHES)], linewidth=1,
                )  # fmt: skip
            axes.set_xlabel("positions")
            axes.locator_params(axis="x", nbins=5)
            axes.set_ylabel(words)
        figure.axes[0].legend(fontsize=7)
        figure.suptitle(block)
        return {f"curves_{block}.{kind}": _saved(figure, kind) for kind in ("svg", "png")}


def _saved(figure: Any, kind: str) -> bytes:
    buffer = io.BytesIO()
    metadata: dict[str, Any] = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    figure.savefig(buffer, format=kind, dpi=DPI, metadata=metadata)
    return buffer.getvalue()
