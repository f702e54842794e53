"""Records and scores as Parquet files: the form of published results.

A value of few kinds, such as a metric's name, is stored once and not in every line, and all is compressed: the files
need a tenth of the room of the JSON lines that say the same, and are read column by column. Tables have the columns of
the schemas below, one row a record or score, in the order in which they were written (scores by metric first).
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from riebench.errors import StoreError, near_match
from riebench.store.records import BlockDistribution, BlockFeatures, EditRecord, ScoreRecord, UnitKey
from riebench.tasks.schema import MAX_WHOLE
from riebench.utils.files import read_regular, write_atomic

if TYPE_CHECKING:
    import pyarrow as pa

MOST_ROWS = 50_000_000
"""Rows of the largest file that is read."""
MOST_BYTES = 8 * 2**30
"""Size of the largest file once it is decompressed: a few bytes can stand for any number of equal ones."""

KEY_COLUMNS = tuple(UnitKey.model_fields)
"""Columns of records that make up the unit's key."""
RECORD_COLUMNS = {
    "task": "string", "task_version": "int64", "category": "string", "example_id": "string", "example_hash": "string",
    "block_set": "string", "strength": "double", "seed": "int64", "status": "string", "reason": "string",
    "image": "string", "image_sha256": "string", "source_image": "string", "target_image": "string",
    "features": "list<struct<block: string, add: list<int64>, remove: list<int64>>>", "neurons": "int64",
    "cluster": "string", "mask_source": "double", "mask_target": "double", "seconds": "double", "batch_size": "int64",
    "invocation": "int64", "distribution": "string", "training": "string",
}  # fmt: skip
"""Column of records.parquet -> its type; `distribution` and `training` are JSON, in files of runs that have them."""
SCORE_COLUMNS = {
    "unit": "string", "metric": "string", "version": "int64", "backbone": "string", "picture": "string",
    "value": "double", "reason": "string", "invocation": "int64",
}  # fmt: skip
"""Column of scores.parquet -> its type."""
OPTIONAL = frozenset(
    {
        "reason", "image", "image_sha256", "source_image", "target_image", "neurons", "cluster", "mask_source",
        "mask_target", "value", "invocation", "distribution", "training",
    }
)  # fmt: skip
"""Columns that may be empty."""
LATER = frozenset({"distribution", "training"})
"""Columns that a file may lack: they came later, and a run that has nothing for them is written without."""


def write_records(path: Path, records: Sequence[EditRecord]) -> None:
    """Write records as a Parquet file.

    Args:
        path: the file, which is replaced as a whole.
        records: in the order in which they are to be read again.
    """
    columns: dict[str, list[Any]] = {name: [] for name in RECORD_COLUMNS}
    for record in records:
        values: dict[str, Any] = {**dict(record.key), **dict(record)}
        values["features"] = [
            {"block": block, "add": list(chosen.add), "remove": list(chosen.remove)}
            for block, chosen in record.features.items()
        ]
        share = record.mask_share
        values |= {"mask_source": share and share.source, "mask_target": share and share.target}
        values["distribution"] = _distribution_text(record)
        values["training"] = None if record.training is None else record.training.model_dump_json()
        for name, column in columns.items():
            column.append(values[name])
    kept = {
        name: kind for name, kind in RECORD_COLUMNS.items() if name not in LATER or any(one for one in columns[name])
    }
    _write(path, kept, columns)


def _distribution_text(record: EditRecord) -> str | None:
    """Return what was measured of a record's activations as one text, or None."""
    if record.distribution is None:
        return None
    found = {block: one.model_dump(mode="json") for block, one in record.distribution.items()}
    return json.dumps(found, separators=(",", ":"))


def write_scores(path: Path, scores: Iterable[ScoreRecord]) -> None:
    """Write scores as a Parquet file.

    Args:
        path: the file, which is replaced as a whole.
        scores: in the order in which they were measured; those of one metric are put together, in this order.
    """
    _write(path, SCORE_COLUMNS, _score_lists(sorted(scores, key=lambda score: score.metric)))


def _score_lists(scores: Sequence[ScoreRecord]) -> dict[str, list[Any]]:
    return {name: [getattr(one, name) for one in scores] for name in SCORE_COLUMNS}


def _table(types: Mapping[str, str], columns: Mapping[str, list[Any]]) -> pa.Table:
    import pyarrow as pa

    schema = _schema(types)
    return pa.table([pa.array(columns[one.name], one.type) for one in schema], schema=schema)


def _write(path: Path, types: Mapping[str, str], columns: Mapping[str, list[Any]]) -> None:
    import pyarrow.parquet as pq

    table = _table(types, columns)
    # Measured numbers hardly ever repeat: their bytes compress best when those of equal weight stand together.
    measured = [name for name in ("value", "seconds") if name in types]
    sink = io.BytesIO()
    pq.write_table(
        table, sink, compression="zstd", compression_level=19, data_page_version="2.0", write_statistics=False,
        store_schema=False, row_group_size=MOST_ROWS,
        use_dictionary=[name for name in types if name not in (*measured, "features", *LATER)]
        + [f"features.list.element.{part}" for part in ("block", "add.list.element", "remove.list.element")],
        column_encoding=dict.fromkeys(measured, "BYTE_STREAM_SPLIT"),
    )  # fmt: skip
    write_atomic(path, sink.getvalue())


def _schema(types: Mapping[str, str]) -> pa.Schema:
    import pyarrow as pa

    numbers = pa.list_(pa.int64())
    features = pa.list_(pa.struct([("block", pa.string()), ("add", numbers), ("remove", numbers)]))
    simple = {"string": pa.string(), "int64": pa.int64(), "double": pa.float64()}
    return pa.schema([pa.field(name, simple.get(kind, features), name in OPTIONAL) for name, kind in types.items()])


def read_records(path: Path, *, features: bool = True) -> list[EditRecord]:
    """Read the records of a Parquet file.

    Args:
        path: the file.
        features: reads which features each unit switched, too; a record has none otherwise.

    Raises:
        StoreError: if it is damaged, or holds what is no record; the message names the row.
    """
    left_out = () if features else ("features",)
    words = [name for name, kind in RECORD_COLUMNS.items() if kind == "string" and name not in LATER]
    table = _read(path, RECORD_COLUMNS, words, left_out)
    columns = {
        name: plain_list(table.column(name)) for name in RECORD_COLUMNS if name != "features" and name not in LATER
    }  # fmt: skip
    for name, parse in (("distribution", _distribution), ("training", _parsed)):
        texts = table.column(name).to_pylist() if name in table.column_names else [None] * len(table)
        columns[name] = [None if text is None else parse(path, text) for text in texts]
    switched = _features(path, table.column("features").combine_chunks()) if features else [{}] * len(table)
    found = []
    names = [name for name in EditRecord.model_fields if name in columns]
    fields = zip(*(columns[name] for name in names), strict=True)
    keys = zip(*(columns[name] for name in KEY_COLUMNS), strict=True)
    shares = zip(columns["mask_source"], columns["mask_target"], strict=True)
    for row, (key, chosen, share, one) in enumerate(zip(keys, switched, shares, fields, strict=True)):
        values = dict(zip(names, one, strict=True))
        values["key"] = dict(zip(KEY_COLUMNS, key, strict=True))
        values["mask_share"] = None if share == (None, None) else {"source": share[0], "target": share[1]}
        values["features"] = chosen
        try:
            found.append(EditRecord.model_validate(values))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise StoreError(f"{path}, row {row + 1}: {where}: {first['msg']}; publish the run again") from error
    return found


def _distribution(path: Path, text: str) -> Any:
    """Return a record's distances by block, as they are where they are wrong.

    What is wrong with them is said with the record's row, when the whole record is checked.
    """
    try:
        return _distributions().validate_json(text)
    except ValidationError:
        return _parsed(path, text)


@cache
def _distributions() -> TypeAdapter[dict[str, BlockDistribution]]:
    return TypeAdapter(dict[str, BlockDistribution])


def _parsed(path: Path, text: str) -> Any:
    """Return a value that is stored as JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path} is damaged: {text[:40]!r} is no JSON object; publish the run again") from error


def plain_list(column: Any) -> list[Any]:
    """Return an Arrow column as a list, many times faster than `to_pylist` does.

    Words are decoded once each, numbers all at once, and most columns that may be empty are so in every row.
    """
    if column.null_count == len(column):
        return [None] * len(column)
    if str(column.type).startswith("dictionary"):
        column = column.unify_dictionaries().combine_chunks()
        column = column.chunk(0) if hasattr(column, "chunk") else column
        words = column.dictionary.to_pylist()
        if column.null_count:
            return [None if code is None else words[code] for code in column.indices.to_pylist()]
        return [words[code] for code in numbers(column.indices).tolist()]
    if column.null_count:
        values: list[Any] = column.to_pylist()
        return values
    return [value for chunk in column.chunks for value in numbers(chunk).tolist()]


def numbers(array: Any) -> NDArray[Any]:
    """Return an Arrow array of numbers without gaps as a NumPy array, uncopied.

    Arrow's own conversions import pandas first.
    """
    buffer = array.buffers()[1] if len(array) else None
    kind = {"int32": np.int32, "int64": np.int64, "double": np.float64}[str(array.type)]
    if buffer is None:
        return np.empty(0, kind)
    return np.frombuffer(buffer, kind, count=array.offset + len(array))[array.offset :]


def _features(path: Path, column: Any) -> list[dict[str, BlockFeatures]]:
    """Return the features of each record by block.

    Lists are cut out of the flat columns, and indices are checked all at once: there are millions of them.
    """
    parts = column.flatten()
    blocks = parts.field("block").to_pylist()
    sides = []
    for side in ("add", "remove"):
        lists = parts.field(side)
        indices = numbers(lists.flatten())
        if len(indices) and not (indices.min() >= 0 and indices.max() < MAX_WHOLE):
            raise StoreError(f"{path} is damaged: a feature's index is no whole number from 0; publish the run again")
        flat, ends = indices.tolist(), numbers(lists.value_lengths()).cumsum().tolist()
        starts = [0, *ends[:-1]] if ends else []
        sides.append([tuple(flat[a:b]) for a, b in zip(starts, ends, strict=True)])
    switched = (BlockFeatures.model_construct(add=add, remove=remove) for add, remove in zip(*sides, strict=True))
    entries = list(zip(blocks, switched, strict=True))
    ends = numbers(column.value_lengths()).cumsum().tolist()
    starts = [0, *ends[:-1]] if ends else []
    found = [dict(entries[a:b]) for a, b in zip(starts, ends, strict=True)]
    if sum(map(len, found)) < len(entries):
        raise StoreError(f"{path} is damaged: a record names a block twice; publish the run again")
    return found


def read_score_table(path: Path) -> pa.Table:
    """Read the scores of a Parquet file as checked columns.

    Raises:
        StoreError: if it is damaged, or holds what is no score.
    """
    import pyarrow.compute as pc

    table = _read(path, SCORE_COLUMNS, dictionaries=("unit", "metric", "backbone", "picture", "reason"))

    unexplained = table.column("reason").cast("string").filter(pc.is_null(table.column("value")))
    values, versions, places = (_stated(table.column(name)) for name in ("value", "version", "invocation"))
    faults = {
        "a value is no finite number": not np.isfinite(values).all(),
        "a score has neither value nor reason": bool(unexplained.null_count) or "" in unexplained.unique().to_pylist(),
        "a version is below 1": (versions < 1).any(),
        "a version is too large": (versions >= MAX_WHOLE).any(),
        "an invocation is no place in a list": ((places < 0) | (places >= MAX_WHOLE)).any(),
    }
    for fault, found in faults.items():
        if found:
            raise StoreError(f"{path} is damaged: {fault}; publish the run again")
    return table


def _stated(column: Any) -> NDArray[Any]:
    """Return the numbers of a column without its gaps."""
    chunks = [numbers(chunk) for chunk in column.drop_null().chunks]
    return np.concatenate(chunks) if chunks else np.empty(0)


def _read(
    path: Path, types: Mapping[str, str], dictionaries: Sequence[str] = (), left_out: Sequence[str] = ()
) -> pa.Table:
    """Read a Parquet file that has exactly these columns.

    Args:
        path: the file.
        types: its columns.
        dictionaries: columns whose words are decoded once each.
        left_out: columns that must be there, but are not read.

    Raises:
        StoreError: otherwise.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        data = read_regular(path)
        plain = pq.ParquetFile(pa.BufferReader(data))
        about = plain.metadata
        size = sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups))
        if about.num_rows > MOST_ROWS or size > MOST_BYTES:
            raise StoreError(f"{path} would need {size / 2**30:.1f} GiB of memory; no run has so many records")
        found = plain.schema_arrow
        _check_columns(path, {name: found.field(name) for name in found.names}, types)
        wanted = [name for name in types if name not in left_out and (name in found.names or name not in LATER)]
        table = pq.ParquetFile(pa.BufferReader(data), read_dictionary=list(dictionaries)).read(wanted)
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise StoreError(f"{path} is damaged ({reason}); publish the run again") from error
    for name in wanted:
        if name not in OPTIONAL and table.column(name).null_count:
            raise StoreError(f"{path} is damaged: {name} is missing in a row; publish the run again")
    return table


def _check_columns(path: Path, found: Mapping[str, Any], types: Mapping[str, str]) -> None:
    wanted = {one.name: one for one in _schema(types)}
    for name in found:
        if name not in wanted:
            raise StoreError(
                f"{path}: unknown column {name!r}{near_match(name, wanted)}; was it made by another version?"
            )
    for name, one in wanted.items():
        if name not in found and name in LATER:
            continue
        if name not in found:
            raise StoreError(f"{path}: the column {name!r} is missing; was it made by another version?")
        if not found[name].type.equals(one.type):
            raise StoreError(f"{path}: the column {name!r} holds {found[name].type}, not {types[name]}")
