"""Streamed prompts for the collection of updates.

They are the lines of a text file, a column of a data set, or toy-world captions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from riebench.errors import RiebenchError, near_match
from riebench.tasks.importers.rows import DatasetSource, open_rows

_NUMBER = re.compile(r"\s*[-+]?[\d.,]+\s*")
"""A number as tables write it."""


@dataclass(frozen=True)
class ToyCaptions:
    """Captions of random toy-world scenes.

    Attributes:
        count: the number of captions.
        make: returns so many captions, the same ones for every call.
    """

    count: int
    make: Callable[[int], Iterator[str]]


@dataclass(frozen=True)
class PromptSource:
    """A source of prompts: exactly one of a file, a data set and the toy world.

    Attributes:
        file: a text file, one prompt a line.
        dataset: a data set on the hub, in a folder or in a file.
        column: its column with the prompts; None for the only one with text.
        captions: captions of random toy-world scenes.

    Raises:
        RiebenchError: if none or several are given.
    """

    file: Path | None = None
    dataset: DatasetSource | None = None
    column: str | None = None
    captions: ToyCaptions | None = None

    def __post_init__(self) -> None:
        if sum(one is not None for one in (self.file, self.dataset, self.captions)) != 1:
            raise RiebenchError("give the prompts as one of --prompts FILE, --dataset ID and --toy-captions N")
        if self.column is not None and self.dataset is None:
            raise RiebenchError("--column names a data set's column; give --dataset too")

    def count(self) -> int | None:
        """Return the number of prompts, or None if it cannot be known beforehand.

        A file is read through once.

        Raises:
            RiebenchError: if the file cannot be read, or holds none.
        """
        if self.file is not None:
            return sum(1 for _ in self.read())
        return None if self.captions is None else self.captions.count

    def read(self) -> Iterator[str]:
        """Yield the prompts in a fixed order, without the empty ones.

        Raises:
            RiebenchError: if they cannot be read, or there is none.
        """
        found = False
        for prompt in self._all():
            found = True
            yield prompt
        if not found:
            where = self.file or (self.dataset.name if self.dataset else "the toy world")
            raise RiebenchError(f"no data left: {where} holds no prompt")

    def _all(self) -> Iterator[str]:
        if self.file is not None:
            return _lines(self.file)
        if self.dataset is not None:
            return _column(self.dataset, self.column)
        return iter(()) if self.captions is None else self.captions.make(self.captions.count)


def _lines(file: Path) -> Iterator[str]:
    try:
        with file.open(encoding="utf-8") as lines:
            yield from (line.strip() for line in lines if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise RiebenchError(f"--prompts {file}: cannot be read ({error})") from error


def _column(place: DatasetSource, column: str | None) -> Iterator[str]:
    for number, row in enumerate(open_rows(place).read(place.name)):
        if column is None:
            # In tables of text numbers are text too, and no prompts.
            texts = [name for name, value in row.items() if isinstance(value, str) and not _NUMBER.fullmatch(value)]
            if len(texts) != 1:
                raise RiebenchError(
                    f"{place.name} has {len(texts)} columns of text; choose one with --column: {', '.join(row)}"
                )
            column = texts[0]
        if column not in row:
            raise RiebenchError(f"{place.name} has no column {column!r}{near_match(column, row)}")
        value = row[column]
        if value is not None and not isinstance(value, str):
            raise RiebenchError(f"{place.name}: column {column!r} holds no text but {type(value).__name__}")
        if not number and value is not None and _NUMBER.fullmatch(value):
            raise RiebenchError(f"{place.name}: column {column!r} holds no text but numbers")
        if value is not None and value.strip():
            yield value.strip()
