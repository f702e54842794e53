"""Scores of a run by column, as tables read hundreds of thousands of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from riebench.store.parquet import plain_list
from riebench.store.records import ScoreRecord

if TYPE_CHECKING:
    import pyarrow as pa

ScoreKey = tuple[str, str, str]
"""Unit digest, metric, backbone: scores of one picture by several networks are kept side by side."""
Measured = tuple[str, str]
"""Metric, backbone."""


@dataclass(frozen=True)
class Series:
    """All scores of one metric by one network.

    They are columns of equal length in the order in which they were measured.

    Attributes:
        units: digests of units, no two alike.
        pictures: `EditRecord.picture_id` of each measured picture.
        versions: of the metric.
        values: the numbers; None without one.
        reasons: reasons why there is no number; None with one.
        invocations: places in run.json's list; None if not known.
        places: places in the file, by which measurements of several networks have an order.
        rows: unit digest -> its place in the columns.
    """

    units: list[str]
    pictures: list[str]
    versions: list[int]
    values: list[float | None]
    reasons: list[str | None]
    invocations: list[int | None]
    places: list[int]
    rows: dict[str, int]


class _Rows:
    """Places of units in columns.

    Series of the same units in the same order, as most are, share them.
    """

    def __init__(self) -> None:
        self._units: list[str] = []
        self._rows: dict[str, int] = {}

    def of(self, units: list[str]) -> dict[str, int]:
        """Return unit digest -> its place."""
        if units != self._units:
            self._units, self._rows = units, {unit: row for row, unit in enumerate(units)}
        return self._rows


class ScoreTable:
    """Latest scores of a run, by column.

    Args:
        table: the checked columns, of a file (`riebench.store.parquet.read_score_table`) or of single scores
            (`score_columns` there); no unit has two scores of one metric by one network.
    """

    def __init__(self, table: pa.Table) -> None:
        self._table = table.combine_chunks()
        self._rows = _Rows()
        self._vocabularies: dict[str, list[str]] = {}

    @cached_property
    def _groups(self) -> Mapping[Measured, Any]:
        """Places of the rows of each metric and network, as an integer array."""
        import numpy as np

        metrics, backbones = self._column("metric"), self._column("backbone")
        names = backbones.dictionary.to_pylist()
        codes = _numbers(metrics.indices) * max(len(names), 1) + _numbers(backbones.indices)
        found = {}
        for code in np.unique(codes):
            metric = metrics.dictionary[int(code) // max(len(names), 1)].as_py()
            found[metric, names[int(code) % max(len(names), 1)]] = np.flatnonzero(codes == code)
        return dict(sorted(found.items(), key=lambda group: int(group[1][-1])))

    def _column(self, name: str) -> Any:
        import pyarrow as pa

        column = self._table.column(name)
        return column.chunk(0) if column.num_chunks else pa.array([], column.type)

    @property
    def measured(self) -> tuple[Measured, ...]:
        """Metrics with their networks, in the order of their last score."""
        return tuple(self._groups)

    def has_values(self, metric: str, backbone: str) -> bool:
        """Return whether a metric by one network has any number."""
        places = self._groups.get((metric, backbone))
        return places is not None and bool(self._measured_rows[places].any())

    @cached_property
    def _measured_rows(self) -> Any:
        """True for the rows with a number."""
        return self._column("value").is_valid().to_numpy(zero_copy_only=False)

    def series(self, metric: str, backbone: str) -> Series:
        """Return the scores of one metric by one network; empty columns if there are none."""
        places = self._groups.get((metric, backbone))
        if places is None:
            return Series([], [], [], [], [], [], [], {})
        first, last = int(places[0]), int(places[-1])
        # Rows of one metric stand together; a slice of them copies nothing.
        together = last - first + 1 == len(places)
        rows = self._table.slice(first, len(places)) if together else self._table.take(places)
        columns = {name: plain_list(rows.column(name)) for name in ("version", "value", "reason", "invocation")}
        units = self._words("unit", places)
        return Series(
            units, self._words("picture", places), columns["version"], columns["value"], columns["reason"],
            columns["invocation"], places.tolist(), self._rows.of(units),
        )  # fmt: skip

    def _words(self, name: str, places: Any) -> list[str]:
        """Return some rows of a column of words; each word is decoded once."""
        column = self._column(name)
        words = self._vocabularies.setdefault(name, column.dictionary.to_pylist())
        return [words[code] for code in _numbers(column.indices)[places].tolist()]

    def scores(self) -> Iterator[ScoreRecord]:
        """Yield all scores in their order."""
        columns = {name: plain_list(self._table.column(name)) for name in self._table.column_names}
        for values in zip(*columns.values(), strict=True):
            yield ScoreRecord.model_validate(dict(zip(columns, values, strict=True)))


def _numbers(indices: Any) -> Any:
    """Return an Arrow array of integers as a NumPy array."""
    import numpy as np

    return indices.to_numpy(zero_copy_only=False).astype(np.int64)
