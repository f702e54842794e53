"""Run folders: append-only records and scores, atomic pictures, one writer at a time, or the shards of one run.

Layout: `results/<suite>/<model>/<setting>/` holds run.json, records.jsonl, scores.jsonl, seal.json and images/;
`results/<suite>/<model>/shared/` holds what all settings share: source and target pictures and masks.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from riebench.errors import FolderInUseError, StoreError
from riebench.store.records import RECORDS_FILE, RUN_FILE, SCORES_FILE, EditRecord, RunSpec, ScoreRecord, UnitKey
from riebench.store.run_file import (
    SEAL_FILE,
    CellKey,
    RunFile,
    broken_seals,
    merge_parts,
    part_files,
    part_path,
    renew_seal,
)
from riebench.utils.files import (
    append_lines,
    file_sha256,
    parse_json,
    read_lines,
    repair_last_line,
    write_atomic,
    write_once,
)
from riebench.utils.images import encode_png, is_intact, read_image
from riebench.utils.locks import Shard, brief_lock, shard_lock, whole_lock


class SharedFolder:
    """Pictures and masks that all settings of one suite and model share.

    Several settings may be run at the same time; what the first of them stores is what all are compared with.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def image_name(self, key: UnitKey, role: Literal["source", "target"]) -> str:
        """Relative path of the source or target picture of a unit's example and seed."""
        return f"images/{key.example_id}.{key.example_hash[:8]}.{key.seed}.{role}.png"

    def mask_name(self, key: UnitKey) -> str:
        """Relative path of the masks of a unit's example and seed."""
        return f"masks/{key.example_id}.{key.example_hash[:8]}.{key.seed}.json"

    def is_intact(self, name: str) -> bool:
        """Whether a picture or a JSON value is stored under a relative path, and undamaged."""
        if not name.endswith(".json"):
            return is_intact(self.path / name)
        try:
            return self.read_json(name) is not None
        except StoreError:
            return False

    def write(self, name: str, data: bytes) -> None:
        """Stores a file under a relative path; one that is there stays (`write_once`)."""
        write_once(self.path / name, data)

    def write_image(self, name: str, pixels: NDArray[np.uint8]) -> None:
        """Stores a picture (uint8 [H, W, 3]) under a relative path; one that is there stays (`write_once`)."""
        self.write(name, encode_png(pixels))

    def read_image(self, name: str) -> NDArray[np.uint8]:
        """A stored picture as uint8 [H, W, 3]."""
        return read_image(self.path / name)

    def write_json(self, name: str, value: Any) -> None:
        """Stores a JSON value (masks as run lengths) under a relative path; one that is there stays."""
        self.write(name, (json.dumps(value, sort_keys=True) + "\n").encode())

    def read_json(self, name: str) -> Any | None:
        """A stored JSON value, or None if there is none."""
        path = self.path / name
        if not path.exists():
            return None
        try:
            return parse_json(path.read_bytes())
        except ValueError as error:
            raise StoreError(f"{path} is damaged ({error}); delete it and repeat `riebench run`") from error


Redo = Literal["missing", "errors", "all"]
REDO_MODES: tuple[Redo, ...] = ("missing", "errors", "all")
ScoreKey = tuple[str, str, str]
"""Unit digest, metric, backbone: what several networks say of one picture is kept side by side."""

SHARED_NAME = "shared"
SINGLE_SHARD: Shard = (1, 1)
"""The whole run in one process."""
MAX_IMAGE_NAME = 200
"""Letters of a picture's name: less than file systems take, so that a temporary name fits beside it."""


class RunFolder:
    """One setting's results.

    Reading needs nothing but the folder; writing happens inside `open_for_writing`.

    Args:
        path: `results/<suite>/<model>/<setting>`.
        spec: the run this folder is to hold; None reads what is there.

    Raises:
        IdentityError: if the folder holds a run of another identity; the message names the differing fields.
        StoreError: if run.json is missing (with spec None) or damaged.
    """

    def __init__(self, path: Path, spec: RunSpec | None = None) -> None:
        self.path = path
        self.shared = SharedFolder(path.parent / SHARED_NAME)
        self.altered_files: list[str] = []
        """Files that were found to be others than were recorded, or damaged, since `finished_units` was last called."""
        self._records_file = path / RECORDS_FILE
        self._run = RunFile(path)
        self.spec = self._run.resolve_spec(spec)

    @property
    def provenance(self) -> dict[str, Any]:
        """Versions, device and command of the last run that wrote here."""
        return self._run.provenance

    @property
    def expected(self) -> dict[CellKey, int]:
        """Category, block set and strength -> units that were planned."""
        return self._run.expected

    @contextmanager
    def open_for_writing(
        self, provenance: dict[str, Any] | None = None, plan: Iterable[UnitKey] = (), shard: Shard = SINGLE_SHARD
    ) -> Iterator[RunFolder]:
        """Locks the folder, mends a torn last line and stores spec, provenance and plan.

        Args:
            provenance: what ran (versions, device, command); no part of the identity.
            plan: the units this run means to make, with those of all its shards; together with those already recorded
                they are the expected ones.
            shard: which of several processes this is that write here at the same time.

        Raises:
            FolderInUseError: at once, if another process writes here that is none of the other shards.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with self.lock() if shard == SINGLE_SHARD else self._write_as_shard(shard):
            with nullcontext() if shard == SINGLE_SHARD else brief_lock(self.path):
                self._run = RunFile(self.path)
                self.spec = self._run.resolve_spec(self.spec)
                self._run.write(self.spec, provenance, [*(record.key for record in self.records()), *plan])
                # At once: what kills this run later must not look as if somebody had edited run.json.
                renew_seal(self.path)
            yield self

    @contextmanager
    def _write_as_shard(self, shard: Shard) -> Iterator[None]:
        """Locks the folder as one of several shards; the records of this one go to a file of its own meanwhile."""
        own = part_path(self.path, shard)
        with ExitStack() as held:
            with brief_lock(self.path):
                first = held.enter_context(shard_lock(self.path, shard))
                # What killed shards left; the others' files are theirs while they run.
                self._repair_and_merge(part_files(self.path) if first else [own])
                renew_seal(self.path)
            self._records_file = own
            try:
                yield
            finally:
                self._records_file = self.path / RECORDS_FILE
                # What cannot be moved now, on a full disk for instance, is read where it is and moved by the next.
                with suppress(OSError, FolderInUseError), brief_lock(self.path):
                    self._repair_and_merge([own])
                    renew_seal(self.path)
                    held.close()

    def _repair_and_merge(self, files: Sequence[Path]) -> None:
        """Drops torn last lines, which no seal must hold, and moves what shards have left."""
        for name in (RECORDS_FILE, SCORES_FILE):
            repair_last_line(self.path / name)
        merge_parts(self.path / RECORDS_FILE, files)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the folder's writer lock, with torn last lines mended; scoring needs it as much as making pictures.

        What was written is sealed at the end, unless a seal is broken.

        Raises:
            FolderInUseError: at once, if another process writes here.
        """
        with whole_lock(self.path):
            self._repair_and_merge(part_files(self.path))
            try:
                yield
            finally:
                # A full disk has its own message, and the lines that are stored are good without a seal.
                with suppress(OSError):
                    renew_seal(self.path)

    def records(self) -> list[EditRecord]:
        """The latest record of every unit, in the order they were first made.

        A later record of the same task, example, blocks, strength and seed replaces an earlier one, also if the
        example has changed since: numbers of two versions of an example never share a cell.
        """
        # Parts first: what a shard moves to the records meanwhile is then seen twice, and never not at all.
        others = [_read_records(file) for file in part_files(self.path)]
        latest = {record.key.slot: record for record in _read_records(self.path / RECORDS_FILE)}
        for found in others:
            latest |= {record.key.slot: record for record in found}
        return list(latest.values())

    def scores(self) -> dict[ScoreKey, ScoreRecord]:
        """(unit digest, metric, backbone) -> the latest score, latest last."""
        latest: dict[ScoreKey, ScoreRecord] = {}
        for number, line in read_lines(self.path / SCORES_FILE):
            try:
                score = ScoreRecord.model_validate(line)
            except ValidationError as error:
                raise _damaged_line(self.path / SCORES_FILE, number, error) from error
            key = (score.unit, score.metric, score.backbone)
            latest.pop(key, None)
            latest[key] = score
        return latest

    def finished_units(
        self,
        redo: Redo = "missing",
        among: Container[str] | None = None,
        whole: Callable[[str], bool] | None = None,
    ) -> set[str]:
        """Digests of the units that need no work.

        Args:
            redo: "missing" keeps every record whose picture is still what it was; "errors" also repeats failed
                units; "all" repeats everything.
            among: only these are asked for: the pictures of others are not looked at; None for all.
            whole: `SharedFolder.is_intact` that remembers, for several folders that share one; None for this one alone.
        """
        self.altered_files.clear()
        if redo == "all":
            return set()
        whole = whole or cache(self.shared.is_intact)
        asked = [(record.key.digest, record) for record in self.records()]
        return {
            digest
            for digest, record in asked
            if (among is None or digest in among) and self._is_finished(record, redo, whole)
        }

    def _is_finished(self, record: EditRecord, redo: Redo, whole: Callable[[str], bool]) -> bool:
        if record.status == "error":
            return redo != "errors"
        if record.image is None:
            return True
        path = self.path / record.image
        if not path.exists():
            return False
        if file_sha256(path) != record.image_sha256:
            self.altered_files.append(record.image)
            return False
        # Scores need the source and target pictures and the mask too.
        mask = None if record.mask_share is None else self.shared.mask_name(record.key)
        return all(name is None or whole(name) for name in (record.source_image, record.target_image, mask))

    def drop_damaged(self, key: UnitKey) -> None:
        """Deletes what is damaged of the files that a unit shares with other settings, so that they are made again.

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
        """Relative path of a unit's edited picture."""
        # Where blocks are many, the digest alone tells them apart.
        end = f".x{key.strength:g}.{key.seed}.{key.digest[:8]}.png"
        return f"images/{f'{key.example_id}.{key.block_set}'[: MAX_IMAGE_NAME - len(end)]}{end}"

    def write_image(self, key: UnitKey, pixels: NDArray[np.uint8]) -> tuple[str, str]:
        """Stores a unit's edited picture (uint8 [H, W, 3]).

        Returns:
            Relative path and SHA-256, for the record.
        """
        name, data = self.image_name(key), encode_png(pixels)
        write_atomic(self.path / name, data)
        return name, hashlib.sha256(data).hexdigest()

    def read_image(self, name: str) -> NDArray[np.uint8]:
        """A stored picture as uint8 [H, W, 3]."""
        return read_image(self.path / name)

    def append(self, record: EditRecord) -> None:
        """Adds one record; its picture must be stored already."""
        self.append_many([record])

    def append_many(self, records: Iterable[EditRecord]) -> None:
        """Adds records in one write."""
        append_lines(self._records_file, [_json_line(record) for record in records])

    def append_scores(self, scores: Iterable[ScoreRecord]) -> None:
        """Adds scores in one write."""
        append_lines(self.path / SCORES_FILE, [_json_line(score) for score in scores])


def run_folders(results: Path) -> list[RunFolder]:
    """All run folders below a results folder, sorted by path."""
    return [RunFolder(file.parent) for file in sorted(results.glob(f"*/*/*/{RUN_FILE}"))]


def run_path(results: Path, suite: str, model: str, setting: str) -> Path:
    """Where a run lives."""
    return results / suite / model / setting


def _json_line(record: EditRecord | ScoreRecord) -> str:
    # Defaults are left out: thousands of lines are committed, and every one of them is read back through the schema.
    return record.model_dump_json(exclude_defaults=True)


def _read_records(file: Path) -> list[EditRecord]:
    found = []
    # The file of a shard that has just ended may be gone between being listed and being read.
    with suppress(FileNotFoundError):
        for number, line in read_lines(file):
            try:
                found.append(EditRecord.model_validate_json(json.dumps(line)))
            except ValidationError as error:
                raise _damaged_line(file, number, error) from error
    return found


def _damaged_line(path: Path, number: int, error: ValidationError) -> StoreError:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return StoreError(f"{path}, line {number}: {where}: {first['msg']}; delete that line to go on")


SET_ASIDE_PREFIX = "set-aside"
"""Folder of what was replaced because it could not be trusted any more."""


def folder_warnings(folders: Iterable[RunFolder]) -> list[str]:
    """What a run has found wrong in its folders, one line each, with what was done or can be done about it.

    Args:
        folders: after the run.
    """
    told = []
    for folder in folders:
        if folder.altered_files:
            many = "1 file was" if len(folder.altered_files) == 1 else f"{len(folder.altered_files)} files were"
            told.append(f"{many} not as riebench wrote them, e.g. {folder.path / folder.altered_files[0]}; made again")
        told += [
            f"{folder.path}: {finding}; `--redo all`, without --shard, makes it anew"
            for finding in broken_seals(folder.path)
        ]
    return told


def set_aside(path: Path) -> Path | None:
    """Moves away what a run folder holds if its text is damaged or was changed; its pictures stay until made again.

    Args:
        path: the run folder; may be absent.

    Returns:
        Where it is now; None if there was nothing to complain of.

    Raises:
        FolderInUseError: if another process writes there.
    """
    if not path.is_dir():
        return None
    with whole_lock(path):
        broken = broken_seals(path)
        if not broken and _is_readable(path):
            return None
        earlier = (one.name.removeprefix(f"{SET_ASIDE_PREFIX}-") for one in path.glob(f"{SET_ASIDE_PREFIX}-*"))
        aside = (
            path / f"{SET_ASIDE_PREFIX}-{1 + max((int(number) for number in earlier if number.isdecimal()), default=0)}"
        )
        aside.mkdir()
        for file in (path / RECORDS_FILE, *part_files(path), path / SCORES_FILE, path / SEAL_FILE, path / RUN_FILE):
            # An honest run.json still says whose folder this is.
            if file.exists() and (file.name != RUN_FILE or _is_run_file_suspect(path, broken)):
                file.rename(aside / file.name)
        return aside


def _is_run_file_suspect(path: Path, broken: list[str]) -> bool:
    try:
        RunFolder(path)
    except StoreError:
        return True
    return any(finding.startswith(RUN_FILE) for finding in broken)


def _is_readable(path: Path) -> bool:
    if not (path / RUN_FILE).exists():
        return True
    try:
        folder = RunFolder(path)
        folder.records()
        folder.scores()
    except StoreError:
        return False
    return True
