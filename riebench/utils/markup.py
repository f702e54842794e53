"""Tables as Markdown, CSV and LaTeX, with all cell texts escaped.

Names in a table may come from untrusted files; none of them can end a cell or become a link, HTML or a command. LaTeX
tables are made through pandas and need the packages booktabs and longtable.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

MISSING = "--"
"""Text of a LaTeX cell without a value."""

LONG_TABLE_ROWS = 40
"""Most rows of a LaTeX table that stays on one page."""

LATEX_ESCAPES = str.maketrans(
    {
        "\\": r"\textbackslash ", "{": r"\{", "}": r"\}", "^": r"\textasciicircum ", "~": r"\textasciitilde ",
        **{character: f"\\{character}" for character in "&%$#_"},
    }
)  # fmt: skip
"""Translation of the characters that have a meaning in LaTeX."""

TABLE_ROW = re.compile(r"^\|(.*)\|$")
"""A row of a Markdown table."""

CELL_BORDER = re.compile(r"(?<!\\)\|")
"""Border between two cells of a Markdown row."""

ESCAPED_CHARACTER = re.compile(r"\\([!-/:-@\[-`{-~])")
"""A character escaped with a backslash, which Markdown shows as it is."""

HEADING = re.compile(r"^#+ (.+)$")
"""A Markdown heading."""

SPECIAL_CHARACTERS = re.compile(r"[\\`|]|<(?=[A-Za-z/!?])|(?<=\])[(\[]")
"""Characters that a Markdown cell must hold escaped only: cell borders, code, HTML, the second part of a link."""


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table.

    Names in it may come from untrusted files, so every cell is escaped with `escape_markdown`.
    """
    lines = [[escape_markdown(text) for text in row] for row in (header, *rows)]
    table = [f"| {' | '.join(row)} |" for row in lines]
    return "\n".join([table[0], f"|{'|'.join(' --- ' for _ in header)}|", *table[1:]]) + "\n"


def escape_markdown(text: str) -> str:
    """Escape a text so that Markdown shows it as it is.

    The result ends no cell and no line, and is neither HTML, link nor code.
    """
    return SPECIAL_CHARACTERS.sub(r"\\\g<0>", " ".join(text.split()))


def code_span(text: str) -> str:
    """Return a name as a Markdown code span; backticks become apostrophes."""
    name = " ".join(text.replace("`", "'").split())
    return f"`{name}`"


def csv_text(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return the text of a CSV file.

    None becomes an empty field, floats keep six significant digits.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_csv_field(value) for value in row] for row in rows)
    return buffer.getvalue()


def _csv_field(value: object) -> object:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else value


def latex_table(header: Sequence[str], rows: Sequence[Sequence[Any]], caption: str = "") -> str:
    """Return one LaTeX table with all texts escaped.

    Args:
        header: column names.
        rows: cells of any kind; None and nan are printed as a dash, floats with six significant digits.
        caption: the text above the table; "" for none.
    """
    import pandas as pd
    from pandas.io.formats.style import Styler

    # Strings only: pandas would print a column of whole numbers with a missing one as floats.
    cells = [[_latex_cell(value) for value in row] for row in rows]
    table = pd.DataFrame(cells, columns=pd.RangeIndex(len(header)), dtype=object)
    styler: Styler = table.style.hide(axis="index").format(escape="latex")
    styler = styler.relabel_index([_escape_latex(name) for name in header], axis="columns")
    is_long = len(rows) > LONG_TABLE_ROWS
    text = styler.to_latex(
        hrules=True,
        column_format="l" * len(header),
        environment="longtable" if is_long else ("table" if caption else None),
        caption=_escape_latex(caption) or None,
        position=None if is_long or not caption else "htbp",
    )
    # At the start of a row, LaTeX would take a bracket or an asterisk for an argument of the preceding line break.
    return "% needs \\usepackage{booktabs,longtable}\n" + re.sub(r"^([\[*])", r"{}\1", text, flags=re.MULTILINE)


def _latex_cell(value: Any) -> str:
    """Return the text of a LaTeX cell, not escaped yet."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return MISSING
    text = f"{value:.6g}" if isinstance(value, float) else " ".join(str(value).split())
    return "".join(character for character in text if character.isprintable()).replace("–", MISSING)


def _escape_latex(text: str) -> str:
    """Escape a heading or caption as pandas escapes cells.

    Pandas leaves headings and captions to its caller.
    """
    return _latex_cell(text).translate(LATEX_ESCAPES)


def markdown_to_latex(markdown: str) -> str:
    """Convert every table of a Markdown text to LaTeX.

    The heading above a table becomes its caption; other text is left out.

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
