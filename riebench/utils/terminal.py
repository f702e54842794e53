"""Everything that is printed: lines and tables that no quoted text can steer.

Names, reasons and paths come from files of others. Here alone text goes to the terminal: control characters are
escaped, and what is printed as a line is one, cut after some thousand characters.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from riebench.errors import one_line

if TYPE_CHECKING:
    from rich.table import Table


WIDEST = 10_000
"""Characters of the widest table that is printed where no window limits it."""


def print_line(text: object = "", *, err: bool = False) -> None:
    """Print one line.

    Args:
        text: what is printed.
        err: print to standard error, which standard output leaves to results.
    """
    print(one_line(str(text)), file=sys.stderr if err else sys.stdout)


def print_document(text: str) -> None:
    """Print several lines to standard output, none of them cut.

    Args:
        text: a document whose line ends are its own; those of words in it must be gone already.
    """
    print("\n".join(one_line(line, longest=None) for line in text.removesuffix("\n").split("\n")))


def print_above_bars(text: str) -> None:
    """Print one line to standard error, above the progress bars that are there."""
    from tqdm import tqdm

    tqdm.write(one_line(text), file=sys.stderr)


def add_row(table: Table, *cells: str, end_section: bool = False) -> None:
    """Add a row of plain text to a table; words in brackets are no markup there."""
    from rich.text import Text

    table.add_row(*(Text(one_line(cell)) for cell in cells), end_section=end_section)


def table_width(table: Table) -> int:
    """Return the characters of a table's longest line where nothing is folded."""
    from rich.console import Console
    from rich.measure import Measurement

    console = Console()
    return Measurement.get(console, console.options.update(max_width=WIDEST), table).maximum


def window_width() -> int | None:
    """Return the characters of a terminal's line; None for a file or a pipe."""
    from rich.console import Console

    console = Console()
    return console.width if console.is_terminal else None


def print_table(table: Table) -> None:
    """Print a table to standard output, as wide as it is where no window limits it."""
    from rich.console import Console

    width = None if window_width() is not None else table_width(table)
    Console(width=width, markup=False, emoji=False).print(table)
