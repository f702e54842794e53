"""The trade-off of alignment and preservation as one number a method, the area.

The number is declared before any result is seen. Each strength level of a method gives every example a point, its
LPIPS and its gain; with no edit as the first point they make a curve for each example, straight between levels. At a
budget of LPIPS an example is read where its own curve first exceeds the budget, or at a largest level, whichever comes
first. So a budget binds each example: leaving hard examples alone frees nothing for easy ones. And two methods are read
at the same LPIPS, wherever their levels happen to lie. The mean over the budgets is what the example gives at that
largest level, and its mean over examples and categories the `area`.

The largest level is chosen by the area on one half of the examples and read on the other half, and the halves change
places: a level is never chosen by the pictures it is judged by.

All of it is vectorised over bootstrap replicates: weights [R, E] say how often each example was drawn, and a replicate
redoes means, selection and area. The observed value is the replicate in which every example was drawn once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from riebench.analysis.stats import Replicates, cluster_counts

Floats = NDArray[np.float64]

BUDGETS: tuple[float, ...] = tuple(round(0.05 * i, 2) for i in range(1, 11))
"""LPIPS that the edit of an example may cost: 0.05 to 0.5."""
TOLERANCE = 1e-9
"""An LPIPS this little above a budget is within it."""
CHUNK_BYTES = 2**21
"""Bytes of replicates that are worked on together: about what stays in a processor's cache from pass to pass."""
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
    """The part of some replicates in one category.

    Attributes:
        weights: [R, E], of which it is a part.
        counts: [r, members], how often each example was drawn.
        size: [r], how many were.
        factors: [r, clusters], what a difference from the mean is multiplied by to be a part of its error.
    """

    weights: Floats
    counts: Floats
    size: Floats
    factors: Floats


@dataclass(frozen=True, eq=False)
class HalfDraw:
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

    def category_draw(self, weights: Floats, rows: slice, category: str) -> CategoryDraw:
        """Return the part of some replicates in one category.

        It is kept: all methods on the same examples have the same draws.

        Args:
            weights: [R, E].
            rows: replicates.
            category: one of `strata`.
        """
        known = self._draws.get((rows.start, rows.stop, category))
        if known is None or known.weights is not weights:
            counts = np.ascontiguousarray(weights[rows][:, self.strata[category]])
            first = self.independent[category][0]
            size, n = counts.sum(axis=1), len(first)
            factors = np.sqrt(counts[:, first]) * (np.sqrt(n / (n - 1)) if n > 1 else np.nan) / size[:, None]
            known = self._draws[rows.start, rows.stop, category] = CategoryDraw(weights, counts, size, factors)
        return known

    @cached_property
    def _draws(self) -> dict[tuple[int, int, str], CategoryDraw]:
        return {}

    def half_draw(self, weights: Floats, category: str, half: int | None = None) -> HalfDraw:
        """Return the part of all replicates in one half of a category; kept likewise.

        Args:
            weights: [R, E].
            category: one of `strata`.
            half: 0 or 1; None for the whole category.
        """
        known = self._half_draws.get((category, half))
        if known is None or known.weights is not weights:
            members = self.strata[category]
            members = members if half is None else members[self.halves[members] == half]
            counts = weights[:, members]
            size = counts.sum(axis=1, keepdims=True)
            empty = size[:, 0] <= 0
            size[empty] = 1.0
            known = HalfDraw(weights, members, counts, size, empty)
            # That of the observed examples alone is asked for between the others, and is made at once.
            if len(weights) > 1:
                self._half_draws[category, half] = known
        return known

    @cached_property
    def _half_draws(self) -> dict[tuple[str, int | None], HalfDraw]:
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


def _drop_rounding(apart: Floats, given: Floats, mean: Floats) -> None:
    """Set differences between equal values, which are rounding, to zero.

    Args:
        apart: [R, E], differences of values from their mean; changed in place.
        given: [R, E], the values.
        mean: [R].
    """
    # In as few passes as possible, since this is done for every method: nearly all differences are far larger.
    largest = ROUNDING * (max(given.max(), -given.min()) + np.abs(mean).max())
    rows, columns = np.nonzero(~(np.abs(apart) >= largest))
    if len(rows):
        some = np.abs(apart[rows, columns]) < ROUNDING * (np.abs(given[rows, columns]) + np.abs(mean[rows]))
        apart[rows[some], columns[some]] = 0.0


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
        drawn = examples.half_draw(weights, category, half)
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


@dataclass(frozen=True, eq=False)
class SampleMean:
    """A mean over examples, then categories, in every replicate.

    Attributes:
        examples: that it is over.
        weights: [1 + R, E], see `Examples.draws`; every example once first.
        part: replicates -> what each example gives, [replicates, E].
        category: the only one that counts; None for all.
        centre: see `Replicates.centre`.
    """

    examples: Examples
    weights: Floats
    part: Callable[[slice], Floats]
    category: str | None = None
    centre: float | None = None

    @classmethod
    def of(cls, values: Floats, examples: Examples, weights: Floats, category: str | None = None) -> SampleMean:
        """Return the mean of values [E] that are the same in every replicate."""
        return cls(examples, weights, lambda rows: np.broadcast_to(values, weights[rows].shape), category)

    @cached_property
    def replicates(self) -> Replicates:
        """The mean with its standard error, as observed and in every replicate."""
        values, errors, at_choice = [], [], []
        for rows in chunks(len(self.weights), len(self.examples.ids)):
            part = self.part(rows)
            means, deviations = self._deviations(part, rows)
            values.append(means)
            errors.append(np.sqrt((deviations**2).sum(axis=1)))
            if self.centre is not None:
                at_choice.append(part @ self._shares)
        chosen = np.concatenate(at_choice) if at_choice else None
        return Replicates(np.concatenate(values), np.concatenate(errors), self.centre, chosen)

    @property
    def _shares(self) -> Floats:
        """Share of each observed example in the mean, [E]."""
        shares = np.zeros(len(self.examples.ids))
        for members in self._strata.values():
            shares[members] = 1 / (len(members) * len(self._strata))
        return shares

    @property
    def _strata(self) -> Mapping[str, NDArray[np.intp]]:
        """Positions of the examples of each category that the mean is over."""
        strata = self.examples.strata
        return strata if self.category is None else {self.category: strata[self.category]}

    @property
    def values(self) -> Floats:
        """The mean as observed, then in every replicate, [1 + R]."""
        return self.replicates.values

    def deviations(self, rows: slice) -> tuple[Floats, Floats]:
        """Return means [r] and what independent examples add to errors [r, clusters].

        The sum of squares of the latter is the squared standard error; that of the difference of two means is the
        squared standard error of the difference.

        Args:
            rows: replicates.
        """
        return self._deviations(self.part(rows), rows)

    def _deviations(self, part: Floats, rows: slice) -> tuple[Floats, Floats]:
        chosen = self._strata
        means, found = np.zeros(len(part)), []
        for category, members in chosen.items():
            draw = self.examples.category_draw(self.weights, rows, category)
            given = part[:, members]
            mean = np.einsum("re,re->r", draw.counts, given) / draw.size
            apart = given - mean[:, None]
            _drop_rounding(apart, given, mean)
            first, place = self.examples.independent[category]
            if len(first) < len(members):
                apart = apart @ np.eye(len(first))[place]
            apart *= draw.factors
            apart /= len(chosen)
            found.append(apart)
            means += mean / len(chosen)
        return means, np.hstack(found)

    def __sub__(self, other: SampleMean) -> SampleMean:
        """Return the paired difference of two means of the same draws."""
        centres = [one.values[0] if one.centre is None else one.centre for one in (self, other)]
        moved = self.centre is not None or other.centre is not None
        return SampleMean(
            self.examples, self.weights, lambda rows: self.part(rows) - other.part(rows), self.category,
            float(centres[0] - centres[1]) if moved else None,
        )  # fmt: skip

    def scaled(self, factor: float) -> SampleMean:
        """Return the mean of the same draws times a number that is not drawn."""
        return SampleMean(
            self.examples, self.weights, lambda rows: factor * self.part(rows), self.category,
            None if self.centre is None else factor * self.centre,
        )  # fmt: skip

    def over(self, other: SampleMean) -> Replicates:
        """Return the ratio of two means of the same draws; its errors are linearised."""
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = self.values / other.values
            change = SampleMean(
                self.examples, self.weights,
                lambda rows: (self.part(rows) - ratio[rows, None] * other.part(rows)) / other.values[rows, None],
                self.category,
            )  # fmt: skip
            chosen = self.replicates.at_choice
            return Replicates(
                ratio,
                change.replicates.errors,
                None if self.centre is None else float(self.centre / other.values[0]),
                None if chosen is None else chosen / other.values[0],
            )


def chunks(replicates: int, width: int) -> list[slice]:
    """Divide replicates into parts that are worked on together.

    Args:
        replicates: how many.
        width: numbers of each.
    """
    size = max(1, CHUNK_BYTES // (8 * max(1, width)))
    return [slice(first, min(first + size, replicates)) for first in range(0, replicates, size)]


def paired_differences(means: Mapping[str, SampleMean]) -> dict[tuple[str, str], Replicates]:
    """Return the differences of all pairs of means of the same examples and draws.

    Args:
        means: name -> mean.

    Returns:
        Pair of names -> first minus second.
    """
    names = list(means)
    if len(names) < 2:
        return {}
    one, other = np.triu_indices(len(names), 1)
    any_mean = means[names[0]]
    values, errors = [], []
    for rows in chunks(len(any_mean.weights), len(names) * (len(any_mean.examples.ids) + 4 * len(names))):
        found = [means[name].deviations(rows) for name in names]
        level = np.stack([mean for mean, _ in found], axis=1)
        deviations = np.stack([deviation for _, deviation in found], axis=2)
        products = deviations.transpose(0, 2, 1) @ deviations
        squares = np.diagonal(products, axis1=1, axis2=2)
        variances = squares[:, one] + squares[:, other] - 2 * products[:, one, other]
        # What is left of equal deviations is rounding.
        variances[variances < ROUNDING * (squares[:, one] + squares[:, other])] = 0
        values.append(level[:, one] - level[:, other])
        errors.append(np.sqrt(variances))
    stacked = (np.concatenate(values), np.concatenate(errors))
    # What had no choice gives the same on the observed examples in every replicate.
    chose = {name for name, mean in means.items() if mean.replicates.at_choice is not None}
    chosen = {
        name: mean.values[:1] if mean.replicates.at_choice is None else mean.replicates.at_choice
        for name, mean in means.items()
    }
    moved = any(mean.centre is not None for mean in means.values())
    pairs = [(names[i], names[j]) for i, j in zip(one, other, strict=True)]
    return {
        pair: Replicates(
            stacked[0][:, column],
            stacked[1][:, column],
            at_choice=chosen[pair[0]] - chosen[pair[1]] if moved and chose & {*pair} else None,
        )
        for column, pair in enumerate(pairs)
    }


def budget_means(distances: Floats, values: Floats, curve: Sequence[int], budgets: Sequence[float] = BUDGETS) -> Floats:
    """Compute what each example gives at each largest level, meaned over budgets.

    Args:
        distances: [E, C], LPIPS of each example under each configuration.
        values: [E, C], what is read, relative to no edit.
        curve: configurations in their order along the curve; no edit is before the first.
        budgets: largest LPIPS of an example, one after the other.

    Returns:
        float64 [E, levels], one column for each level of the curve as the largest one.
    """
    far, read = (with_no_edit(table[:, list(curve)]) for table in (distances, values))
    rows, last = np.arange(len(far)), far.shape[1] - 1
    levels = np.arange(1, last + 1)
    found = np.zeros((len(far), last))
    for budget in budgets:
        above = np.maximum.accumulate(far, axis=1) > budget + TOLERANCE
        after = np.where(above[:, -1], above.argmax(axis=1), last + 1)
        inside, beyond = after - 1, np.minimum(after, last)
        length = far[rows, beyond] - far[rows, inside]
        along = np.where(length > 0, (budget - far[rows, inside]) / np.where(length > 0, length, 1), 0.0)
        crossing = read[rows, inside] + np.clip(along, 0, 1) * (read[rows, beyond] - read[rows, inside])
        found += np.where(levels < after[:, None], read[:, 1:], crossing[:, None])
    return found / len(budgets)


def along_curves(distances: Floats, settings: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Order configurations along the curves of a method.

    The strengths of a configuration are a curve, and so are, together, configurations of one strength each. The order
    is that of the mean LPIPS, since some methods change less with more strength.

    Args:
        distances: [E, C].
        settings: name of each configuration's setting.
    """
    mean = distances.mean(axis=0)
    several = {name for name in settings if settings.count(name) > 1}
    groups: dict[str, list[int]] = {}
    for column, name in enumerate(settings):
        groups.setdefault(name if name in several else "", []).append(column)
    return tuple(tuple(sorted(group, key=lambda column: mean[column])) for group in groups.values())


@dataclass(frozen=True, eq=False)
class TradeOff:
    """A method's area in every replicate.

    Attributes:
        area: mean gain over the budgets.
        realised: mean LPIPS over the budgets at which it was read.
        choice: int [1 + R, 2], the largest level that each half chose; 0 is no edit.
    """

    area: SampleMean
    realised: float
    choice: NDArray[np.intp]


def with_no_edit(values: Floats) -> Floats:
    """Add the configuration that changes nothing in front: [E, C] -> [E, C + 1]."""
    return np.hstack([np.zeros((len(values), 1)), values])


def cross_fit(
    distances: Floats,
    gains: Floats,
    examples: Examples,
    weights: Floats,
    curves: Sequence[Sequence[int]] | None = None,
    *,
    read: Floats | None = None,
    category: str | None = None,
) -> TradeOff:
    """Choose the largest level on one half and read it on the other, both ways.

    Args:
        distances: [E, C], LPIPS of each example under each configuration, mean over seeds.
        gains: [E, C], likewise of `clip_gain`.
        examples: the rows.
        weights: [1 + R, E], every example once and then the draws, see `Examples.draws`.
        curves: see `along_curves`; None for one curve.
        read: [E, C], what is read at the chosen level, if not `gains` themselves: another scorer's numbers.
        category: reads this one alone; the choice is still made on all of them.
    """
    curves = along_curves(distances, [""] * distances.shape[1]) if curves is None else curves
    gained, given, cost = (
        with_no_edit(np.hstack([budget_means(distances, table, curve) for curve in curves]))
        for table in (gains, gains if read is None else read, distances)
    )
    # Of equal levels the first, which is the nearer.
    choice = np.stack([_best(macro_means(gained, weights, examples, half)) for half in (0, 1)], axis=1)
    # Each half is read at what the other half chose; hardly any two replicates differ in their pair of choices.
    codes, pair = np.unique(choice[:, 0] * given.shape[1] + choice[:, 1], return_inverse=True)
    pairs = np.stack(np.divmod(codes, given.shape[1]), axis=1)
    lines = {
        kind: np.where(examples.halves == 0, table.T[pairs[:, 1]], table.T[pairs[:, 0]])
        for kind, table in (("given", given), ("cost", cost))
    }

    best = _best(macro_means(gained, weights[:1], examples))[0]
    at_best = SampleMean.of(given[:, best], examples, weights[:1], category).values[0]
    area = SampleMean(examples, weights, lambda rows: lines["given"][pair[rows]], category, float(at_best))
    realised = SampleMean(examples, weights[:1], lambda rows: lines["cost"][pair[:1]], category).values[0]
    return TradeOff(area, float(realised), choice)


def best_per_example(
    distances: Floats,
    gains: Floats,
    examples: Examples,
    weights: Floats,
    curves: Sequence[Sequence[int]] | None = None,
    *,
    read: Floats | None = None,
) -> TradeOff:
    """Read each example where it gains most inside each budget.

    It is the choice that `cross_fit` keeps from methods. A place on a curve is a level, or where the curve crosses the
    budget. The numbers that choose are the numbers that are read, so noise of the scorer counts as gain.

    Args:
        distances: see `cross_fit`.
        gains: likewise.
        examples: likewise.
        weights: likewise.
        curves: likewise.
        read: likewise.
    """
    curves = along_curves(distances, [""] * distances.shape[1]) if curves is None else curves
    tables = (gains, gains if read is None else read, distances)
    found = np.zeros((len(tables), len(distances)))
    for budget in BUDGETS:
        places = [_places(distances, tables, curve, budget) for curve in curves]
        gained, *others = (np.hstack(parts) for parts in zip(*places, strict=True))
        best = np.nanargmax(gained, axis=1)[:, None]
        found += [np.take_along_axis(table, best, axis=1)[:, 0] for table in (gained, *others)]
    _, given, cost = found / len(BUDGETS)
    realised = SampleMean.of(cost, examples, weights[:1]).values[0]
    area = SampleMean.of(given, examples, weights)
    return TradeOff(area, float(realised), np.zeros((len(weights), 2), dtype=np.intp))


def _places(distances: Floats, tables: Sequence[Floats], curve: Sequence[int], budget: float) -> list[Floats]:
    """Return what tables give at the places of a curve, [E, places] each.

    It is nan outside the budget.
    """
    far = with_no_edit(distances[:, list(curve)])
    inside = far <= budget + TOLERANCE
    crosses = inside[:, :-1] != inside[:, 1:]
    with np.errstate(invalid="ignore", divide="ignore"):
        along = np.where(crosses, (budget - far[:, :-1]) / (far[:, 1:] - far[:, :-1]), 0.0)
    found = []
    for table in tables:
        values = with_no_edit(table[:, list(curve)])
        between = values[:, :-1] + np.clip(along, 0, 1) * (values[:, 1:] - values[:, :-1])
        found.append(np.hstack([np.where(inside, values, np.nan), np.where(crosses, between, np.nan)]))
    return found


def _best(means: Floats) -> NDArray[np.intp]:
    """Return the position of the largest mean of each row.

    It is the first of those that are equal up to rounding.
    """
    known = np.nan_to_num(means, nan=-np.inf)
    return np.asarray((known >= known.max(axis=1, keepdims=True) - TOLERANCE).argmax(axis=1))
