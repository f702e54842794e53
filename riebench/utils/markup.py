"""Tables and short documents as Markdown, CSV, LaTeX and HTML.

All are rendered from the rows themselves. Cells and names may come from untrusted files, so every format escapes them.
LaTeX goes through pandas and needs the packages booktabs and longtable.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from riebench.errors import one_line

MISSING = "--"
LONG_TABLE_ROWS = 40
"""Largest number of rows of a LaTeX table that stays on one page; longer ones may break over pages."""
LATEX_ESCAPES = str.maketrans(
    {
        "\\": r"\textbackslash ", "{": r"\{", "}": r"\}", "^": r"\textasciicircum ", "~": r"\textasciitilde ",
        **{mark: f"\\{mark}" for mark in "&%$#_"},
    }
)  # fmt: skip
SPECIAL_CHARACTERS = re.compile(r"[\\`|]|<(?=[A-Za-z/!?])|(?<=\])[(\[]")
"""Marks that a cell may hold only escaped: ends of cells, code, HTML, and the second part of a link."""
FORMULA = re.compile(r"'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
"""Beginning of a cell that spreadsheets take for a formula, in ASCII or full width, however many apostrophes precede.

With these counted too, the one that is put in front can be taken off again without doubt.
"""
CSV_QUOTED = frozenset(',"\r\n')
"""Characters with which a cell of a CSV file stands in quotes."""
NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
"""A number written as text, which is no formula."""
LOWEST_HEADING = 6
"""Level of the smallest heading that HTML has."""


def escape_markdown(text: str) -> str:
    """Escape a text for Markdown, on one line.

    It then ends no cell and is neither HTML, link nor code.
    """
    return SPECIAL_CHARACTERS.sub(r"\\\g<0>", _words(text))


def code_span(text: str) -> str:
    """Return a name as Markdown code.

    A backtick, which would end it, becomes an apostrophe.
    """
    return f"`{_code_text(text)}`"


def _code_text(text: str) -> str:
    return _words(text.replace("`", "'"))


def _words(text: str) -> str:
    """Return a text on one line, without what would steer a terminal."""
    return one_line(" ".join(text.split()), longest=None)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table with every cell escaped.

    Args:
        header: column names.
        rows: cells, as many a row as there are columns.
    """
    head, *body = (f"| {' | '.join(escape_markdown(text) for text in row)} |" for row in (header, *rows))
    return "\n".join([head, f"|{'|'.join(' --- ' for _ in header)}|", *body]) + "\n"


def latex_table(header: Sequence[str], rows: Sequence[Sequence[Any]], caption: str = "") -> str:
    """Return a LaTeX table with every cell escaped.

    Args:
        header: column names.
        rows: cells of any kind; None and nan are printed as a dash, floats with six significant digits.
        caption: printed above the table; "" for none.
    """
    import pandas as pd
    from pandas.io.formats.style import Styler

    # Strings only: pandas would print whole numbers with a gap among them as floats.
    cells = [[_latex_text(value) for value in row] for row in rows]
    data = pd.DataFrame(cells, columns=pd.RangeIndex(len(header)), dtype=object)
    styler: Styler = data.style.hide(axis="index").format(escape="latex")
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


def _latex_text(value: Any) -> str:
    """Return a cell as one line of printable text, not yet escaped."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return MISSING
    text = f"{value:.6g}" if isinstance(value, float) else " ".join(str(value).split())
    return "".join(mark for mark in text if mark.isprintable()).replace("–", MISSING)


def _escape_latex(text: str) -> str:
    """Escape a heading or caption as pandas escapes cells.

    pandas leaves those to its caller.
    """
    return _latex_text(text).translate(LATEX_ESCAPES)


def csv_text(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a CSV file's text.

    None becomes an empty field, floats keep six significant digits. A word that a spreadsheet would take for a formula
    gets an apostrophe in front; `csv_rows` takes it off again.
    """
    return "".join(f"{','.join(_csv_field(value) for value in row)}\n" for row in (header, *rows))


def csv_rows(lines: Iterable[str]) -> list[dict[str, str]]:
    """Read a file of `csv_text` by its header.

    Args:
        lines: the file's lines.

    Returns:
        Column -> text, for each row.
    """
    header, *rows = [[_plain_field(text) for text in row] for row in csv.reader(lines)] or [[]]
    return [dict(zip(header, row, strict=False)) for row in rows]


def _csv_field(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    if FORMULA.match(text) and not NUMBER.fullmatch(text):
        text = f"'{text}"
    # The csv module leaves a carriage return alone, which its own and other readers take for the end of a row.
    return '"{}"'.format(text.replace('"', '""')) if CSV_QUOTED & {*text} else text


def _plain_field(text: str) -> str:
    return text[1:] if text.startswith("'") and FORMULA.match(text) else text


@dataclass(frozen=True)
class Name:
    """A word from a file, which may hold anything.

    Every format shows it as it is, on one line.
    """

    text: str


@dataclass(frozen=True)
class Code:
    """A word that is set as code."""

    text: str


Piece = str | Name | Code
"""A part of a line: riebench's own words, which hold no Markdown marks, or a word that is escaped or set as code."""


def _markdown_line(pieces: Iterable[Piece]) -> str:
    return "".join(
        escape_markdown(piece.text)
        if isinstance(piece, Name)
        else code_span(piece.text)
        if isinstance(piece, Code)
        else piece
        for piece in pieces
    )


def _html_line(pieces: Iterable[Piece]) -> Markup:
    line = Markup()
    for piece in pieces:
        line += Markup("<code>{}</code>").format(_shown(piece)) if isinstance(piece, Code) else _shown(piece)
    return line


def _shown(piece: Piece) -> str:
    """Return the characters of a piece as a reader sees them, not escaped."""
    if isinstance(piece, Name):
        return " ".join(piece.text.split())
    return _code_text(piece.text) if isinstance(piece, Code) else piece


@dataclass(frozen=True)
class Heading:
    """A heading; level 1 is the document's title."""

    level: int
    pieces: tuple[Piece, ...]

    @property
    def text(self) -> str:
        """The heading without marks or escapes, for captions and labels."""
        return "".join(map(_shown, self.pieces))


@dataclass(frozen=True)
class Paragraph:
    """A paragraph of text."""

    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class BulletList:
    """A list with one line an item."""

    items: tuple[tuple[Piece, ...], ...]


@dataclass(frozen=True)
class MarkupTable:
    """A table of strings, as a document prints it."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, header: Iterable[str], rows: Iterable[Iterable[str]]) -> MarkupTable:
        """Return the table of a header and rows of any sequence type."""
        return cls(tuple(header), tuple(tuple(row) for row in rows))

    def html(self, label: str) -> Markup:
        """Return the table in a box that scrolls by itself and can be reached by keyboard.

        Args:
            label: names the box for those who cannot see it.
        """
        head = _html_row('<th scope="col">{}</th>\n', self.header)
        rows = Markup("").join(_html_row("<td>{}</td>\n", row) for row in self.rows)
        body = Markup("<tbody>\n{}</tbody>\n").format(rows) if rows else ""
        return Markup(
            '<div class="scroll" role="region" tabindex="0" aria-label="{}">\n<table class="numbers">\n'
            "<thead>\n{}</thead>\n{}</table>\n</div>\n"
        ).format(label, head, body)


def _html_row(cell_format: str, row: Iterable[str]) -> Markup:
    cells = Markup("").join(Markup(cell_format).format(" ".join(cell.split())) for cell in row)
    return Markup("<tr>\n{}</tr>\n").format(cells)


Block = Heading | Paragraph | BulletList | MarkupTable


@dataclass(frozen=True)
class Document:
    """Headings, paragraphs, lists and tables in order.

    Attributes:
        blocks: the content, usually with a heading of level 1 as the title.
        comment: a line at the top of the Markdown that readers of the rendered text do not see; "" for none.
    """

    blocks: tuple[Block, ...]
    comment: str = ""

    def markdown(self) -> str:
        """Return the document as Markdown, with an empty line between blocks."""
        text = "\n".join(_markdown_block(block) for block in self.blocks)
        return f"<!-- {self.comment} -->\n{text}" if self.comment else text

    def latex(self) -> str:
        """Return every table as LaTeX; all other text is left out.

        The heading above a table is its caption.
        """
        tables, caption = [], ""
        for block in self.blocks:
            if isinstance(block, Heading):
                caption = block.text
            elif isinstance(block, MarkupTable):
                tables.append(latex_table(block.header, block.rows, caption))
        return "\n".join(tables)

    def html(self, shift: int = 0) -> Markup:
        """Return the document as HTML with everything escaped.

        Args:
            shift: levels by which headings move down, for a page that has headings of its own. With a shift the
                title, a heading of level 1, is left out: the page has that too.

        Returns:
            The blocks; each table is labelled by the heading above it.
        """
        parts, label = [], ""
        for block in self.blocks:
            if isinstance(block, Heading):
                label = block.text
                if shift and block.level == 1:
                    continue
            parts.append(_html_block(block, shift, label))
        return Markup("").join(parts)


def _markdown_block(block: Block) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {_markdown_line(block.pieces)}\n"
    if isinstance(block, Paragraph):
        return f"{_markdown_line(block.pieces)}\n"
    if isinstance(block, BulletList):
        return "\n".join(f"- {_markdown_line(item)}" for item in block.items) + "\n"
    return markdown_table(block.header, block.rows)


def _html_block(block: Block, shift: int, label: str) -> Markup:
    if isinstance(block, Heading):
        level = min(LOWEST_HEADING, block.level + shift)
        return Markup("<h{0}>{1}</h{0}>\n").format(level, _html_line(block.pieces))
    if isinstance(block, Paragraph):
        return Markup("<p>{}</p>\n").format(_html_line(block.pieces))
    if isinstance(block, BulletList):
        items = Markup("").join(Markup("<li>{}</li>\n").format(_html_line(item)) for item in block.items)
        return Markup("<ul>\n{}</ul>\n").format(items)
    return block.html(label)
