"""The common style of figures: files that depend on the numbers alone."""

from __future__ import annotations

import subprocess
import sys
from xml.etree import ElementTree

import matplotlib
import pytest

from riebench.utils.plots import (
    KINDS,
    PAGE_STYLE,
    FigureKind,
    figure_bytes,
    new_figure,
    page_svg_root,
    page_svg_text,
    plot_style,
    png_digest,
)


def draw(kind: FigureKind, digest: str = "") -> bytes:
    with plot_style():
        figure = new_figure((2, 1))
        figure.add_subplot().plot([0, 1], [1, 0])
        return figure_bytes(figure, kind, dpi=50, digest=digest)


@pytest.mark.parametrize("kind", KINDS)
def test_the_users_own_style_moves_nothing(kind: FigureKind) -> None:
    usual = draw(kind)
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.hashsalt": "other"}):
        assert draw(kind) == usual
        assert matplotlib.rcParams["font.size"] == 30
    assert b"<dc:date>" not in usual and b"Matplotlib" not in usual


def test_a_file_holds_the_hash_of_its_numbers() -> None:
    assert png_digest(draw("png", "abc")) == "abc" and b"riebench-numbers abc" in draw("svg", "abc")
    assert png_digest(draw("png")) is None and png_digest(b"no picture") is None


def test_a_figure_for_a_page_follows_the_pages_colour_and_size() -> None:
    with plot_style({**PAGE_STYLE, "svg.hashsalt": "one"}):
        figure = new_figure((2, 1))
        figure.add_subplot().set_xlabel("x & y")
        root = page_svg_root(figure)
    text = page_svg_text(root)
    assert "currentColor" in text and "x &amp; y" in text and "<metadata" not in text
    assert root.get("width") is None and root.get("role") == "img"
    assert ElementTree.fromstring(text).tag.endswith("svg")


def test_matplotlib_is_imported_only_where_it_is_used() -> None:
    modules = (
        "riebench.utils.plots, riebench.analysis.export.figures, riebench.report.plots, riebench.features.drawings"
    )
    line = f"import sys, {modules}; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", line], check=False).returncode == 0
