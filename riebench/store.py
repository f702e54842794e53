"""Run folders: append-only records and scores, atomic pictures, one writer at a time, or the shards of one run.

Layout: `results/<suite>/<model>/<setting>/` holds run.json, records.jsonl, scores.jsonl, seal.json and images/;
`results/<suite>/<model>/shared/` holds what all settings share: source and target pictures and masks.
"""

from __future__ import annotations

import json
import os
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from riebench.errors import FolderInUseError, IdentityError, StoreError
from riebench.files import (
    append_lines,
    file_sha256,
    parse_json,
    read_lines,
    repair_last_line,
    write_atomic,
)
from riebench.locks import Shard, brief_lock, shard_lock, whole_lock
from riebench.pictures import is_whole
from riebench.recordparts import merge, part_path, parts
from riebench.records import EditRecord, RunMeta, ScoreRecord, UnitKey
from riebench.schema import RunSpec
from riebench.seal import announce, broken_seals, seal
from riebench.sharedfolder import SharedFolder, encode_png, read_image

Redo = Literal["missing", "errors", "all"]
REDO_MODES: tuple[Redo, ...] = ("missing", "errors", "all")
CellKey = tuple[str, str, float]
"""Category, block set, strength."""
ScoreKey = tuple[str, str, str]
"""Unit digest, metric, backbone: what several networks say of one picture is kept side by side."""

RUN_FILE, RECORDS_FILE, SCORES_FILE, SHARED = "run.json", "records.jsonl", "scores.jsonl", "shared"
ALONE: Shard = (1, 1)
"""The whole run in one process."""


class RunFolder:
    """One setting's results.

    Reading needs nothing but the folder; writing happens inside `writing()`.

    Args:
        path: `results/<suite>/<model>/<setting>`.
        spec: the run this folder is to hold; None reads what is there.

    Raises:
        IdentityError: if the folder holds a run of another identity; the message names the differing fields.
        StoreError: if run.json is missing (with spec None) or damaged.
    """

    def __init__(self, path: Path, spec: RunSpec | None = None) -> None:
        self.path = path
        self.shared = SharedFolder(path.parent / SHARED)
        self.altered: list[str] = []
        """Pictures that `done` has found to be others than were recorded, or damaged."""
        self._whole: dict[str, bool] = {}
        self._records_file = path / RECORDS_FILE
        self._meta = self._read_meta()
        self.spec = self._agreed(spec)

    def _agreed(self, spec: RunSpec | None) -> RunSpec:
        stored = self._stored_spec()
        if spec is None:
            if stored is None:
                raise StoreError(f"{self.path} holds no run ({RUN_FILE} is missing)")
            return stored
        if stored is not None and stored.run_id != spec.run_id:
            differences = "; ".join(_differences(stored.identity, spec.identity))
            raise IdentityError(
                f"{self.path} holds another run: {differences}; use another --results folder or delete it"
            )
        return spec

    def _read_meta(self) -> dict[str, Any]:
        file = self.path / RUN_FILE
        if not file.exists():
            return {}
        try:
            meta = parse_json(file.read_bytes())
        except ValueError as error:
            raise StoreError(f"{file} is damaged ({error}); delete it and repeat `riebench run`") from error
        if not isinstance(meta, dict) or "spec" not in meta:
            raise StoreError(f"{file} is not a run file; delete it and repeat `riebench run`")
        try:
            RunMeta.model_validate({name: meta[name] for name in RunMeta.model_fields if name in meta})
        except ValidationError as error:
            raise _bad_run_file(file, "", error) from error
        return meta

    def _stored_spec(self) -> RunSpec | None:
        if not self._meta:
            return None
        try:
            return RunSpec.model_validate_json(json.dumps(self._meta["spec"]))
        except ValidationError as error:
            raise _bad_run_file(self.path / RUN_FILE, "spec.", error) from error

    @property
    def provenance(self) -> dict[str, Any]:
        """Versions, device and command of the last run that wrote here."""
        return dict(self._meta.get("provenance", {}))

    @property
    def expected(self) -> dict[CellKey, int]:
        """Category, block set and strength -> units that were planned."""
        return {(c["category"], c["block_set"], float(c["strength"])): c["n"] for c in self._meta.get("expected", [])}

    @contextmanager
    def writing(
        self, provenance: dict[str, Any] | None = None, plan: Iterable[UnitKey] = (), shard: Shard = ALONE
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
        with self.locked() if shard == ALONE else self._sharing(shard):
            with nullcontext() if shard == ALONE else brief_lock(self.path):
                self._meta = self._read_meta()
                self.spec = self._agreed(self.spec)
                whole = not broken_seals(self.path)
                self._write_meta(provenance, list(plan))
                if whole:
                    # At once: what kills this run later must not look as if somebody had edited run.json.
                    seal(self.path)
            yield self

    @contextmanager
    def _sharing(self, shard: Shard) -> Iterator[None]:
        """Locks the folder as one of several shards; the records of this one go to a file of its own meanwhile."""
        own = part_path(self.path, shard)
        with ExitStack() as held:
            with brief_lock(self.path):
                first = held.enter_context(shard_lock(self.path, shard))
                # What killed shards left; the others' files are theirs while they run.
                self._merge(parts(self.path) if first else [own])
            self._records_file = own
            try:
                yield
            finally:
                self._records_file = self.path / RECORDS_FILE
                # What cannot be moved now, on a full disk for instance, is read where it is and moved by the next.
                with suppress(OSError, FolderInUseError), brief_lock(self.path):
                    self._merge([own])
                    held.close()

    def _merge(self, files: Sequence[Path]) -> None:
        whole = not broken_seals(self.path)
        merge(self.path / RECORDS_FILE, files)
        if whole and (self.path / RUN_FILE).exists():
            seal(self.path)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder's writer lock, with torn last lines mended; scoring needs it as much as making pictures.

        What was written is sealed at the end, unless a seal was broken before.

        Raises:
            FolderInUseError: at once, if another process writes here.
        """
        with whole_lock(self.path):
            for name in (RECORDS_FILE, SCORES_FILE):
                repair_last_line(self.path / name)
            whole = not broken_seals(self.path)
            merge(self.path / RECORDS_FILE, parts(self.path))
            try:
                yield
            finally:
                if whole:
                    # A full disk has its own message, and the lines that are stored are good without a seal.
                    with suppress(OSError):
                        seal(self.path)

    def _write_meta(self, provenance: dict[str, Any] | None, plan: list[UnitKey]) -> None:
        keys = {_slot(key): key for key in [*(record.key for record in self.records()), *plan]}
        counts: dict[CellKey, int] = {}
        for key in keys.values():
            cell = (key.category, key.block_set, key.strength)
            counts[cell] = counts.get(cell, 0) + 1
        meta = {
            "spec": self.spec.model_dump(mode="json"),
            "run_id": self.spec.run_id,
            "provenance": self.provenance if provenance is None else provenance,
            "expected": [
                {"category": c, "block_set": b, "strength": s, "n": n} for (c, b, s), n in sorted(counts.items())
            ],
        }
        if meta != self._meta:
            data = (json.dumps(meta, indent=1, ensure_ascii=False) + "\n").encode()
            announce(self.path, RUN_FILE, data)
            write_atomic(self.path / RUN_FILE, data)
            self._meta = meta

    def records(self) -> list[EditRecord]:
        """The latest record of every unit, in the order they were first made.

        A later record of the same task, example, blocks, strength and seed replaces an earlier one, also if the
        example has changed since: numbers of two versions of an example never share a cell.
        """
        # Parts first: what a shard moves to the records meanwhile is then seen twice, and never not at all.
        others = [_records(file) for file in parts(self.path)]
        latest = {_slot(record.key): record for record in _records(self.path / RECORDS_FILE)}
        for found in others:
            latest |= {_slot(record.key): record for record in found}
        return list(latest.values())

    def scores(self) -> dict[ScoreKey, ScoreRecord]:
        """(unit digest, metric, backbone) -> the latest score, latest last."""
        latest: dict[ScoreKey, ScoreRecord] = {}
        for number, line in read_lines(self.path / SCORES_FILE):
            try:
                score = ScoreRecord.model_validate(line)
            except ValidationError as error:
                raise _bad_line(self.path / SCORES_FILE, number, error) from error
            key = (score.unit, score.metric, score.backbone)
            latest.pop(key, None)
            latest[key] = score
        return latest

    def done(self, redo: Redo = "missing", among: Container[str] | None = None) -> set[str]:
        """Digests of the units that need no work.

        Args:
            redo: "missing" keeps every record whose picture is still what it was; "errors" also repeats failed
                units; "all" repeats everything.
            among: only these are asked for: the pictures of others are not looked at; None for all.
        """
        self.altered.clear()
        self._whole.clear()
        if redo == "all":
            return set()
        asked = [(record.key.digest, record) for record in self.records()]
        return {
            digest for digest, record in asked if (among is None or digest in among) and self._is_done(record, redo)
        }

    def _is_done(self, record: EditRecord, redo: Redo) -> bool:
        if record.status == "error":
            return redo != "errors"
        if record.image is None:
            return True
        path = self.path / record.image
        if not path.exists():
            return False
        if file_sha256(path) != record.image_sha256:
            self.altered.append(record.image)
            return False
        # Scores need the source and target pictures too.
        pair = (record.source_image, record.target_image)
        return all([name is None or self._is_whole(name) for name in pair])

    def _is_whole(self, name: str) -> bool:
        """Whether a shared picture is there and undamaged; a damaged one goes, so that it is made again."""
        path = self.shared.path / name
        if name not in self._whole:
            self._whole[name] = is_whole(path)
            if not self._whole[name] and path.exists():
                self.altered.append(os.path.relpath(path, self.path))
                path.unlink(missing_ok=True)
        return self._whole[name]

    def image_name(self, key: UnitKey) -> str:
        """Relative path of a unit's edited picture."""
        return f"images/{key.example_id}.{key.block_set}.x{key.strength:g}.{key.seed}.{key.digest[:8]}.png"

    def write_image(self, key: UnitKey, pixels: NDArray[np.uint8]) -> tuple[str, str]:
        """Stores a unit's edited picture (uint8 [H, W, 3]).

        Returns:
            Relative path and SHA-256, for the record.
        """
        name = self.image_name(key)
        write_atomic(self.path / name, encode_png(pixels))
        return name, file_sha256(self.path / name)

    def read_image(self, name: str) -> NDArray[np.uint8]:
        """A stored picture as uint8 [H, W, 3]."""
        return read_image(self.path / name)

    def append(self, record: EditRecord) -> None:
        """Adds one record; its picture must be stored already."""
        self.append_many([record])

    def append_many(self, records: Iterable[EditRecord]) -> None:
        """Adds records in one write."""
        append_lines(self._records_file, [_line(record) for record in records])

    def append_scores(self, scores: Iterable[ScoreRecord]) -> None:
        """Adds scores in one write."""
        append_lines(self.path / SCORES_FILE, [_line(score) for score in scores])


def run_folders(results: Path) -> list[RunFolder]:
    """All run folders below a results folder, sorted by path."""
    return [RunFolder(file.parent) for file in sorted(results.glob(f"*/*/*/{RUN_FILE}"))]


def run_path(results: Path, suite: str, model: str, setting: str) -> Path:
    """Where a run lives."""
    return results / suite / model / setting


def _line(record: EditRecord | ScoreRecord) -> str:
    # Defaults are left out: thousands of lines are committed, and every one of them is read back through the schema.
    return record.model_dump_json(exclude_defaults=True)


def _records(file: Path) -> list[EditRecord]:
    found = []
    # The file of a shard that has just ended may be gone between being listed and being read.
    with suppress(FileNotFoundError):
        for number, line in read_lines(file):
            try:
                found.append(EditRecord.model_validate_json(json.dumps(line)))
            except ValidationError as error:
                raise _bad_line(file, number, error) from error
    return found


def _slot(key: UnitKey) -> tuple[Any, ...]:
    return key.task, key.example_id, key.block_set, key.strength, key.seed


def _bad_run_file(path: Path, prefix: str, error: ValidationError) -> StoreError:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return StoreError(f"{path}: {prefix}{where}: {first['msg']}; was it made by another version?")


def _bad_line(path: Path, number: int, error: ValidationError) -> StoreError:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return StoreError(f"{path}, line {number}: {where}: {first['msg']}; delete that line to go on")


def _differences(there: Any, here: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(there, dict) and isinstance(here, dict):
        for name in sorted({*there, *here}):
            label = f"{prefix}.{name}" if prefix else str(name)
            yield from _differences(there.get(name), here.get(name), label)
    elif there != here:
        yield f"{prefix} is {json.dumps(there)} there and {json.dumps(here)} here"
