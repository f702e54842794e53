"""The page's HTML: one Jinja2 template, everything escaped unless it was made here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from riebench import __version__
from riebench.report.plots import MARKS
from riebench.report.reading import DISTANCE, EFFECT
from riebench.scoring.profiles import metric_format


def environment() -> Environment:
    """Where templates come from and how they are filled."""
    return Environment(
        loader=PackageLoader("riebench.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def render_page(
    views: Sequence[Mapping[str, Any]], board: Markup, files: Mapping[str, str], missing: int,
    all_features: str | None = None,
) -> str:  # fmt: skip
    """Fills the template.

    Args:
        views: one per suite and model.
        board: the leaderboard.
        files: "report.css", "report.js" and "index": where they lie below the page.
        missing: pictures that are not there.
        all_features: the overview of all features' pages, if there is one.
    """
    return (
        environment()
        .get_template("index.html.j2")
        .render(
            views=views,
            board=board,
            files=files,
            missing=missing,
            all_features=all_features,
            version=__version__,
            marks=MARKS,
            gain=metric_format(EFFECT),
            distance=metric_format(DISTANCE),
        )
    )
