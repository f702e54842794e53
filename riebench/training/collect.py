"""The collection of block updates, outputs and inputs while prompts are generated.

Prompts are generated in shards of a fixed size, and what is asked for of the blocks is stored. A shard's pictures,
their noise and their batches follow from its number alone. So the files are the same, bit for bit, whether or not the
collection was interrupted. A generation ends with the last activation that is wanted, and no picture
is decoded, unless weights travel between devices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from riebench.blocks import ATTENTION, TEXT, UNITS, as_named, default_blocks, kind, short_name
from riebench.errors import RiebenchError, near_match
from riebench.generation.generator import Capture, Generator
from riebench.generation.hooks import find_module
from riebench.generation.trace import QUANTITIES
from riebench.models.loading import LoadedModel
from riebench.training.collection import (
    LARGEST_SEED,
    TENSORS,
    BlockLayout,
    Collection,
    CollectionIndex,
    damaged_error,
    prompts_digest,
)
from riebench.utils.locks import whole_lock
from riebench.utils.machine import free_disk
from riebench.utils.terminal import ProgressBar

IN_MEMORY_BATCH = 32
"""Pictures at a time where no folder is written."""


@dataclass(frozen=True)
class CollectOptions:
    """Settings of a collection.

    Attributes:
        blocks: whose activations.
        limit: pictures; None for all prompts.
        seed: of the noise (see `riebench.training.collection.SEED_RULE`).
        batch_size: pictures at a time; numbers depend on it by floating-point noise, so it stays for a folder.
        pictures_per_shard: pictures a shard; at most so many are lost by an interruption.
        redo_damaged: makes damaged shards again instead of refusing them.
        signals: what is kept of each block: update, output, input.

    Raises:
        RiebenchError: if the seed is out of its range, or a signal is unknown.
    """

    blocks: tuple[str, ...] = field(default_factory=default_blocks)
    limit: int | None = None
    seed: int = 0
    batch_size: int = 8
    pictures_per_shard: int = 256
    redo_damaged: bool = False
    signals: tuple[str, ...] = ("update",)

    def __post_init__(self) -> None:
        unknown = [what for what in self.signals if what not in TENSORS]
        if unknown or not self.signals:
            near = near_match(unknown[0], TENSORS) if unknown else ""
            raise RiebenchError(f"signals are {', '.join(TENSORS)}, not {', '.join(unknown) or 'none'}{near}")
        if not 0 <= self.seed <= LARGEST_SEED:
            raise RiebenchError(f"the seed must be from 0 to {LARGEST_SEED}, not {self.seed}")

    def index(self, model: LoadedModel) -> CollectionIndex:
        """Return the index of a folder that holds such a collection.

        Raises:
            RiebenchError: if the model lacks a block.
        """
        shape = model.family.shape_of_pipeline(model.pipe)
        layouts = {}
        for block in dict.fromkeys(as_named(short_name(block), shape.blocks) for block in self.blocks):
            if kind(block) == UNITS:
                raise RiebenchError(f"{block} names units inside a block; updates are those of a whole block")
            if kind(block) == TEXT:
                raise RiebenchError(f"{block} is a text stream; updates are collected of image streams alone")
            if "input" in self.signals and kind(block) != ATTENTION:
                raise RiebenchError(f"inputs of {block} are not as wide as its updates; leave the block or inputs out")
            find_module(model.denoiser, block)
            rows = model.spec.steps * shape.positions(block, model.spec.size)
            layouts[block] = BlockLayout(width=shape.width(block), rows=rows)
        signal = ",".join(what for what in TENSORS if what in self.signals)
        return CollectionIndex(
            model=model.spec, signal=signal, blocks=layouts, seed=self.seed, pictures_per_shard=self.pictures_per_shard,
            batch_size=self.batch_size,
        )  # fmt: skip


def collect(
    model: LoadedModel,
    prompts: Iterable[str],
    folder: Path,
    options: CollectOptions | None = None,
    *,
    known: int | None = None,
    say: Callable[[str], None] | None = None,
    progress: bool = True,
) -> Collection:
    """Generate a picture for each prompt and store activations of some blocks.

    Repeat the call to resume after an interruption.

    Args:
        model: generates; its conditional half is kept.
        prompts: always in the same order.
        folder: where shards go.
        options: blocks, signals, number, seed and sizes; None for the defaults.
        known: how many prompts there are, if that is known.
        say: gets lines about sizes.
        progress: shows bars.

    Returns:
        Everything the folder now holds.

    Raises:
        RiebenchError: if the prompts end before the limit, are not those that the folder was begun with, the disk is
            too small, a shard is damaged, or the folder holds something else or is in use.
        OSError: if the disk is full; what was finished stays.
    """
    options = options or CollectOptions()
    index = options.index(model)
    if known is not None and options.limit is not None and known < options.limit:
        raise RiebenchError(f"no data left: there are {known} prompts, {options.limit} are asked for; lower --limit")
    pictures = known if options.limit is None else options.limit
    folder.mkdir(parents=True, exist_ok=True)
    with whole_lock(folder):
        collection = Collection.begin(folder, index)
        _check_stored_shards(collection, options.redo_damaged, pictures, say, progress)
        if say is not None:
            for line in sizes(index, pictures):
                say(line)
        _check_disk(collection, pictures)
        _collect(model, prompts, collection, pictures, progress)
    if options.limit is not None and collection.pictures < options.limit:
        raise RiebenchError(
            f"no data left: the prompts ended after {collection.pictures}, {options.limit} are asked for; all of them "
            f"are collected in {folder}: lower --limit, or give more prompts behind these"
        )
    return collection


def updates_of(
    model: LoadedModel, prompts: Sequence[str], seeds: Sequence[int], blocks: Sequence[str], *, title: str = "collect"
) -> dict[str, Tensor]:
    """Generate pictures and return the updates of some blocks, without a file.

    Args:
        model: generates; its conditional half is kept.
        prompts: one per picture.
        seeds: of their noise.
        blocks: short names.
        title: of the progress bar.

    Returns:
        Block -> float16 [pictures, rows, width].
    """
    index = CollectOptions(tuple(blocks), batch_size=IN_MEMORY_BATCH).index(model)
    with ProgressBar[None](title=title, unit="picture", total=len(prompts)) as bar:
        found = _ShardGenerator(model, index).shard(prompts, seeds, bar)
    return {block: kept["update"].unflatten(0, (len(prompts), -1)) for block, kept in found.items()}


def sizes(index: CollectionIndex, pictures: int | None) -> list[str]:
    """Describe the size of a collection: one line a block and one for all.

    Args:
        index: of the folder.
        pictures: how many, if that is known.
    """
    lines, several = [], len(index.signals)
    for block, layout in index.blocks.items():
        line = (
            f"{block}: {'' if index.signal == 'update' else index.signal.replace(',', ', ') + '; '}"
            f"width {layout.width}, {layout.rows} positions a picture, "
            f"{_bytes(several * layout.bytes_per_million)} a million positions"
        )
        if pictures is not None:
            line += f"; {pictures * layout.rows:,} positions, {_bytes(pictures * index.bytes_per_picture(block))}"
        lines.append(line)
    per_picture = sum(index.bytes_per_picture(block) for block in index.blocks)
    total = f"{_bytes(per_picture)} a picture" if pictures is None else _bytes(pictures * per_picture)
    return [*lines, f"in all: {total}, in shards of {index.pictures_per_shard} pictures"]


def _collect(
    model: LoadedModel, prompts: Iterable[str], collection: Collection, pictures: int | None, progress: bool
) -> None:
    generator = _ShardGenerator(model, collection.index)
    size = collection.index.pictures_per_shard
    stream = islice(prompts, pictures)
    with ProgressBar[None](title="collect", unit="picture", total=pictures, shown=progress) as bar:
        for number, some in enumerate(_shards(stream, size)):
            if not _is_done(collection, number, some):
                if number in collection.shards:
                    collection.forget([number])
                seeds = [collection.index.seed_of(number * size + i) for i in range(len(some))]
                collection.add(number, some, generator.shard(some, seeds, bar))
            else:
                bar.update(len(some))


def _shards(prompts: Iterable[str], size: int) -> Iterator[list[str]]:
    stream = iter(prompts)
    while some := list(islice(stream, size)):
        yield some


def _is_done(collection: Collection, number: int, prompts: list[str]) -> bool:
    """Return whether a shard is finished.

    A shard that ended where the prompts did is not, once there are more prompts.

    Raises:
        RiebenchError: if it was made of other prompts.
    """
    shard = collection.shards.get(number)
    if shard is None:
        return False
    if shard.pictures > len(prompts):
        # Fewer pictures are asked for now than are stored: their prompts cannot be compared one by one.
        return True
    if shard.prompts_sha256 != prompts_digest(prompts[: shard.pictures]):
        first = number * collection.index.pictures_per_shard
        raise RiebenchError(
            f"prompts {first + 1} to {first + shard.pictures} are not those that {collection.folder} was made of; give "
            "the same prompts in the same order, or another folder"
        )
    return shard.pictures == len(prompts)


class _CaptureComplete(Exception):
    """The signal that all wanted activations of a batch are captured.

    It ends the generation, since the rest of it is not needed.
    """


@dataclass
class _ShardGenerator:
    """The generation of one shard after the other; the sink of its captures.

    Attributes:
        model: generates; its conditional half is kept.
        index: of the folder.
    """

    model: LoadedModel
    index: CollectionIndex
    _found: dict[tuple[str, str], list[Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._generator = Generator(self.model, cached_prompts=2 * self.index.batch_size)

    def shard(
        self, prompts: Sequence[str], seeds: Sequence[int], bar: ProgressBar[None]
    ) -> dict[str, dict[str, Tensor]]:
        """Generate a shard and return its activations.

        Args:
            prompts: of all pictures of the shard.
            seeds: of their noise.
            bar: counts pictures.

        Returns:
            Block -> signal -> float16 [pictures x rows, width].
        """
        parts: dict[tuple[str, str], list[Tensor]] = {place: [] for place in self._places()}
        for start in range(0, len(prompts), self.index.batch_size):
            some = prompts[start : start + self.index.batch_size]
            self._generate(some, list(seeds[start : start + self.index.batch_size]))
            for place, steps in self._found.items():
                # [step][picture, channels, h, w] -> picture, step, position, channels.
                parts[place].append(torch.stack(steps, dim=1).movedim(2, -1).flatten(0, 3).contiguous())
            bar.update(len(some))
        signals = self.index.signals
        return {block: {what: torch.cat(parts[block, what]) for what in signals} for block in self.index.blocks}

    def _places(self) -> list[tuple[str, str]]:
        """Return each block with each of its signals."""
        return [(block, what) for block in self.index.blocks for what in self.index.signals]

    def _generate(self, prompts: Sequence[str], seeds: list[int]) -> None:
        self._found = {place: [] for place in self._places()}
        keep = tuple(what for what in QUANTITIES if what in self.index.signals)
        capture = Capture(tuple(self.index.blocks), keep, sink=self)
        try:
            self._generator.generate(prompts, seeds, capture=capture)
        except _CaptureComplete:
            return

    def receive(self, site: str, what: str, values: Tensor, time: Tensor | None) -> None:
        """Take one step of a block; see `riebench.generation.trace.StepSink`.

        Raises:
            RiebenchError: if a number does not fit 16 bits, or the shape is not that of the folder.
        """
        half = values.detach().to(torch.float16)
        if not bool(torch.isfinite(half).all()):
            raise RiebenchError(
                f"an {what} of {site} is too large for 16 bits or no number; generate with --dtype float32, or leave "
                "the block out"
            )
        layout = self.index.blocks[site]
        seen = (half.shape[1], self.model.spec.steps * half.shape[2:].numel())
        if seen != (layout.width, layout.rows):
            raise RiebenchError(f"{site} gives {seen[0]} channels at {seen[1]} positions, not as its U-Net states")
        self._found[site, what].append(half.cpu())
        # Where weights travel between devices, a generation must end in order.
        done = all(len(steps) == self.model.spec.steps for steps in self._found.values())
        if done and self.model.offloaded_to is None:
            raise _CaptureComplete


def _check_stored_shards(
    collection: Collection, redo: bool, pictures: int | None, say: Callable[[str], None] | None, progress: bool
) -> None:
    if redo and pictures is not None and pictures < collection.pictures:
        wanted = f"to make what is damaged again, ask for as many or more, not for {pictures}"
        raise RiebenchError(f"{collection.folder} holds {collection.pictures} pictures; {wanted}")
    damaged = collection.damaged(progress=progress)
    if damaged and not redo:
        raise damaged_error(collection.folder, damaged)
    if damaged:
        collection.forget(damaged)
        if say is not None:
            say(f"{len(damaged)} damaged shards are made again: {', '.join(map(str, sorted(damaged)))}")


def _check_disk(collection: Collection, pictures: int | None) -> None:
    if pictures is None:
        return
    missing = max(0, pictures - collection.pictures)
    needed = missing * sum(collection.index.bytes_per_picture(block) for block in collection.index.blocks)
    free = free_disk(collection.folder)
    if needed > free:
        raise RiebenchError(
            f"{_bytes(needed)} are still to be written, but {collection.folder} has {_bytes(free)} free; lower "
            "--limit, take fewer --blocks, or use another disk"
        )


def _bytes(count: int) -> str:
    """Format a size with a decimal unit, in steps of 1000."""
    size = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.4g} {unit}"
        size /= 1000
    return f"{size:.4g} TB"
