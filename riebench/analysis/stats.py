"""Bootstrap estimates and intervals.

Examples are the unit of resampling, categories weigh the same, and every resampling is reproducible. Intervals are
studentised (bootstrap-t; Efron and Tibshirani 1993, chapter 12): each replicate is divided by its own standard error,
which is what keeps their coverage near 95 % with few and skewed examples, where percentiles of the replicates cover
less. Shares between 0 and 1 have Wilson's interval. Tests are in `riebench.analysis.multiple`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from riebench.errors import RiebenchError

Floats = NDArray[np.float64]

FEW = 8
"""Numbers below this many are added one after the other."""
REPLICATES = 10_000
BOOTSTRAP_SEED = 20_240_601
LEVEL = 0.95
POWER_FACTOR = 2.8
"""Normal quantiles of a two-sided 5 % test and of 80 % power, added: 1.96 + 0.84."""
ROUNDING = 1e-12
"""Errors below this share of a number are rounding of equal values."""
LEAST_ERROR = 0.2
"""Least standard error of a replicate, as a share of the observed one.

A replicate that happens to draw equal examples only has no error of its own; divided by it, it would be endless.
"""
CACHE_BYTES = 2**30
"""Bytes of draws that are kept for the next method; another choice of examples needs draws of its own."""

Values = Mapping[str, Mapping[str, Sequence[float]]]
"""Category -> example id -> the values of its seeds."""

_draw_cache: dict[tuple[str, tuple[str, ...], int, int], Floats] = {}


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval; all None where there is nothing to average."""

    mean: float | None
    low: float | None
    high: float | None
    n_examples: int


def cluster_counts(name: str, groups: tuple[str, ...], replicates: int, seed: int) -> Floats:
    """Draw clusters: how often each is in each replicate, [replicates, groups].

    The draw depends on the groups' names alone: adding a method or permuting rows changes nothing, and two methods
    scored on the same examples are resampled alike, which is what pairs them.
    """
    key = (name, groups, replicates, seed)
    counts = _draw_cache.pop(key, None)
    if counts is None:
        text = "\n".join([str(seed), name, *groups])
        rng = np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"))
        n = len(groups)
        counts = rng.multinomial(n, [1 / n] * n, size=replicates).astype(np.float64)
    # The least recently used draws go first.
    _draw_cache[key] = counts
    while len(_draw_cache) > 1 and sum(one.nbytes for one in _draw_cache.values()) > CACHE_BYTES:
        del _draw_cache[next(iter(_draw_cache))]
    return counts


@dataclass(frozen=True, eq=False)
class Replicates:
    """A number with its standard error, as observed and in every replicate.

    Where a level was chosen, the levels differ on the observed examples by the noise of these examples, too. A
    replicate that chooses anew takes such differences for true ones and adds noise once more, so that replicates vary
    more than new experiments would; replicates that kept the observed choice would vary less. Intervals and tests
    therefore leave out half of what the choices of replicates differ by on the observed examples.

    Attributes:
        values: [1 + R], the observed number first.
        errors: [1 + R], standard errors over independent examples; nan where a category has a single one.
        centre: the best on all examples, where a level was chosen on some of them; else None.
        at_choice: where a level was chosen, what each replicate's choice gives on the observed examples, [1 + R]; else
            None.
    """

    values: Floats
    errors: Floats
    centre: float | None = None
    at_choice: Floats | None = None

    @property
    def mean(self) -> float:
        """The observed number."""
        return float(self.values[0])

    def interval(self) -> tuple[float, float] | None:
        """Return the studentised 95 % interval, or None if there is none.

        Where a best level was chosen, the replicates are taken as estimates of a number midway between their mean,
        which lacks what a choice on fewer examples loses, and the best on all examples, which is too good by as much;
        and each of them of a number midway between this and what its own choice gives on the observed examples.
        """
        value, error = float(self.values[0]), float(self.errors[0])
        if not (math.isfinite(value) and math.isfinite(error)):
            return None
        finite = np.isfinite(self.values[1:]) & np.isfinite(self.errors[1:])
        # As good as always all are, and a slice takes them without a copy.
        found: slice | NDArray[np.bool_] = slice(None) if finite.all() else finite
        draws, errors = self.values[1:][found], np.maximum(self.errors[1:][found], LEAST_ERROR * error)
        if not len(draws):
            return None
        if not error:
            return value, value
        truth = value if self.centre is None else (float(draws.mean()) + self.centre) / 2
        estimated = truth if self.at_choice is None else (truth + self.at_choice[1:][found]) / 2
        tail = (1 - LEVEL) / 2
        low, high = quantiles((draws - estimated) / errors, (tail, 1 - tail))
        return value - high * error, value - low * error


def quantiles(values: Floats, shares: Sequence[float]) -> list[float]:
    """Return quantiles of some numbers, those that NumPy's method "weibull" gives.

    This definition keeps the tails right with few replicates, too (Davison and Hinkley 1997). There are thousands of
    intervals, and NumPy's function takes three times as long.

    Args:
        values: at least one, all finite.
        shares: each between 0 and 1.
    """
    last = len(values) - 1
    places = [min(max(len(values) * share + share - 1, 0.0), float(last)) for share in shares]
    before = [math.floor(place) for place in places]
    after = [min(place + 1, last) for place in before]
    ordered = np.partition(values, sorted({*before, *after}))
    found = []
    for place, i, j in zip(places, before, after, strict=True):
        one, other, part = float(ordered[i]), float(ordered[j]), place - i
        # From the nearer end, as NumPy does.
        found.append(one + (other - one) * part if part < 0.5 else other - (other - one) * (1 - part))
    return found


@dataclass(frozen=True, eq=False)
class CategoryReplicates:
    """A category's part of a stratified mean.

    Means and variances are [1 + R], the observed ones first.
    """

    means: Floats
    variances: Floats
    freedom: int
    n_examples: int


def estimate(
    values: Values,
    clusters: Mapping[str, str] | None = None,
    *,
    share: bool = False,
    bounds: tuple[float | None, float | None] = (None, None),
    replicates: int = REPLICATES,
    seed: int = BOOTSTRAP_SEED,
    known: dict[str, CategoryReplicates] | None = None,
) -> Estimate:
    """Estimate a mean with an interval of 95 %.

    The mean is over seeds, then examples, then categories.

    Args:
        values: what was scored; examples without a value are absent.
        clusters: example id -> name of the group it is resampled with; absent ids are groups of their own.
        share: whether the values are shares between 0 and 1, whose interval is Wilson's (`wilson`).
        bounds: least and largest value that there can be; the interval ends there.
        replicates: bootstrap replicates.
        seed: of the generator.
        known: category -> its replicates, for a caller that asks for categories singly and together; what is missing is
            added.

    Returns:
        The estimate, without an interval where a category has a single independent example: nothing is known of how
        much others would differ.
    """
    parts = []
    for name, examples in sorted(values.items()):
        if any(len(seeds) for seeds in examples.values()):
            part = None if known is None else known.get(name)
            part = part or _category_replicates(name, examples, clusters or {}, 0 if share else replicates, seed)
            if known is not None:
                known[name] = part
            parts.append(part)
    if not parts:
        return Estimate(None, None, None, 0)
    n_examples = sum(part.n_examples for part in parts)
    found = _stratified(parts)
    if share and math.isfinite(found.errors[0]):
        n = sum(part.freedom + 1 for part in parts)
        ends: tuple[float, float] | None = wilson(found.mean, float(found.errors[0]), n - len(parts), n)
    else:
        ends = found.interval()
    if ends is None:
        return Estimate(found.mean, None, None, n_examples)
    least, most = (limit if limit is not None else sign * math.inf for limit, sign in zip(bounds, (-1, 1), strict=True))
    return Estimate(found.mean, max(least, ends[0]), min(most, ends[1]), n_examples)


def macro_mean(values: Values) -> float | None:
    """Compute the mean of `estimate` alone, in a fraction of its time.

    Args:
        values: what was scored; examples without a value are absent.

    Returns:
        The mean over seeds, then examples, then categories; None without values.
    """
    means = []
    for _, examples in sorted(values.items()):
        found = [mean_over_seeds(seeds) for _, seeds in sorted(examples.items()) if len(seeds)]
        if found:
            means.append(_mean(found))
    return _mean(means) if means else None


def _mean(values: Sequence[float]) -> float:
    """Compute the mean of some numbers, adding them as `np.mean` does."""
    # `np.mean` itself takes longer to begin than to add the few numbers that there are here.
    return float(np.add.reduce(values)) / len(values)


def _stratified(parts: Sequence[CategoryReplicates]) -> Replicates:
    """Return the mean of categories, all of the same weight."""
    if len(parts) == 1:
        return Replicates(parts[0].means, np.sqrt(parts[0].variances))
    means, variances = parts[0].means.copy(), parts[0].variances / len(parts) ** 2
    for part in parts[1:]:
        means += part.means
        variances += part.variances / len(parts) ** 2
    means /= len(parts)
    return Replicates(means, np.sqrt(variances, out=variances))


def _category_replicates(
    name: str, examples: Mapping[str, Sequence[float]], clusters: Mapping[str, str], replicates: int, seed: int
) -> CategoryReplicates:
    """Return a category's mean and its variance, as observed and in every replicate."""
    means = {example: mean_over_seeds(seeds) for example, seeds in sorted(examples.items()) if len(seeds)}
    sums: dict[str, list[float]] = {}
    for example, mean in means.items():
        sums.setdefault(clusters.get(example, example), []).append(mean)
    groups = tuple(sorted(sums))
    # Differences from a middle value keep the squares below from losing digits.
    middle = _mean(list(means.values()))
    totals = np.array([sum(sums[group]) - len(sums[group]) * middle for group in groups])
    sizes = np.array([len(sums[group]) for group in groups], dtype=np.float64)
    counts = _observed_first(name, groups, replicates, seed)
    return CategoryReplicates(*_ratio_replicates(totals, sizes, counts, middle), len(groups) - 1, len(means))


@lru_cache(maxsize=32)
def _observed_first(name: str, groups: tuple[str, ...], replicates: int, seed: int) -> Floats:
    """Return every group once, then the draws of `cluster_counts`.

    They are [1 + replicates, groups], those of one group contiguous in memory: products with them take less time so.
    """
    drawn = cluster_counts(name, groups, replicates, seed) if replicates else np.empty((0, len(groups)))
    return np.asfortranarray(np.vstack([np.ones((1, len(groups))), drawn]))


def _ratio_replicates(totals: Floats, sizes: Floats, counts: Floats, middle: float) -> tuple[Floats, Floats]:
    """Return the mean of some groups' members and its variance, as counts drew them.

    Args:
        totals: [G], sums of the members' differences from `middle`.
        sizes: [G], numbers of members.
        counts: [1 + R, G], every group once first.
        middle: the mean of all members.

    Returns:
        Means and variances, [1 + R] each; variances are nan for a single group.
    """
    n = len(totals)
    if n < 2:
        return np.full(len(counts), middle), np.full(len(counts), np.nan)
    # Where every group has one member, as most have, each replicate has as many members as there are groups.
    single = bool((sizes == 1).all())
    weight = float(n) if single else counts @ sizes
    # Finite but absurd values have a mean, and no finite variance.
    with np.errstate(over="ignore", invalid="ignore"):
        drawn, squares = np.stack([totals, totals**2]) @ counts.T
        mean = drawn / weight
        if single:
            squares -= np.multiply(drawn, mean, out=drawn)
        else:
            squares -= 2 * mean * (counts @ (totals * sizes))
            squares += mean**2 * (counts @ sizes**2)
        variances = np.maximum(squares, 0, out=squares)
        variances *= n / (n - 1) / weight**2
        # What is left of equal values is rounding.
        if not math.sqrt(variances.min()) >= ROUNDING * (abs(middle) + np.abs(mean).max()):
            variances[np.sqrt(variances) < ROUNDING * (abs(middle) + np.abs(mean))] = 0
    mean[0] = 0.0
    return mean + middle, variances


def wilson(share: float, error: float, freedom: int, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a share (Wilson 1927), with its observed error.

    The number of trials is that at which independent trials would have this error: seeds of one example count for
    less than examples do, and categories that differ for more.

    Args:
        share: 0 to 1.
        error: its standard error.
        freedom: degrees of freedom of the error.
        n: independent examples, which is the number of trials where no two differ inside a category.
    """
    from scipy.special import ndtri, stdtrit

    varies = error > 0 and 0 < share < 1
    trials = share * (1 - share) / error**2 if varies else float(n)
    tail = 1 - (1 - LEVEL) / 2
    # Quantiles of Student's t and of the normal distribution; scipy.stats, which has them too, takes long to import.
    z = float(stdtrit(freedom, tail)) if varies else float(ndtri(tail))
    middle = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    reach = z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials**2))
    return max(0.0, middle - reach), min(1.0, middle + reach)


def mean_over_seeds(seeds: Sequence[float]) -> float:
    """Return the mean of an example's values, one of each seed."""
    # Most examples have few seeds, and there are very many of them. One after the other, as NumPy adds few numbers;
    # `sum` adds differently from Python 3.12 on.
    if len(seeds) < FEW:
        total = 0.0
        for one in seeds:
            total += one
        return total / len(seeds)
    return float(np.mean(seeds))


def detectable_difference(differences: Sequence[float]) -> float | None:
    """Return the smallest true mean difference that 80 % of experiments would find.

    The differences are paired, one for each example.

    Args:
        differences: one per example.

    Returns:
        2.8 SD / sqrt(n), or None below two examples. SD 0.02 and n 296 give 0.0033.
    """
    n = len(differences)
    if n < 2:
        return None
    return POWER_FACTOR * float(np.std(differences, ddof=1)) / math.sqrt(n)


def seed_correlation(units: Mapping[tuple[str, int], float]) -> float | None:
    """Compute the correlation of two seeds of one example (intraclass, one way).

    Args:
        units: (example id, seed) -> value; examples with fewer seeds than the most are left out.

    Returns:
        At most 1, or None below two seeds or examples, or where nothing varies.
    """
    seeds: dict[str, list[float]] = {}
    for (example, _), value in sorted(units.items()):
        seeds.setdefault(example, []).append(value)
    most = max(map(len, seeds.values()), default=0)
    table = np.array([values for values in seeds.values() if len(values) == most])
    if most < 2 or len(table) < 2:
        return None
    between, within = most * table.mean(axis=1).var(ddof=1), table.var(axis=1, ddof=1).mean()
    whole = between + (most - 1) * within
    return float((between - within) / whole) if whole > 0 else None


def percentile_interval(draws: Floats) -> tuple[float, float] | None:
    """Return the 95 % percentile interval of replicates, or None if none is finite.

    Args:
        draws: [R]; replicates without a value are nan.
    """
    finite = draws[np.isfinite(draws)]
    if not len(finite):
        return None
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(finite, [tail, 1 - tail])
    return float(low), float(high)


def clustered_standard_error(values: Sequence[float], clusters: Sequence[Hashable | None]) -> float | None:
    """Compute the standard error of a plain mean of clustered values.

    It is the cross-check of the bootstrap.

    Args:
        values: one per example.
        clusters: the cluster of each.

    Returns:
        sqrt(C / (C - 1) * sum over clusters of (sum of deviations)^2) / n, or None for a single cluster.
        Clusters [1, 2] and [3, 5] give 1.25.

    Raises:
        RiebenchError: if an example has no cluster.
    """
    if len(values) != len(clusters) or any(cluster is None for cluster in clusters):
        raise RiebenchError("an example has no cluster; give each one its own where they share nothing")
    names = sorted({str(cluster) for cluster in clusters})
    if len(names) < 2:
        return None
    mean = sum(values) / len(values)
    sums = dict.fromkeys(names, 0.0)
    for value, cluster in zip(values, clusters, strict=True):
        sums[str(cluster)] += value - mean
    return math.sqrt(len(names) / (len(names) - 1) * sum(s * s for s in sums.values())) / len(values)
