"""Output folder of a page, which is complete at every moment.

Equal results give equal bytes, and nothing outside the folder is touched.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from riebench.errors import RiebenchError
from riebench.utils.files import (
    MAX_PATH_PART,
    content_digest,
    is_temporary,
    parse_json,
    remove_stale_files,
    temporary_path,
    write_atomic,
)

MANIFEST, INDEX = "files.json", "index.html"


class OutputFolder:
    """Output folder whose file names hold hashes, and whose page is written last.

    A page that is open in a browser keeps all its files until the new page is in place; files that only the old one
    needed are deleted then. Only files that an earlier call wrote here are ever deleted.

    Args:
        path: the folder.

    Raises:
        RiebenchError: if the folder holds anything but a report.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            raise RiebenchError(f"{path} is no folder; choose another with --out")
        self._earlier = _manifest(path)
        self._written: set[str] = set()

    def add(self, folder: str, name: str, text: str) -> str:
        """Write a text under a name that holds its hash.

        Args:
            folder: subfolder of the output folder.
            name: name of the file; the hash is put before its ending.
            text: content of the file.

        Returns:
            Path below the output folder, with forward slashes.
        """
        stem, dot, ending = name.rpartition(".")
        relative = f"{folder}/{stem}-{content_digest(text)[:12]}{dot}{ending}"
        place = self._place(relative)
        if not place.exists() or place.stat().st_size != len(text.encode()):
            with _temporary_for(place) as temporary:
                temporary.write_text(text, encoding="utf-8", newline="\n")
        return relative

    def add_picture(self, source: Path, digest: str, *, link: bool = False) -> str:
        """Copy a picture under a name made of its hash.

        A picture that several units share is there only once.

        Args:
            source: the picture file.
            digest: its SHA-256.
            link: whether to share the file with the results folder instead of copying it, where the file system can.

        Returns:
            Path below the output folder, as in `add`.
        """
        # The ending does not depend on the recorded name: a browser must not take the file for a page.
        relative = f"pictures/{digest[:20]}.png"
        place = self._place(relative)
        if not place.exists() or place.stat().st_size != source.stat().st_size:
            with _temporary_for(place) as temporary:
                _copy_or_link(source, temporary, link)
        return relative

    def finish(self, page: str) -> Path:
        """Put the page in place and delete files that only an earlier page needed.

        Args:
            page: the HTML.

        Returns:
            The page's path.
        """
        index = self._place(INDEX)
        # Should this stop halfway, the next call still knows all of its own files.
        self._write_manifest(self._written | self._earlier)
        write_atomic(index, page.encode())
        for stale in sorted(self._earlier - self._written):
            # A manifest that names a folder, or a file behind a link, was not written here.
            if not (self.path / stale).is_dir() and self._holds(self.path / stale):
                (self.path / stale).unlink(missing_ok=True)
        self._write_manifest(self._written)
        remove_stale_files(self.path)
        return index

    def _write_manifest(self, names: set[str]) -> None:
        write_atomic(self.path / MANIFEST, (json.dumps(sorted(names), indent=0) + "\n").encode())

    def _holds(self, place: Path) -> bool:
        """Check that a path does not lead out of the folder.

        The file itself may be a link, as it is replaced or deleted.
        """
        return place.parent.resolve().is_relative_to(self.path.resolve())

    def _place(self, relative: str) -> Path:
        place = self.path / relative
        if not self._holds(place):
            raise RiebenchError(f"{place.parent} leads out of {self.path}; delete that link or choose another --out")
        if relative not in self._written:
            # Written before any other file or folder, so that the next call recognizes the folder as a report's.
            if not self._written and not (self.path / MANIFEST).exists():
                self._write_manifest(set())
            place.parent.mkdir(parents=True, exist_ok=True)
            self._written.add(relative)
        return place


def _manifest(path: Path) -> set[str]:
    file = path / MANIFEST
    if not file.exists():
        # A call that was killed before it wrote its first file has left at most temporary files.
        if path.exists() and not all(is_temporary(one.name) for one in path.iterdir()):
            raise RiebenchError(f"{path} is not empty and holds no report; choose another folder with --out")
        return set()
    try:
        names = {str(name) for name in parse_json(file.read_bytes())}
    except (ValueError, TypeError) as error:
        raise RiebenchError(f"{file} is damaged ({error}); delete {path} and repeat") from error
    return {name for name in names if _is_inside(name)}


def _is_inside(name: str) -> bool:
    parts = Path(name).parts
    short = name.isprintable() and all(len(part.encode()) <= MAX_PATH_PART for part in parts)
    return short and bool(parts) and not Path(name).is_absolute() and ".." not in parts


@contextmanager
def _temporary_for(place: Path) -> Iterator[Path]:
    """Open a temporary file that replaces a path at the end.

    Unlike `write_atomic` it does not wait for the disk: thousands are written, and all can be made again.
    """
    temporary = temporary_path(place)
    try:
        yield temporary
        temporary.replace(place)
    finally:
        temporary.unlink(missing_ok=True)


def _copy_or_link(source: Path, place: Path, link: bool) -> None:
    if link:
        # On another file system, or one without links, the file is copied instead.
        with suppress(OSError):
            os.link(source, place)
            return
    shutil.copyfile(source, place)
