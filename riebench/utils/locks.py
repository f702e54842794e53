"""Who may write to a run folder: one process alone, or the shards of one run side by side.

A single process locks `.lock` for itself; shards lock the same file together, so that either side is told at once of
the other. Each shard also locks a file of its own, and what several of them write to (run.json, records.jsonl, the
seal) they write under `.lock.begin`, which is held only for moments. All locks have fixed names and are the system's
own: they go with their process, however it ends, and hold between machines wherever the file system passes them on.
Where it has none, shards are refused, and a single process makes do with a file that names it.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from riebench.errors import FolderInUseError, RiebenchError

LOCK_FILE, BRIEF_FILE, COUNT_FILE = ".lock", ".lock.begin", ".lock.shards"
BRIEF_LOCK_TIMEOUT = 1800.0
"""Seconds to wait for the brief lock: under it each of the shards that begin together reads all records of the folder,
some seconds for ten thousands of them."""

Shard = tuple[int, int]
"""(i, n): the i-th of n, from 1."""


@contextmanager
def whole_lock(folder: Path) -> Iterator[None]:
    """Locks a folder for one process.

    Raises:
        FolderInUseError: at once, if any other process writes there.
    """
    with _exclusive_lock(folder / LOCK_FILE, 0, f"{folder} is being written by another riebench; wait for it to end"):
        yield


@contextmanager
def brief_lock(folder: Path) -> Iterator[None]:
    """Locks what the shards of a folder have in common; the others wait their turn.

    Raises:
        FolderInUseError: if it is not free for half an hour.
    """
    busy = f"{folder} has been locked by another riebench for {BRIEF_LOCK_TIMEOUT:g} s; look for one that hangs, and repeat"
    with _exclusive_lock(folder / BRIEF_FILE, BRIEF_LOCK_TIMEOUT, busy):
        yield


@contextmanager
def shard_lock(folder: Path, shard: Shard) -> Iterator[bool]:
    """Locks one shard of a folder. To be entered and left inside `brief_lock`.

    Yields:
        Whether no other shard is running.

    Raises:
        FolderInUseError: at once, if a single process writes there, if this shard is running already, or if running
            shards part the work in another number.
    """
    if sys.platform == "win32":
        raise RiebenchError("--shard needs locks that Windows lacks; run without it, or under Linux (WSL)")
    index, count = shard
    own = folder / f"{LOCK_FILE}.{index}-of-{count}"
    with _exclusive_lock(own, 0, f"shard {index}/{count} of {folder} is running already; start another one"):
        try:
            with _common_lock(folder) as first:
                _check_shard_count(folder, count, first)
                yield first
        finally:
            # Nobody waits for it: it is only ever taken under the brief lock.
            own.unlink(missing_ok=True)


@contextmanager
def _common_lock(folder: Path) -> Iterator[bool]:
    """Takes the common lock as one of several; yields whether nobody else held it."""
    import fcntl

    descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        first = _try_lock(descriptor, fcntl.LOCK_EX, folder)
        # An exclusive lock of one's own becomes a shared one.
        if not _try_lock(descriptor, fcntl.LOCK_SH, folder):
            raise FolderInUseError(f"{folder} is being written by a riebench without --shard; wait for it to end")
        yield first
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int, how: int, folder: Path) -> bool:
    """Whether a lock could be had at once."""
    import fcntl

    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
            return False
        raise RiebenchError(
            f"--shard needs locks that the file system of {folder} lacks ({error.strerror}); run without it, or put "
            "--results on another one"
        ) from error
    return True


def _check_shard_count(folder: Path, count: int, first: bool) -> None:
    """Notes in how many shards the work is parted, or refuses another number than that of those running."""
    note = folder / COUNT_FILE
    if first:
        note.write_text(f"{count}\n", encoding="utf-8")
        return
    found = note.read_text(encoding="utf-8").strip()
    if found != str(count):
        raise FolderInUseError(
            f"{folder} is being written by shards of {found}, not of {count}: they would make the same pictures twice; "
            "wait for them to end"
        )


@contextmanager
def _exclusive_lock(file: Path, patience: float, busy: str) -> Iterator[None]:
    lock = FileLock(str(file), timeout=patience)
    try:
        lock.acquire()
    except Timeout as error:
        raise FolderInUseError(busy) from error
    try:
        yield
    finally:
        lock.release()
