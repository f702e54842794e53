"""Results by their place: a folder here, or a data set on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from riebench.errors import RiebenchError
from riebench.store import remote
from riebench.store.folder import RunFolder, find_run_folders
from riebench.store.records import RUN_FILE


def open_results(place: str | Path, *, offline: bool = False) -> Path:
    """Return the folder of results, fetched from the hub if need be.

    Args:
        place: a folder, or "hf://datasets/OWNER/NAME[@REVISION]".
        offline: True to fetch nothing.

    Raises:
        RiebenchError: if there is no such folder, or the hub does not give it.
    """
    if remote.is_address(place):
        return remote.fetch_results(place, offline=offline)
    folder = Path(place).expanduser()
    if not folder.is_dir():
        raise RiebenchError(f"there is no results folder {folder}; riebench.run makes one, or give hf://datasets/ID")
    return folder


def run_folders(folder: Path) -> list[RunFolder]:
    """Return the runs of a results folder, or of a part of one.

    Args:
        folder: results, or the folder of one suite, of one model or of one run inside.

    Raises:
        RiebenchError: if there are none.
    """
    if (folder / RUN_FILE).is_file():
        return [RunFolder(folder)]
    found = find_run_folders(folder)
    for pattern in ("*", "*/*"):
        found = found or [RunFolder(file.parent) for file in sorted(folder.glob(f"{pattern}/{RUN_FILE}"))]
    if not found:
        raise RiebenchError(f"{folder} holds no runs; riebench.run makes them")
    return found
