"""Run folders: the files of one run.

Records and scores are appended to, pictures are written atomically, and one process writes at a time, or the shards of
one run side by side.

Layout: `<results>/<suite>/<model>/<setting>/` holds run.json, records.jsonl, scores.jsonl, seal.json and images/, and
sae_figures.json if the run has SAEs; published runs hold records.parquet and scores.parquet instead, and lines that
come later count on top of them. `<results>/<suite>/<model>/shared/` holds what all configurations share
(`riebench.store.shared`).
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from riebench.errors import FolderInUseError
from riebench.store.invocations import Invocation
from riebench.store.lines import json_line, read_record_lines, read_score_lines
from riebench.store.parquet import read_records, read_score_table
from riebench.store.records import (
    RECORDS_FILE,
    RECORDS_TABLE,
    RUN_FILE,
    SCORES_FILE,
    SCORES_TABLE,
    EditRecord,
    RunSpec,
    ScoreRecord,
    UnitKey,
)
from riebench.store.run_file import (
    CellKey,
    RunFile,
    merge_parts,
    part_files,
    part_path,
    renew_seal,
    replace_file,
)
from riebench.store.sae_figures import (
    SAE_FIGURES_FILE,
    BlockFigures,
    MeasuredSae,
    SaeFiguresFile,
    merge_figures,
    read_sae_figures,
)
from riebench.store.scores import ScoreColumns, ScoreKey, ScoreLines, ScoreTable
from riebench.store.shared import SHARED_NAME, SharedFolder
from riebench.utils.files import (
    append_lines,
    file_sha256,
    repair_last_line,
    write_atomic,
)
from riebench.utils.images import encode_png, picture_path, read_image, stored_picture
from riebench.utils.locks import Shard, brief_lock, shard_lock, whole_lock

Redo = Literal["missing", "errors", "all"]

REDO_MODES: tuple[Redo, ...] = ("missing", "errors", "all")
"""Units to make again: those without a valid record, failed ones too, or all."""

SINGLE_SHARD: Shard = (1, 1)
"""The whole run in one process."""

MAX_IMAGE_NAME = 200
"""Most characters of a picture's file name: fewer than file systems take, so that a temporary name fits too."""

_LOG = logging.getLogger(__name__)
Run = TypeVar("Run", bound="RunFolder")


class RunFolder:
    """Results of one configuration on one model over one suite.

    Reading needs nothing but the folder; writing is done inside `open_for_writing`.

    Args:
        path: `results/<suite>/<model>/<setting>`.
        spec: the run this folder is to hold; None reads the stored one.

    Raises:
        IdentityError: if the folder holds a run of another identity; the message names the differing fields.
        StoreError: if run.json is missing (with spec None) or damaged.
    """

    def __init__(self, path: Path, spec: RunSpec | None = None) -> None:
        self.path = path
        self.shared = SharedFolder(path.parent / SHARED_NAME)
        self.pictures = path
        """Folder to which the names of edited pictures in records are relative."""
        self.altered_files: list[str] = []
        """Files found damaged or different from their record since the last call of `finished_units`."""
        self._records_file = path / RECORDS_FILE
        self._run = RunFile(path)
        self._writer: _Writer | None = None
        # What was read stays in memory in the form that is compact or asked for often, until a file changes.
        self._published: tuple[tuple[int, ...], list[EditRecord]] | None = None
        self._score_table: tuple[list[tuple[int, ...]], ScoreTable] | None = None
        self.spec = self._run.resolve_spec(spec)

    def __reduce__(self) -> tuple[type[RunFolder], tuple[Path]]:
        # Another process reads the files itself.
        return type(self), (self.path,)

    @property
    def invocations(self) -> tuple[Invocation, ...]:
        """Commands that wrote; records and scores name them by their place here."""
        return self._run.invocations

    @property
    def provenance(self) -> dict[str, Any]:
        """Notes of the last command that wrote here: its versions, device and options."""
        return self.invocations[-1].notes if self.invocations else {}

    @property
    def expected(self) -> dict[CellKey, int]:
        """Category, block set and strength -> number of planned units."""
        return self._run.expected

    @property
    def n_expected(self) -> int:
        """Number of planned units."""
        return sum(self.expected.values())

    @contextmanager
    def open_for_writing(
        self, notes: Mapping[str, Any] | None = None, plan: Iterable[UnitKey] = (), shard: Shard = SINGLE_SHARD
    ) -> Iterator[RunFolder]:
        """Lock the folder, repair its files, and store spec and plan.

        An incomplete last line that a crash left is removed.

        Args:
            notes: versions, device and command of this process (`riebench.store.invocations.invocation_notes`), which
                records and scores then name; no part of the identity.
            plan: the units that this run and all its shards are to make; together with those already recorded they
                are the expected ones.
            shard: number of this process, and of all processes that write here at the same time.

        Raises:
            FolderInUseError: at once, if a process writes here that is not one of the other shards.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with self.lock(notes) if shard == SINGLE_SHARD else self._write_as_shard(shard, notes):
            with nullcontext() if shard == SINGLE_SHARD else brief_lock(self.path):
                self._run = RunFile(self.path)
                self.spec = self._run.resolve_spec(self.spec)
                self._run.write_plan(self.spec, [*(record.key for record in self.records()), *plan])
                # Sealed at once: a run that is killed later must not look like an edit of run.json by hand.
                renew_seal(self.path)
            yield self

    @contextmanager
    def _write_as_shard(self, shard: Shard, notes: Mapping[str, Any] | None) -> Iterator[None]:
        """Lock the folder as one of several shards.

        The records of this shard go to a file of its own meanwhile.
        """
        own = part_path(self.path, shard)
        with ExitStack() as stack:
            with brief_lock(self.path):
                first = stack.enter_context(shard_lock(self.path, shard))
                # Only the first shard may merge what killed shards left: the others still write their files.
                self._repair_and_merge(part_files(self.path) if first else [own])
                renew_seal(self.path)
            self._records_file = own
            self._writer = _Writer(notes, shared=True)
            try:
                yield
            finally:
                self._records_file = self.path / RECORDS_FILE
                # What cannot be moved now, for instance on a full disk, is read where it is and moved by the next run.
                with suppress(OSError, FolderInUseError), brief_lock(self.path):
                    self._end_invocation()
                    self._repair_and_merge([own])
                    renew_seal(self.path)
                    stack.close()

    def _repair_and_merge(self, files: Sequence[Path]) -> None:
        """Remove incomplete last lines and merge the records of shards.

        No seal may cover an incomplete line.
        """
        for name in (RECORDS_FILE, SCORES_FILE):
            repair_last_line(self.path / name)
        merge_parts(self.path / RECORDS_FILE, files)

    @contextmanager
    def lock(self, notes: Mapping[str, Any] | None = None) -> Iterator[None]:
        """Hold the folder's writer lock, with incomplete last lines removed.

        Scoring needs the lock as much as generating pictures does. What was written is sealed at the end, unless a seal
        is broken.

        Args:
            notes: see `open_for_writing`.

        Raises:
            FolderInUseError: at once, if another process writes here.
        """
        with whole_lock(self.path):
            self._repair_and_merge(part_files(self.path))
            self._writer = _Writer(notes)
            try:
                yield
            finally:
                # A full disk has its own message, and the stored lines are valid without a seal.
                with suppress(OSError):
                    self._end_invocation()
                    renew_seal(self.path)

    def _invocation_place(self) -> int | None:
        """Return the place of this process in run.json's list.

        It enters the list with its first line.
        """
        writer = self._writer
        if writer is None or writer.notes is None:
            return None
        if writer.place is None:
            with brief_lock(self.path) if writer.shared else nullcontext():
                self._run = RunFile(self.path)
                writer.place = self._run.add_invocation(Invocation.from_notes(writer.notes))
        return writer.place

    def _end_invocation(self) -> None:
        """Store when this process closed the folder, if it wrote anything.

        The caller holds the lock.
        """
        writer, self._writer = self._writer, None
        if writer is not None and writer.place is not None:
            self._run = RunFile(self.path)
            self._run.end_invocation(writer.place)

    def records(self, *, features: bool = True) -> list[EditRecord]:
        """Return the latest record of every unit, in the order first made.

        A later record of the same task, example, blocks, strength and seed replaces an earlier one, also if the example
        has changed since: numbers of two versions of an example never share a cell.

        Args:
            features: False lets published records come without the features that were switched, and so sooner.
        """
        # Shards' files first: a line that is moved to the records meanwhile is then seen twice, never missed.
        parts = [read_record_lines(file) for file in part_files(self.path)]
        latest = {record.key.slot: record for record in self._published_records(features=features)}
        for found in (read_record_lines(self.path / RECORDS_FILE), *parts):
            latest |= {record.key.slot: record for record in found}
        return list(latest.values())

    def _published_records(self, *, features: bool = True) -> list[EditRecord]:
        file = self.path / RECORDS_TABLE
        if not file.exists():
            return []
        version = _file_version(file)
        if self._published is not None and self._published[0] == version:
            return self._published[1]
        found = read_records(file, features=features)
        if features:
            self._published = version, found
        return found

    def every_record(self) -> Iterator[EditRecord]:
        """Yield all records, also those that a later one replaces."""
        yield from self._published_records()
        for file in (self.path / RECORDS_FILE, *part_files(self.path)):
            yield from read_record_lines(file)

    def scores(self) -> dict[ScoreKey, ScoreRecord]:
        """Return the latest score of every unit, metric and backbone.

        The keys are (unit digest, metric, backbone); the latest score comes last.
        """
        latest: dict[ScoreKey, ScoreRecord] = {}
        for score in self._every_score():
            key = (score.unit, score.metric, score.backbone)
            latest.pop(key, None)
            latest[key] = score
        return latest

    def _every_score(self) -> Iterator[ScoreRecord]:
        if (file := self.path / SCORES_TABLE).exists():
            yield from ScoreColumns(read_score_table(file)).scores()
        yield from read_score_lines(self.path / SCORES_FILE)

    def score_table(self) -> ScoreTable:
        """Return the scores by column, many times faster for published runs."""
        compact, lines = self.path / SCORES_TABLE, self.path / SCORES_FILE
        version = [_file_version(file) for file in (compact, lines)]
        if self._score_table is None or self._score_table[0] != version:
            alone = compact.exists() and not (lines.exists() and lines.stat().st_size)
            found: ScoreTable = ScoreColumns(read_score_table(compact)) if alone else ScoreLines(self.scores().values())
            self._score_table = version, found
        return self._score_table[1]

    def sae_figures(self) -> BlockFigures:
        """Read the figures of the run's SAEs: block -> SAE.

        Blocks that were not measured are missing, as are figures of other SAEs or of another model.

        Raises:
            StoreError: if the file is damaged.
        """
        found = read_sae_figures(self.path)
        return {block: one for block, one in found.items() if one.is_of(block, self.spec)}

    def write_sae_figures(self, found: Mapping[str, MeasuredSae]) -> None:
        """Add figures of SAEs to those that are stored (`merge_figures`).

        The folder is open for writing.

        Args:
            found: block -> SAE.
        """
        shared = self._writer is not None and self._writer.shared
        with brief_lock(self.path) if shared else nullcontext():
            merged = merge_figures(self.sae_figures(), found)
            if merged:
                replace_file(self.path, SAE_FIGURES_FILE, SaeFiguresFile(saes=merged).encoded())

    def finished_units(
        self,
        redo: Redo = "missing",
        among: Container[str] | None = None,
        intact: Callable[[str], bool] | None = None,
    ) -> set[str]:
        """Return the digests of the units that need no work.

        Args:
            redo: "missing" keeps every record whose picture is unchanged; "errors" also repeats failed
                units; "all" repeats everything.
            among: digests of the units in question; pictures of other units are not checked. None for all units.
            intact: a caching `SharedFolder.is_intact`, for several folders with one shared folder; None for this
                folder alone.
        """
        self.altered_files.clear()
        if redo == "all":
            return set()
        intact = intact or cache(self.shared.is_intact)
        found = [(record.key.digest, record) for record in self.records()]
        return {
            digest
            for digest, record in found
            if (among is None or digest in among) and self._is_finished(record, redo, intact)
        }

    def _is_finished(self, record: EditRecord, redo: Redo, intact: Callable[[str], bool]) -> bool:
        if record.status == "error":
            return redo != "errors"
        if record.image is None:
            return True
        path = picture_path(self.pictures, record.image)
        if not path.exists():
            return False
        if file_sha256(path) != record.image_sha256:
            self.altered_files.append(record.image)
            return False
        # Scores need the source and target pictures and the mask too.
        mask = None if record.mask_share is None else self.shared.mask_name(record.key)
        return all(name is None or intact(name) for name in (record.source_image, record.target_image, mask))

    def drop_damaged(self, key: UnitKey) -> None:
        """Delete the damaged ones of the files that a unit shares.

        They are shared with other configurations, and are then made again.

        Args:
            key: the unit, which is about to be made.
        """
        shared = self.shared
        for name in (shared.image_name(key, "source"), shared.image_name(key, "target"), shared.mask_name(key)):
            path = shared.path / name
            if path.exists() and not shared.is_intact(name):
                self.altered_files.append(os.path.relpath(path, self.path))
                path.unlink(missing_ok=True)

    def image_name(self, key: UnitKey) -> str:
        """Return the relative path of a unit's edited picture."""
        # Names of many blocks are cut; the digest then tells the units apart.
        end = f".x{key.strength:g}.{key.seed}.{key.digest[:8]}.png"
        block_set = key.block_set.replace("/", ".")
        return f"images/{f'{key.example_id}.{block_set}'[: MAX_IMAGE_NAME - len(end)]}{end}"

    def write_image(self, key: UnitKey, pixels: NDArray[np.uint8]) -> tuple[str, str]:
        """Store a unit's edited picture (uint8 [H, W, 3]).

        Returns:
            Relative path and SHA-256, for the record.
        """
        name, data = self.image_name(key), encode_png(pixels)
        write_atomic(picture_path(self.pictures, name), data)
        return name, hashlib.sha256(data).hexdigest()

    def read_image(self, name: str) -> NDArray[np.uint8]:
        """Read a stored picture as uint8 [H, W, 3]."""
        return read_image(self.pictures, name)

    def picture(self, record: EditRecord) -> Path | None:
        """Return the file of a unit's edited picture.

        Returns:
            Its path; None if the unit has none, or the file is not on this machine.

        Raises:
            StoreError: see `stored_picture`; also if the file is not the one that was recorded.
        """
        return None if record.image is None else stored_picture(self.pictures, record.image, record.image_sha256)

    def append(self, record: EditRecord) -> None:
        """Append one record; its picture must be stored already."""
        self.append_many([record])

    def append_many(self, records: Iterable[EditRecord]) -> None:
        """Append records in one write; they name the command that is writing."""
        lines = list(records)
        place = self._invocation_place() if lines else None
        append_lines(self._records_file, [json_line(record, place) for record in lines])

    def append_scores(self, scores: Iterable[ScoreRecord]) -> None:
        """Append scores in one write; they name the command that is writing."""
        lines = list(scores)
        place = self._invocation_place() if lines else None
        append_lines(self.path / SCORES_FILE, [json_line(score, place) for score in lines])


def _file_version(file: Path) -> tuple[int, ...]:
    """Return what changes when a file is written; nothing if it is not there."""
    try:
        stat = file.stat()
    except FileNotFoundError:
        return ()
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


@dataclass
class _Writer:
    """The process that holds a folder's lock.

    Attributes:
        notes: what it says of itself; None for one whose lines name no command.
        shared: True if other shards write at the same time.
        place: its place in run.json's list, once it has written a line.
    """

    notes: Mapping[str, Any] | None
    shared: bool = False
    place: int | None = None


_reported: set[Path] = set()
"""Folders of which a warning has been given: commands look for run folders several times."""


def find_run_folders(results: Path) -> list[RunFolder]:
    """Return all run folders below a results folder, sorted by path.

    A folder whose place does not agree with its run.json, such as a copy under another name, is left out with a
    warning: it would count as one more method.
    """
    found = []
    for file in sorted(results.glob(f"*/*/*/{RUN_FILE}")):
        folder = RunFolder(file.parent)
        named = run_path(results, folder.spec.suite, folder.spec.model.name, folder.spec.setting.name)
        if named == folder.path:
            found.append(folder)
        elif folder.path not in _reported:
            _reported.add(folder.path)
            _LOG.warning(
                "%s is left out: its %s is of %s, so it is a copy; move it there or delete it",
                folder.path, RUN_FILE, named.relative_to(results),
            )  # fmt: skip
    return found


def group_by_model(folders: Iterable[Run]) -> dict[tuple[str, str], list[Run]]:
    """Group run folders by suite and model.

    Of a suite the model with most runs comes first: pages and tables begin with what there is most of.
    """
    found: dict[tuple[str, str], list[Run]] = {}
    for folder in folders:
        found.setdefault((folder.spec.suite, folder.spec.model.name), []).append(folder)
    return dict(sorted(found.items(), key=lambda one: (one[0][0], -len(one[1]), one[0][1])))


def run_path(results: Path, suite: str, model: str, setting: str) -> Path:
    """Return the path of the run folder of a suite, model and setting."""
    return results / suite / model / setting
