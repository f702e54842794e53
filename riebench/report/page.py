"""The page's HTML: one Jinja2 template, everything escaped unless it was made here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup, escape

from riebench._version import __version__
from riebench.report.data import DISTANCE, EFFECT
from riebench.report.plots import MARKS
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


def board_text(results: Path) -> str:
    """The leaderboard of a results folder, as Markdown. The only place where the page asks for it."""
    from riebench.analysis.leaderboard import leaderboard_text

    return leaderboard_text(results)


def board_html(text: str) -> Markup:
    """A leaderboard as HTML whose headings begin below the page's own.

    Args:
        text: Markdown; HTML in it is shown as text, never run.

    Returns:
        Tables in boxes that scroll by themselves and can be reached by keyboard.
    """
    body = re.sub(r"\A(\s*<!--.*?-->)+", "", text, flags=re.DOTALL).lstrip()
    body = re.sub(r"\A# .*\n", "", body)
    parser = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    tokens = parser.parse(body)
    label = "Leaderboard"
    for index, token in enumerate(tokens):
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1:]) + 1)}"
        if token.type == "heading_open":
            label = tokens[index + 1].content.replace("`", "")
        if token.type == "table_open":
            token.meta["label"] = label
        if token.type == "th_open":
            token.attrSet("scope", "col")
    parser.add_render_rule("table_open", _table_open)
    parser.add_render_rule("table_close", _table_close)
    return Markup(parser.renderer.render(tokens, parser.options, {}))


def _table_open(renderer: object, tokens: list[object], index: int, options: object, env: object) -> str:
    label = escape(getattr(tokens[index], "meta", {}).get("label", ""))
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{label}">\n<table class="numbers">\n'


def _table_close(renderer: object, tokens: list[object], index: int, options: object, env: object) -> str:
    return "</table>\n</div>\n"
