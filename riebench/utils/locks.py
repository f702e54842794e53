"""Locks that decide who may write to a run folder.

Either one process writes alone, or the shards of one run write side by side. A single process locks `.lock`
exclusively; shards lock the same file together, so that either side learns at once of the other. Each shard also locks
a file of its own, and what several of them write to (run.json, records.jsonl, the seal) they write under `.lock.begin`,
which is held only for moments. All locks have fixed names and belong to the operating system: they end with their
process, however it ends, and hold between machines wherever the file system supports that. Where it does not, shards
are refused, and a single process uses a file that names it.
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
"""Seconds to wait for the brief lock.

Under it, each of the shards that start together reads all records of the folder, which takes some seconds for ten
thousands of them.
"""

Shard = tuple[int, int]
"""(i, n): the i-th of n, from 1."""


@contextmanager
def whole_lock(folder: Path) -> Iterator[None]:
    """Lock a folder for one process.

    Raises:
        FolderInUseError: at once, if any other process writes there.
    """
    with _exclusive_lock(folder / LOCK_FILE, 0, f"{folder} is being written by another riebench; wait for it to end"):
        yield


@contextmanager
def brief_lock(folder: Path) -> Iterator[None]:
    """Lock what the shards of a folder share; other shards wait their turn.

    Raises:
        FolderInUseError: if it is not free for half an hour.
    """
    seconds = f"{BRIEF_LOCK_TIMEOUT:g} s"
    busy = f"{folder} has been locked by another riebench for {seconds}; look for one that hangs, and repeat"
    with _exclusive_lock(folder / BRIEF_FILE, BRIEF_LOCK_TIMEOUT, busy):
        yield


@contextmanager
def shard_lock(folder: Path, shard: Shard) -> Iterator[bool]:
    """Lock one shard of a folder.

    This is to be entered and left inside `brief_lock`.

    Yields:
        True if no other shard is running.

    Raises:
        FolderInUseError: at once, if a single process writes there, if this shard is running already, or if running
            shards split the work into another number.
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
            # No process waits for this lock: it is only ever taken under the brief lock.
            own.unlink(missing_ok=True)


@contextmanager
def _common_lock(folder: Path) -> Iterator[bool]:
    """Take the common lock as one of several; yield whether it was free before."""
    import fcntl

    descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        first = _try_lock(descriptor, fcntl.LOCK_EX, folder)
        # This turns the exclusive lock of this process into a shared one.
        if not _try_lock(descriptor, fcntl.LOCK_SH, folder):
            raise FolderInUseError(f"{folder} is being written by a riebench without --shard; wait for it to end")
        yield first
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int, how: int, folder: Path) -> bool:
    """Take a lock without waiting; return whether that succeeded."""
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
    """Store the number of shards, or refuse one that differs from it.

    The first shard stores it; every other one must split the work into the same number.
    """
    count_file = folder / COUNT_FILE
    if first:
        count_file.write_text(f"{count}\n", encoding="utf-8")
        return
    found = count_file.read_text(encoding="utf-8").strip()
    if found != str(count):
        raise FolderInUseError(
            f"{folder} is being written by shards of {found}, not of {count}: they would make the same pictures twice; "
            "wait for them to end"
        )


@contextmanager
def _exclusive_lock(file: Path, patience: float, busy: str) -> Iterator[None]:
    """Take an exclusive lock, waiting `patience` seconds for it."""
    lock = FileLock(str(file), timeout=patience)
    try:
        lock.acquire()
    except Timeout as error:
        raise FolderInUseError(busy) from error
    try:
        yield
    finally:
        lock.release()
