"""Rows of data sets: files, folders and hub ids.

They are read through the `datasets` library. Data are untrusted: pictures are opened by `riebench.utils.images`, never
by the library, and only files of the data set itself are read. Tables of text (CSV, TSV) and JSON files are read as
they are written, without types that are guessed.
"""

from __future__ import annotations

import codecs
import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from riebench.errors import RiebenchError, near_match
from riebench.tasks.mask_files import mask_from_picture
from riebench.tasks.masks import Mask
from riebench.utils.hub import offline_remedy, offline_variable
from riebench.utils.images import decode_image

JSON_ENDINGS = (".json", ".jsonl", ".ndjson")
"""Endings of JSON files, which are read here where they are not part of a folder or of a data set on the hub.

The library guesses types: text that looks like a date becomes one, and where a column holds text and numbers, its text
gets quotation marks.
"""

READERS: dict[str, tuple[str, dict[str, Any]]] = {
    **{ending: ("json", {}) for ending in JSON_ENDINGS},
    ".parquet": ("parquet", {}),
    ".arrow": ("arrow", {}),
    ".csv": ("csv", {}),
    ".tsv": ("csv", {"sep": "\t"}),
}
"""Ending of a file -> the library's builder that reads it, and its options."""


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


@dataclass(frozen=True)
class JsonRows:
    """Rows of a JSON file: a list of records, or one record a line.

    Attributes:
        path: the file.
        columns: the keys of all records, in the order in which they appear.
        records: the records of a list; None for those of lines, which are read again each time.
    """

    path: Path
    columns: tuple[str, ...]
    records: tuple[dict[str, Any], ...] | None

    @classmethod
    def open(cls, path: Path, where: str) -> JsonRows:
        """Read a file once, for its columns.

        Raises:
            RiebenchError: if it holds no records; says where.
        """
        try:
            with path.open("rb") as file:
                is_list = file.read(64).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")
            records = tuple(_json_list(path)) if is_list else None
            columns = {key: None for record in records or _json_lines(path) for key in record}
        except (OSError, ValueError, RecursionError) as error:
            problem = "nested too deeply" if isinstance(error, RecursionError) else error
            raise RiebenchError(f"{where}: cannot be read: {problem}") from error
        return cls(path, tuple(columns), records)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the rows, each with all columns."""
        for record in _json_lines(self.path) if self.records is None else self.records:
            yield {column: record.get(column) for column in self.columns}


def _json_list(path: Path) -> Iterator[dict[str, Any]]:
    found = json.loads(path.read_bytes().decode("utf-8-sig"))
    for number, record in enumerate(found):
        if not isinstance(record, dict):
            raise ValueError(f"entry {number} of the list is no record but {type(record).__name__}")
        yield record


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a file that holds one a line."""
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"line {number}: damaged JSON ({error.msg.lower()}); write one record a line"
                ) from error
            if not isinstance(record, dict):
                raise ValueError(f"line {number} is no record but {type(record).__name__}")
            yield record


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
    elif local is not None and local.is_file() and local.suffix in JSON_ENDINGS:
        parts, revision = {"train": JsonRows.open(local, source.name)}, None
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
        away = source.offline or offline_variable() is not None
        remedy = offline_remedy() if away else "check the network or HTTPS_PROXY"
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

    for name, feature in (getattr(data, "features", None) or {}).items():
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


def is_picture(value: Any) -> bool:
    """Return whether a cell holds a picture, as the library gives those undecoded."""
    return isinstance(value, dict) and set(value) == {"bytes", "path"}


def read_cell(value: Any, source: DatasetSource) -> Any:
    """Return a cell; one that holds a picture becomes a `PictureCell`.

    Args:
        value: the cell as the library returns it.
        source: the data set, in which a picture's file must lie.

    Raises:
        RiebenchError: if a picture lies elsewhere, is no whole picture of a plain format, or is too large.
    """
    if not is_picture(value):
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
    if not is_remote and file_path.exists() and not file_path.is_file():
        # A pipe or a device has no end.
        raise RiebenchError(f"{source.name}: the picture {path!r} is no file")
    try:
        with xopen(path, "rb") as file:
            data: bytes = file.read()
            return data
    except (OSError, ValueError) as error:
        raise RiebenchError(f"{source.name}: the picture {path!r} cannot be read ({error})") from error
