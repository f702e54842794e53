"""The trade-off of alignment and preservation as one number a method, the area.

The number is declared before any result is seen. A method is a set of configurations (its settings, blocks and
strengths). At each budget of LPIPS the configuration that gains most on one half of the examples is read on the other
half, the halves change places, and the two readings are averaged: a strength is never chosen by the pictures it is
judged by. The mean over the budgets is the `area`.

All of it is vectorised over bootstrap replicates: weights [R, E] say how often each example was drawn, and a replicate
redoes means, selection and area. The observed value is the replicate in which every example was drawn once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray

from riebench.analysis.stats import cluster_counts

Floats = NDArray[np.float64]

BUDGETS: tuple[float, ...] = tuple(round(0.05 * i, 2) for i in range(1, 11))
"""Mean LPIPS that an edit may cost: 0.05 to 0.5."""
TOLERANCE = 1e-9
"""A mean this little above a budget is within it."""
FOLD_LABEL = "riebench-fold-v1:"


def folds(categories: Mapping[str, str]) -> dict[str, int]:
    """Assign each example to one of two halves, evened out inside each category.

    Args:
        categories: example id -> category.

    Returns:
        Example id -> 0 or 1; the halves of a category differ by one example at most.
    """
    found: dict[str, int] = {}
    for category in sorted(set(categories.values())):
        hashes = {name: _fold_hash(name) for name, its in categories.items() if its == category}
        halves: tuple[list[str], list[str]] = ([], [])
        for name in sorted(hashes, key=lambda name: hashes[name]):
            halves[hashes[name] & 1].append(name)
        larger = 0 if len(halves[0]) > len(halves[1]) else 1
        while len(halves[larger]) - len(halves[1 - larger]) > 1:
            halves[1 - larger].append(halves[larger].pop())
        found |= {name: half for half, names in enumerate(halves) for name in names}
    return found


def _fold_hash(name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{FOLD_LABEL}{name}".encode()).digest(), "big")


@dataclass(frozen=True)
class Examples:
    """The examples that methods are compared on, in the order of all arrays.

    Attributes:
        ids: sorted by category, then name.
        categories: of each example.
        clusters: what each is resampled with; its own id unless prompts share a template or a picture.
    """

    ids: tuple[str, ...]
    categories: tuple[str, ...]
    clusters: tuple[str, ...]

    @classmethod
    def of(cls, categories: Mapping[str, str], clusters: Mapping[str, str] | None = None) -> Examples:
        """Return examples in their one order, whatever the order of the mapping.

        Args:
            categories: example id -> category.
            clusters: example id -> cluster, for those that share one.
        """
        ids = tuple(sorted(categories, key=lambda name: (categories[name], name)))
        return cls(ids, tuple(categories[i] for i in ids), tuple((clusters or {}).get(i, i) for i in ids))

    @cached_property
    def halves(self) -> NDArray[np.intp]:
        """Half of each example, 0 or 1, int [E]."""
        found = folds(dict(zip(self.ids, self.categories, strict=True)))
        return np.array([found[name] for name in self.ids], dtype=np.intp)

    @cached_property
    def strata(self) -> dict[str, NDArray[np.intp]]:
        """Positions of each category's examples."""
        return {c: np.flatnonzero([own == c for own in self.categories]) for c in sorted(set(self.categories))}

    def draws(self, replicates: int, seed: int) -> Floats:
        """Draw examples: how often each is in each replicate, float64 [R, E].

        Clusters are drawn with replacement inside each category and bring all their examples. The draw depends on
        names and seed alone, so that two methods on the same examples are resampled alike, which is what pairs them.
        """
        drawn = np.empty((replicates, len(self.ids)))
        for category, members in self.strata.items():
            names = tuple(sorted({self.clusters[i] for i in members}))
            place = {name: position for position, name in enumerate(names)}
            counts = cluster_counts(category, names, replicates, seed)
            drawn[:, members] = counts[:, [place[self.clusters[i]] for i in members]]
        return drawn


def macro_means(values: Floats, weights: Floats, examples: Examples, half: int | None = None) -> Floats:
    """Compute weighted means over a category's examples, then over categories.

    Args:
        values: [E, C], one column per configuration.
        weights: [R, E].
        examples: of both.
        half: only examples of this half; None for all.

    Returns:
        float64 [R, C]. A category none of whose examples was drawn is left out of its replicate; nan if all were.
    """
    total = np.zeros((len(weights), values.shape[1]))
    present = np.zeros((len(weights), 1))
    for members in examples.strata.values():
        inside = members if half is None else members[examples.halves[members] == half]
        drawn = weights[:, inside]
        size = drawn.sum(axis=1, keepdims=True)
        total += np.where(size > 0, (drawn @ values[inside]) / np.maximum(size, 1e-300), 0.0)
        present += size > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        return total / present


def micro_means(values: Floats, weights: Floats, examples: Examples, half: int | None = None) -> Floats:
    """Compute weighted means over all examples alike.

    Arguments and result are those of `macro_means`.
    """
    inside = np.arange(len(values)) if half is None else np.flatnonzero(examples.halves == half)
    with np.errstate(invalid="ignore", divide="ignore"):
        means: Floats = (weights[:, inside] @ values[inside]) / weights[:, inside].sum(axis=1, keepdims=True)
    return means


Means = Callable[[Floats, Floats, Examples, int | None], Floats]


def category_means(values: Floats, weights: Floats, examples: Examples, half: int | None, category: str) -> Floats:
    """Compute weighted means over one category alone.

    Arguments and result are those of `macro_means`.
    """
    members = examples.strata[category]
    inside = members if half is None else members[examples.halves[members] == half]
    with np.errstate(invalid="ignore", divide="ignore"):
        means: Floats = (weights[:, inside] @ values[inside]) / weights[:, inside].sum(axis=1, keepdims=True)
    return means


def best_within(distances: Floats, gains: Floats, budget: float) -> NDArray[np.intp]:
    """Find the configuration that gains most within a budget; of equals the nearer.

    Args:
        distances: [R, C], mean LPIPS; column 0 is no edit at all.
        gains: [R, C].
        budget: largest distance allowed.

    Returns:
        int [R], positions of configurations.
    """
    allowed = np.where(distances <= budget + TOLERANCE, gains, -np.inf)
    best = allowed.max(axis=1, keepdims=True)
    return np.asarray(np.where(allowed == best, distances, np.inf).argmin(axis=1))


@dataclass(frozen=True)
class TradeOff:
    """Gains and distances of a method at each budget, in every replicate.

    Attributes:
        gains: [R, budgets], cross-fitted gain.
        distances: [R, budgets], the LPIPS at which it was read.
    """

    gains: Floats
    distances: Floats

    @property
    def area(self) -> Floats:
        """Mean gain over the budgets, [R]."""
        area: Floats = self.gains.mean(axis=1)
        return area

    @property
    def realised(self) -> Floats:
        """Mean LPIPS over the budgets, [R]."""
        realised: Floats = self.distances.mean(axis=1)
        return realised


def with_no_edit(values: Floats) -> Floats:
    """Add the configuration that changes nothing in front: [E, C] -> [E, C + 1]."""
    return np.hstack([np.zeros((len(values), 1)), values])


def cross_fit(
    distances: Floats,
    gains: Floats,
    examples: Examples,
    weights: Floats,
    budgets: Sequence[float] = BUDGETS,
    *,
    read: Floats | None = None,
    means: Means = macro_means,
    category: str | None = None,
) -> TradeOff:
    """Choose configurations on one half and read them on the other, both ways.

    Args:
        distances: [E, C], LPIPS of each example under each configuration, mean over seeds.
        gains: [E, C], likewise of `clip_gain`.
        examples: the rows.
        weights: [R, E], see `Examples.draws`.
        budgets: largest mean LPIPS, one after the other.
        read: [E, C], what is read at the chosen configurations, if not `gains` themselves: another scorer's numbers.
        means: `macro_means` or `micro_means`.
        category: reads this one alone; the choice is still made on all of them.
    """
    reading = means if category is None else partial(category_means, category=category)

    def table(values: Floats, half: int) -> Floats:
        return means(with_no_edit(values), weights, examples, half)

    tables = [(table(distances, half), table(gains, half)) for half in (0, 1)]
    read_values = with_no_edit(gains if read is None else read)
    readings = [reading(read_values, weights, examples, half) for half in (0, 1)]
    far = [reading(with_no_edit(distances), weights, examples, half) for half in (0, 1)]
    rows = np.arange(len(weights))
    read_gain = np.zeros((len(weights), len(budgets)))
    read_distance = np.zeros_like(read_gain)
    for column, budget in enumerate(budgets):
        for half in (0, 1):
            chosen = best_within(*tables[half], budget)
            read_gain[:, column] += readings[1 - half][rows, chosen] / 2
            read_distance[:, column] += far[1 - half][rows, chosen] / 2
    return TradeOff(read_gain, read_distance)
