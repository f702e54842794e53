"""Run folders whose text is damaged or was changed by hand.

`folder_warnings` says what a run found, and `set_aside` moves away what cannot be trusted.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from riebench.errors import StoreError
from riebench.store.folder import RunFolder
from riebench.store.records import RECORDS_FILE, RECORDS_TABLE, RUN_FILE, SCORES_FILE, SCORES_TABLE
from riebench.store.run_file import SEAL_FILE, broken_seals, part_files
from riebench.store.sae_figures import SAE_FIGURES_FILE
from riebench.utils.locks import whole_lock

SET_ASIDE_PREFIX = "set-aside"
"""Beginning of the names of folders that hold replaced files which could not be trusted any more."""


def folder_warnings(folders: Iterable[RunFolder]) -> list[str]:
    """Return what a run found wrong in its folders, one line each.

    Each line says what was done or can be done about it.

    Args:
        folders: the folders, after the run.
    """
    lines = []
    for folder in folders:
        if folder.altered_files:
            subject = "1 file was" if len(folder.altered_files) == 1 else f"{len(folder.altered_files)} files were"
            lines.append(
                f"{subject} not as riebench wrote them, e.g. {folder.path / folder.altered_files[0]}; made again"
            )
        lines += [
            f"{folder.path}: {finding}; `--redo all`, without --shard, makes it anew"
            for finding in broken_seals(folder.path)
        ]
    return lines


def set_aside(path: Path) -> Path | None:
    """Move away the text files of a run folder if they are not trustworthy.

    They are not if one is damaged or was changed; pictures stay until they are made again.

    Args:
        path: the run folder; it may be absent.

    Returns:
        Folder that holds it now; None if nothing was wrong.

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
        text = (RECORDS_FILE, SCORES_FILE, RECORDS_TABLE, SCORES_TABLE, SAE_FIGURES_FILE, SEAL_FILE, RUN_FILE)
        for file in (*part_files(path), *(path / name for name in text)):
            # A run.json that was not changed still says whose folder this is.
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
        folder.sae_figures()
    except StoreError:
        return False
    return True
