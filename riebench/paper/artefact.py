"""One table or figure of the paper as it is stored: tables of plain rows, exact settings, a short reading."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from riebench.analysis.stats import Estimate
from riebench.errors import RiebenchError
from riebench.scoring.profiles import metric_format
from riebench.tasks.schema import Identifier, Stored
from riebench.utils.files import content_digest
from riebench.utils.markup import csv_text, latex_table, markdown, plain

Scalar = str | bool | int | float | None
Row = dict[str, Scalar]
LOW, HIGH = "_low", "_high"
MISSING = "–"
DIGITS = 6
"""Significant digits of stored numbers."""
FOLDED = 40
"""Rows from which a Markdown table is folded away."""


class Column(Stored):
    """One column of a table."""

    name: str
    """Key in the rows, heading in CSV."""
    title: str = ""
    """Heading in Markdown and LaTeX; the name if empty."""
    decimals: int | None = None
    """Of floats as printed; None prints six significant digits."""
    scale: float = 1
    """Factor of what is printed; CSV holds the number itself."""
    signed: bool = False
    """Prints a plus."""
    interval: bool = False
    """Rows also hold the ends of a 95 % interval, under the name with `_low` and `_high`."""

    @property
    def heading(self) -> str:
        """What is printed above it."""
        return self.title or self.name

    @property
    def keys(self) -> tuple[str, ...]:
        """Its keys in the rows."""
        return (self.name, self.name + LOW, self.name + HIGH) if self.interval else (self.name,)

    def cell(self, row: Mapping[str, Scalar]) -> str:
        """A row's cell as printed."""
        told = [self._one(row.get(key)) for key in self.keys]
        return told[0] if len(told) == 1 or MISSING in told else f"{told[0]} [{told[1]}, {told[2]}]"

    def _one(self, value: Scalar) -> str:
        if value is None:
            return MISSING
        if isinstance(value, bool):
            return "yes" if value else "no"
        if isinstance(value, str) or (isinstance(value, int) and self.decimals is None):
            return str(value)
        number = value * self.scale
        if self.decimals is None:
            return f"{number:.{DIGITS}g}"
        # Adding zero takes the minus from what is rounded to zero.
        rounded = round(number, self.decimals) + 0.0
        return f"{rounded:{'+' if self.signed and rounded else ''}.{self.decimals}f}"


class View(Stored):
    """A way to print a table: some columns down, the values of one across, another in the cells."""

    title: str
    """Above it."""
    down: tuple[str, ...]
    """Names of the columns that tell lines apart."""
    across: str
    """Name of the column whose values become columns, in order of appearance."""
    cell: str
    """Name of the column that is printed."""


class Table(Stored):
    """Rows of one kind."""

    name: str = Field(default="", pattern=r"^[a-z0-9-]*$")
    """Of its files, behind the artefact's; "" for the main one."""
    title: str
    """Heading, and LaTeX caption."""
    columns: tuple[Column, ...] = Field(min_length=1)
    rows: tuple[Row, ...]
    """Column name -> value; a key that a row lacks is missing there."""
    views: tuple[View, ...] = ()
    """How Markdown and LaTeX print it; all rows and columns as they are, if none."""

    @model_validator(mode="before")
    @classmethod
    def _rounded(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not {"columns", "rows"} <= set(data):
            return data
        columns = [Column.model_validate(column) for column in data["columns"]]
        order = [key for column in columns for key in column.keys]
        # The same rows are the same bytes, however the keys came to be in their order.
        rows = tuple(rounded({key: row[key] for key in [*(k for k in order if k in row), *(set(row) - set(order))]})
                     for row in data["rows"])  # fmt: skip
        return {**data, "rows": rows}

    @model_validator(mode="after")
    def _known_keys(self) -> Table:
        names = {column.name for column in self.columns}
        for row in self.rows:
            odd = sorted(set(row) - {key for column in self.columns for key in column.keys})
            if odd:
                raise ValueError(f"table {self.title!r}: a row holds {odd[0]!r}, which is no column")
        for view in self.views:
            odd = sorted({*view.down, view.across, view.cell} - names)
            if odd:
                raise ValueError(f"table {self.title!r}: a view names {odd[0]!r}, which is no column")
        return self

    def column(self, name: str) -> Column:
        """A column by name."""
        return next(column for column in self.columns if column.name == name)

    def csv(self) -> str:
        """All rows with all their keys."""
        keys = [key for column in self.columns for key in column.keys]
        return csv_text(keys, ([row.get(key) for key in keys] for row in self.rows))

    def printed(self) -> list[tuple[str, list[str], list[list[str]]]]:
        """What people read: title, header and cells of each view."""
        if not self.views:
            header = [column.heading for column in self.columns]
            return [(self.title, header, [[c.cell(row) for c in self.columns] for row in self.rows])]
        return [(view.title, *self._spread(view)) for view in self.views]

    def _spread(self, view: View) -> tuple[list[str], list[list[str]]]:
        across, cell = self.column(view.across), self.column(view.cell)
        heads = list(dict.fromkeys(across.cell(row) for row in self.rows))
        lines: dict[tuple[str, ...], list[dict[str, str]]] = {}
        for row in self.rows:
            told = lines.setdefault(tuple(self.column(name).cell(row) for name in view.down), [])
            head = across.cell(row)
            # What the view cannot tell apart stands below each other: no number hides another.
            line = next((one for one in told if head not in one), None)
            if line is None:
                told.append(line := {})
            line[head] = cell.cell(row)
        header = [*(self.column(name).heading for name in view.down), *heads]
        told_once = dict.fromkeys(
            (*place, *(line.get(head, MISSING) for head in heads)) for place, told in lines.items() for line in told
        )
        return header, [[*line] for line in told_once]

    def markdown(self, level: int) -> str:
        """Headings and tables; long ones folded away."""
        parts = []
        for title, header, cells in self.printed():
            text = markdown(header, cells)
            if len(cells) >= FOLDED:
                text = f"<details><summary>{len(cells)} rows</summary>\n\n{text}\n</details>\n"
            parts.append(f"{'#' * level} {title}\n\n{text}")
        return "\n".join(parts)

    def latex(self) -> str:
        """Booktabs tables, the titles as captions."""
        return "\n".join(latex_table(header, cells, title) for title, header, cells in self.printed())


class Artefact(Stored):
    """A table or figure of the paper with everything that is printed beside it."""

    name: Identifier
    """Its recipe's name, and that of its files."""
    title: str
    shows: str
    """What is computed, and how to read it; a paragraph of Markdown."""
    tables: tuple[Table, ...] = Field(min_length=1)
    settings: dict[str, Scalar | list[Scalar] | dict[str, Scalar]]
    """Everything that moves a number: models with revisions, steps, guidance, SAEs with hashes, seeds, prompts, draws.
    """
    notes: tuple[str, ...] = ()
    """What the numbers say, made from them: a sentence or two each."""
    alt: str
    """What the figure shows, for those who do not see it."""

    @property
    def digest(self) -> str:
        """Hash of what a figure is drawn from."""
        return content_digest([self.name, [table.model_dump(mode="json") for table in self.tables], self.settings])

    def table(self, name: str = "") -> Table:
        """A table by name."""
        return next(table for table in self.tables if table.name == name)

    def stem(self, table: Table) -> str:
        """The name of a table's files."""
        return f"{self.name}-{table.name}" if table.name else self.name

    def markdown(self, level: int = 1) -> str:
        """The whole section.

        Args:
            level: of its heading.
        """
        files = ", ".join(
            f"[{self.stem(table)}.{kind}](tables/{self.stem(table)}.{kind})"
            for table in self.tables for kind in ("csv", "tex")
        )  # fmt: skip
        parts = [
            f"{'#' * level} {self.title}\n", f"{self.shows}\n", f"![{self.alt}](figures/{self.name}.png)\n",
            "".join(f"- {_words(note)}\n" for note in self.notes),
            *(table.markdown(level + 1) for table in self.tables),
            f"{'#' * (level + 1)} Settings of {self.name}\n",
            "".join(f"- {name}: {_setting(value)}\n" for name, value in self.settings.items()),
            f"Files: {files}, [figure as SVG](figures/{self.name}.svg), [stored data](data/{self.name}.json).\n",
        ]  # fmt: skip
        return "\n".join(part for part in parts if part)


def _setting(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{_words(name)} {_setting(one)}" for name, one in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_setting(one) for one in value)
    return _words(Column(name="").cell({"": value}))


def _words(text: str) -> str:
    """A text with words of others, in which our own may be code."""
    return plain(text).replace(r"\`", "`")


def significant(value: float) -> float:
    """A number with as many digits as are stored."""
    return float(f"{value:.{DIGITS}g}")


def rounded(row: Mapping[str, Scalar]) -> Row:
    """A row as it is stored."""
    return {name: significant(value) if isinstance(value, float) else value for name, value in row.items()}


def estimated(name: str, value: Estimate) -> Row:
    """The three cells of a column with an interval.

    Args:
        name: the column's.
        value: from `riebench.analysis.stats.estimate`.
    """
    return {name: value.mean, name + LOW: value.low, name + HIGH: value.high}


def values_of(rows: Iterable[Mapping[str, Scalar]], name: str) -> list[Scalar]:
    """Different values of a column, in order of appearance."""
    return list(dict.fromkeys(row.get(name) for row in rows))


def picked(rows: Sequence[Row], **wanted: Scalar) -> list[Row]:
    """Rows that hold some values."""
    return [row for row in rows if all(row.get(name) == value for name, value in wanted.items())]


def gain_column(name: str, title: str, *, interval: bool = True) -> Column:
    """An area or a gain on the scale of CLIP: x100, two decimals, signed."""
    return Column(name=name, title=title, decimals=2, scale=100, signed=True, interval=interval)


def percent_column(name: str, title: str, *, signed: bool = False, interval: bool = True) -> Column:
    """A share in whole per cents."""
    return Column(name=name, title=title, decimals=0, scale=100, signed=signed, interval=interval)


def metric_column(metric: str) -> Column:
    """A metric, printed as all tables print it."""
    form = metric_format(metric)
    title = metric if form.scale == 1 else f"{metric} x{form.scale:g}"
    return Column(name=metric, title=title, decimals=form.decimals, scale=form.scale, signed=form.signed, interval=True)


DATA, TABLES, FIGURES, INDEX = "data", "tables", "figures", "README.md"


def data_path(out: Path, name: str) -> Path:
    """Where an artefact is stored."""
    return out / DATA / f"{name}.json"


def stored(out: Path, name: str) -> Artefact | None:
    """A stored artefact; None if there is none.

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
