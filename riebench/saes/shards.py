"""Weights that lie in several safetensors files.

For `NAME.safetensors` there are then `NAME-00001-of-0000N.safetensors` and an index, `NAME.safetensors.index.json`,
whose `weight_map` says which file holds which tensor. Readers go on asking for `NAME.safetensors`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from riebench.errors import RiebenchError
from riebench.utils.files import content_digest, file_inside, file_sha256, parse_json

INDEX_ENDING = ".safetensors.index.json"
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d+)-of-(?P<count>\d+)\.safetensors")


def is_stored(path: Path) -> bool:
    """Return whether a file of weights is there, in one piece or in shards."""
    return path.is_file() or is_sharded(path)


def is_sharded(path: Path) -> bool:
    """Return whether a safetensors file is stored in shards.

    A file in one piece takes precedence.
    """
    return path.suffix == ".safetensors" and not path.is_file() and _index_of(path).is_file()


def whole_path(path: Path) -> Path:
    """Return the path of the weights that an index or a shard belongs to.

    A shard without an index, and any other path, is returned as it is.
    """
    if path.name.endswith(INDEX_ENDING):
        return path.with_name(path.name.removesuffix(".index.json"))
    match = _SHARD.fullmatch(path.name)
    whole = path.with_name(f"{match['stem']}.safetensors") if match else path
    return whole if match and _index_of(whole).is_file() else path


def whole_paths(paths: Iterable[Path]) -> list[Path]:
    """Return the weights that some files are, shards of one taken together, in order."""
    return list(dict.fromkeys(map(whole_path, paths)))


def refuse_lone_shard(path: Path) -> None:
    """Refuse a shard in the place of all weights.

    Raises:
        RiebenchError: if the path is one of several shards by its name.
    """
    match = _SHARD.fullmatch(path.name)
    if match and int(match["count"]) > 1:
        raise RiebenchError(
            f"{path} is one of {int(match['count'])} shards; put all of them and {match['stem']}{INDEX_ENDING} into "
            "one folder, and name the folder"
        )


def shard_patterns(name: str) -> tuple[str, ...]:
    """Return patterns of the index and the shards of a file, for downloads.

    There are none if it is no safetensors file.
    """
    stem = name.removesuffix(".safetensors")
    return () if stem == name else (f"{stem}{INDEX_ENDING}", f"{stem}-?????-of-?????.safetensors")


def weights_sha256(path: Path) -> str:
    """Compute the hash of weights.

    It is that of the file, or one over the index and all shards.

    Raises:
        RiebenchError: as `read_index`.
        OSError: if a file cannot be read.
    """
    if not is_sharded(path):
        return file_sha256(path)
    files = (_index_of(path), *read_index(path))
    return content_digest({file.name: file_sha256(file) for file in files})


def read_index(path: Path) -> dict[Path, set[str]]:
    """Read the index of sharded weights.

    Args:
        path: of the weights as one file.

    Returns:
        Shard -> names of its tensors.

    Raises:
        RiebenchError: if the index is damaged, names a file outside its folder, or one that is not there.
    """
    index = _index_of(path)
    try:
        stated = parse_json(index.read_bytes())
    except (OSError, ValueError) as error:
        raise RiebenchError(f"{index} cannot be read ({error}); fetch the checkpoint again") from error
    places = stated.get("weight_map") if isinstance(stated, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise RiebenchError(f"{index} has no weight_map of tensors to files; fetch the checkpoint again")
    found: dict[Path, set[str]] = {}
    for tensor, name in places.items():
        shard = file_inside(index.parent, name, f"{index}: weight_map:", "its folder", allow_links=True)
        if shard.suffix != ".safetensors":
            raise RiebenchError(f"{index}: weight_map: {name!r} is no safetensors file; only those are read in shards")
        found.setdefault(shard, set()).add(tensor)
    missing = [shard.name for shard in found if not shard.is_file()]
    if missing:
        raise RiebenchError(f"{index} names {', '.join(missing)}, which is not there; fetch the checkpoint again")
    return found


def _index_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.index.json")
