"""The report's HTML page: one Jinja2 template that escapes what it is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from riebench._version import __version__
from riebench.report.data import DISTANCE, EFFECT
from riebench.report.plots import MOST_NAMED
from riebench.scoring.profiles import metric_format
from riebench.utils.markup import Document


def environment() -> Environment:
    """Return the templates' environment, which escapes everything that is filled in."""
    return Environment(
        loader=PackageLoader("riebench.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def render_page(
    views: Sequence[Mapping[str, Any]], board: Markup, files: Mapping[str, str], pictures: tuple[int, int],
    all_features: str | None = None,
) -> str:  # fmt: skip
    """Return the page's HTML.

    Args:
        views: one per suite and model.
        board: the leaderboard.
        files: "report.css", "report.js" and "index": where they lie below the page.
        pictures: number of edited pictures that records name, and of those that are not there.
        all_features: the overview of all features' pages, if there is one.
    """
    return (
        environment()
        .get_template("index.html.j2")
        .render(
            views=views,
            board=board,
            files=files,
            recorded=pictures[0],
            missing=pictures[1],
            all_features=all_features,
            version=__version__,
            most_named=MOST_NAMED,
            gain=metric_format(EFFECT),
            distance=metric_format(DISTANCE),
        )
    )


def board_html(board: Document) -> Markup:
    """Return a leaderboard as HTML without its title.

    Its headings begin one level below the page's own.

    Args:
        board: the leaderboard; marks in its names are shown, never run.
    """
    return board.html(shift=1)
