"""Stored records and scores as data frames of pandas."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

from riebench.analysis.configurations import backbones_shown
from riebench.analysis.export import column_frame, data_frame
from riebench.store.folder import RunFolder
from riebench.store.records import EditRecord
from riebench.store.scores import ScoreTable

if TYPE_CHECKING:
    from pandas import DataFrame

RUN_COLUMNS = ("suite", "model", "setting")
"""Columns that name a run; with `unit` they name a picture."""

KEY_COLUMNS = (*RUN_COLUMNS, "unit", "category", "example_id", "block_set", "strength", "seed")
"""Columns that every row of records and scores begins with."""

Row = dict[str, Any]


class ReadRun:
    """One run whose records and scores are read at first use, and then kept.

    Args:
        folder: its folder.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    @cached_property
    def records(self) -> list[EditRecord]:
        """The latest record of every unit."""
        return self.folder.records()

    @cached_property
    def scores(self) -> ScoreTable:
        """The latest score of every unit, metric and network."""
        return self.folder.score_table()

    @property
    def place(self) -> tuple[str, str, str]:
        """Suite, model and method configuration."""
        spec = self.folder.spec
        return spec.suite, spec.model.name, spec.setting.name


def _key_columns(run: ReadRun, record: EditRecord) -> Row:
    key = record.key
    return {
        **dict(zip(RUN_COLUMNS, run.place, strict=True)), "unit": key.digest, "category": key.category,
        "example_id": key.example_id, "block_set": key.block_set, "strength": key.strength, "seed": key.seed,
    }  # fmt: skip


def _record_row(run: ReadRun, record: EditRecord) -> Row:
    chosen = record.features.values()
    share = record.mask_share
    return {
        **_key_columns(run, record), "task": record.key.task, "method": run.folder.spec.setting.method,
        "status": record.status, "reason": record.reason,
        "features_added": sum(len(one.add) for one in chosen),
        "features_removed": sum(len(one.remove) for one in chosen), "neurons": record.neurons,
        "mask_source": None if share is None else share.source, "mask_target": None if share is None else share.target,
        "cluster": record.cluster, "seconds": record.seconds, "batch_size": record.batch_size, "image": record.image,
        "picture": record.image_sha256, "run": run.folder.spec.run_id[:8],
    }  # fmt: skip


def record_frame(runs: Iterable[ReadRun]) -> DataFrame:
    """Return every picture that was planned and tried as a row."""
    return data_frame([_record_row(run, record) for run in runs for record in run.records])


def _present_scores(run: ReadRun) -> Iterator[tuple[EditRecord, str, str, float | None, str | None]]:
    """Yield the scores of the pictures that are there now.

    Each is record, metric, network, value, and the reason where there is no value.
    """
    pictures = {record.key.digest: (record, record.picture_id) for record in run.records}
    for metric, network in run.scores.measured:
        series = run.scores.series(metric, network)
        rows = zip(series.units, series.pictures, series.values, series.reasons, strict=True)
        for unit, measured, value, reason in rows:
            record, picture = pictures.get(unit, (None, ""))
            # A score of a picture that was made anew since says nothing of the present one.
            if record is not None and measured == picture:
                yield record, metric, network, value, reason


def score_frame(runs: Iterable[ReadRun]) -> DataFrame:
    """Return every score of the pictures that are there now as a row."""
    names = (*KEY_COLUMNS, "metric", "network", "value", "reason")
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for run in runs:
        keys = {id(record): tuple(_key_columns(run, record).values()) for record in run.records}
        for record, *score in _present_scores(run):
            for column, cell in zip(columns.values(), (*keys[id(record)], *score), strict=True):
                column.append(cell)
    return column_frame(columns)


def wide_frame(runs: Iterable[ReadRun]) -> DataFrame:
    """Return every picture as a row, with a column for each metric.

    Where several networks have measured a metric, its column holds the numbers that tables show, and the others' are in
    columns named METRIC:NETWORK.
    """
    rows = []
    for run in runs:
        shown = backbones_shown(run.folder, run.scores)
        values: dict[int, Row] = {}
        for record, metric, network, value, _ in _present_scores(run):
            is_shown = shown.get(metric, network) == network
            values.setdefault(id(record), {})[metric if is_shown else f"{metric}:{network}"] = value
        for record in run.records:
            row = {**_key_columns(run, record), "status": record.status, "reason": record.reason}
            rows.append(row | dict(sorted(values.get(id(record), {}).items())))
    return data_frame(rows)
