"""Files and hashes: atomic writes, JSON lines, safe paths, SHA-256.

What is written here is either whole or absent after a crash, a full disk or a killed process. JSON-lines files only
grow; an incomplete last line is ignored when read and removed before the next write. Content hashes are taken of one
canonical JSON text.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import psutil

from riebench.errors import MAX_NAME_LENGTH, RiebenchError, StoreError

MAX_PATH_LENGTH = 1000
"""Longest path that a file may state, in characters."""

MAX_PATH_PART = 255
"""Longest file or folder name in a path, in bytes; file systems take no longer one."""

_TEMPORARY_NAME = re.compile(r"\..*\.(?P<machine>[0-9a-f]{8})-(?P<process>\d{1,9})-[0-9a-f]{8}\.tmp", re.DOTALL)


def package_folder() -> Path:
    """Return the folder in which the package lies, in a checkout or installed."""
    # The package is always unpacked: models are loaded from its files by other libraries, which want paths.
    return Path(str(resources.files("riebench")))


def file_inside(folder: Path, name: str, key: str, folder_label: str, *, allow_links: bool = False) -> Path:
    """Return the path of a file that an untrusted file names.

    The path must stay inside a given folder.

    Args:
        folder: the folder in which it must lie.
        name: its path relative to the folder, as the untrusted file states it.
        key: the key that states it, for messages.
        folder_label: the folder as messages name it.
        allow_links: lets a link inside the folder lead out of it, as the links in the hub's cache do.

    Raises:
        RiebenchError: if the path leads out of the folder or cannot be a path.
    """
    parts = Path(name).parts
    longest_part = max((len(part.encode("utf-8", "replace")) for part in parts), default=0)
    if not name.isprintable() or len(name) > MAX_PATH_LENGTH or longest_part > MAX_PATH_PART:
        raise RiebenchError(f"{key} {name[:MAX_NAME_LENGTH]!r} is no path")
    path = folder / name
    is_plain = not Path(name).is_absolute() and ".." not in parts
    if not is_plain or not (allow_links or _leads_inside(folder, parts)):
        raise RiebenchError(f"{key} {name!r} leaves {folder_label}")
    return path


def _leads_inside(folder: Path, parts: Sequence[str]) -> bool:
    """Return whether a path below a folder stays there when links are followed."""
    # Only a link can lead out. Looking for one takes a tenth of the time of resolving both paths, which tens of
    # thousands of pictures would wait for.
    below = str(folder)
    for part in parts:
        below = f"{below}{os.sep}{part}"
        if os.path.islink(below):
            return (folder / Path(*parts)).resolve().is_relative_to(folder.resolve())
    return True


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that it is either whole or absent.

    This also holds after a crash or on a full disk.

    Args:
        path: the file; missing folders are made.
        data: its content.
    """
    with _temporary_copy(path, data) as temporary:
        temporary.replace(path)


def update_file(path: Path, data: bytes, command: str, *, check: bool) -> None:
    """Write a generated file whose content has changed, or only check it.

    Args:
        path: the file.
        data: its content.
        command: that generates it.
        check: only looks.

    Raises:
        RiebenchError: with `check`, if the file is out of date.
    """
    if (path.read_bytes() if path.exists() else b"") != data:
        if check:
            raise out_of_date(path, command)
        write_atomic(path, data)


def out_of_date(path: Path, command: str) -> RiebenchError:
    """Return the error of a generated file that is not what its command makes."""
    return RiebenchError(f"{path} is out of date; run `{command}` and commit it")


def write_once(path: Path, data: bytes) -> None:
    """Write a file atomically unless it exists already.

    Of several writers the first one wins; otherwise as `write_atomic`.

    Args:
        path: the file; missing folders are made.
        data: its content.
    """
    with _temporary_copy(path, data) as temporary, suppress(FileExistsError):
        # Unlike a rename, a hard link never replaces a file. Where the file system has no hard links, checking first
        # has to suffice.
        try:
            os.link(temporary, path)
        except FileExistsError:
            raise
        except OSError:
            if not path.exists():
                temporary.replace(path)


@contextmanager
def _temporary_copy(path: Path, data: bytes) -> Iterator[Path]:
    """Write data to a temporary file beside a path and yield it.

    The data are on the disk when it is yielded; whatever is left of the file is deleted afterwards.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def temporary_path(path: Path) -> Path:
    """Return a new name in a file's folder for its next content.

    `remove_stale_files` recognizes such names.
    """
    # Process numbers alone repeat between machines, and containers often have the same one.
    return path.with_name(f".{path.name}.{_machine_id()}-{os.getpid()}-{secrets.token_hex(4)}.tmp")


def is_temporary(name: str) -> bool:
    """Return whether a file name is one that `temporary_path` makes."""
    return _TEMPORARY_NAME.fullmatch(name) is not None


def remove_stale_files(folder: Path) -> int:
    """Delete the temporary files that killed processes of this machine left.

    They are looked for everywhere below a folder.

    Returns:
        Number of deleted files.
    """
    count = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            if is_stale(name):
                (Path(parent) / name).unlink(missing_ok=True)
                count += 1
    return count


def is_stale(name: str) -> bool:
    """Return whether a name is of `temporary_path`, by a process that has ended."""
    found = _TEMPORARY_NAME.fullmatch(name) if name.endswith(".tmp") else None
    # A process of another machine may still be writing; that cannot be seen from here.
    return bool(found and found["machine"] == _machine_id() and not psutil.pid_exists(int(found["process"])))


@lru_cache(maxsize=1)
def _machine_id() -> str:
    """Return 8 hexadecimal digits that stand for this machine or container."""
    name = platform.node()
    # Containers may share their host's name, and number their processes from 1 all the same.
    with suppress(OSError):
        name += os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(name.encode()).hexdigest()[:8]


def read_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Read a JSON-lines file; an incomplete last line is left out.

    Args:
        path: the file; may be absent.

    Yields:
        Line number (from 1) and the parsed line.

    Raises:
        StoreError: for a damaged line that is not the last.
    """
    if not path.exists():
        return
    lines = read_regular(path).decode(errors="replace").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            yield number, parse_json(line)
        except ValueError as error:
            if number == len(lines):  # no line end: the writer was interrupted here
                return
            raise StoreError(f"{path}, line {number} is damaged ({error}); delete that line to go on") from error


def append_lines(path: Path, lines: list[str]) -> None:
    """Append whole lines in one write and flush them to the disk.

    A write that fails halfway (full disk) is undone, so that the file ends with a whole line again.

    Args:
        path: the file; made with its folders if absent.
        lines: texts without line ends.
    """
    append_bytes(path, "".join(f"{line}\n" for line in lines).encode())


def append_bytes(path: Path, data: bytes) -> None:
    """Append lines as `append_lines` does, given as bytes.

    Args:
        path: the file; made with its folders if absent.
        data: whole lines.
    """
    if not data:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:
        end = file.tell()
        try:
            written = 0
            while written < len(data):
                written += file.write(data[written:])
            os.fsync(file.fileno())
        except BaseException:
            file.truncate(end)
            raise


def repair_last_line(path: Path) -> bool:
    """Remove an incomplete last line that a crash left.

    A complete last line only gets its missing line end.

    Args:
        path: a JSON-lines file; may be absent.

    Returns:
        True if an incomplete line was removed.
    """
    if not path.exists() or _ends_with_newline(path):
        return False
    data = path.read_bytes()
    start = data.rfind(b"\n") + 1
    with path.open("r+b") as file:
        if _is_json(data[start:]):
            file.seek(0, os.SEEK_END)
            file.write(b"\n")
            return False
        file.truncate(start)
    return True


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        return file.read() in (b"", b"\n")


def parse_json(text: str | bytes) -> Any:
    """Parse JSON as `json.loads` does, but fail with ValueError only.

    This includes text that is nested too deeply, for which `json.loads` raises RecursionError.

    Raises:
        ValueError: if it is no JSON.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _is_json(data: bytes) -> bool:
    try:
        parse_json(data)
    except ValueError:
        return False
    return True


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, as 64 hexadecimal digits.

    Raises:
        OSError: if it cannot be read, or is a pipe or a device, which has no end.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "no regular file", str(path))
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_regular(path: Path) -> bytes:
    """Return the content of a regular file.

    Raises:
        OSError: if it cannot be read, or is a pipe or a device, which has no end.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "no regular file", str(path))
    return path.read_bytes()


def canonical_json(value: Any) -> str:
    """Return the one JSON text of a value.

    Keys are sorted, there are no spaces, integral floats are written as integers, and NaN is refused.
    """
    return json.dumps(
        _normalize_numbers(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def content_digest(value: Any) -> str:
    """Return the SHA-256 of `canonical_json`, as 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def _normalize_numbers(value: Any) -> Any:
    # 2 and 2.0 are the same number in YAML files and must give the same hash.
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {str(key): _normalize_numbers(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_normalize_numbers(item) for item in value]
    return value
