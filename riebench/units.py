"""Means of feed-forward units over regions, taken while the U-Net runs: their values are too many to keep.

One example of 20 steps at 1024 pixels has 34 gigabytes of units in SDXL's four blocks; ranking them needs two numbers
per unit and run.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from riebench.errors import RiebenchError
from riebench.selection import AGGREGATES, means, unit_normalised


class UnitMeter:
    """Receives the units of some runs, step by step, and keeps the means that rankings need.

    Args:
        positions: row of the batch, site -> int64 [P], the positions to look at.
    """

    def __init__(self, positions: Callable[[int, str], Tensor]) -> None:
        self._positions = positions
        self._first: dict[tuple[int, str], Tensor] = {}
        self._sum: dict[tuple[int, str], Tensor] = {}
        self._steps: dict[tuple[int, str], int] = {}

    def __call__(self, site: str, values: Tensor) -> None:
        """Takes in one step of one site, [B, H*W, units]."""
        for row in range(values.shape[0]):
            at = values[row][self._positions(row, site).to(values.device)].to(torch.float32)
            mean = means(unit_normalised(at[None]))
            key = (row, site)
            self._first.setdefault(key, mean)
            self._sum[key] = self._sum[key] + mean if key in self._sum else mean
            self._steps[key] = self._steps.get(key, 0) + 1

    def mean(self, row: int, site: str, aggregate: str) -> Tensor:
        """The mean of each unit, divided by its norm over the positions: float32 [units].

        Args:
            row: which run.
            site: feed-forward site.
            aggregate: "first" or "mean", as in `riebench.selection.means`.

        Raises:
            RiebenchError: if nothing was taken in for this site, or the aggregate is unknown.
        """
        if aggregate not in AGGREGATES:
            raise RiebenchError(f"unknown aggregate {aggregate!r}; known: {', '.join(AGGREGATES)}")
        if (row, site) not in self._first:
            raise RiebenchError(f"the feed-forward units of {site} were not captured")
        return self._first[row, site] if aggregate == "first" else self._sum[row, site] / self._steps[row, site]

    @property
    def nbytes(self) -> int:
        """Bytes of everything kept."""
        tensors = [*self._first.values(), *self._sum.values()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
