"""Rows of a data set, read through the `datasets` library: from the hub, a folder, or a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from riebench.errors import RiebenchError, near_match

READERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".ndjson": ("json", {}),
    ".parquet": ("parquet", {}),
    ".arrow": ("arrow", {}),
    ".csv": ("csv", {}),
    ".tsv": ("csv", {"sep": "\t"}),
}
"""Ending of a file -> the builder that reads it, and its options."""


@dataclass(frozen=True)
class Place:
    """Where a data set is.

    Attributes:
        name: hub id, path of a folder, or path of a file.
        config: which of its configurations; None for the only one.
        split: which part; None for the only one.
        revision: commit, branch or tag on the hub; None for the newest.
        offline: uses only what is on this machine.
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
        """Its name without owner, folders and ending."""
        path = self.local
        if path is None:
            return self.name.rsplit("/", 1)[-1]
        return path.resolve().stem if path.suffix in READERS else path.resolve().name


@dataclass(frozen=True)
class Rows:
    """An opened data set.

    Attributes:
        data: gives rows, each a mapping of columns.
        split: the part that was opened.
        revision: the commit on the hub; None for local data.
    """

    data: Any
    split: str
    revision: str | None

    def read(self, where: str) -> Iterator[Mapping[str, Any]]:
        """Its rows.

        Raises:
            RiebenchError: if the data are damaged or the connection is lost.
        """
        rows = iter(self.data)
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except Exception as error:
                # Whatever parser, codec or network layer is at work below has errors of its own.
                raise RiebenchError(f"{where}: cannot be read: {_first_line(error)}") from error
            yield row


def open_rows(place: Place) -> Rows:
    """Opens a data set without reading it.

    Raises:
        RiebenchError: if it does not exist or cannot be reached, or the configuration or split is unknown.
    """
    local = place.local
    if local is not None and not local.exists():
        raise RiebenchError(f"{place.name}: no such file or folder{_neighbour(local)}")
    if local is not None and any((local / name).is_file() for name in ("state.json", "dataset_dict.json")):
        from datasets import Dataset, load_from_disk

        stored = _opened(place, lambda: load_from_disk(str(local)))
        parts = {place.split or "train": stored} if isinstance(stored, Dataset) else stored
        revision = None
    else:
        parts, revision = _opened(place, lambda: _build(place, local))
    split = _chosen_split(place, list(parts))
    return Rows(_undecoded(parts[split]), split, revision)


def _undecoded(data: Any) -> Any:
    """A part whose pictures stay the bytes they are: the library would decode whatever they claim to be."""
    from datasets.features.features import require_decoding

    for name, feature in (data.features or {}).items():
        if hasattr(feature, "decode"):
            data = data.cast_column(name, replace(feature, decode=False))
        elif require_decoding(feature):
            data = data.remove_columns(name)
    return data


def _build(place: Place, local: Path | None) -> tuple[Mapping[str, Any], str | None]:
    from datasets import load_dataset_builder

    if local is not None and local.is_file():
        if local.suffix not in READERS:
            raise RiebenchError(f"{local}: cannot tell what it is; known endings: {', '.join(READERS)}")
        reader, options = READERS[local.suffix]
        builder = load_dataset_builder(reader, data_files={"train": [str(local)]}, **options)
    else:
        name = place.name if local is None else str(local)
        builder = load_dataset_builder(name, place.config, revision=place.revision)
    if local is None and place.offline:
        # What an earlier download left can be read, but not as a stream.
        builder.download_and_prepare()
        return builder.as_dataset(), builder.hash
    return builder.as_streaming_dataset(), None if local is not None else builder.hash


def _opened(place: Place, load: Any) -> Any:
    from datasets.exceptions import DatasetNotFoundError, DatasetsError

    try:
        return load()
    except DatasetNotFoundError as error:
        raise RiebenchError(
            f"the hub has no data set {place.name}, or it is private or gated: check the spelling, or accept its terms "
            f"at https://huggingface.co/datasets/{place.name} and log in with `hf auth login`"
        ) from error
    except ConnectionError as error:
        how = "leave --offline out" if place.offline else "check the network or HTTPS_PROXY"
        raise RiebenchError(
            f"{place.name} is not on this machine and the hub cannot be reached: {how}, or name a local file or folder"
        ) from error
    except (StopIteration, RuntimeError) as error:
        # How the library's readers fail on a file without a single row.
        raise RiebenchError(f"{place.name}: holds no rows that can be read ({_first_line(error)})") from error
    except (DatasetsError, ValueError, OSError) as error:
        raise RiebenchError(f"{place.name}: {_first_line(error)}") from error


def _chosen_split(place: Place, splits: list[str]) -> str:
    if place.split is not None:
        if place.split not in splits:
            raise RiebenchError(f"{place.name} has no split {place.split!r}{near_match(place.split, splits)}")
        return place.split
    if len(splits) != 1:
        raise RiebenchError(f"{place.name} has several splits; choose one with --split: {', '.join(sorted(splits))}")
    return splits[0]


def _neighbour(path: Path) -> str:
    # All that lies in a folder would be no help.
    names = [one.name for one in path.parent.iterdir()] if path.parent.is_dir() else []
    near = get_close_matches(path.name, names, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _first_line(error: BaseException) -> str:
    # A wrapper's own words ("An error occurred while generating the dataset") say less than what it wraps.
    inner = error.__cause__ or error
    return next(iter(str(inner).strip().splitlines()), type(inner).__name__)
