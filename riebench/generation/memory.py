"""Memory of a generation: batch sizes, and the sizes of traces and prefixes.

`suitable_batch_size` says how many pictures memory allows at a time, `BatchSize` halves that number whenever it did
not, `Footprint` and `prefix_bytes` say how much of a run is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch

from riebench.errors import DeviceLostError, MemoryShortageError, foreign_code, reason
from riebench.models.families.sizes import Shape
from riebench.models.spec import ModelOptions, ModelSpec
from riebench.utils import machine
from riebench.utils.terminal import print_above_bars

if TYPE_CHECKING:
    from riebench.models.loading import LoadedModel

T = TypeVar("T")
R = TypeVar("R")

SMALL_PICTURE = 128
"""Pictures up to this side are generated 32 at a time on every device that has the memory."""
LARGEST = {"cuda": 32}
"""Kind of device -> pictures that are enough to keep it busy; elsewhere `usual_batch_size` is."""
SHARE = 0.5
"""Of the free memory: the rest is for traces, for what kernels need, and for estimates that are too low."""

RUNS = 2
"""Source and target."""
FULL, HALF = 4, 2
"""Bytes of a number in float32 and in 16 bits."""
SHORT_RUN = 64 * 2**20
"""Bytes of one example's updates and attention in float32 up to which they are kept so. SDXL Turbo's four blocks at 4
steps need 44 MB; SDXL Base's at 20 steps and 1024 pixels would need 840 MB."""
UNITS_KEPT = 128 * 2**20
"""Bytes of one example's feed-forward units in float32 up to which they are kept."""
UNITS_SHARE = 0.25
"""Of the host's free memory: what units above `UNITS_KEPT` may take while runs are generated, so that they need not be
generated again. They are kept there in the model's own number format."""
PREFIX_KEPT = 256 * 2**20
"""Bytes of one source run up to which what edited runs share with it is kept (see `riebench.generation.prefix`): SDXL
Turbo needs 24 MB in 16 bits, SDXL Base at 20 steps and 1024 pixels about 150 MB."""
PREFIX_STEPS = 8
"""Steps from an edit's first one to the last up to which part of the first one is worth keeping."""
TRACE_BYTES = 2**30
"""Bytes of traces in memory at a time, unless one example alone needs more."""


class BatchSize:
    """Number of pictures at a time, halved whenever memory does not suffice.

    Args:
        size: to begin with.
        what: is counted, for messages.
        proven: whether a batch has fitted before.
        quiet: says nothing.

    Attributes:
        size: pictures at a time from now on.
        proven: whether any batch has ever fitted.
    """

    def __init__(self, size: int, what: str = "pictures", *, proven: bool = False, quiet: bool = False) -> None:
        self.size = size
        self.proven = proven
        self._what = what
        self._quiet = quiet
        self._failed: int | None = None

    def each(
        self, items: Sequence[T], pictures: int, make: Callable[[Sequence[T]], R],
        keep: Callable[[Sequence[T], R], None], fail: Callable[[T, str], None],
    ) -> None:  # fmt: skip
        """Make items in batches, each item exactly once.

        Of a batch that fails smaller ones are tried.

        Args:
            items: what to make.
            pictures: how many each of them takes.
            make: makes one batch.
            keep: gets the items of a batch and what was made of them; its errors end everything.
            fail: gets an item that cannot be made, and why.

        Raises:
            MemoryShortageError: if an item does not even fit alone where nothing has ever fitted: going on would fail
                every item to come in its turn.
            DeviceLostError: as it comes.
        """
        left = [items] if items else []
        while left:
            batch, *others = self._split(left[0], pictures)
            left[:1] = others
            try:
                # Edits hold functions of methods, which run while pictures are made.
                with foreign_code("the code of a method"):
                    made = make(batch)
            except DeviceLostError:
                raise
            except Exception as error:
                # Only the text is kept: the error's traceback would keep the failed batch's tensors in memory.
                why, short = reason(error), isinstance(error, MemoryShortageError)
            else:
                self._record_success()
                keep(batch, made)
                # The next batch is made without this one's tensors.
                del made
                continue
            if len(batch) > 1:
                left[:0] = self._retry_batches(batch, pictures, short)
            elif short and not self.proven:
                raise MemoryShortageError(why)
            else:
                fail(batch[0], why)

    def shrink(self, count: int) -> None:
        """Reduce the size, since `count` pictures did not fit."""
        self.size = min(self.size, max(1, count // 2))
        self._failed = count if self._failed is None else self._failed

    def _split(self, items: Sequence[T], pictures: int) -> list[Sequence[T]]:
        """Split items into batches that memory is expected to suffice for."""
        size = max(1, self.size // pictures)
        return [items[start : start + size] for start in range(0, len(items), size)]

    def _retry_batches(self, items: Sequence[T], pictures: int, short: bool) -> list[Sequence[T]]:
        """Return the batches to try after a batch failed.

        They are smaller if memory was short; otherwise each item is tried alone, to know which one fails.
        """
        if not short:
            return [[item] for item in items]
        self.shrink(len(items) * pictures)
        return self._split(items, pictures)

    def _record_success(self) -> None:
        """Record that a batch fitted; after a shortage print one line about it."""
        self.proven = True
        if self._failed is not None and not self._quiet:
            line = f"memory does not suffice for {self._failed} {self._what} at a time; going on with {self.size}"
            print_above_bars(line)
            self._quiet = True


@dataclass(frozen=True)
class Footprint:
    """Numbers that one example's source and target run leave behind.

    Attributes:
        numbers: of updates and attention.
        units: numbers of feed-forward units.
        read: numbers of blocks' inputs and outputs, which some SAEs read.
    """

    numbers: int
    units: int = 0
    read: int = 0

    @property
    def long(self) -> bool:
        """True if 16 bits are kept of each number.

        What SAEs read beside updates does not count, so that no other method's numbers depend on it.
        """
        return self.numbers * FULL > SHORT_RUN

    @property
    def metered(self) -> bool:
        """True if the units are too many for the trace."""
        return self.units * FULL > UNITS_KEPT

    def unit_bytes(self, width: int) -> int:
        """Return the bytes of the units on the host, at all positions.

        `width` is the bytes of a number.
        """
        return self.units * width

    def nbytes(self, *, long: bool, metered: bool) -> int:
        """Return the bytes of the trace.

        It is kept in 16 bits if `long`, without units if `metered`.
        """
        return (self.numbers + self.read + (0 if metered else self.units)) * (HALF if long else FULL)


def free_bytes(device: torch.device) -> int:
    """Return the bytes of memory that can still be had on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return machine.free_ram()


def automatic_batch_size(model: LoadedModel) -> int:
    """Return a power of two that suits the device and its free memory.

    At least 1.

    Args:
        model: loaded, so that what its weights take is no longer free.
    """
    shape = model.family.shape_of_pipeline(model.pipe)
    return suitable_batch_size(shape, model.spec, model.options, model.device.type, free_bytes(model.device))


def suitable_batch_size(shape: Shape, spec: ModelSpec, options: ModelOptions, kind: str, free: int) -> int:
    """Return the batch size for a model that may not be loaded.

    See `automatic_batch_size`.

    Args:
        shape: its measures.
        spec: size and number format.
        options: how it is placed.
        kind: of device.
        free: bytes there, without the weights.
    """
    fitting = SHARE * max(0, free) / shape.activation_bytes(spec, options, 1)
    most = max(usual_batch_size(spec.size), LARGEST.get(kind, 1))
    return 1 << max(0, min(most, int(fitting)).bit_length() - 1)


def usual_batch_size(size: int) -> int:
    """Return the batch size where nothing is known of the device.

    `size` is the picture's side in pixels.
    """
    return 32 if size <= SMALL_PICTURE else 4


def examples_together(nbytes: int, batch_size: int) -> int:
    """Return how many examples of a size are in memory together."""
    return max(1, min(batch_size // 2, TRACE_BYTES // max(1, nbytes)))


def footprint(
    shape: Shape, size: int, steps: int, updates: Iterable[str], units: Iterable[str] = (),
    attention: Iterable[str] = (), read: Iterable[str] = (),
) -> Footprint:  # fmt: skip
    """Compute what one example leaves behind.

    Args:
        shape: the model's measures.
        size: picture side in pixels.
        steps: denoising steps.
        updates: blocks whose updates are captured.
        units: blocks whose feed-forward units methods ask for.
        attention: blocks whose text attention is captured.
        read: blocks whose input or output is captured; twice for both.
    """
    places = RUNS * steps
    return Footprint(
        read=places * sum(shape.width(block) * shape.positions(block, size) for block in read),
        numbers=places * sum(shape.width(block) * shape.positions(block, size) for block in updates)
        + places * sum(shape.tokens * shape.positions(block, size) for block in attention),
        units=places * sum(shape.units(block) * shape.positions(block, size) for block in units),
    )


def prefix_bytes(
    shape: Shape, size: int, steps: int, blocks: Iterable[str], starts: int, width: int, *, guided: bool
) -> int:
    """Return the bytes of what edited runs can share with one source run.

    Args:
        shape: the model's measures.
        size: picture side in pixels.
        steps: denoising steps.
        blocks: blocks that may be the first changed one.
        starts: number of steps that may be the first changed one.
        width: bytes of a number.
        guided: whether there is an unconditional half.
    """
    return shape.prefix_numbers(size, steps, tuple(blocks), starts) * width * (2 if guided else 1)
