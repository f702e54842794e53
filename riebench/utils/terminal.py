"""Everything that is printed: lines and tables that no quoted text can steer.

Names, reasons and paths come from files of others. Here alone text goes to the terminal: control characters are
escaped, and what is printed as a line is one, cut after some thousand characters.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from logging import Handler, LogRecord, getLogger
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


class _Held(Handler):
    """Handler that keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[LogRecord] = []

    def emit(self, record: LogRecord) -> None:
        """Keep a record."""
        self.records.append(record)


@contextmanager
def warnings_held(*libraries: str) -> Iterator[list[str]]:
    """Hold back what libraries warn of, until it is known whether they succeed.

    After a success the warnings are printed as ever. An error of riebench says in its one line what is wrong, and what
    the library has to say about it would only stand before that.

    Args:
        libraries: loggers whose messages are held, beside Python's own warnings.

    Yields:
        The texts of Python's warnings; filled at the end, also after an error.
    """
    texts: list[str] = []
    held = {name: _Held() for name in libraries}
    usual = {name: (list(getLogger(name).handlers), getLogger(name).propagate) for name in libraries}
    for name, handler in held.items():
        getLogger(name).handlers[:], getLogger(name).propagate = [handler], False
    try:
        with warnings.catch_warnings(record=True) as caught:
            # Which of them are shown, or are errors, is decided when they are printed.
            warnings.simplefilter("always")
            try:
                yield texts
            finally:
                texts += [str(one.message) for one in caught]
    finally:
        for name, state in usual.items():
            getLogger(name).handlers[:], getLogger(name).propagate = state
    for one in caught:
        warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    for name, handler in held.items():
        for record in handler.records:
            getLogger(name).callHandlers(record)


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
