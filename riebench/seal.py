"""The seal of a run folder: hashes of what riebench wrote, so that edits by anything else are found.

`seal.json` holds the hash of run.json and of the records and scores as far as they were written when a writer last let
the folder go. Records and scores only ever grow, so an honest file begins with what was sealed. A folder whose seal is
broken is never sealed anew. A seal has no key: it finds accidents and careless edits, not somebody who forges it too.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from riebench.recordparts import parts
from riebench.records import RECORDS_FILE, RUN_FILE, SCORES_FILE
from riebench.utils.files import parse_json, write_atomic

SEAL_FILE = "seal.json"
WHOLE = (RUN_FILE,)
"""Files that are replaced as a whole."""
GROWING = (RECORDS_FILE, SCORES_FILE)
"""Files that only grow."""
COMING = "coming"
"""Key of the hash that a file is about to have."""


def broken_seals(folder: Path) -> list[str]:
    """What was changed since the folder was sealed, one line each; nothing for a folder that never was.

    Args:
        folder: the run folder.
    """
    while True:
        sealed = _read(folder)
        findings = _broken(folder, sealed)
        # Another process may have replaced run.json, and its seal before, since the seal was read here.
        if not findings or sealed == _read(folder):
            return findings


def _broken(folder: Path, sealed: dict[str, dict[str, Any]] | None) -> list[str]:
    if sealed is None:
        return [f"{SEAL_FILE} is damaged"] if (folder / SEAL_FILE).exists() else []
    findings = []
    for name, stated in sealed.items():
        found = _part(folder / name, stated.get("bytes"))
        if found.get("sha256") not in (stated.get("sha256"), stated.get(COMING, stated.get("sha256"))):
            findings.append(f"{name} is not as riebench wrote it: something was changed or taken out by hand")
    return findings


def unsealed_lines(folder: Path) -> int | None:
    """Lines that were written after the folder was last sealed, by a run that was killed or by hand; None unsealed."""
    sealed = _read(folder)
    if sealed is None:
        return None
    tails = [_content(folder / name)[int(sealed.get(name, {}).get("bytes", 0)) :] for name in GROWING]
    tails += [_content(file) for file in parts(folder)]
    return sum(tail.count(b"\n") for tail in tails)


def renew(folder: Path) -> None:
    """Seals what is there now, unless something was changed since the last seal: that stays to be seen.

    Args:
        folder: the run folder, locked by the caller.
    """
    if not broken_seals(folder):
        seal(folder)


def seal(folder: Path) -> None:
    """Seals what is there now, whatever it is.

    Args:
        folder: the run folder, locked by the caller.
    """
    stated = {name: _part(folder / name) for name in (*WHOLE, *GROWING) if (folder / name).exists()}
    if stated and stated != _read(folder):
        write_atomic(folder / SEAL_FILE, (json.dumps(stated, indent=1) + "\n").encode())


def announce(folder: Path, name: str, data: bytes) -> None:
    """Notes in the seal what a file is about to be replaced by, so that a crash in between breaks nothing.

    Args:
        folder: the run folder, locked by the caller.
        name: one of `WHOLE`.
        data: its coming content.
    """
    stated = _read(folder)
    if stated is not None and not broken_seals(folder):
        # What is there may be what an earlier call announced, if that was cut off before it could be sealed.
        coming = {**_part(folder / name), COMING: hashlib.sha256(data).hexdigest()}
        write_atomic(folder / SEAL_FILE, (json.dumps({**stated, name: coming}, indent=1) + "\n").encode())


def _part(file: Path, size: int | None = None) -> dict[str, Any]:
    """Size and hash of a file's beginning; of all of it without a size."""
    data = _content(file)
    if file.name in WHOLE:
        return {"sha256": hashlib.sha256(data).hexdigest()}
    part = data if size is None else data[:size]
    return {"bytes": len(part), "sha256": hashlib.sha256(part).hexdigest()}


def _content(file: Path) -> bytes:
    return file.read_bytes() if file.is_file() else b""


def _read(folder: Path) -> dict[str, dict[str, Any]] | None:
    try:
        stated = parse_json((folder / SEAL_FILE).read_bytes())
    except (OSError, ValueError):
        return None
    named = isinstance(stated, dict) and set(stated) <= {*WHOLE, *GROWING}
    return stated if named and all(map(_is_part, stated.values())) else None


def _is_part(stated: Any) -> bool:
    return isinstance(stated, dict) and isinstance(stated.get("bytes", 0), int) and stated.get("bytes", 0) >= 0
