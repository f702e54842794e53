"""Everything that is printed, which no quoted text can steer.

These are lines, tables, progress and log messages. Names, reasons and paths come from files of others. Here alone text
goes to the terminal: control characters are escaped, and what is printed as a line is one, cut after some thousand
characters.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from logging import DEBUG, ERROR, INFO, WARNING, Handler, LogRecord, getLogger
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from riebench.errors import one_line

if TYPE_CHECKING:
    from rich.table import Table

T = TypeVar("T")

WIDEST = 10_000
"""Characters of the widest table that is printed where no window limits it."""
LINE_SECONDS = 60.0
"""Seconds after which progress gets a new line where there is no terminal, however little was done."""
SHORT_SECONDS = 1.0
"""Seconds between two such lines at least; shorter work gets none."""
LOG_LEVELS = {"debug": DEBUG, "info": INFO, "warning": WARNING, "error": ERROR}
"""Word of `--log-level` -> Python's number."""
DEFAULT_LOG_LEVEL = "info"
LIBRARY_VARIABLES = {
    "diffusers": "DIFFUSERS_VERBOSITY",
    "transformers": "TRANSFORMERS_VERBOSITY",
    "huggingface_hub": "HF_HUB_VERBOSITY",
    "datasets": "DATASETS_VERBOSITY",
}
"""Library with a log level of its own -> the variable from which it takes that level when it is imported."""

log = getLogger("riebench")
"""The package's logger; `set_log_level` sets its level."""
clock = time.monotonic


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


def print_note(text: str) -> None:
    """Print a line about what is being done, if such notes are wanted."""
    if notes_wanted():
        print_line(text, err=True)


def notes_wanted() -> bool:
    """Check that lines about what is being done, and progress, are to be shown.

    They are, unless a level above "info" was set; Python's own default level counts for other loggers only.
    """
    return log.level <= INFO


class _LogPrinter(Handler):
    """Handler that prints messages as single lines."""

    def emit(self, record: LogRecord) -> None:
        """Print a record with its level and its logger."""
        print_above_bars(f"{record.levelname.lower()} {record.name}: {record.getMessage()}")


_log_printer = _LogPrinter()


def set_log_level(word: str) -> None:
    """Choose which messages are printed beside results and errors.

    Results and errors are always printed.

    "debug": also what riebench and libraries log about their work; "info": lines about what is being done, progress,
    and warnings; "warning": warnings alone; "error": none of these. Python's warnings count as warnings.

    Args:
        word: a word of `LOG_LEVELS`.
    """
    level = LOG_LEVELS[word]
    log.setLevel(level)
    for name, variable in LIBRARY_VARIABLES.items():
        # A library that is imported later would take its own default; one that is imported keeps what it has.
        os.environ[variable] = word if level != INFO else "warning"
        getLogger(name).setLevel(level if level != INFO else WARNING)
    root = getLogger()
    root.setLevel(INFO if level == DEBUG else max(level, WARNING))
    for logger in (root, log):
        logger.removeHandler(_log_printer)
    root.addHandler(_log_printer)
    if level >= ERROR:
        warnings.simplefilter("ignore")


class ProgressBar(Generic[T]):
    """Progress of a job.

    It is a bar in a terminal or a notebook, and single lines elsewhere. A line comes with every tenth of the job and at
    least once a minute while something is done, with rate and time left; work that ends within a second gets none.
    Items can be iterated over, or counted with `update`.

    Args:
        items: what to iterate over.
        title: name of the job.
        unit: what is counted, in the singular; its plural ends in s.
        total: number of units; None for the number of items, if known.
        first: units that were done before.
        shown: False shows nothing.
        delay: seconds before a bar appears.
        leave: whether a finished bar stays on the screen.

    Attributes:
        shown: whether anything is shown.
    """

    def __init__(
        self, items: Iterable[T] = (), *, title: str, unit: str = "step", total: int | None = None, first: int = 0,
        shown: bool = True, delay: float = 0.0, leave: bool = True,
    ) -> None:  # fmt: skip
        self.items = items
        self.title, self.unit, self.first, self.done = one_line(title), unit, first, first
        self.total = len(items) if total is None and isinstance(items, Sized) and len(items) else total
        self.shown = shown and notes_wanted()
        self._note = ""
        self._bar: Any = None
        self._started = self._printed = clock()
        self._printed_done = first
        if self.shown and (in_notebook() or sys.stderr.isatty()):
            options = {"mininterval": 1.0, "delay": delay, "leave": leave, "file": sys.stderr}
            self._bar = _tqdm()(total=self.total, initial=first, desc=self.title, unit=unit, **options)

    def __iter__(self) -> Iterator[T]:
        with self:
            for item in self.items:
                yield item
                self.update()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def update(self, count: int = 1) -> None:
        """Count units as done."""
        self.done += count
        if self._bar is not None:
            self._bar.update(count)
        elif self.shown:
            waited = clock() - self._printed
            tenths = self._tenths(self.done) > self._tenths(self._printed_done)
            # The last line is printed by `close`, with the whole time.
            if self.done != self.total and (waited >= LINE_SECONDS or (tenths and waited >= SHORT_SECONDS)):
                self._print()

    def note(self, **values: str) -> None:
        """Set values that are shown behind the progress."""
        self._note = "".join(f", {name}={value}" for name, value in values.items())
        if self._bar is not None:
            self._bar.set_postfix(values, refresh=False)

    def close(self) -> None:
        """End the bar, or print a last line."""
        if self._bar is not None:
            self._bar.close()
        elif self.shown and self.done > self._printed_done and clock() - self._started >= SHORT_SECONDS:
            self._print()
        self.shown = False

    def _tenths(self, done: int) -> int:
        return 10 * done // self.total if self.total else 0

    def _print(self) -> None:
        self._printed, self._printed_done = clock(), self.done
        print_line(self._line(), err=True)

    def _line(self) -> str:
        from tqdm import tqdm

        passed = self._printed - self._started
        rate = (self.done - self.first) / passed if passed > 0 else 0.0
        speed = f"{rate:.3g} {self.unit}s/s" if rate >= 1 or not rate else f"{1 / rate:.3g} s/{self.unit}"
        if not self.total:
            return f"{self.title}: {self.done} {self.unit}s, {speed}, {tqdm.format_interval(passed)} passed{self._note}"
        share = f"{self.title}: {self.done / self.total:4.0%} ({self.done} of {self.total} {self.unit}s), {speed}"
        if self.done >= self.total or not rate:
            return f"{share}, {tqdm.format_interval(passed)} passed{self._note}"
        left = tqdm.format_interval((self.total - self.done) / rate)
        return f"{share}, {tqdm.format_interval(passed)} passed, {left} left{self._note}"


def in_notebook() -> bool:
    """Check that the process is the kernel of a notebook.

    A notebook shows bars, though it has no terminal.
    """
    return "ipykernel.zmqshell" in sys.modules


def _tqdm() -> Any:
    """Return the notebook's kind of bar if it can show one, else the terminal's."""
    with warnings.catch_warnings():
        # The notebook's own kind lacks a package there, or is called experimental: the other one serves as well.
        warnings.simplefilter("ignore")
        from tqdm.auto import tqdm
    return tqdm


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
