"""One table or figure of the paper as it is stored, printed and read back.

An `Artefact` holds tables of plain rows, the exact settings behind them and a short reading. `Column`, `View` and
`Table` say how rows are printed as CSV, Markdown and LaTeX. The functions below them load a stored artefact, build and
select rows, and make the columns that several artefacts share.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from riebench.analysis.stats import Estimate
from riebench.errors import RiebenchError
from riebench.scoring.profiles import metric_format
from riebench.tasks.schema import Identifier, StoredModel
from riebench.utils.files import content_digest
from riebench.utils.markup import csv_text, escape_markdown, latex_table, markdown_table

Scalar = str | bool | int | float | None
Row = dict[str, Scalar]
ArtefactSettings = dict[str, Scalar | list[Scalar] | dict[str, Scalar]]
LOW, HIGH = "_low", "_high"
MISSING = "–"
SIGNIFICANT_DIGITS = 6
"""Significant digits of stored numbers."""
FOLD_FROM_ROWS = 40
"""Number of rows from which a Markdown table is folded away."""
TITLES = {"setting": "configuration", "settings": "configurations", "levels": "edit strengths"}
"""Column of texts or counts -> its heading, where that is not its name."""
DATA, TABLES, FIGURES, INDEX = "data", "tables", "figures", "README.md"


class Column(StoredModel):
    """One column of a table."""

    name: str
    """Key in the rows, heading in CSV."""
    title: str = ""
    """Heading in Markdown and LaTeX; the name if empty."""
    decimals: int | None = Field(default=None, ge=0, le=20)
    """Decimals of printed floats; None prints six significant digits."""
    scale: float = 1
    """Factor applied when printing; CSV holds the number itself."""
    signed: bool = False
    """Whether positive numbers are printed with a plus sign."""
    interval: bool = False
    """Whether rows also hold the ends of a 95 % interval, under the name with `_low` and `_high`."""

    @property
    def heading(self) -> str:
        """Heading in printed tables: the title, or the name without one."""
        return self.title or self.name

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of this column in a row: one, or three with an interval."""
        return (self.name, self.name + LOW, self.name + HIGH) if self.interval else (self.name,)

    def cell(self, row: Mapping[str, Scalar]) -> str:
        """Return the text of a row's cell as it is printed."""
        texts = [self._format(row.get(key)) for key in self.keys]
        return texts[0] if len(texts) == 1 or MISSING in texts else f"{texts[0]} [{texts[1]}, {texts[2]}]"

    def _format(self, value: Scalar) -> str:
        """Format one value: words, whole numbers, or a scaled float."""
        if value is None:
            return MISSING
        if isinstance(value, bool):
            return "yes" if value else "no"
        if isinstance(value, str) or (isinstance(value, int) and self.decimals is None):
            return str(value)
        number = value * self.scale
        if self.decimals is None:
            return f"{number:.{SIGNIFICANT_DIGITS}g}"
        # Adding zero removes the minus sign of a number that rounds to zero.
        rounded = round(number, self.decimals) + 0.0
        return f"{rounded:{'+' if self.signed and rounded else ''}.{self.decimals}f}"


class View(StoredModel):
    """Layout of a printed table.

    Some columns run down, the values of one run across, and another fills the cells.
    """

    title: str
    """Heading above the view."""
    down: tuple[str, ...]
    """Names of the columns that tell lines apart."""
    across: str
    """Name of the column whose values become columns, in order of appearance."""
    cell: str
    """Name of the column that is printed."""


class Table(StoredModel):
    """Table of rows that share their columns."""

    name: str = Field(default="", pattern=r"^[a-z0-9-]*$")
    """Suffix of its files' names, after the artefact's name; "" for the main table."""
    title: str
    """Heading in Markdown and caption in LaTeX."""
    columns: tuple[Column, ...] = Field(min_length=1)
    rows: tuple[Row, ...]
    """Column name -> value; a key that a row lacks prints as missing."""
    views: tuple[View, ...] = ()
    """Layouts in Markdown and LaTeX; without any, all rows and columns are printed as they are."""

    @model_validator(mode="before")
    @classmethod
    def _round_rows(cls, data: Any) -> Any:
        """Round floats and put the keys of each row in the order of the columns."""
        if not isinstance(data, dict) or not {"columns", "rows"} <= set(data):
            return data
        columns = [Column.model_validate(column) for column in data["columns"]]
        order = [key for column in columns for key in column.keys]
        # A fixed order of keys gives the same bytes for the same rows.
        rows = tuple(round_row({key: row[key] for key in [*(k for k in order if k in row), *(set(row) - set(order))]})
                     for row in data["rows"])  # fmt: skip
        return {**data, "rows": rows}

    @model_validator(mode="after")
    def _check_keys(self) -> Table:
        """Check that rows and views name no key that is not a column."""
        names = {column.name for column in self.columns}
        for row in self.rows:
            unknown = sorted(set(row) - {key for column in self.columns for key in column.keys})
            if unknown:
                raise ValueError(f"table {self.title!r}: a row holds {unknown[0]!r}, which is no column")
        for view in self.views:
            unknown = sorted({*view.down, view.across, view.cell} - names)
            if unknown:
                raise ValueError(f"table {self.title!r}: a view names {unknown[0]!r}, which is no column")
        return self

    def column(self, name: str) -> Column:
        """Return the column of this name."""
        return next(column for column in self.columns if column.name == name)

    def csv(self) -> str:
        """Return all rows with all their keys as CSV."""
        keys = [key for column in self.columns for key in column.keys]
        return csv_text(keys, ([row.get(key) for key in keys] for row in self.rows))

    def layouts(self) -> list[tuple[str, list[str], list[list[str]]]]:
        """Return what readers see of the table.

        Returns:
            Title, header and cells of each view; of the plain table if it has no views.
        """
        if not self.views:
            header = [column.heading for column in self.columns]
            return [(self.title, header, [[c.cell(row) for c in self.columns] for row in self.rows])]
        return [(view.title, *self._spread(view)) for view in self.views]

    def _spread(self, view: View) -> tuple[list[str], list[list[str]]]:
        """Return header and cells of a view; equal lines are printed once."""
        across, cell = self.column(view.across), self.column(view.cell)
        heads = list(dict.fromkeys(across.cell(row) for row in self.rows))
        lines: dict[tuple[str, ...], list[dict[str, str]]] = {}
        for row in self.rows:
            stacked = lines.setdefault(tuple(self.column(name).cell(row) for name in view.down), [])
            head = across.cell(row)
            # Rows that the view cannot tell apart go on lines of their own, so that no number hides another.
            line = next((one for one in stacked if head not in one), None)
            if line is None:
                stacked.append(line := {})
            line[head] = cell.cell(row)
        header = [*(self.column(name).heading for name in view.down), *heads]
        distinct_lines = dict.fromkeys(
            (*place, *(line.get(head, MISSING) for head in heads))
            for place, stacked in lines.items()
            for line in stacked
        )
        return header, [[*line] for line in distinct_lines]

    def markdown(self, level: int) -> str:
        """Return headings and tables in Markdown; long tables are folded away.

        Args:
            level: of the headings.
        """
        parts = []
        for title, header, cells in self.layouts():
            text = markdown_table(header, cells)
            if len(cells) >= FOLD_FROM_ROWS:
                text = f"<details><summary>{len(cells)} rows</summary>\n\n{text}\n</details>\n"
            parts.append(f"{'#' * level} {title}\n\n{text}")
        return "\n".join(parts)

    def latex(self) -> str:
        """Return booktabs tables with the titles as captions."""
        return "\n".join(latex_table(header, cells, title) for title, header, cells in self.layouts())


class Artefact(StoredModel):
    """Table or figure of the paper with everything that is printed beside it."""

    name: Identifier
    """Name of its recipe and of its files."""
    title: str
    shows: str
    """Paragraph of Markdown: what is computed, and how to read it."""
    tables: tuple[Table, ...] = Field(min_length=1)
    settings: ArtefactSettings
    """Everything that moves a number: models with revisions, steps, guidance, SAEs with hashes, seeds, prompts, draws.
    """
    notes: tuple[str, ...] = ()
    """Findings made from the numbers, a sentence or two each."""
    alt: str
    """Text alternative of the figure, for readers who do not see it."""

    @property
    def digest(self) -> str:
        """Hash of everything that the figure is drawn from."""
        return content_digest([self.name, [table.model_dump(mode="json") for table in self.tables], self.settings])

    def table(self, name: str = "") -> Table:
        """Return the table of this name."""
        return next(table for table in self.tables if table.name == name)

    def stem(self, table: Table) -> str:
        """Return the name of a table's files, without their suffix."""
        return f"{self.name}-{table.name}" if table.name else self.name

    def markdown(self, level: int = 1) -> str:
        """Return the whole section in Markdown.

        Args:
            level: of its heading.
        """
        files = ", ".join(
            f"[{self.stem(table)}.{kind}](tables/{self.stem(table)}.{kind})"
            for table in self.tables for kind in ("csv", "tex")
        )  # fmt: skip
        parts = [
            f"{'#' * level} {self.title}\n", f"{self.shows}\n", f"![{self.alt}](figures/{self.name}.png)\n",
            "".join(f"- {_escape(note)}\n" for note in self.notes),
            *(table.markdown(level + 1) for table in self.tables),
            f"{'#' * (level + 1)} Settings of {self.name}\n",
            "".join(f"- {name}: {_setting_text(value)}\n" for name, value in self.settings.items()),
            f"Files: {files}, [figure as SVG](figures/{self.name}.svg), [stored data](data/{self.name}.json).\n",
        ]  # fmt: skip
        return "\n".join(part for part in parts if part)


def _setting_text(value: Any) -> str:
    """Return a settings value as Markdown text."""
    if isinstance(value, dict):
        return "; ".join(f"{_escape(name)} {_setting_text(one)}" for name, one in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_setting_text(one) for one in value)
    return _escape(Column(name="").cell({"": value}))


def _escape(text: str) -> str:
    """Escape text that may come from users; backticks stay, so that it may name code."""
    return escape_markdown(text).replace(r"\`", "`")


def data_path(out: Path, name: str) -> Path:
    """Return the path of an artefact's stored data."""
    return out / DATA / f"{name}.json"


def load_artefact(out: Path, name: str) -> Artefact | None:
    """Load a stored artefact.

    Args:
        out: the artefacts' folder.
        name: of the artefact.

    Returns:
        The artefact; None if it is not stored.

    Raises:
        RiebenchError: if its file is damaged.
    """
    path = data_path(out, name)
    if not path.exists():
        return None
    try:
        return Artefact.model_validate_json(path.read_bytes())
    except (ValidationError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise RiebenchError(f"{path} is damaged ({reason}); make it again with `riebench paper {name}`") from error


def estimate_cells(name: str, value: Estimate) -> Row:
    """Return the three cells of a column with an interval.

    Args:
        name: the column's.
        value: from `riebench.analysis.stats.estimate`.
    """
    return {name: value.mean, name + LOW: value.low, name + HIGH: value.high}


def values_of(rows: Iterable[Mapping[str, Scalar]], name: str) -> list[Scalar]:
    """Return the distinct values of a column in order of appearance."""
    return list(dict.fromkeys(row.get(name) for row in rows))


def select_rows(rows: Sequence[Row], **wanted: Scalar) -> list[Row]:
    """Return the rows that hold all the given values."""
    return [row for row in rows if all(row.get(name) == value for name, value in wanted.items())]


def round_significant(value: float) -> float:
    """Round a number to the significant digits that are stored."""
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")


def round_row(row: Mapping[str, Scalar]) -> Row:
    """Return a row with its floats rounded as they are stored."""
    return {name: round_significant(value) if isinstance(value, float) else value for name, value in row.items()}


def plain_columns(names: Iterable[str]) -> tuple[Column, ...]:
    """Return columns of texts and counts, in the order of their names."""
    return tuple(Column(name=name, title=TITLES.get(name, "")) for name in names)


def gain_column(name: str, title: str, *, interval: bool = True) -> Column:
    """Return a column of gains in CLIP score: x100, two decimals, signed."""
    return Column(name=name, title=title, decimals=2, scale=100, signed=True, interval=interval)


def percent_column(name: str, title: str, *, signed: bool = False, interval: bool = True) -> Column:
    """Return a column of shares, printed in whole per cent."""
    return Column(name=name, title=title, decimals=0, scale=100, signed=signed, interval=interval)


def metric_column(metric: str) -> Column:
    """Return a column of a metric, printed as in all other tables."""
    form = metric_format(metric)
    title = metric if form.scale == 1 else f"{metric} x{form.scale:g}"
    return Column(name=metric, title=title, decimals=form.decimals, scale=form.scale, signed=form.signed, interval=True)
