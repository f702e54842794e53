"""One measure on all SAEs of known quality, with bootstrap replicates.

`MeasureTable` holds the values of a measure by SAE, example and picture seed; `SaeMeans` its means in every replicate.
A replicate draws examples inside categories, the same ones for all SAEs, and independently of them the training seeds
of every rung: the two are crossed. A mean is over picture seeds, then examples, then categories, then training seeds.
Categories have few examples and rungs few seeds, of which the usual bootstrap shows too little variance, (n - 1) / n of
it; so n - 1 of n are drawn, and each counts n / (n - 1) times (Rao and Wu 1988).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from riebench.analysis.stats import BOOTSTRAP_SEED, percentile_interval
from riebench.analysis.tradeoff import Examples
from riebench.analysis.validity.units import MIN_DEFINED, RARE, Cell, empty_cell

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]

REPLICATES = 4000
"""Bootstrap replicates of every interval."""
WHOLE = "whole"
"""Example of a value that is measured once for an SAE, such as its explained variance."""
DECIMALS = 9
"""Means nearer than this are equal: the rest is rounding."""

SaeId = tuple[str, int]
"""Rung and training seed."""


@dataclass(frozen=True, eq=False)
class MeasureTable:
    """Values of one measure in one block.

    Attributes:
        saes: rung and training seed of each SAE, in the order of the rows.
        examples: in the order of the columns; a single one named `WHOLE` for a measure without examples.
        values: [S, E, P], more is better; nan where there is none.
    """

    saes: tuple[SaeId, ...]
    examples: Examples
    values: Floats

    @classmethod
    def of(cls, rows: pd.DataFrame, sign: int) -> MeasureTable:
        """Return the table of some rows of one measure and block.

        Args:
            rows: columns rung, training_seed, category, example, seed and value; one row for each value.
            sign: 1 if more is better, -1 if less is.

        Raises:
            ValueError: if an SAE has two values of one example and seed.
        """
        known = rows[["example", "category"]].drop_duplicates()
        examples = Examples.of(dict(zip(known["example"], known["category"], strict=True)))
        pairs = zip(rows["rung"], rows["training_seed"], strict=True)
        saes = tuple(sorted({(str(rung), int(seed)) for rung, seed in pairs}))
        seeds = sorted({int(seed) for seed in rows["seed"]})
        place = {sae: index for index, sae in enumerate(saes)}
        column = {name: index for index, name in enumerate(examples.ids)}
        values = np.full((len(saes), len(examples.ids), len(seeds)), np.nan)
        where = (
            [place[str(rung), int(seed)] for rung, seed in zip(rows["rung"], rows["training_seed"], strict=True)],
            [column[name] for name in rows["example"]],
            [seeds.index(int(seed)) for seed in rows["seed"]],
        )
        if len(set(zip(*where, strict=True))) != len(rows):
            raise ValueError("an SAE has two values of one example and seed")
        values[where] = sign * rows["value"].to_numpy(dtype=np.float64)
        return cls(saes, examples, values)

    @cached_property
    def example_values(self) -> Floats:
        """Means over picture seeds, [S, E]."""
        return nan_mean(self.values, axis=2)


def nan_mean(values: Floats, axis: int) -> Floats:
    """Average what is there along an axis; nan where there is nothing."""
    there = np.isfinite(values)
    count = there.sum(axis=axis)
    total = np.where(there, values, 0.0).sum(axis=axis)
    found: Floats = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return found


def category_means(values: Floats, weights: Floats, examples: Examples) -> Floats:
    """Average over a category's examples, then over categories.

    Args:
        values: [S, E]; nan where there is none, which is left out.
        weights: [R, E], how often each example was drawn.
        examples: in the order of the columns.

    Returns:
        float64 [R, S]; nan where an SAE has no value.
    """
    there = np.isfinite(values)
    filled = np.where(there, values, 0.0)
    parts = []
    for members in examples.strata.values():
        count = weights[:, members] @ there[:, members].T.astype(np.float64)
        total = weights[:, members] @ filled[:, members].T
        parts.append(np.where(count > 0, total / np.where(count > 0, count, 1), np.nan))
    return np.round(nan_mean(np.stack(parts), axis=0), DECIMALS) + 0.0


@dataclass(frozen=True, eq=False)
class SaeMeans:
    """Means of a measure, SAE by SAE, in every replicate.

    Attributes:
        saes: rung and training seed of each SAE.
        means: [1 + R, S], the observed ones first.
        seed: of the generator that draws training seeds.
    """

    saes: tuple[SaeId, ...]
    means: Floats
    seed: int = BOOTSTRAP_SEED

    @classmethod
    def of(cls, table: MeasureTable, replicates: int = REPLICATES, seed: int = BOOTSTRAP_SEED) -> SaeMeans:
        """Return the means of a table, with as many replicates."""
        weights = example_weights(table.examples, replicates, seed)
        return cls(table.saes, category_means(table.example_values, weights, table.examples), seed)

    @cached_property
    def places(self) -> Mapping[str, Ints]:
        """Positions of each rung's SAEs."""
        names = np.array([rung for rung, _ in self.saes])
        return {rung: np.flatnonzero(names == rung) for rung in dict.fromkeys(rung for rung, _ in self.saes)}

    @cached_property
    def draws(self) -> Mapping[str, Floats]:
        """Weights of a rung's training seeds, [1 + R, seeds].

        Measures that are compared draw alike, since the draw depends on the rung's name alone.
        """
        return {
            rung: training_draws(rung, len(place), len(self.means) - 1, self.seed)
            for rung, place in self.places.items()
        }

    def rung(self, name: str) -> Floats | None:
        """Return a rung's mean in every replicate, [1 + R]; None if it has no SAE."""
        if name not in self.places:
            return None
        means, counts = self.means[:, self.places[name]], self.draws[name]
        there = np.isfinite(means)
        count = (counts * there).sum(axis=1)
        total = (counts * np.where(there, means, 0.0)).sum(axis=1)
        found: Floats = np.where(count > 0, total / np.where(count > 0, count, 1), np.nan)
        return np.round(found, DECIMALS) + 0.0

    def rungs(self, names: Sequence[str]) -> Floats:
        """Return the means of several rungs, [1 + R, rungs]; nan for those without SAE."""
        missing = np.full(len(self.means), np.nan)
        found = [self.rung(name) for name in names]
        return np.stack([missing if one is None else one for one in found], axis=1)

    def difference(self, better: str, worse: str) -> Cell:
        """Return the difference of two rungs' means with its interval."""
        first, second = self.rung(better), self.rung(worse)
        if first is None or second is None:
            return empty_cell("not measured")
        return cell(first - second, len(self.places[better]) + len(self.places[worse]))


def example_weights(examples: Examples, replicates: int, seed: int) -> Floats:
    """Draw examples inside each category: weights, [1 + R, E].

    Every example counts once in the observed row, which is the first. The draw depends on names and seed alone.
    """
    weights = np.ones((1 + replicates, len(examples.ids)))
    for category, members in examples.strata.items():
        names = [examples.ids[place] for place in members]
        weights[1:, members] = rescaled_draws(["examples", category, *names], len(members), replicates, seed)
    return weights


def training_draws(rung: str, seeds: int, replicates: int, seed: int) -> Floats:
    """Draw training seeds of a rung: weights, [1 + R, seeds].

    Every seed counts once in the observed row, which is the first.
    """
    drawn = rescaled_draws(["training seeds", rung], seeds, replicates, seed)
    return np.vstack([np.ones((1, seeds)), drawn])


def rescaled_draws(names: Sequence[str], n: int, replicates: int, seed: int) -> Floats:
    """Draw n - 1 of n with replacement, and let each count n / (n - 1) times: [R, n].

    Args:
        names: what the generator's seed depends on, beside `seed`.
        n: how many there are; a single one counts once in every replicate.
        replicates: number of draws.
        seed: of all draws.
    """
    if n == 1:
        return np.ones((replicates, 1))
    text = "\n".join([str(seed), *names, str(n)])
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"))
    counts = rng.multinomial(n - 1, [1 / n] * n, size=replicates).astype(np.float64)
    return counts * (n / (n - 1))


def cell(draws: Floats, n: int, reason: str = "undefined") -> Cell:
    """Return a number with its percentile interval.

    Args:
        draws: [1 + R], the observed number first; nan where it is undefined.
        n: what is behind it.
        reason: printed if the observed number is undefined.
    """
    if not np.isfinite(draws[0]):
        return empty_cell(reason, n)
    ends = percentile_interval(draws[1:])
    if ends is None or np.isfinite(draws[1:]).mean() < MIN_DEFINED:
        return Cell(float(draws[0]), None, None, n, RARE)
    return Cell(float(draws[0]), *ends, n)
