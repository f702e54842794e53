"""The files the toy world ships: where they are, and whether they are intact.

A damaged weight file would not crash: it would give other numbers. So every folder is checked against
`assets/manifest.json` the first time a process asks for it. This module needs neither torch nor any model code.

The data folder `assets/` next to this file has no `__init__.py` and must not get one: Python prefers a module file
over such a folder, but a package over a module file.
"""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import TypedDict

from riebench.errors import RiebenchError
from riebench.utils.files import file_sha256, package_folder

ASSETS = package_folder() / "toyworld" / "assets"
"""Folder of all shipped files; one subfolder per model."""

MANIFEST = "manifest.json"
"""Name of the list of hashes inside `ASSETS`."""

REPAIR_HINT = "reinstall the package or, in a checkout, `git checkout -- riebench/toyworld/assets`"
"""Advice at the end of every error message about shipped files."""


class AssetError(RiebenchError):
    """A shipped file is missing, or is not the file that was shipped."""


class ManifestEntry(TypedDict):
    """One file in the manifest."""

    sha256: str
    size: int


def compute_manifest(root: Path = ASSETS) -> dict[str, ManifestEntry]:
    """Compute the hash and the size of every file below a folder.

    Keys are paths relative to `root` with forward slashes, in alphabetical order.

    Hidden files, byte-code folders and the manifest itself are left out.
    """
    entries: dict[str, ManifestEntry] = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        hidden = any(part.startswith(".") or part == "__pycache__" for part in name.split("/"))
        if path.is_file() and not hidden and name != MANIFEST:
            entries[name] = {"sha256": file_sha256(path), "size": path.stat().st_size}
    return dict(sorted(entries.items()))


def write_manifest(root: Path = ASSETS) -> Path:
    """Write `manifest.json` for the files as they are now.

    Call it after replacing a shipped file.

    Returns:
        The path of the manifest.
    """
    path = root / MANIFEST
    temporary = path.with_name(f".{MANIFEST}.{os.getpid()}")
    temporary.write_text(json.dumps(compute_manifest(root), indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
    return path


def read_manifest(root: Path = ASSETS) -> dict[str, ManifestEntry]:
    """Read the stored manifest.

    Raises:
        AssetError: if it is missing or cannot be read.
    """
    path = root / MANIFEST
    try:
        entries: dict[str, ManifestEntry] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AssetError(f"the list of shipped files {path} cannot be read ({error}); {REPAIR_HINT}") from error
    return entries


def check_folder(name: str, root: Path = ASSETS) -> Path:
    """Compare every listed file of one asset folder with the manifest; not cached.

    Args:
        name: folder below `root`, e.g. `"lpips"`.
        root: the folder that holds `manifest.json`.

    Returns:
        The folder's path.

    Raises:
        AssetError: if the manifest lists no such folder, or a file of it is missing, unreadable or different.
    """
    manifest = read_manifest(root)
    listed = {path: entry for path, entry in manifest.items() if path.startswith(f"{name}/")}
    if not listed:
        known = ", ".join(sorted({path.split("/")[0] for path in manifest if "/" in path}))
        raise AssetError(f"the toy world ships no {name!r}; shipped: {known or 'nothing'}; {REPAIR_HINT}")
    for path, entry in listed.items():
        expected = entry["sha256"]
        try:
            found = file_sha256(root / path)
        except FileNotFoundError:
            found = "no file"
        except OSError as error:
            found = f"unreadable: {error.strerror or error}"
        if found != expected:
            raise AssetError(f"{root / path} is damaged: expected sha256 {expected}, found {found}; {REPAIR_HINT}")
    return root / name


@functools.cache
def asset_folder(name: str) -> Path:
    """Return the folder of one shipped model, checked once per process.

    Names are "toy-turbo", "toy-clip", "lpips" and so on.

    Raises:
        AssetError: as `check_folder`.
    """
    return check_folder(name)


if __name__ == "__main__":
    print(f"wrote {write_manifest()}")
