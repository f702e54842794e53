"""Importer of any data set: rows read through the `datasets` library.

A data set comes from the hub, a folder, or a file. It is untrusted: pictures are opened by `riebench.utils.images`,
never by the library, and only files of the data set itself are read.
"""

from __future__ import annotations

import hashlib
import math
import re
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from riebench.errors import RiebenchError, near_match
from riebench.tasks.importers.examples import (
    Draft,
    ImportCollector,
    category_of,
    category_word,
    column_region,
    decode_mask,
    parse_words,
)
from riebench.tasks.importers.published import Origin
from riebench.tasks.mask_files import mask_from_picture
from riebench.tasks.masks import Mask
from riebench.tasks.prompts import WHOLE
from riebench.utils.files import canonical_json, content_digest
from riebench.utils.images import decode_image

READERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".ndjson": ("json", {}),
    ".parquet": ("parquet", {}),
    ".arrow": ("arrow", {}),
    ".csv": ("csv", {}),
    ".tsv": ("csv", {"sep": "\t"}),
}
"""Ending of a file -> the library's builder that reads it, and its options."""

USUAL_COLUMNS: dict[str, tuple[str, ...]] = {
    "id": ("id", "image_id", "key"),
    "category": ("category", "editing_type_id", "edit_type", "task"),
    "source": ("source", "source_prompt", "original_prompt", "source_caption", "input_caption", "input"),
    "target": (
        "target", "target_prompt", "edited_prompt", "editing_prompt", "target_caption", "output_caption", "output",
    ),
    "source_region": ("source_region", "original_gsam_prompt"),
    "target_region": ("target_region", "editing_gsam_prompt"),
    "mask": ("mask",),
    "instruction": ("instruction", "editing_instruction", "edit_instruction", "edit_prompt", "edit"),
}  # fmt: skip
"""Field of an example -> usual names of its column.

InstructPix2Pix has original_prompt, edit_prompt (the instruction) and edited_prompt; HQ-Edit input, edit and output;
the test set of Emu Edit input_caption, output_caption, instruction and task.
"""

INSTRUCTIONS = (*USUAL_COLUMNS["instruction"], "inverse_edit", "inverse_instruction", "edit_action")
"""Columns that say what to do to a picture, and so are no prompt of one."""

PAIRED_COLUMNS = ("input", "output")
"""Columns that are prompts only where both are there; one alone may be anything."""

REQUIRED_FIELDS = ("source", "target")
"""Fields that every data set must have a column for."""


@dataclass(frozen=True)
class DatasetSource:
    """Location of a data set.

    Attributes:
        name: hub id, path of a folder, or path of a file.
        config: name of a configuration; None for the only one.
        split: name of a split; None for the only one.
        revision: commit, branch or tag on the hub; None for the newest.
        offline: uses only data on this machine.
    """

    name: str
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    offline: bool = False

    @property
    def local(self) -> Path | None:
        """The file or folder, or None for a hub id."""
        path = Path(self.name).expanduser()
        looks_local = self.name.startswith((".", "/", "~")) or path.suffix in READERS or self.name.count("/") > 1
        return path if looks_local or path.exists() else None

    @property
    def short(self) -> str:
        """Name of the data set without owner, folders and ending."""
        path = self.local
        if path is None:
            return self.name.rsplit("/", 1)[-1]
        return path.resolve().stem if path.suffix in READERS else path.resolve().name


@dataclass(frozen=True)
class PictureCell:
    """A picture in a cell.

    Attributes:
        upright: the picture, turned as its EXIF data say.
        mask: the region it shows, read as a mask; bool [H, W], or the reason why it cannot be read as one.
    """

    upright: Image.Image
    mask: Mask | RiebenchError


@dataclass(frozen=True)
class RowReading:
    """Facts that all rows of a data set share.

    Attributes:
        name: the data set's short name, with which ids begin that rows do not state.
        category: of all rows; None if a column states it.
        words: word of that column -> category, as `--map` says.
        seen: words that the column has had so far.
    """

    name: str
    category: str | None
    words: Mapping[str, str]
    seen: set[str] = field(default_factory=set)

    def category_of(self, record: Mapping[str, Any]) -> str:
        """Return the category of a row.

        Raises:
            RiebenchError: if it states none, or one that is not known.
        """
        if self.category is not None:
            return self.category
        stated = _required_text(record, "category")
        self.seen.add(category_word(stated))
        try:
            return category_of(stated, self.words)
        except RiebenchError as error:
            known = "did you mean" in str(error)
            raise error if known else RiebenchError(f"{error}; say which it is: --map {stated}=CATEGORY") from None

    def unused_words(self) -> list[str]:
        """Return a line on each word of `--map` that no row has had."""
        missing = [word for word in self.words if word not in self.seen]
        return [f"--map {word}=...: no row says {word!r}{near_match(word, self.seen)}" for word in missing]


@dataclass(frozen=True)
class DatasetRows:
    """Rows of an opened data set.

    Attributes:
        data: the rows, each a mapping of columns.
        split: the opened split.
        revision: the commit on the hub; None for local data.
    """

    data: Any
    split: str
    revision: str | None

    def read(self, where: str) -> Iterator[Mapping[str, Any]]:
        """Yield the rows.

        Raises:
            RiebenchError: if the data are damaged or the connection is lost.
        """
        from pandas.errors import ParserWarning

        rows = iter(self.data)
        while True:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error", ParserWarning)
                    row = next(rows)
            except StopIteration:
                return
            except ParserWarning as error:
                raise RiebenchError(
                    f"{where}: cannot be read: rows have more cells than the header has names"
                ) from error
            except Exception as error:
                # Each parser, codec and network layer below has errors of its own.
                raise RiebenchError(f"{where}: cannot be read: {_first_line(error)}") from error
            yield row


def import_dataset(
    source: DatasetSource,
    collector: ImportCollector,
    *,
    columns: Sequence[str] = (),
    category: str | None = None,
    words: Sequence[str] = (),
    limit: int | None = None,
) -> Origin:
    """Read rows of a data set into a collector; each holds one prompt pair.

    Args:
        source: the data set.
        collector: the collector that its rows are added to.
        columns: "FIELD=COLUMN" for each column without a usual name.
        category: the category of all rows; None if a column states it.
        words: "WORD=CATEGORY" for each word that the category's column has for a category (see `parse_words`).
        limit: the number of rows to read, from the first on; None for all.

    Raises:
        RiebenchError: if it cannot be opened or read, or a column is missing.
    """
    mapping = parse_columns(columns)
    reading = RowReading(source.short, None if category is None else category_of(category), parse_words(words))
    opened = open_rows(source)
    rows = opened.read(source.name)
    first = next(rows, None)
    if first is None:
        raise RiebenchError(f"{source.name} has no rows in its split {opened.split!r}")
    chosen = choose_columns(source.name, list(first), mapping, [name for name in first if _is_picture(first[name])])
    if reading.category is None and "category" not in chosen:
        raise RiebenchError(
            f"no column of {source.name} says the edits' category: write --column category=COLUMN or --category NAME"
        )
    digest, n_rows = hashlib.sha256(), 0
    for row in islice(chain([first], rows), limit):
        record = {field: read_cell(row.get(column), source) for field, column in chosen.items()}
        digest.update(canonical_json({key: _hash_form(value) for key, value in record.items()}).encode())
        stated = record.get("id")
        name = str(stated) if isinstance(stated, str | int) and str(stated).strip() else f"row {n_rows}"
        collector.add_record(name, partial(_draft, record, reading))
        n_rows += 1
    if limit is not None and next(rows, None) is not None:
        collector.add_note(f"--limit {limit} leaves out the rows after the first {limit}")
    if not {"mask", "source_region", "target_region"} & set(chosen):
        collector.add_note("no column names regions: each region is the whole picture")
    for note in (*_column_notes(chosen, mapping), *reading.unused_words()):
        collector.add_note(note)
    options = {"config": source.config, "split": opened.split, "revision": opened.revision or source.revision}
    known = {key: value for key, value in options.items() if value is not None}
    place = source.name if source.local is None else source.local.name
    return {"format": "dataset", "dataset": place, **known, "sha256": digest.hexdigest(), "records": n_rows}


def parse_columns(stated: Sequence[str]) -> dict[str, str]:
    """Parse the pairs of `--column FIELD=COLUMN`.

    Raises:
        RiebenchError: for a pair that is none, an unknown field (with the nearest match) or one given twice.
    """
    mapping: dict[str, str] = {}
    for pair in stated:
        name, equals, column = (part.strip() for part in pair.partition("="))
        if not (name and equals and column):
            raise RiebenchError(f"--column {pair!r}: write FIELD=COLUMN, such as source=caption")
        if name not in USUAL_COLUMNS:
            raise RiebenchError(f"--column {pair!r}: unknown field {name!r}{near_match(name, USUAL_COLUMNS)}")
        if name in mapping:
            raise RiebenchError(f"--column: {name!r} is given twice")
        mapping[name] = column
    return mapping


def choose_columns(
    where: str, columns: Sequence[str], mapping: Mapping[str, str], pictures: Collection[str] = ()
) -> dict[str, str]:
    """Return the column of each field, stated or found by its usual name.

    Args:
        where: the data set, for messages.
        columns: the columns that it has.
        mapping: field -> column, as the user stated it.
        pictures: those that hold pictures, so that only a mask is looked for there.

    Raises:
        RiebenchError: if a stated column does not exist (with the nearest match) or a prompt has none.
    """
    for name, column in mapping.items():
        if column not in columns:
            raise RiebenchError(f"{where} has no column {column!r} for {name}{near_match(column, columns)}")
    free = [column for column in columns if column not in mapping.values()]
    texts = [column for column in free if column not in pictures]
    if not set(PAIRED_COLUMNS) <= set(texts):
        texts = [column for column in texts if column not in PAIRED_COLUMNS]
    found = {}
    for name, usual in USUAL_COLUMNS.items():
        known = [column for column in usual if column in (free if name == "mask" else texts)]
        if name in mapping or known:
            found[name] = mapping.get(name) or known[0]
    for name in REQUIRED_FIELDS:
        if name not in found:
            near = near_match(f"{name}_prompt", [one for one in texts if one not in (*INSTRUCTIONS, *found.values())])
            said = next((f"; {one!r} is the instruction" for one in columns if one in INSTRUCTIONS), "")
            raise RiebenchError(
                f"which column of {where} holds the {name} prompt{near}? write --column {name}=COLUMN{said}"
            )
    return found


def _column_notes(chosen: Mapping[str, str], mapping: Mapping[str, str]) -> list[str]:
    """Return what a user should know of the columns that were chosen."""
    guessed = [f"{name}={column}" for name, column in chosen.items() if name not in mapping and name != column]
    odd = [column for name in REQUIRED_FIELDS if (column := chosen[name]) in INSTRUCTIONS]
    return [
        *([f"columns found by their names: {', '.join(guessed)}"] if guessed else []),
        *(f"the column {column!r} usually holds an instruction, not a prompt" for column in odd),
    ]


def open_rows(source: DatasetSource) -> DatasetRows:
    """Open a data set without reading it.

    Raises:
        RiebenchError: if it does not exist or cannot be reached, or the configuration or split is unknown.
    """
    local = source.local
    if local is not None and not local.exists():
        raise RiebenchError(f"{source.name}: no such file or folder{_near_file(local)}")
    if local is not None and any((local / name).is_file() for name in ("state.json", "dataset_dict.json")):
        from datasets import Dataset, load_from_disk

        stored = _open(source, lambda: load_from_disk(str(local)))
        parts = {source.split or "train": stored} if isinstance(stored, Dataset) else stored
        revision = None
    else:
        parts, revision = _open(source, lambda: _load_splits(source, local))
    split = _choose_split(source, list(parts))
    return DatasetRows(_disable_decoding(parts[split]), split, revision)


def _open(source: DatasetSource, load: Any) -> Any:
    """Call a loading function; its errors become messages for the user."""
    from datasets.exceptions import DatasetNotFoundError, DatasetsError

    try:
        return load()
    except DatasetNotFoundError as error:
        raise RiebenchError(
            f"the hub has no data set {source.name}, or it is private or gated: check the spelling, or accept its "
            f"terms at https://huggingface.co/datasets/{source.name} and log in with `hf auth login`"
        ) from error
    except ConnectionError as error:
        remedy = "leave --offline out" if source.offline else "check the network or HTTPS_PROXY"
        raise RiebenchError(
            f"{source.name} is not on this machine and the hub cannot be reached: {remedy}, or name a local "
            "file or folder"
        ) from error
    except (StopIteration, RuntimeError) as error:
        # The library's readers fail this way on a file without a single row.
        raise RiebenchError(f"{source.name}: holds no rows that can be read ({_first_line(error)})") from error
    except (DatasetsError, ValueError, OSError) as error:
        raise RiebenchError(f"{source.name}: {_first_line(error)}") from error


def _load_splits(source: DatasetSource, local: Path | None) -> tuple[Mapping[str, Any], str | None]:
    """Return the splits of a data set and its commit; None for local data."""
    from datasets import load_dataset_builder
    from datasets.packaged_modules.csv.csv import Csv

    if local is not None and local.is_file():
        if local.suffix not in READERS:
            raise RiebenchError(f"{local}: cannot tell what it is; known endings: {', '.join(READERS)}")
        reader, options = READERS[local.suffix]
        builder = load_dataset_builder(reader, data_files={"train": [str(local)]}, **options)
    else:
        name = source.name if local is None else str(local)
        builder = load_dataset_builder(name, source.config, revision=source.revision)
    from_table = isinstance(builder, Csv) or builder.info.builder_name == "csv"
    if local is None and source.offline:
        if from_table:
            # The stored rows were read before, with numbers and missing values guessed from the text.
            raise RiebenchError(
                f"{source.name} holds CSV files, whose text is not kept for --offline: fetch it with "
                f"`hf download --repo-type dataset {source.name} --local-dir FOLDER` and name that folder"
            )
        # Files of an earlier download can be read, but not as a stream.
        builder.download_and_prepare()
        return builder.as_dataset(), builder.hash
    if from_table:
        _read_as_text(builder, source.name, source.split)
    return builder.as_streaming_dataset(), None if local is not None else builder.hash


def _read_as_text(builder: Any, where: str, split: str | None) -> None:
    """Let a builder of CSV files read every cell as the text that it is.

    Otherwise pandas takes 007 for the number 7, and words such as NA, None and null for missing values.

    Raises:
        RiebenchError: if two columns have one name.
    """
    from datasets import Features, Value

    config = builder.config
    config.na_filter = config.keep_default_na = False
    # Rows with a cell more than the header would otherwise have their first one taken away as a name of the row.
    config.index_col = False
    names = config.names
    if names is None and config.header in ("infer", 0):
        stated, config.header, config.nrows = config.header, None, 1
        parts = builder.as_streaming_dataset()
        chosen = [parts[split]] if split in parts else list(parts.values())
        first: Mapping[str, Any] = next((row for part in chosen for row in part), {})
        config.header, config.nrows = stated, None
        # pandas has the same names for columns without one.
        names = [(str(name).strip() and str(name)) or f"Unnamed: {i}" for i, name in enumerate(first.values())]
    repeated = [name for name in names or () if names.count(name) > 1]
    if repeated:
        raise RiebenchError(f"{where} has two columns {repeated[0]!r}; give each a name of its own")
    if names:
        config.features = builder.info.features = Features({name: Value("string") for name in names})


def _choose_split(source: DatasetSource, splits: list[str]) -> str:
    """Return the stated split, or the only one."""
    if source.split is not None:
        if source.split not in splits:
            raise RiebenchError(f"{source.name} has no split {source.split!r}{near_match(source.split, splits)}")
        return source.split
    if len(splits) != 1:
        raise RiebenchError(f"{source.name} has several splits; choose one with --split: {', '.join(sorted(splits))}")
    return splits[0]


def _disable_decoding(data: Any) -> Any:
    """Return a split in which pictures stay undecoded bytes.

    The library would decode whatever they claim to be. Other columns that need decoding are removed.
    """
    from datasets.features.features import require_decoding

    for name, feature in (data.features or {}).items():
        if hasattr(feature, "decode"):
            data = data.cast_column(name, replace(feature, decode=False))
        elif require_decoding(feature):
            data = data.remove_columns(name)
    return data


def _near_file(path: Path) -> str:
    """Return a hint that names the file that was probably meant."""
    # Without a near match nothing is listed: all names in a folder would be no help.
    names = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
    near = get_close_matches(path.name, names, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _first_line(error: BaseException) -> str:
    """Return the first line of an error, or of the error that caused it."""
    # A wrapper's own message ("An error occurred while generating the dataset") says less than the error it wraps.
    inner = error.__cause__ or error
    return next(iter(str(inner).strip().splitlines()), type(inner).__name__)


def _is_picture(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == {"bytes", "path"}


def read_cell(value: Any, source: DatasetSource) -> Any:
    """Return a cell; one that holds a picture becomes a `PictureCell`.

    Args:
        value: the cell as the library returns it.
        source: the data set, in which a picture's file must lie.

    Raises:
        RiebenchError: if a picture lies elsewhere, is no whole picture of a plain format, or is too large.
    """
    if not _is_picture(value):
        return value
    if value["bytes"] is None and value["path"] is None:
        return None
    data = value["bytes"] if value["bytes"] is not None else _image_bytes(str(value["path"]), source)
    if not isinstance(data, bytes):
        return value
    try:
        with decode_image(data) as picture:
            return PictureCell(ImageOps.exif_transpose(picture), _mask_or_reason(picture))
    except RiebenchError as error:
        raise RiebenchError(f"{source.name}: a picture cannot be read: {error}") from error


def _mask_or_reason(picture: Image.Image) -> Mask | RiebenchError:
    try:
        return mask_from_picture(picture)
    except RiebenchError as error:
        return error


def _image_bytes(path: str, source: DatasetSource) -> bytes:
    """Return the bytes of a picture's file.

    The file may lie in an archive of the data set, but not outside the data set.
    """
    from datasets import config
    from datasets.utils.file_utils import xopen
    from huggingface_hub.constants import HF_HUB_CACHE

    outer_path = path.split("::")[-1]
    if source.local is None:
        is_remote = outer_path.startswith((f"hf://datasets/{source.name}@", f"hf://datasets/{source.name}/"))
        folders = [Path(config.HF_DATASETS_CACHE), Path(HF_HUB_CACHE)]
    else:
        is_remote = False
        folders = [source.local if source.local.is_dir() else source.local.parent]
    file_path = Path(outer_path).resolve()
    if not is_remote and not any(file_path.is_relative_to(folder.resolve()) for folder in folders):
        raise RiebenchError(f"{source.name}: the picture {path!r} lies outside the data set")
    try:
        with xopen(path, "rb") as file:
            data: bytes = file.read()
            return data
    except (OSError, ValueError) as error:
        raise RiebenchError(f"{source.name}: the picture {path!r} cannot be read ({error})") from error


def _draft(record: Mapping[str, Any], reading: RowReading) -> Draft:
    """Return the draft of one row."""
    source, target = _required_text(record, "source"), _required_text(record, "target")
    category = reading.category_of(record)
    stated, remarks = _cell_text(record, "id"), []
    if "id" in record and stated is None:
        remarks.append("rows without an id, called by a hash of their content")
    # An id made from the content stays the same wherever the row stands.
    identity = stated or f"{reading.name}-{content_digest([category, source, target])[:12]}"
    mask = None if _is_empty(record.get("mask")) else _mask(record["mask"])
    instruction = _cell_text(record, "instruction")
    regions = {}
    for side, prompt in (("source_region", source), ("target_region", target)):
        text = _cell_text(record, side)
        regions[side] = WHOLE if text is None else column_region(text, prompt)
        if side in record and text is None and mask is None:
            remarks.append(f"rows without a {side}, taken as the whole picture")
    provenance = {} if instruction is None else {"instruction": instruction}
    if "mask" in record and mask is None and not any(f"{side}_region" in record for side in REQUIRED_FIELDS):
        remarks.append("rows without a mask, taken as the whole picture")
    if stated is not None and _as_id(identity) != stated:
        remarks.append("ids with characters that ids lack, which became dashes; as stated they are under `provenance`")
        provenance["stated_id"] = stated
    return Draft(category, _as_id(identity), source, target, regions, mask, provenance, tuple(remarks))


def _cell_text(record: Mapping[str, Any], field: str) -> str | None:
    """Return a cell's text; None for an empty one.

    Raises:
        RiebenchError: if it holds something else, such as a date or a fraction, whose text as written is lost.
    """
    value = record.get(field)
    if _is_empty(value):
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        kind = "a picture" if isinstance(value, PictureCell) else f"{str(value)[:40]!r} ({type(value).__name__})"
        raise RiebenchError(f"{field} is no text but {kind}; store the column as text, in quotes")
    return str(value)


def _is_empty(value: Any) -> bool:
    """Return whether a cell is empty.

    It is missing, white space, or "not a number", as some formats write it.
    """
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, str) and not value.strip())


def _required_text(record: Mapping[str, Any], field: str) -> str:
    """Return a cell's text, or refuse an empty one."""
    text = _cell_text(record, field)
    if text is None:
        raise RiebenchError(f"{field} is no text: {str(record.get(field))[:40]!r}")
    return text


def _as_id(text: str) -> str:
    """Return a text as an id; characters that ids lack become dashes."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")


def _mask(value: Any) -> Mask:
    """Return the mask of a cell: a picture's, or that of runs."""
    if not isinstance(value, PictureCell):
        return decode_mask(list(value) if isinstance(value, tuple | np.ndarray) else value)
    if isinstance(value.mask, RiebenchError):
        raise RiebenchError(f"mask: {value.mask}") from value.mask
    return value.mask


def _hash_form(value: Any) -> Any:
    """Return a cell's value in a form that can be hashed as JSON."""
    if isinstance(value, PictureCell):
        picture = value.upright
        return [picture.mode, list(picture.size), hashlib.sha256(picture.tobytes()).hexdigest()]
    return value if isinstance(value, str | int | None) else str(value)
