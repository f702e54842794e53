"""Means over examples, then categories, in every bootstrap replicate.

All is vectorised over replicates: weights [R, E] say how often each example was drawn. The observed value is the
replicate in which every example was drawn once. A method that chooses its level anew in each replicate then reads other
numbers of the same examples, one of several alternatives.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from riebench.analysis.stats import Replicates, cluster_counts

Floats = NDArray[np.float64]

CHUNK_BYTES = 2**22
"""Bytes of replicates that are worked on together: about what stays in a processor's caches from pass to pass."""
MOST_COLUMNS = 50
"""Alternatives up to which a matrix product of all is the sooner way to sums over examples."""
ROUNDING = 1e-12
"""Differences between equal numbers, in these numbers, are smaller."""
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


@dataclass(frozen=True, eq=False)
class CategoryDraw:
    """The part of all replicates in one half of a category, or in all of it.

    Attributes:
        weights: [R, E], of which it is a part.
        members: places of its examples.
        counts: [R, members], how often each was drawn.
        size: [R, 1], how many were; 1 where none was.
        empty: [R], whether none was.
    """

    weights: Floats
    members: NDArray[np.intp]
    counts: Floats
    size: Floats
    empty: NDArray[np.bool_]


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

    @cached_property
    def independent(self) -> dict[str, tuple[NDArray[np.intp], NDArray[np.intp]]]:
        """Clusters of each category.

        The values are the place of the first member of each cluster, and each member's cluster.
        """
        found = {}
        for category, members in self.strata.items():
            names = [self.clusters[i] for i in members]
            first, place = np.unique(names, return_index=True, return_inverse=True)[1:]
            found[category] = (first, place)
        return found

    def category_draw(self, weights: Floats, category: str, half: int | None = None) -> CategoryDraw:
        """Return the part of all replicates in one category, or in one half of it.

        It is kept: all methods on the same examples have the same draws.

        Args:
            weights: [R, E].
            category: one of `strata`.
            half: 0 or 1; None for the whole category.
        """
        known = self._draws.get((category, half))
        if known is None or known.weights is not weights:
            members = self.strata[category]
            members = members if half is None else members[self.halves[members] == half]
            counts = np.ascontiguousarray(weights[:, members])
            size = counts.sum(axis=1, keepdims=True)
            empty = size[:, 0] <= 0
            size[empty] = 1.0
            known = CategoryDraw(weights, members, counts, size, empty)
            # That of the observed examples alone is asked for between the others, and is made at once.
            if len(weights) > 1:
                self._draws[category, half] = known
        return known

    @cached_property
    def _draws(self) -> dict[tuple[str, int | None], CategoryDraw]:
        return {}

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
    for category in examples.strata:
        drawn = examples.category_draw(weights, category, half)
        sums = drawn.counts @ values[drawn.members]
        if drawn.empty.any():
            sums[drawn.empty] = 0.0
        total += np.divide(sums, drawn.size, out=sums)
        present += ~drawn.empty[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.divide(total, present, out=total)


def category_means(values: Floats, weights: Floats, examples: Examples, category: str) -> Floats:
    """Compute weighted means over one category alone.

    Arguments and result are those of `macro_means`.
    """
    members = examples.strata[category]
    with np.errstate(invalid="ignore", divide="ignore"):
        means: Floats = (weights[:, members] @ values[members]) / weights[:, members].sum(axis=1, keepdims=True)
    return means


class MeanPart(NamedTuple):
    """The part of a `SampleMean` that one category gives.

    Attributes:
        draw: how often its examples were drawn.
        clusters: [R, K], how often each independent cluster was.
        sizes: [K], examples of each cluster.
        base: [A], mean of each alternative over the observed examples.
        apart: [A, K], sum over each cluster of what its examples differ from that by.
    """

    draw: CategoryDraw
    clusters: Floats
    sizes: Floats
    base: Floats
    apart: Floats

    @property
    def correction(self) -> float:
        """Factor by which a sample's variance is too small; nan for a single cluster."""
        n = len(self.sizes)
        return n / (n - 1) if n > 1 else math.nan

    def moments(self, chosen: NDArray[np.intp]) -> tuple[Floats, Floats]:
        """Return mean and squared error of the category in every replicate, [R] each.

        Args:
            chosen: alternative of each replicate.
        """
        drawn, squares, crossed = self._sums(chosen)
        size = self.draw.size[:, 0]
        mean = drawn / size
        level = mean**2 * (self.clusters @ self.sizes**2)
        spread = squares - 2 * mean * crossed + level
        # What is left of equal values is rounding.
        spread[spread < ROUNDING * (squares + level)] = 0
        return self.base[chosen] + mean, spread * self.correction / size**2

    def _sums(self, chosen: NDArray[np.intp]) -> Sequence[Floats]:
        """Return sums of clusters, of their squares, and of both by size, [R] each."""
        if len(self.apart) > MOST_COLUMNS:
            apart = self.apart[chosen]
            return [np.einsum("rk,rk->r", self.clusters, one) for one in (apart, apart**2, self.sizes * apart)]
        # One matrix product for all alternatives and sums, of which each replicate then takes its own.
        columns = np.vstack([self.apart, self.apart**2, self.sizes * self.apart])
        sums = (self.clusters @ columns.T).reshape(len(self.clusters), 3, -1)
        return list(sums[np.arange(len(sums)), :, chosen].T)

    def deviations(self, chosen: NDArray[np.intp], rows: slice, factors: Floats) -> Floats:
        """Return what independent clusters add to the error in some replicates, [r, K].

        Args:
            chosen: alternative of each of these replicates.
            rows: replicates.
            factors: [r, K], see `factors`.
        """
        apart = self.apart[chosen]
        mean = np.einsum("rk,rk->r", self.clusters[rows], apart) / self.draw.size[rows, 0]
        apart -= self.sizes * mean[:, None]
        apart *= factors
        return apart

    def factors(self, rows: slice) -> Floats:
        """Return what turns differences from the mean into parts of the error, [r, K]."""
        return np.sqrt(self.clusters[rows] * self.correction) / self.draw.size[rows]


@dataclass(frozen=True, eq=False)
class SampleMean:
    """A mean over examples, then categories, in every replicate.

    Replicates that chose differently read other numbers of the same examples, but there are few alternatives. So sums
    over examples are matrix products, and no table of replicates by examples is made.

    Attributes:
        examples: that it is over.
        weights: [1 + R, E], see `Examples.draws`; every example once first.
        alternatives: [A, E], what each example gives by each of them.
        chosen: int [1 + R], which of them each replicate reads.
        category: the only one that counts; None for all.
        centre: see `Replicates.centre`.
    """

    examples: Examples
    weights: Floats
    alternatives: Floats
    chosen: NDArray[np.intp]
    category: str | None = None
    centre: float | None = None

    @classmethod
    def of(cls, values: Floats, examples: Examples, weights: Floats, category: str | None = None) -> SampleMean:
        """Return the mean of values [E] that are the same in every replicate."""
        return cls(examples, weights, values[None], np.zeros(len(weights), dtype=np.intp), category)

    @cached_property
    def replicates(self) -> Replicates:
        """The mean with its standard error, as observed and in every replicate."""
        values, variances = np.zeros(len(self.weights)), np.zeros(len(self.weights))
        for part in self.parts:
            mean, variance = part.moments(self.chosen)
            values += mean / len(self.parts)
            variances += variance / len(self.parts) ** 2
        at_choice = None if self.centre is None else self._centres[self.chosen]
        return Replicates(values, np.sqrt(variances), self.centre, at_choice)

    @property
    def _centres(self) -> Floats:
        """Mean of each alternative over the observed examples, [A]."""
        return np.asarray(np.mean([part.base for part in self.parts], axis=0))

    @cached_property
    def parts(self) -> list[MeanPart]:
        """The categories that the mean is over, in the order of their names."""
        return [self._part(category) for category in self.examples.strata if self.category in (None, category)]

    def _part(self, category: str) -> MeanPart:
        draw = self.examples.category_draw(self.weights, category)
        first, place = self.examples.independent[category]
        given = self.alternatives[:, draw.members]
        base = given.mean(axis=1, keepdims=True)
        apart = given - base
        # Differences between equal values are rounding.
        apart[np.abs(apart) < ROUNDING * (np.abs(given) + np.abs(base))] = 0
        alone = np.array_equal(first, np.arange(len(draw.members)))
        clusters = draw.counts if alone else draw.counts[:, first]
        together = np.eye(len(first))[place]
        return MeanPart(draw, clusters, together.sum(axis=0), base[:, 0], apart @ together)

    @property
    def observed(self) -> Floats:
        """Number of each observed example, [E]."""
        return self.alternatives[self.chosen[0]]

    @property
    def values(self) -> Floats:
        """The mean as observed, then in every replicate, [1 + R]."""
        return self.replicates.values

    def __sub__(self, other: SampleMean) -> SampleMean:
        """Return the paired difference of two means of the same draws."""
        centres = [one.values[0] if one.centre is None else one.centre for one in (self, other)]
        moved = self.centre is not None or other.centre is not None
        both, chosen = np.unique(self.chosen * len(other.alternatives) + other.chosen, return_inverse=True)
        mine, its = np.divmod(both, len(other.alternatives))
        return SampleMean(
            self.examples, self.weights, self.alternatives[mine] - other.alternatives[its], chosen, self.category,
            float(centres[0] - centres[1]) if moved else None,
        )  # fmt: skip

    def scaled(self, factor: float) -> SampleMean:
        """Return the mean of the same draws times a number that is not drawn."""
        centre = None if self.centre is None else factor * self.centre
        return replace(self, alternatives=factor * self.alternatives, centre=centre)

    def over(self, other: SampleMean) -> Replicates:
        """Return the ratio of two means of the same draws; its errors are linearised."""
        one, two, apart = (mean.replicates.errors**2 for mean in (self, other, self - other))
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = self.values / other.values
            # Variance of the first minus ratio times the second, by that of their difference.
            variance = (1 - ratio) * one + (ratio**2 - ratio) * two + ratio * apart
            variance[np.abs(variance) < ROUNDING * (one + ratio**2 * two)] = 0
            at_choice = self.replicates.at_choice
            return Replicates(
                ratio,
                np.sqrt(variance) / np.abs(other.values),
                None if self.centre is None else float(self.centre / other.values[0]),
                None if at_choice is None else at_choice / other.values[0],
            )


def chunks(replicates: int, width: int) -> list[slice]:
    """Divide replicates into parts that are worked on together.

    Args:
        replicates: how many.
        width: numbers of each.
    """
    size = max(1, CHUNK_BYTES // (8 * max(1, width)))
    return [slice(first, min(first + size, replicates)) for first in range(0, replicates, size)]


def paired_differences(
    means: Mapping[str, SampleMean], reference: str | None = None
) -> dict[tuple[str, str], Replicates]:  # fmt: skip
    """Return differences of pairs of means of the same examples and draws.

    Args:
        means: name -> mean.
        reference: one of the names, which all others are compared with; None for all pairs.

    Returns:
        Pair of names -> first minus second.
    """
    names = list(means)
    if len(names) < 2:
        return {}
    if reference is None:
        one, other = np.triu_indices(len(names), 1)
        # Of each second one its column among the products.
        columns, place = np.arange(len(names)), other
    else:
        columns = np.array([names.index(reference)])
        one = np.flatnonzero(np.arange(len(names)) != columns)
        other, place = np.repeat(columns, len(one)), np.zeros(len(one), dtype=np.intp)
    every = list(means.values())
    errors = np.empty((len(every[0].weights), len(one)))
    for rows in chunks(len(errors), len(names) * (len(every[0].examples.ids) + 4 * len(columns))):
        deviations = _joint_deviations(every, rows)
        products = deviations @ deviations[:, columns].transpose(0, 2, 1)
        squares = np.einsum("rnk,rnk->rn", deviations, deviations)
        both = squares[:, one] + squares[:, other]
        variances = both - 2 * products[:, one, place]
        # What is left of equal deviations is rounding.
        variances[variances < ROUNDING * both] = 0
        errors[rows] = np.sqrt(variances)
    # What had no choice gives the same on the observed examples in every replicate.
    chosen = {
        name: mean.values[:1] if mean.replicates.at_choice is None else mean.replicates.at_choice
        for name, mean in means.items()
    }
    pairs = [(names[i], names[j]) for i, j in zip(one, other, strict=True)]
    return {
        (a, b): Replicates(
            means[a].values - means[b].values,
            errors[:, column],
            at_choice=chosen[a] - chosen[b] if max(len(chosen[a]), len(chosen[b])) > 1 else None,
        )
        for column, (a, b) in enumerate(pairs)
    }


def _joint_deviations(means: Sequence[SampleMean], rows: slice) -> Floats:
    """Return what independent examples add to the errors of several means, [r, n, K].

    The sum of squares of one mean's is its squared error; that of the difference of two means' is the squared error of
    the difference.

    Args:
        means: of the same examples, draws and categories.
        rows: replicates.
    """
    categories = list(zip(*(mean.parts for mean in means), strict=True))
    ends = np.cumsum([len(parts[0].sizes) for parts in categories])
    found = np.empty((len(range(*rows.indices(len(means[0].weights)))), len(means), ends[-1]))
    for parts, end in zip(categories, ends, strict=True):
        factors = parts[0].factors(rows) / len(categories)
        for i, (mean, part) in enumerate(zip(means, parts, strict=True)):
            found[:, i, end - len(part.sizes) : end] = part.deviations(mean.chosen[rows], rows, factors)
    return found
