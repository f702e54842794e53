"""A Markdown file as GitHub shows it: in a column of the same width, with tables of the same style."""

from __future__ import annotations

from pathlib import Path

from markdown_it import MarkdownIt

COLUMN, PADDING = 830, 32
"""Width of a file's column at 1,200 px with the tree of files beside it, and the space on both sides inside it, px."""
STYLE = f"""
body {{ margin: 0; background: #fff; }}
article {{ box-sizing: border-box; width: {COLUMN}px; padding: {PADDING}px; margin: 0 auto; color: #1f2328;
  font-size: 16px; line-height: 1.5; word-wrap: break-word;
  font-family: -apple-system, BlinkMacSystemFont, "Segoe UI", "Noto Sans", Helvetica, Arial, sans-serif; }}
h1 {{ font-size: 2em; padding-bottom: .3em; border-bottom: 1px solid #d1d9e0; }}
h2 {{ font-size: 1.5em; padding-bottom: .3em; border-bottom: 1px solid #d1d9e0; }}
h1, h2, h3 {{ margin: 24px 0 16px; line-height: 1.25; }}
p, ul, table {{ margin: 0 0 16px; }}
ul {{ padding-left: 2em; }}
code {{ padding: .2em .4em; font-size: 85%; border-radius: 6px; background: #818b981f;
  font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace; }}
table {{ display: block; width: max-content; max-width: 100%; overflow: auto; border-collapse: collapse; }}
th, td {{ padding: 6px 13px; border: 1px solid #d1d9e0; }}
th {{ font-weight: 600; }}
"""


def write_page(markdown: str, file: Path) -> Path:
    """Writes the page of a Markdown text and returns its file."""
    html = MarkdownIt("gfm-like", {"linkify": False}).render(markdown)
    head = f"<!doctype html><meta charset=utf-8><title>leaderboard</title><style>{STYLE}</style>"
    file.write_text(f"{head}<article>{html}</article>", encoding="utf-8")
    return file
