"""Training batches of data larger than memory, in one seeded order.

Every position is used once an epoch, and positions are well mixed. An epoch's positions are cut into short runs. The
runs of all the data are put in a random order, read window by window, and the positions of a window are shuffled among
themselves. One window is served while the next is read. Where a batch begins follows from its number alone, so a
training run can resume anywhere without stored state.

`Positions` is the data, in memory or on disk, `DataPass` the settings, and `Batches` serves the batches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from riebench.errors import RiebenchError
from riebench.utils.files import content_digest

RUN = 1024
"""Neighbouring positions that are read together, at most."""
WINDOWS = 3
"""Parts of the buffer: the window being served, the next one, and the copy that shuffling it takes."""


class Positions(Protocol):
    """Updates of one block, one row a position, that need not be in memory."""

    @property
    def width(self) -> int:
        """Channels d."""

    @property
    def rows_per_picture(self) -> int:
        """Rows of one picture, which are neighbours; 1 if that is not known."""

    @property
    def digest(self) -> str:
        """A hash of all rows."""

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> Tensor:
        """Read rows start to stop: [stop - start, d], any float type."""


@dataclass(frozen=True)
class InMemoryPositions:
    """Positions in memory.

    Attributes:
        rows: [N, d].
        rows_per_picture: rows of one picture, which are neighbours; 1 if that is not known.
    """

    rows: Tensor
    rows_per_picture: int = 1

    @property
    def width(self) -> int:
        """Channels d."""
        return self.rows.shape[1]

    @property
    def digest(self) -> str:
        """A hash of all rows."""
        data = hashlib.sha256(self.rows.cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return content_digest([[*self.rows.shape], str(self.rows.dtype), data.hexdigest()])

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, start: int, stop: int) -> Tensor:
        """Return rows start to stop, [stop - start, d]."""
        return self.rows[start:stop]


@dataclass(frozen=True)
class PositionRange:
    """A range of other positions.

    Attributes:
        whole: all of them.
        start: the first.
        stop: one after the last.
    """

    whole: Positions
    start: int
    stop: int

    @property
    def width(self) -> int:
        """Channels d."""
        return self.whole.width

    @property
    def rows_per_picture(self) -> int:
        """Rows of one picture."""
        return self.whole.rows_per_picture

    @property
    def digest(self) -> str:
        """A hash of the whole and the range."""
        return content_digest([self.whole.digest, self.start, self.stop])

    def __len__(self) -> int:
        return self.stop - self.start

    def read(self, start: int, stop: int) -> Tensor:
        """Read rows start to stop of the range, [stop - start, d]."""
        return self.whole.read(self.start + start, self.start + stop)


@dataclass(frozen=True)
class DataPass:
    """Settings of one pass over the data, shared by all SAEs trained in it.

    Attributes:
        batch_size: positions a step.
        epochs: how often each position is used.
        steps: stops after so many steps; None for all there are.
        buffer: positions in memory at a time.
        held_out: positions at the end of the data that are not trained on but measured on, rounded up to whole
            pictures; None for a twentieth, at most 65536.
        seed: of the order.

    Raises:
        RiebenchError: if a number is out of its range.
    """

    batch_size: int = 4096
    epochs: int = 1
    steps: int | None = None
    buffer: int = 262_144
    held_out: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        stated = (self.batch_size, self.epochs, self.steps, self.held_out)
        if min(1 if number is None else number for number in stated) < 1:
            raise RiebenchError("batch size, epochs, steps and held-out positions must be 1 or more")
        if self.buffer < WINDOWS * self.batch_size:
            raise RiebenchError(
                f"a buffer of {self.buffer} positions cannot mix batches of {self.batch_size}; make it "
                f"{WINDOWS * self.batch_size} or more"
            )

    def split(self, data: Positions) -> tuple[PositionRange, PositionRange]:
        """Split data into the positions to train on and those held out.

        Raises:
            RiebenchError: if nothing is left to train on.
        """
        wanted = max(1, min(65_536, len(data) // 20)) if self.held_out is None else self.held_out
        held_out = -(-wanted // data.rows_per_picture) * data.rows_per_picture
        rest = len(data) - held_out
        if rest < self.batch_size:
            raise RiebenchError(
                f"{len(data)} positions, of which {held_out} are held out, do not fill a batch of {self.batch_size}; "
                "collect more, or make the batch smaller"
            )
        return PositionRange(data, 0, rest), PositionRange(data, rest, len(data))

    def steps_of(self, training: Positions) -> int:
        """Return the number of optimiser steps over the positions to train on.

        Raises:
            RiebenchError: if more are asked for than the data give.
        """
        given = len(training) * self.epochs // self.batch_size
        if self.steps is not None and self.steps > given:
            needed = self.steps * self.batch_size
            raise RiebenchError(
                f"no data left: {self.steps} steps need {needed} positions, but {len(training)} in {self.epochs} "
                f"epochs give {given} steps; collect more, or ask for {-(-needed // len(training))} epochs"
            )
        return given if self.steps is None else self.steps


class Batches:
    """The batches of one pass.

    Args:
        data: the positions to train on.
        plan: settings of the pass.
    """

    def __init__(self, data: Positions, plan: DataPass) -> None:
        self._data, self._plan = data, plan
        window = max(1, min(plan.buffer // WINDOWS, len(data)))
        self._run = max(1, min(RUN, window // 16))
        self._runs_a_window = max(1, window // self._run)
        self.steps = plan.steps_of(data)

    def sample(self, positions: int) -> Tensor:
        """Return the first positions of the pass, [at most N, d].

        Args:
            positions: N; no more than one window are returned.
        """
        return self._window(0, 0, self._order(0)[: self._runs_a_window], 0)[:positions]

    def batches(self, first: int = 0) -> Iterator[Tensor]:
        """Yield batches [B, d], from number `first` to the last."""
        size, left = self._plan.batch_size, self.steps - first
        pending = self._data.read(0, 0)
        for rows in self._windows(first * size) if left else ():
            at = min(size - len(pending), len(rows)) if len(pending) else 0
            pending = torch.cat([pending, rows[:at]])
            if len(pending) == size:
                yield pending
                left, pending = left - 1, pending[:0]
            if len(pending):
                continue
            while left and at + size <= len(rows):
                yield rows[at : at + size]
                left, at = left - 1, at + size
            if not left:
                return
            # A copy: a view would keep the whole window in memory.
            pending = rows[at:].clone()

    def _windows(self, skip: int) -> Iterator[Tensor]:
        """Yield shuffled windows; read the next one while one is served.

        Args:
            skip: rows at the beginning of the pass that are left out.
        """
        waiting: Future[Tensor] | None = None
        with ThreadPoolExecutor(max_workers=1) as reader:
            for epoch, number, runs, drop in self._plan_from(skip):
                following = reader.submit(self._window, epoch, number, runs, drop)
                if waiting is not None:
                    yield waiting.result()
                waiting = following
            if waiting is not None:
                yield waiting.result()

    def _plan_from(self, skip: int) -> Iterator[tuple[int, int, list[int], int]]:
        """Yield epoch, number and runs of each window, and its rows to leave out.

        Args:
            skip: rows at the beginning of the pass that are left out.
        """
        for epoch in range(self._plan.epochs):
            if skip >= len(self._data):
                skip -= len(self._data)
                continue
            order = self._order(epoch)
            for number, at in enumerate(range(0, len(order), self._runs_a_window)):
                runs = order[at : at + self._runs_a_window]
                rows = sum(self._length(run) for run in runs)
                if skip < rows:
                    yield epoch, number, runs, skip
                skip = max(0, skip - rows)

    def _window(self, epoch: int, number: int, runs: list[int], drop: int) -> Tensor:
        rows = self._read(runs)
        return rows[torch.randperm(len(rows), generator=_generator(self._plan.seed, epoch, number))[drop:]]

    def _read(self, runs: list[int]) -> Tensor:
        return torch.cat([self._data.read(run * self._run, run * self._run + self._length(run)) for run in runs])

    def _order(self, epoch: int) -> list[int]:
        runs = -(-len(self._data) // self._run)
        order: list[int] = torch.randperm(runs, generator=_generator(self._plan.seed, epoch)).tolist()
        return order

    def _length(self, run: int) -> int:
        return min(self._run, len(self._data) - run * self._run)


def _generator(*numbers: int) -> torch.Generator:
    digest = hashlib.sha256("/".join(map(str, numbers)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
