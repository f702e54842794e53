"""Bounded search for autoencoders deeper inside a folder than they usually lie.

Training programs put SAEs below folders of their own (`trainer_0/`, `checkpoints/`, a folder a step). `search_below`
looks for them level by level and keeps what it saw, so that a message can say so. It follows no linked folders, so
nothing outside the named folder is found, and it gives up after a fixed number of folders and files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from riebench.errors import RiebenchError
from riebench.saes.files import WEIGHT_ENDINGS, block_named_by

DEPTH = 4
"""Deepest level that is searched; the folder itself is level 0."""
MAX_FOLDERS = 300
"""Most folders that are looked into."""
MAX_ENTRIES = 20_000
"""Most entries that are read of all folders together."""
MAX_FILES = 32
"""Most files of one folder that are looked at one by one; there may be one for each step of a training."""

_LISTED = 8
_FINAL = re.compile(r"final([_-]\d+)?")
_NO_SAE = re.compile(
    r"(optim|optimizer|scheduler|lr_scheduler|trainer_state|training_state|rng_state|scaler|sparsity|act_rate|mean|std|"
    r"topk_vals|topk_indices|topk_heatmaps)([_-]?\d+)?"
)
"""Names, without their endings, of files with tensors that training programs write beside an SAE."""


@dataclass(frozen=True)
class Place:
    """A place with an SAE.

    Attributes:
        path: its folder or file.
        block: the block that its name, or the name of a folder around it, stands for; None if none does.
    """

    path: Path
    block: str | None


@dataclass
class Search:
    """A search below a folder, and what was seen.

    Attributes:
        root: the folder.
        places: the SAEs, in the order of their paths; where one of several beside each other is called final, that one.
        folders: the folders that were looked into, the root first.
        files: the files that were seen.
        reasons: path -> why it could not be looked at.
        entries: how many entries of folders were read.
        complete: whether everything down to `DEPTH` was seen.
    """

    root: Path
    places: list[Place] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    reasons: dict[Path, str] = field(default_factory=dict)
    entries: int = 0
    complete: bool = True

    def by_block(self) -> dict[str, list[Path]]:
        """Return the places of each block, without those that no name ties to one."""
        found: dict[str, list[Path]] = {}
        for place in self.places:
            if place.block is not None:
                found.setdefault(place.block, []).append(place.path)
        return found

    def unnamed(self) -> list[Path]:
        """Return the places that no name ties to a block."""
        return [place.path for place in self.places if place.block is None]

    def describe(self) -> str:
        """Return what was seen, for a message: folders, files and names of blocks."""
        seen = [f"{self._inside(path)}/" for path in self.folders[1:]] + [self._inside(path) for path in self.files]
        if not seen:
            return "it is empty"
        shown = ", ".join(seen[:_LISTED]) + (f" and {len(seen) - _LISTED} more" if len(seen) > _LISTED else "")
        blocks = dict.fromkeys(name for path in self.folders if (name := block_named_by(path)) is not None)
        parts = [f"seen in it: {shown}", f"blocks that its folders are named for: {', '.join(blocks) or 'none'}"]
        parts += [f"{self._inside(path)} cannot be read: {reason}" for path, reason in [*self.reasons.items()][:2]]
        if not self.complete:
            parts.append(f"only {len(self.folders)} folders were looked into, as there are too many")
        return "; ".join(parts)

    def _inside(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix() if path != self.root else "it"


def search_below(root: Path, is_sae: Callable[[Path], bool]) -> Search:
    """Search a folder for SAEs, level by level.

    A folder that holds an SAE is not searched further.

    Args:
        root: the folder.
        is_sae: says whether a folder or file is one; may raise `RiebenchError`, which counts as no.
    """
    search = Search(root)
    level = [root]
    for _ in range(DEPTH + 1):
        below: list[Path] = []
        for folder in level:
            if len(search.folders) >= MAX_FOLDERS or search.entries >= MAX_ENTRIES:
                search.complete = False
                break
            below += _look_into(folder, search, is_sae)
        level = below
    search.places = _without_steps(search.places)
    return search


def _look_into(folder: Path, search: Search, is_sae: Callable[[Path], bool]) -> list[Path]:
    """Look into one folder; return the folders in it that are to be searched."""
    search.folders.append(folder)
    folders, files = _entries(folder, search)
    search.files += files
    if _check(folder, search, is_sae):
        return []
    weights = [path for path in files if path.suffix in WEIGHT_ENDINGS and not _NO_SAE.fullmatch(path.stem.lower())]
    if len(weights) > MAX_FILES:
        search.complete = False
    for path in weights[:MAX_FILES]:
        _check(path, search, is_sae)
    return folders


def _check(path: Path, search: Search, is_sae: Callable[[Path], bool]) -> bool:
    try:
        found = is_sae(path)
    except (RiebenchError, OSError) as error:
        search.reasons[path] = str(error)
        return False
    if found:
        search.places.append(Place(path, block_above(path, search.root)))
    return found


def _entries(folder: Path, search: Search) -> tuple[list[Path], list[Path]]:
    """Return the folders and the files in a folder.

    Hidden and linked folders are left out.
    """
    folders, files = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if search.entries >= MAX_ENTRIES:
                    search.complete = False
                    break
                search.entries += 1
                if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
                    folders.append(folder / entry.name)
                elif entry.is_file():
                    files.append(folder / entry.name)
    except OSError as error:
        search.reasons[folder] = error.strerror or str(error)
    return _in_order(folders), _in_order(files)


def _in_order(paths: list[Path]) -> list[Path]:
    """Sort by name, numbers in it by their value."""
    return sorted(paths, key=lambda path: [int(part) if part.isdecimal() else part
                                           for part in re.split(r"([0-9]+)", path.name)])  # fmt: skip


def block_above(path: Path, root: Path) -> str | None:
    """Return the block that a place or the nearest folder around it is named for.

    None if no name up to the root stands for one.
    """
    for one in (path, *path.parents):
        block = block_named_by(one)
        if block is not None or one == root:
            return block
    return None


def _without_steps(places: list[Place]) -> list[Place]:
    """Leave out the steps of a training beside its final state, if there is one such."""
    final: dict[Path, list[Place]] = {}
    for place in places:
        if _FINAL.fullmatch(place.path.name):
            final.setdefault(place.path.parent, []).append(place)
    return [place for place in places if len(final.get(place.path.parent, ())) != 1
            or place in final[place.path.parent]]  # fmt: skip
