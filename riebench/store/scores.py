"""Scores of a run by column, as tables read hundreds of thousands of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from riebench.store.parquet import numbers, plain_list
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


class ScoreTable(ABC):
    """Latest scores of a run, by column."""

    @property
    @abstractmethod
    def measured(self) -> tuple[Measured, ...]:
        """Metrics with their networks, in the order of their last score."""

    @abstractmethod
    def last_place(self, metric: str, backbone: str, without: str) -> int:
        """Return the place of a metric's last score by one network, -1 if there is none.

        Args:
            metric: its name.
            backbone: the network.
            without: scores that have no value for this reason do not count.
        """

    @abstractmethod
    def has_values(self, metric: str, backbone: str) -> bool:
        """Return whether a metric by one network has any number."""

    @abstractmethod
    def series(self, metric: str, backbone: str) -> Series:
        """Return the scores of one metric by one network; empty columns if there are none."""


NOTHING = Series([], [], [], [], [], [], [], {})


class ScoreLines(ScoreTable):
    """Score table made of single scores.

    It needs none of the libraries that read files of columns.

    Args:
        scores: the latest score of every unit, metric and network, the latest last.
    """

    def __init__(self, scores: Iterable[ScoreRecord]) -> None:
        self._series: dict[Measured, Series] = {}
        for place, one in enumerate(scores):
            found = self._series.setdefault((one.metric, one.backbone), Series([], [], [], [], [], [], [], {}))
            found.rows[one.unit] = len(found.units)
            found.units.append(one.unit)
            found.pictures.append(one.picture)
            found.versions.append(one.version)
            found.values.append(one.value)
            found.reasons.append(one.reason)
            found.invocations.append(one.invocation)
            found.places.append(place)

    @property
    def measured(self) -> tuple[Measured, ...]:
        """Metrics with their networks, in the order of their last score."""
        return tuple(sorted(self._series, key=lambda pair: self._series[pair].places[-1]))

    def last_place(self, metric: str, backbone: str, without: str) -> int:
        """Return the place of a metric's last score by one network; see `ScoreTable`."""
        series = self.series(metric, backbone)
        lines = zip(reversed(series.places), reversed(series.reasons), strict=True)
        return next((place for place, reason in lines if reason != without), -1)

    def has_values(self, metric: str, backbone: str) -> bool:
        """Return whether a metric by one network has any number."""
        return any(value is not None for value in self.series(metric, backbone).values)

    def series(self, metric: str, backbone: str) -> Series:
        """Return the scores of one metric by one network; empty columns if there are none."""
        return self._series.get((metric, backbone), NOTHING)


class ScoreColumns(ScoreTable):
    """Score table read from a file of columns.

    Only columns that are asked for become lists.

    Args:
        table: the checked columns (`riebench.store.parquet.read_score_table`); no unit has two scores of one metric by
            one network.
    """

    def __init__(self, table: pa.Table) -> None:
        self._table = table.combine_chunks()
        self._rows = _Rows()
        self._vocabularies: dict[str, list[str]] = {}
        self._series: dict[Measured, Series] = {}

    @cached_property
    def _groups(self) -> Mapping[Measured, NDArray[np.int64]]:
        """Places of the rows of each metric and network."""
        metrics, backbones = self._column("metric"), self._column("backbone")
        names = backbones.dictionary.to_pylist()
        size = max(len(names), 1)
        codes = numbers(metrics.indices).astype(np.int64) * size + numbers(backbones.indices)
        words = metrics.dictionary.to_pylist()
        found = {
            (words[int(code) // size], names[int(code) % size]): np.flatnonzero(codes == code)
            for code in np.unique(codes)
        }
        return dict(sorted(found.items(), key=lambda group: int(group[1][-1])))

    def _column(self, name: str) -> Any:
        import pyarrow as pa

        column = self._table.column(name)
        return column.chunk(0) if column.num_chunks else pa.array([], column.type)

    @property
    def measured(self) -> tuple[Measured, ...]:
        """Metrics with their networks, in the order of their last score."""
        return tuple(self._groups)

    def _rows_of(self, places: NDArray[np.int64]) -> pa.Table:
        """Return some rows.

        Those of one metric mostly stand together, and a slice of them copies nothing.
        """
        import pyarrow as pa

        first, last = int(places[0]), int(places[-1])
        if last - first + 1 == len(places):
            return self._table.slice(first, len(places))
        return self._table.take(pa.array(places.tolist(), pa.int64()))

    def last_place(self, metric: str, backbone: str, without: str) -> int:
        """Return the place of a metric's last score by one network; see `ScoreTable`."""
        places = self._groups.get((metric, backbone))
        if places is None:
            return -1
        # From the end, where a score that counts nearly always stands.
        reasons = self._column("reason")
        return next((int(place) for place in reversed(places) if reasons[int(place)].as_py() != without), -1)

    def has_values(self, metric: str, backbone: str) -> bool:
        """Return whether a metric by one network has any number."""
        places = self._groups.get((metric, backbone))
        return places is not None and self._rows_of(places).column("value").null_count < len(places)

    def series(self, metric: str, backbone: str) -> Series:
        """Return the scores of one metric by one network; empty columns if there are none."""
        places = self._groups.get((metric, backbone))
        if places is None:
            return NOTHING
        if (metric, backbone) not in self._series:
            self._series[metric, backbone] = self._read(places)
        return self._series[metric, backbone]

    def _read(self, places: NDArray[np.int64]) -> Series:
        """Return some rows as lists."""
        rows = self._rows_of(places)
        columns = {name: plain_list(rows.column(name)) for name in ("version", "value", "reason", "invocation")}
        units = self._words("unit", places)
        return Series(
            units, self._words("picture", places), columns["version"], columns["value"], columns["reason"],
            columns["invocation"], places.tolist(), self._rows.of(units),
        )  # fmt: skip

    def _words(self, name: str, places: NDArray[np.int64]) -> list[str]:
        """Return some rows of a column of words; each word is decoded once."""
        column = self._column(name)
        words = self._vocabularies.setdefault(name, column.dictionary.to_pylist())
        return [words[code] for code in numbers(column.indices)[places].tolist()]

    def scores(self) -> Iterator[ScoreRecord]:
        """Yield all scores in their order."""
        columns = {name: plain_list(self._table.column(name)) for name in self._table.column_names}
        for values in zip(*columns.values(), strict=True):
            yield ScoreRecord.model_validate(dict(zip(columns, values, strict=True)))
