"""Rankings of features or units that separate the target from the source run.

They work on plain tensors: `choose` ranks shares of means, and `UnitMeter` collects the means of units that are too
many to keep.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from riebench.errors import RiebenchError
from riebench.generation.trace import FULL_PRECISION, precision_of
from riebench.generation.units import UnitValues

AGGREGATES = ("first", "mean")
NOISE = 8
"""Noise floor in units of `precision` times the largest share (see `noise_floor`).

On the toy models scores move by at most 4.4 such units in float32 and bfloat16 alike when the input of every attention
block is moved by a relative 0.5 `precision` at random, and by at most 3.2 between batches of 1 and 32.
"""


@dataclass(frozen=True)
class Choice:
    """Features or units to switch, per site and in rank order.

    Attributes:
        add: site -> int64 indices to switch on.
        remove: site -> int64 indices to switch off.
    """

    add: dict[str, Tensor]
    remove: dict[str, Tensor]

    def lists(self) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
        """Return the added and removed indices of each site as plain numbers."""
        return {site: (tuple(self.add[site].tolist()), tuple(self.remove[site].tolist())) for site in self.add}


class UnitMeter:
    """A collector of units, step by step, that keeps only the means for rankings.

    Args:
        positions: row of the batch, site -> int64 [P], the positions to look at.

    Attributes:
        precision: see `riebench.generation.trace.Trace`.
    """

    def __init__(self, positions: Callable[[int, str], Tensor]) -> None:
        self._positions = positions
        self._first: dict[tuple[int, str], Tensor] = {}
        self._sum: dict[tuple[int, str], Tensor] = {}
        self._steps: dict[tuple[int, str], int] = {}
        self.precision = FULL_PRECISION

    def __call__(self, site: str, values: Tensor) -> None:
        """Add one step of one site, [B, H*W, units]."""
        self.precision = max(self.precision, precision_of(values))
        for row in range(values.shape[0]):
            self.add(row, site, values[row][self._positions(row, site).to(values.device)].to(torch.float32))

    def add(self, row: int, site: str, values: Tensor) -> None:
        """Add one step of one run's site at the positions to look at, float32 [P, units]."""
        mean = means(normalise_units(values[None]))
        key = (row, site)
        self._first.setdefault(key, mean)
        self._sum[key] = self._sum[key] + mean if key in self._sum else mean
        self._steps[key] = self._steps.get(key, 0) + 1

    def read(self, row: int, units: UnitValues, sites: Sequence[str]) -> None:
        """Add all steps of one run's sites, as they were kept."""
        self.precision = max(self.precision, units.precision)
        for site in sites:
            for step in range(units.steps_of(site)):
                self.add(row, site, units.step(site, step))

    def mean(self, row: int, site: str, aggregate: str) -> Tensor:
        """Return the mean of each unit, divided by its norm over the positions.

        float32 [units].

        Args:
            row: which run.
            site: feed-forward site.
            aggregate: "first" or "mean", as in `riebench.methods.ranking.means`.

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


def normalise_units(values: Tensor) -> Tensor:
    """Divide each unit by its L2 norm over the positions of each step.

    Units that are silent stay zero.

    Args:
        values: float32 [T, P, n].
    """
    norms = values.norm(dim=1, keepdim=True)
    return values / norms.where(norms > 0, torch.ones_like(norms))


def means(values: Tensor, aggregate: str = "first") -> Tensor:
    """Compute the mean over positions at the first step, or over steps too.

    Args:
        values: float32 [T, P, n], at the masked positions.
        aggregate: "first" or "mean".

    Returns:
        float32 [n]; zeros if there are no positions.
    """
    if aggregate not in AGGREGATES:
        raise RiebenchError(f"unknown aggregate {aggregate!r}; known: {', '.join(AGGREGATES)}")
    if values.shape[1] == 0:
        return values.new_zeros(values.shape[-1])
    return values[0].mean(0) if aggregate == "first" else values.mean(1).mean(0)


def shares(site_means: Mapping[str, Tensor], *, signed: bool = False, apart: bool = False) -> Tensor:
    """Divide all sites' means by their sum: float32 [sum of n].

    The sites stand one after the other.

    Feature values are never negative; feed-forward units can be, and so can their sum. The published scripts divide by
    the signed sum, which turns the order round where it is negative.

    Args:
        site_means: site -> [n].
        signed: divides by the sum as it is (published), instead of by its magnitude.
        apart: divides each site by its own sum, so that a site of large values has no more to give than any other.

    Returns:
        Zeros if the sum is zero: nothing is live, so nothing has a share.
    """
    parts = list(site_means.values())
    return torch.cat([_divide(part, signed) for part in (parts if apart else [torch.cat(parts)])])


def _divide(values: Tensor, signed: bool) -> Tensor:
    total = values.sum() if signed else values.sum().abs()
    return values / total if total != 0 else torch.zeros_like(values)


def scores(
    target: Mapping[str, Tensor], source: Mapping[str, Tensor], *, signed: bool = False, apart: bool = False
) -> Tensor:
    """Compute share in the target run minus share in the source run.

    float32 [sum of n].

    Args:
        target: site -> means of the target run, [n].
        source: the same of the source run; equal sites in equal order.
        signed: see `shares`.
        apart: see `shares`.

    Raises:
        ValueError: if the sites differ.
    """
    if list(target) != list(source):
        raise ValueError(f"sites differ: {list(target)} and {list(source)}")
    return shares(target, signed=signed, apart=apart) - shares(source, signed=signed, apart=apart)


@dataclass(frozen=True)
class NoiseFloor:
    """Sizes below which differences between scores may be rounding alone.

    Attributes:
        zero: of each score itself, float64 [sum of n].
        tie: of the difference of two nearly equal scores.
    """

    zero: Tensor
    tie: float


def noise_floor(
    target: Mapping[str, Tensor],
    source: Mapping[str, Tensor],
    precision: float,
    *,
    signed: bool = False,
    apart: bool = False,
) -> NoiseFloor:
    """Compute the sizes below which scores may be rounding alone.

    A mean carries a rounding error in proportion to the largest one. The sum by which all are divided does too. Where
    positive and negative values nearly cancel in it, its relative error is larger, and moves every share in proportion.

    Args:
        target: see `scores`.
        source: likewise.
        precision: relative rounding of the number format that the model computed in or the values were kept in.
        signed: see `shares`.
        apart: see `shares`.

    Returns:
        Differences of shares, 0 or more; 0 if nothing is live.
    """
    largest, own = 0.0, []
    for run in (target, source):
        groups = list(run.values()) if apart else [torch.cat(list(run.values()))]
        found = [shares({"": values.double()}, signed=signed).abs() for values in groups]
        largest = max([largest, *(float(share.max()) for share in found if len(share))])
        own.append(torch.cat([share * share.sum() for share in found]))
    zero = torch.maximum(*own).clamp(min=largest)
    return NoiseFloor(NOISE * precision * zero, NOISE * precision * largest)


def choose(
    target: Mapping[str, Tensor],
    source: Mapping[str, Tensor],
    count: int,
    *,
    precision: float = FULL_PRECISION,
    signed: bool = False,
    apart: bool = False,
) -> Choice:
    """Choose the features that gain and lose most.

    They are ranked over all given sites together. The choice does not hang on rounding: a score below its noise floor
    is 0, and of nearly equal ones at the cut those that stand first are taken. A feature that gains nothing is not
    switched on, and one that loses nothing is not switched off.

    Args:
        target: site -> means of the target run inside its mask, [n] (see `means`).
        source: the same of the source run.
        count: how many to switch on, and how many to switch off, at most.
        precision: see `noise_floor`.
        signed: see `shares`.
        apart: see `shares`.

    Raises:
        RiebenchError: if there are fewer features than `count`, or `count` is negative.
    """
    score = scores(target, source, signed=signed, apart=apart).double()
    if not 0 <= count <= score.numel():
        raise RiebenchError(f"cannot choose {count} of {score.numel()} features; give 0 to {score.numel()}")
    floor = noise_floor(target, source, precision, signed=signed, apart=apart)
    add, remove = (_largest(sign * score, floor, count) for sign in (1, -1))
    return Choice(_by_site(add, target), _by_site(remove, target))


def _largest(score: Tensor, floor: NoiseFloor, count: int) -> Tensor:
    """Return the indices of the largest scores above the noise floor, largest first."""
    levels = (score / floor.tie).trunc() if floor.tie > 0 else score
    taken = levels.argsort(descending=True, stable=True)[:count].sort().values
    taken = taken[score[taken] > floor.zero[taken]]
    return taken[score[taken].argsort(descending=True, stable=True)]


def _by_site(indices: Tensor, sites: Mapping[str, Tensor]) -> dict[str, Tensor]:
    chosen, start = {}, 0
    for site, values in sites.items():
        inside = (indices >= start) & (indices < start + values.numel())
        chosen[site] = indices[inside] - start
        start += values.numel()
    return chosen
