"""What becomes of a run folder that something other than riebench has changed: said, and made anew on request."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from riebench.errors import StoreError
from riebench.recordparts import parts
from riebench.records import RECORDS_FILE, RUN_FILE, SCORES_FILE
from riebench.seal import SEAL_FILE, broken_seals
from riebench.store import RunFolder
from riebench.utils.locks import whole_lock

ASIDE = "set-aside"
"""Folder of what was replaced because it could not be trusted any more."""


def complaints(folders: Iterable[RunFolder]) -> list[str]:
    """What a run has found wrong in its folders, one line each, with what was done or can be done about it.

    Args:
        folders: after the run.
    """
    told = []
    for folder in folders:
        if folder.altered:
            many = "1 file was" if len(folder.altered) == 1 else f"{len(folder.altered)} files were"
            told.append(f"{many} not as riebench wrote them, e.g. {folder.path / folder.altered[0]}; made again")
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
        earlier = (one.name.removeprefix(f"{ASIDE}-") for one in path.glob(f"{ASIDE}-*"))
        aside = path / f"{ASIDE}-{1 + max((int(number) for number in earlier if number.isdecimal()), default=0)}"
        aside.mkdir()
        for file in (path / RECORDS_FILE, *parts(path), path / SCORES_FILE, path / SEAL_FILE, path / RUN_FILE):
            # An honest run.json still says whose folder this is.
            if file.exists() and (file.name != RUN_FILE or _is_suspect(path, broken)):
                file.rename(aside / file.name)
        return aside


def _is_suspect(path: Path, broken: list[str]) -> bool:
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
