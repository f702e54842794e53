"""Collected activations of blocks on disk: safetensors shards with an index.

Of each block its updates are kept, what it adds, or its outputs or inputs, or several of these.

The shards of a block are one sequence, and the index describes their contents. `Collection` is the folder, and
`ShardedPositions` reads one block's positions from it.

    FOLDER/index.json                what was generated, and how: the same for the whole folder
    FOLDER/shards.jsonl              a line per finished shard: pictures, hash of their prompts, size and hash of files
    FOLDER/BLOCK/00000.safetensors   `updates`, `outputs`, `inputs`, those that were asked for: float16
                                     [pictures x steps x positions, width], picture after picture

A shard's files are written before its line: a shard without a line is unfinished and is made again.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from pydantic import Field, ValidationError, field_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from riebench.blocks import as_named, short_name
from riebench.errors import IdentityError, RiebenchError, StoreError, near_match
from riebench.models.spec import ModelSpec
from riebench.tasks.schema import MAX_WHOLE, Count, StoredModel
from riebench.utils.files import (
    append_lines,
    content_digest,
    file_sha256,
    read_lines,
    remove_stale_files,
    repair_last_line,
    write_atomic,
)
from riebench.utils.terminal import ProgressBar

NUMBER_BYTES = 2
"""Bytes of a stored number, float16."""
SEED_STRIDE = 1_000_003
SEED_RULE = f"picture i, counted from 0, has noise of its own: seed * {SEED_STRIDE} + i"
LARGEST_SEED = 2**43
"""Of a folder; noise has seeds below 2**63."""


TENSOR = "updates"
TENSORS: dict[str, str] = {"update": TENSOR, "output": "outputs", "input": "inputs"}
"""What is kept of a block -> name of its tensor in a shard's file."""


class BlockLayout(StoredModel):
    """The size of one picture's updates of one block.

    Outputs and inputs have the same.
    """

    width: int = Field(ge=1, lt=MAX_WHOLE)
    """Channels d."""
    rows: int = Field(ge=1, lt=MAX_WHOLE)
    """Rows of a picture: steps x grid positions, step after step."""

    @property
    def bytes_per_picture(self) -> int:
        """Size of a picture's rows."""
        return self.width * self.rows * NUMBER_BYTES

    @property
    def bytes_per_million(self) -> int:
        """Size of a million positions."""
        return self.width * NUMBER_BYTES * 1_000_000


class CollectionIndex(StoredModel):
    """The settings of one folder, which are the same for all of its shards."""

    version: Count = 1
    model: ModelSpec
    signal: str = "update"
    """What is kept of each block: words of `TENSORS` in that order, with commas between."""
    blocks: dict[str, BlockLayout]
    seed: int = Field(ge=0, lt=MAX_WHOLE)
    seed_rule: str = SEED_RULE
    pictures_per_shard: int = Field(ge=1, lt=MAX_WHOLE)
    batch_size: int = Field(ge=1, lt=MAX_WHOLE)
    """Pictures generated at a time: numbers depend on it by floating-point noise."""
    dtype: str = "float16"

    @field_validator("blocks")
    @classmethod
    def _short_names(cls, blocks: dict[str, BlockLayout]) -> dict[str, BlockLayout]:
        # They are folder names too, and an index may come from anywhere.
        if not blocks or any(short_name(block) != block for block in blocks):
            raise ValueError("blocks go by their short names")
        return blocks

    @field_validator("signal")
    @classmethod
    def _known_signals(cls, signal: str) -> str:
        if not signal or signal != ",".join(word for word in TENSORS if word in signal.split(",")):
            raise ValueError(f"signal is {', '.join(TENSORS)}, or several of these in that order")
        return signal

    @property
    def signals(self) -> tuple[str, ...]:
        """The words of `signal`, one by one."""
        return tuple(self.signal.split(","))

    def bytes_per_picture(self, block: str) -> int:
        """Return the size of everything that is kept of a picture and a block."""
        return self.blocks[block].bytes_per_picture * len(self.signals)

    def seed_of(self, picture: int) -> int:
        """Return the seed of a picture's noise."""
        return self.seed * SEED_STRIDE + picture

    def checked(self, shard: Shard) -> Shard:
        """Return a shard unchanged if its files can be those of this folder.

        There must be one file a block, each large enough for the shard's pictures.

        Raises:
            ValueError: if they cannot.
        """
        if shard.files.keys() != self.blocks.keys():
            raise ValueError("it has other blocks than the folder")
        if any(file.bytes < shard.pictures * self.bytes_per_picture(name) for name, file in shard.files.items()):
            raise ValueError("it claims more pictures than its files hold")
        return shard

    def difference(self, other: CollectionIndex) -> str:
        """Describe the differences from another index; "" if there are none.

        Two names for the same weights are one model.
        """
        mine, theirs = (
            {
                **index.model_dump(mode="json", exclude={"model"}),
                **{f"model {name}": value for name, value in index.model.identity.items()},
            }
            for index in (self, other)
        )
        differing = [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]
        return ", ".join(f"{name} is {_short(mine.get(name))}, not {_short(theirs.get(name))}" for name in differing)


class ShardFile(StoredModel):
    """One file of a shard."""

    bytes: Count
    sha256: str


class Shard(StoredModel):
    """One finished shard."""

    number: Count
    pictures: int = Field(ge=1, lt=MAX_WHOLE)
    prompts_sha256: str
    files: dict[str, ShardFile]
    """Block -> its file."""


def _short(value: object) -> str:
    text = "+".join(value) if isinstance(value, dict) else str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."


INDEX, SHARDS = "index.json", "shards.jsonl"


class Collection:
    """A folder of collected activations.

    Args:
        folder: where it is.
        index: what it holds.
    """

    def __init__(self, folder: Path, index: CollectionIndex) -> None:
        self.folder, self.index = folder, index
        self.shards: dict[int, Shard] = {}
        for number, line in read_lines(folder / SHARDS):
            try:
                shard = index.checked(Shard.model_validate(line))
            except ValueError as error:
                where = f"{folder / SHARDS}, line {number}"
                raise StoreError(f"{where} describes no shard; delete that line to have it made again") from error
            self.shards[shard.number] = shard

    @classmethod
    def open(cls, folder: Path) -> Collection:
        """Open a folder made by `riebench sae collect`.

        Raises:
            RiebenchError: if it holds no collection, or a damaged one.
        """
        path = folder / INDEX
        try:
            index = CollectionIndex.model_validate_json(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError) as error:
            raise RiebenchError(f"{folder} holds no collected updates; `riebench sae collect` makes them") from error
        except ValidationError as error:
            raise StoreError(f"{path} is damaged; collect into a new folder") from error
        return cls(folder, index)

    @classmethod
    def begin(cls, folder: Path, index: CollectionIndex) -> Collection:
        """Open a folder to write to, or create it; the caller holds its lock.

        Raises:
            IdentityError: if it holds updates of another model or configuration; names what differs.
        """
        path = folder / INDEX
        if not path.exists():
            if (folder / SHARDS).exists():
                raise StoreError(f"{path} is missing though {SHARDS} is there; collect into a new folder")
            write_atomic(path, (index.model_dump_json(indent=2) + "\n").encode())
        difference = cls.open(folder).index.difference(index)
        if difference:
            raise IdentityError(f"{folder} holds other updates: {difference}; use another folder")
        # A killed process may have left a partly written shard, which is large.
        remove_stale_files(folder)
        repair_last_line(folder / SHARDS)
        return cls(folder, index)

    @property
    def pictures(self) -> int:
        """Pictures in all finished shards."""
        return sum(shard.pictures for shard in self.shards.values())

    def path(self, block: str, number: int) -> Path:
        """Return the path of a shard's file of one block."""
        return self.folder / block / f"{number:05d}.safetensors"

    def add(self, number: int, prompts: list[str], found: Mapping[str, Tensor | Mapping[str, Tensor]]) -> None:
        """Write a shard: first its files, each whole or absent, then its line.

        Args:
            number: counted from 0.
            prompts: of its pictures.
            found: block -> its updates, float16 [pictures x rows, width]; or what is kept of it -> the same.
        """
        files = {}
        for block, kept in found.items():
            path = self.path(block, number)
            values = {"update": kept} if isinstance(kept, Tensor) else kept
            # No metadata: their order in the file is not always the same.
            write_atomic(path, save({TENSORS[what]: rows.contiguous() for what, rows in values.items()}))
            files[block] = ShardFile(bytes=path.stat().st_size, sha256=file_sha256(path))
        shard = Shard(
            number=number, pictures=len(prompts), prompts_sha256=prompts_digest(prompts), files=files
        )  # fmt: skip
        append_lines(self.folder / SHARDS, [shard.model_dump_json()])
        self.shards[number] = shard

    def forget(self, numbers: Iterable[int]) -> None:
        """Remove shards from the index, so that they are made again."""
        for number in numbers:
            self.shards.pop(number, None)
        lines = [self.shards[number].model_dump_json() for number in sorted(self.shards)]
        write_atomic(self.folder / SHARDS, "".join(f"{line}\n" for line in lines).encode())

    def damaged(self, blocks: Iterable[str] | None = None, *, progress: bool = False) -> dict[int, str]:
        """Read every file of the finished shards and compare size and hash.

        Args:
            blocks: only their files; None for all.
            progress: shows a bar.

        Returns:
            Number of each damaged shard -> description of the damage.
        """
        wanted = set(self.index.blocks if blocks is None else blocks)
        found: dict[int, str] = {}
        files = [(shard, block, file) for shard in self.shards.values() for block, file in shard.files.items()]
        files = [entry for entry in files if entry[1] in wanted]
        bar = ProgressBar(files, title="check shards", unit="file", shown=progress, delay=2)
        for shard, block, file in bar:
            damage = _file_damage(self.path(block, shard.number), file)
            if damage:
                found.setdefault(shard.number, damage)
        return found

    def own_names(self, blocks: Iterable[str]) -> list[str]:
        """Return blocks as they are named here, each once.

        They are all that were collected if none are given.

        Args:
            blocks: by any of their names.
        """
        named = [as_named(short_name(block), self.index.blocks) for block in blocks]
        return list(dict.fromkeys(named)) or list(self.index.blocks)

    def data(self, block: str, signal: str | None = None) -> ShardedPositions:
        """Return all positions of one block, in the order of their pictures.

        Args:
            block: by any of its names.
            signal: update, output or input; None for the first of these that the folder holds.

        Raises:
            RiebenchError: if the block or the signal was not collected, a shard in the middle is missing, or a file is
                not as long as it was written.
        """
        (name,) = self.own_names([block])
        wanted = signal or self.index.signals[0]
        if wanted not in self.index.signals:
            raise RiebenchError(
                f"{self.folder} holds no {wanted}s{near_match(wanted, self.index.signals)}; collect them with "
                f"--signal {wanted} into another folder"
            )
        if name not in self.index.blocks:
            raise RiebenchError(
                f"{self.folder} holds no updates of block {name}{near_match(name, self.index.blocks)}; collect them, "
                "or leave the block out"
            )
        if not self.shards:
            raise RiebenchError(f"{self.folder} holds no finished shard; repeat `riebench sae collect`")
        missing = next((number for number in range(len(self.shards)) if number not in self.shards), None)
        if missing is not None:
            raise RiebenchError(
                f"{self.folder} lacks shard {missing}, which is to be made again: repeat `riebench sae collect`"
            )
        return ShardedPositions(self, name, wanted)


@dataclass(frozen=True)
class ShardedPositions:
    """Positions of one block, read from shards on demand.

    Nothing is kept in memory.

    Attributes:
        collection: the folder.
        block: short name.
        signal: update, output or input.
    """

    collection: Collection
    block: str
    signal: str = "update"

    def __post_init__(self) -> None:
        for number, shard in self.collection.shards.items():
            path = self.collection.path(self.block, number)
            size = path.stat().st_size if path.is_file() else None
            if size != shard.files[self.block].bytes:
                raise damaged_error(self.collection.folder, {number: _file_damage(path, shard.files[self.block])})

    @property
    def layout(self) -> BlockLayout:
        """The size of one picture's updates."""
        return self.collection.index.blocks[self.block]

    @property
    def width(self) -> int:
        """Channels d."""
        return self.layout.width

    @property
    def rows_per_picture(self) -> int:
        """Rows of one picture."""
        return self.layout.rows

    @cached_property
    def digest(self) -> str:
        """A hash of all rows: of the shards' hashes, in order."""
        shards = self.collection.shards
        return content_digest([shards[number].files[self.block].sha256 for number in sorted(shards)])

    @cached_property
    def _starts(self) -> list[int]:
        starts = [0]
        for number in sorted(self.collection.shards):
            starts.append(starts[-1] + self.collection.shards[number].pictures * self.layout.rows)
        return starts

    def __len__(self) -> int:
        return self._starts[-1]

    def read(self, start: int, stop: int) -> Tensor:
        """Read rows start to stop, and no others: float16 [stop - start, d].

        Raises:
            StoreError: if a shard cannot be read.
        """
        parts = []
        at, stop = start, min(stop, len(self))
        while at < stop:
            number = bisect_right(self._starts, at) - 1
            first, last = self._starts[number : number + 2]
            parts.append(self._part(number, at - first, min(stop, last) - first))
            at = last
        return torch.cat(parts) if parts else torch.empty(0, self.width, dtype=torch.float16)

    def _part(self, number: int, start: int, stop: int) -> Tensor:
        path = self.collection.path(self.block, number)
        try:
            with safe_open(path, "pt") as file:
                rows: Tensor = file.get_slice(TENSORS[self.signal])[start:stop]
        except (SafetensorError, OSError) as error:
            raise damaged_error(self.collection.folder, {number: f"{path} cannot be read ({error})"}) from error
        if rows.shape != (stop - start, self.width):
            mismatch = f"{path} holds {[*rows.shape]} where positions {start} to {stop} should be"
            raise StoreError(f"{mismatch}; have them collected anew")
        return rows


def prompts_digest(prompts: list[str]) -> str:
    """Compute the hash of a shard's prompts."""
    return content_digest(prompts)


def damaged_error(folder: Path, found: Mapping[int, str]) -> StoreError:
    """Return the error for damaged shards.

    Its one line names the first of them, their number and the command that makes them again.

    Args:
        folder: of the collection.
        found: number of each damaged shard -> description of the damage.
    """
    first = min(found)
    more = f" (and {len(found) - 1} more shards)" if len(found) > 1 else ""
    return StoreError(
        f"{found[first]}{more}; repeat `riebench sae collect` for {folder} with --redo-damaged, which makes only what "
        "is damaged again"
    )


def _file_damage(path: Path, file: ShardFile) -> str:
    """Describe the damage of a shard's file; "" if there is none."""
    if not path.is_file():
        return f"{path} is missing"
    size = path.stat().st_size
    if size != file.bytes:
        return f"{path} is {'cut off' if size < file.bytes else 'too long'}: {size} bytes instead of {file.bytes}"
    return "" if file_sha256(path) == file.sha256 else f"{path} has changed since it was written"
