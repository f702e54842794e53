"""Rows that wait for a batch: those that leave their source runs at the same place go together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from riebench.generation.edits import Edit
from riebench.generation.prefix import Prefix
from riebench.planning import Unit

HELD = 2
"""Chunks of examples whose rows, and with them shared activations, may wait; those of one more are being made."""


@dataclass(frozen=True)
class Row:
    """One row of a coming batch.

    Attributes:
        unit: what it will be.
        edit: at the unit's strength.
        prompt: the source prompt.
        noise: the noise seed.
        details: what its record will say.
        prefix: holds its source run, if that was kept.
    """

    unit: Unit
    edit: Edit
    prompt: str
    noise: int
    details: Mapping[str, Any]
    prefix: Prefix | None

    @property
    def rank(self) -> tuple[int, int]:
        """Where it leaves its source run; the same for rows that leave at the same place."""
        if self.prefix is None:
            return 0, -1
        return self.prefix.rank(self.prefix.cut(self.edit))


def prefixes(rows: Sequence[Row]) -> list[Prefix]:
    """The source runs of some rows, each batch of them once."""
    return list({id(row.prefix): row.prefix for row in rows if row.prefix is not None}.values())


@dataclass
class Waiting:
    """Rows by the place where they leave their source runs."""

    _rows: dict[tuple[int, int], list[Row]] = field(default_factory=dict)

    def add(self, row: Row, size: int) -> list[Row]:
        """Takes a row; returns a batch as soon as one of that size is full, else nothing."""
        rank = row.rank
        rows = self._rows.setdefault(rank, [])
        rows.append(row)
        return self._rows.pop(rank) if len(rows) >= size else []

    def take(self, size: int) -> list[Row]:
        """A last batch of at most that size: the rows that leave first, with those that leave next."""
        rows = [row for rank in sorted(self._rows) for row in self._rows[rank]]
        self._rows.clear()
        for row in rows[size:]:
            self._rows.setdefault(row.rank, []).append(row)
        return rows[:size]

    @property
    def crowded(self) -> bool:
        """Whether rows of more than `HELD` chunks of examples wait."""
        return len(prefixes([row for rows in self._rows.values() for row in rows])) > HELD
