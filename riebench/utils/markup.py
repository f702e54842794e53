"""Tables as LaTeX (booktabs), through pandas. What uses them needs the packages booktabs and longtable."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

MISSING = "--"
LONG_TABLE_ROWS = 40
"""Rows from which a table breaks over pages."""
LATEX_ESCAPES = str.maketrans(
    {
        "\\": r"\textbackslash ", "{": r"\{", "}": r"\}", "^": r"\textasciicircum ", "~": r"\textasciitilde ",
        **{mark: f"\\{mark}" for mark in "&%$#_"},
    }
)  # fmt: skip
TABLE_ROW = re.compile(r"^\|(.*)\|$")
CELL_BORDER = re.compile(r"(?<!\\)\|")
ESCAPED_CHARACTER = re.compile(r"\\([!-/:-@\[-`{-~])")
"""A mark that Markdown shows as it is."""
HEADING = re.compile(r"^#+ (.+)$")


def latex_table(header: Sequence[str], rows: Sequence[Sequence[Any]], caption: str = "") -> str:
    """One table, escaped.

    Args:
        header: column names.
        rows: cells of any kind; None and nan are printed as a dash, floats with six significant digits.
        caption: above it; "" for none.
    """
    import pandas as pd
    from pandas.io.formats.style import Styler

    # Strings only: pandas would print whole numbers with a gap among them as floats.
    cells = [[_latex_cell(value) for value in row] for row in rows]
    told = pd.DataFrame(cells, columns=pd.RangeIndex(len(header)), dtype=object)
    styler: Styler = told.style.hide(axis="index").format(escape="latex")
    styler = styler.relabel_index([_escape_latex(name) for name in header], axis="columns")
    long = len(rows) > LONG_TABLE_ROWS
    text = styler.to_latex(
        hrules=True,
        column_format="l" * len(header),
        environment="longtable" if long else ("table" if caption else None),
        caption=_escape_latex(caption) or None,
        position=None if long or not caption else "htbp",
    )
    # Behind the end of a line LaTeX would take a bracket or an asterisk for an argument of the line's end.
    return "% needs \\usepackage{booktabs,longtable}\n" + re.sub(r"^([\[*])", r"{}\1", text, flags=re.MULTILINE)


def _latex_cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return MISSING
    text = f"{value:.6g}" if isinstance(value, float) else " ".join(str(value).split())
    return "".join(mark for mark in text if mark.isprintable()).replace("–", MISSING)


def _escape_latex(text: str) -> str:
    """A heading or caption as pandas escapes cells; it leaves those to its caller."""
    return _latex_cell(text).translate(LATEX_ESCAPES)


def markdown_to_latex(markdown: str) -> str:
    """Every table of a Markdown text as LaTeX, its heading as caption; other text is left out.

    Args:
        markdown: tables with a line of dashes below their heads, as `riebench.analysis.tables` makes them.
    """
    parts, caption, lines = [], "", list[list[str]]()
    for line in [*markdown.splitlines(), ""]:
        heading, row = HEADING.match(line), TABLE_ROW.match(line)
        if row:
            lines.append([ESCAPED_CHARACTER.sub(r"\1", cell.strip()) for cell in CELL_BORDER.split(row[1])])
            continue
        if lines:
            parts.append(latex_table(lines[0], lines[2:], caption))
            lines = []
        if heading:
            caption = heading[1]
    return "\n".join(parts)


SPECIAL_CHARACTERS = re.compile(r"[\\`|]|<(?=[A-Za-z/!?])|(?<=\])[(\[]")
"""What a cell must not hold unmarked: ends of cells, code, HTML, and the second part of a link."""


def escape_markdown(text: str) -> str:
    """A text that Markdown shows as it is: it ends no cell and no line, and is neither HTML, link nor code."""
    return SPECIAL_CHARACTERS.sub(r"\\\g<0>", " ".join(text.split()))


def code_span(text: str) -> str:
    """A name as Markdown shows code; what would end it becomes an apostrophe."""
    told = " ".join(text.replace("`", "'").split())
    return f"`{told}`"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; names in it may come from files of others, so all cells are shown as they are."""
    lines = [[escape_markdown(text) for text in row] for row in (header, *rows)]
    told = [f"| {' | '.join(row)} |" for row in lines]
    return "\n".join([told[0], f"|{'|'.join(' --- ' for _ in header)}|", *told[1:]]) + "\n"


def csv_text(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A CSV file's text; None becomes an empty field, floats keep six significant digits."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_csv_field(value) for value in row] for row in rows)
    return buffer.getvalue()


def _csv_field(value: object) -> object:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else value
