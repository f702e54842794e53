"""Text files of a run folder: run.json, records of shards, and the seal.

run.json holds the run's identity, the number of planned units and the commands that wrote to the folder. Each shard
appends records to a file of its own, which is merged into records.jsonl. seal.json holds a hash of every file with
records, scores or figures of SAEs and of run.json, with which changes by hand are found.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from riebench.errors import IdentityError, StoreError
from riebench.store.invocations import Invocation, now
from riebench.store.records import (
    RECORDS_FILE,
    RECORDS_TABLE,
    RUN_FILE,
    SCORES_FILE,
    SCORES_TABLE,
    RunMeta,
    RunSpec,
    UnitKey,
)
from riebench.store.sae_figures import SAE_FIGURES_FILE
from riebench.utils.files import append_bytes, parse_json, read_regular, repair_last_line, write_atomic
from riebench.utils.locks import Shard

_PART_NAME = re.compile(r"records\.[0-9]+-of-[0-9]+\.jsonl")
"""Name of the file to which one shard appends its records."""

SEAL_FILE = "seal.json"
"""File that holds sizes and hashes of the other text files."""

REPLACED_FILES = (RUN_FILE, RECORDS_TABLE, SCORES_TABLE, SAE_FIGURES_FILE)
"""Files that are replaced as a whole."""

APPENDED_FILES = (RECORDS_FILE, SCORES_FILE)
"""Files that are only appended to."""

NEXT_HASH = "coming"
"""Key in the seal of the hash that a file is about to have."""

CellKey = tuple[str, str, float]
"""Category, block set, strength."""


class RunFile:
    """Content of a folder's run.json; empty if there is none yet.

    Args:
        folder: the run folder.

    Raises:
        StoreError: if the file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stored = self._read()
        self._meta = self._parse_meta(self._stored)

    def _read(self) -> dict[str, Any]:
        file = self.folder / RUN_FILE
        if not file.exists():
            return {}
        try:
            stored = parse_json(read_regular(file))
        except ValueError as error:
            raise StoreError(f"{file} is damaged ({error}); delete it and repeat `riebench run`") from error
        if not isinstance(stored, dict) or "spec" not in stored:
            raise StoreError(f"{file} is not a run file; delete it and repeat `riebench run`")
        return stored

    def _parse_meta(self, stored: dict[str, Any]) -> RunMeta:
        try:
            return RunMeta.model_validate({name: stored[name] for name in RunMeta.model_fields if name in stored})
        except ValidationError as error:
            raise self._invalid_file("", error) from error

    def _invalid_file(self, prefix: str, error: ValidationError) -> StoreError:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        file = self.folder / RUN_FILE
        return StoreError(f"{file}: {prefix}{where}: {first['msg']}; was it made by another version?")

    def resolve_spec(self, spec: RunSpec | None) -> RunSpec:
        """Return the run that the folder holds or is to hold.

        Args:
            spec: the run it is to hold; None reads the stored one.

        Raises:
            IdentityError: if it holds a run of another identity; the message names the differing fields.
            StoreError: if it holds none (with spec None), or one that cannot be read.
        """
        stored = self._spec()
        if spec is None:
            if stored is None:
                raise StoreError(f"{self.folder} holds no run ({RUN_FILE} is missing)")
            return stored
        if stored is not None and stored.run_id != spec.run_id:
            differences = "; ".join(identity_differences(stored.identity, spec.identity))
            raise IdentityError(
                f"{self.folder} holds another run: {differences}; use another --results folder or delete it"
            )
        return spec

    def _spec(self) -> RunSpec | None:
        if not self._stored:
            return None
        try:
            return RunSpec.model_validate_json(json.dumps(self._stored["spec"]))
        except ValidationError as error:
            raise self._invalid_file("spec.", error) from error

    @property
    def invocations(self) -> tuple[Invocation, ...]:
        """Commands that wrote records or scores, in the order of their first line.

        A file from before they were kept states one command, the last of those that wrote; it is the first of the list.
        """
        if not self._meta.invocations and self._meta.provenance:
            return (self._meta.provenance,)
        return self._meta.invocations

    @property
    def expected(self) -> dict[CellKey, int]:
        """Category, block set and strength -> number of planned units."""
        return {(cell.category, cell.block_set, cell.strength): cell.n for cell in self._meta.expected}

    def write_plan(self, spec: RunSpec, planned: Iterable[UnitKey]) -> None:
        """Store the run and its planned units if they are not stored yet.

        The caller holds the folder's lock.

        Args:
            spec: the run.
            planned: the expected units; of several in one slot the last counts.
        """
        keys = {key.slot: key for key in planned}.values()
        counts = Counter((key.category, key.block_set, key.strength) for key in keys)
        cells = [{"category": c, "block_set": b, "strength": s, "n": n} for (c, b, s), n in sorted(counts.items())]
        self._write(spec.model_dump(mode="json"), spec.run_id, cells, self.invocations)

    def add_invocation(self, invocation: Invocation) -> int:
        """Store a command that writes to the folder, which keeps all earlier ones.

        The caller holds the folder's lock.

        Returns:
            Its place in the list; that of an earlier entry of the same process if there is one.
        """
        for place, known in enumerate(self.invocations):
            if known.is_same(invocation):
                return place
        self.replace_invocations((*self.invocations, invocation))
        return len(self.invocations) - 1

    def end_invocation(self, place: int) -> None:
        """Store the time as the end of a command; the caller holds the folder's lock."""
        ended = self.invocations[place].model_copy(update={"ended": now()})
        self.replace_invocations((*self.invocations[:place], ended, *self.invocations[place + 1 :]))

    def replace_invocations(self, invocations: tuple[Invocation, ...]) -> None:
        """Store other entries in the list; the caller holds the folder's lock."""
        stored = self._stored
        self._write(stored["spec"], stored["run_id"], stored.get("expected", []), invocations)

    def _write(self, spec: Any, run_id: str, expected: Any, invocations: Iterable[Invocation]) -> None:
        """Replace the file if its content changes."""
        content = {
            "spec": spec,
            "run_id": run_id,
            "invocations": [one.model_dump(mode="json", exclude_defaults=True) for one in invocations],
            "expected": expected,
        }
        if content != self._stored:
            replace_file(self.folder, RUN_FILE, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
            self._stored, self._meta = content, self._parse_meta(content)


def identity_differences(there: Any, here: Any, prefix: str = "") -> Iterator[str]:
    """Yield the fields in which two identities differ, with both values.

    Args:
        there: the identity of a stored run (`RunSpec.identity`), or a part of it.
        here: that of another run.
        prefix: name of the part.
    """
    if isinstance(there, dict) and isinstance(here, dict):
        for name in sorted({*there, *here}):
            label = f"{prefix}.{name}" if prefix else str(name)
            yield from identity_differences(there.get(name), here.get(name), label)
    elif there != here:
        yield f"{prefix} is {json.dumps(there)} there and {json.dumps(here)} here"


def part_path(folder: Path, shard: Shard) -> Path:
    """Return the file to which a shard appends its records."""
    return folder / f"records.{shard[0]}-of-{shard[1]}.jsonl"


def part_files(folder: Path) -> list[Path]:
    """Return the record files that shards have left or are writing, sorted."""
    return sorted(file for file in folder.glob("records.*.jsonl") if _PART_NAME.fullmatch(file.name))


def merge_parts(records: Path, files: Sequence[Path]) -> None:
    """Move the lines of some shards' files to the end of the records.

    A crash between the two halves of a move leaves lines twice, which means the same as once.

    Args:
        records: the file of the merged records, locked by the caller and without an incomplete last line.
        files: files of shards that no process writes.
    """
    for file in files:
        if not file.exists():
            continue
        repair_last_line(file)
        data = file.read_bytes()
        if not _ends_with(records, data):
            append_bytes(records, data)
        file.unlink()


def _ends_with(file: Path, data: bytes) -> bool:
    """Return whether a file ends with some bytes.

    It does after a move that was interrupted before its second half.
    """
    if not file.exists():
        return not data
    with file.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - len(data)))
        return stream.read() == data


def replace_file(folder: Path, name: str, data: bytes) -> None:
    """Replace a sealed file as a whole, unless its content stays the same.

    Args:
        folder: the run folder, locked by the caller.
        name: one of `REPLACED_FILES`.
        data: its next content.
    """
    if _file_bytes(folder / name) != data:
        announce_replacement(folder, name, data)
        write_atomic(folder / name, data)


def write_seal(folder: Path) -> None:
    """Seal the present files, whatever they hold.

    Args:
        folder: the run folder, locked by the caller.
    """
    stated = {
        name: _fingerprint(folder / name) for name in (*REPLACED_FILES, *APPENDED_FILES) if (folder / name).exists()
    }
    if stated and stated != _read_seal(folder):
        write_atomic(folder / SEAL_FILE, (json.dumps(stated, indent=1) + "\n").encode())


def renew_seal(folder: Path) -> None:
    """Seal the present files unless one was changed since the last seal.

    A change then stays visible.

    Args:
        folder: the run folder, locked by the caller.
    """
    if not broken_seals(folder):
        write_seal(folder)


def announce_replacement(folder: Path, name: str, data: bytes) -> None:
    """Store in the seal the hash of the content that is to replace a file.

    A crash between the two writes then breaks no seal.

    Args:
        folder: the run folder, locked by the caller.
        name: one of `REPLACED_FILES`.
        data: its next content.
    """
    stated = _read_seal(folder)
    if stated is not None and not broken_seals(folder):
        # The present file may be one that an earlier call announced and was interrupted before sealing.
        entry = {**_fingerprint(folder / name), NEXT_HASH: hashlib.sha256(data).hexdigest()}
        write_atomic(folder / SEAL_FILE, (json.dumps({**stated, name: entry}, indent=1) + "\n").encode())


def broken_seals(folder: Path) -> list[str]:
    """Return what was changed since the folder was sealed, one line each.

    For a folder that never was sealed there is nothing.

    Args:
        folder: the run folder.
    """
    while True:
        sealed = _read_seal(folder)
        findings = _changed_files(folder, sealed)
        # Another process may have replaced run.json, and the seal before it, since the seal was read here.
        if not findings or sealed == _read_seal(folder):
            return findings


def _changed_files(folder: Path, sealed: dict[str, dict[str, Any]] | None) -> list[str]:
    """Return one line for every file that does not match a given seal."""
    if sealed is None:
        return [f"{SEAL_FILE} is damaged"] if (folder / SEAL_FILE).exists() else []
    findings = []
    for name, stated in sealed.items():
        found = _fingerprint(folder / name, stated.get("bytes"))
        if found.get("sha256") not in (stated.get("sha256"), stated.get(NEXT_HASH, stated.get("sha256"))):
            findings.append(f"{name} is not as riebench wrote it: something was changed or taken out by hand")
    return findings


def count_unsealed_lines(folder: Path) -> int | None:
    """Count the lines written after the folder was last sealed.

    They were written by a killed run or by hand. Returns None for a folder without a seal.
    """
    sealed = _read_seal(folder)
    if sealed is None:
        return None
    tails = [_file_bytes(folder / name)[int(sealed.get(name, {}).get("bytes", 0)) :] for name in APPENDED_FILES]
    tails += [_file_bytes(file) for file in part_files(folder)]
    return sum(tail.count(b"\n") for tail in tails)


def unsealed_files(folder: Path) -> list[str]:
    """Return the names of files that the seal should cover and does not.

    There are none without a seal.
    """
    sealed = _read_seal(folder)
    return (
        [] if sealed is None else [name for name in REPLACED_FILES if name not in sealed and (folder / name).exists()]
    )


def _fingerprint(file: Path, size: int | None = None) -> dict[str, Any]:
    """Return size and hash of a file's beginning.

    Without a size, all of the file counts; files that are replaced as a whole have a hash only.
    """
    data = _file_bytes(file)
    if file.name in REPLACED_FILES:
        return {"sha256": hashlib.sha256(data).hexdigest()}
    part = data if size is None else data[:size]
    return {"bytes": len(part), "sha256": hashlib.sha256(part).hexdigest()}


def _read_seal(folder: Path) -> dict[str, dict[str, Any]] | None:
    """Return the seal, or None if there is none or it is damaged."""
    try:
        stated = parse_json(read_regular(folder / SEAL_FILE))
    except (OSError, ValueError):
        return None
    is_known = isinstance(stated, dict) and set(stated) <= {*REPLACED_FILES, *APPENDED_FILES}
    return stated if is_known and all(map(_is_fingerprint, stated.values())) else None


def _is_fingerprint(stated: Any) -> bool:
    return isinstance(stated, dict) and isinstance(stated.get("bytes", 0), int) and stated.get("bytes", 0) >= 0


def _file_bytes(file: Path) -> bytes:
    return file.read_bytes() if file.is_file() else b""
