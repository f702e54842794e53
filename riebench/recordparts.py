"""What running shards have recorded: each appends to a file of its own, and moves its lines to the records at its end.

So no two processes ever append to one file at the same time, which network file systems do not keep apart. A shard
that was killed leaves its file behind: readers read it too, and the next writer moves its lines.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from riebench.utils.files import append_bytes, repair_last_line
from riebench.utils.locks import Shard

_PART = re.compile(r"records\.[0-9]+-of-[0-9]+\.jsonl")


def part_path(folder: Path, shard: Shard) -> Path:
    """Where a shard records."""
    return folder / f"records.{shard[0]}-of-{shard[1]}.jsonl"


def parts(folder: Path) -> list[Path]:
    """The files that shards have left or are writing, sorted."""
    return sorted(file for file in folder.glob("records.*.jsonl") if _PART.fullmatch(file.name))


def merge(records: Path, files: Sequence[Path]) -> None:
    """Moves the lines of some parts to the end of the records.

    A crash between the two halves of a move leaves lines that are there twice, which says the same as once.

    Args:
        records: the records, locked by the caller and without a torn last line.
        files: parts that nobody writes.
    """
    for file in files:
        if not file.exists():
            continue
        repair_last_line(file)
        data = file.read_bytes()
        if not _ends_with(records, data):
            append_bytes(records, data)
        file.unlink()


def _ends_with(file: Path, data: bytes) -> bool:
    """Whether a file ends with some bytes: a move that was cut off before its second half."""
    if not file.exists():
        return not data
    with file.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - len(data)))
        return stream.read() == data
