"""Records and scores as lines of JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from riebench.errors import StoreError
from riebench.store.records import EditRecord, ScoreRecord
from riebench.utils.files import read_lines


def json_line(record: EditRecord | ScoreRecord, place: int | None) -> str:
    """Return the line of a record or score that names the command which writes it.

    Args:
        record: the record or score.
        place: the command's place in run.json's list; None keeps what the record names.
    """
    if place is not None and record.invocation is not None:
        record = record.model_copy(update={"invocation": place})
    # Defaults are left out: thousands of lines are committed, and every one of them is read back through the schema.
    line = record.model_dump_json(exclude_defaults=True)
    if place is None or record.invocation is not None:
        return line
    # The last of the fields. Copies of thousands of new scores would take longer than the rest of writing them.
    return f'{line.removesuffix("}")},"invocation":{place}}}'


def read_record_lines(file: Path) -> list[EditRecord]:
    """Read the records of a file; none if it is not there.

    Raises:
        StoreError: naming the first damaged line.
    """
    found = []
    # The file of a shard that has just ended may disappear between being listed and being read.
    with suppress(FileNotFoundError):
        for number, line in read_lines(file):
            try:
                found.append(EditRecord.model_validate_json(json.dumps(line)))
            except ValidationError as error:
                raise _damaged_line(file, number, error) from error
    return found


def read_score_lines(file: Path) -> Iterator[ScoreRecord]:
    """Yield the scores of a file; none if it is not there.

    Raises:
        StoreError: naming the first damaged line.
    """
    for number, line in read_lines(file):
        try:
            yield ScoreRecord.model_validate(line)
        except ValidationError as error:
            raise _damaged_line(file, number, error) from error


def _damaged_line(path: Path, number: int, error: ValidationError) -> StoreError:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return StoreError(f"{path}, line {number}: {where}: {first['msg']}; delete that line to go on")
