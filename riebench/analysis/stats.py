"""Bootstrap estimates, intervals and tests.

Examples are the unit of resampling, categories weigh the same, and every resampling is reproducible. The first part
estimates means with intervals from scores. The second part works on replicates that are computed elsewhere: intervals,
paired p-values, Holm's adjustment and rank groups.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from riebench.errors import RiebenchError

Floats = NDArray[np.float64]

ALPHA = 0.05
"""Adjusted p-values below this count as a difference."""
REPLICATES = 10_000
BOOTSTRAP_SEED = 20_240_601
LEVEL = 0.95
POWER_FACTOR = 2.8
"""Normal quantiles of a two-sided 5 % test and of 80 % power, added: 1.96 + 0.84."""
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


def estimate(
    values: Values,
    clusters: Mapping[str, str] | None = None,
    *,
    replicates: int = REPLICATES,
    seed: int = BOOTSTRAP_SEED,
) -> Estimate:
    """Estimate a mean with a percentile bootstrap interval of 95 %.

    The mean is over seeds, then examples, then categories.

    Args:
        values: what was scored; examples without a value are absent.
        clusters: example id -> name of the group it is resampled with; absent ids are groups of their own.
        replicates: bootstrap replicates.
        seed: of the generator.

    Returns:
        The estimate. One example in each category gives an interval of width 0: it says nothing then.
    """
    parts = [
        _category_replicates(name, examples, clusters or {}, replicates, seed)
        for name, examples in sorted(values.items())
        if any(len(seeds) for seeds in examples.values())
    ]
    if not parts:
        return Estimate(None, None, None, 0)
    mean = float(np.mean([part[0] for part in parts]))
    draws = np.mean([part[1] for part in parts], axis=0)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Estimate(mean, float(low), float(high), sum(part[2] for part in parts))


def _category_replicates(
    name: str, examples: Mapping[str, Sequence[float]], clusters: Mapping[str, str], replicates: int, seed: int
) -> tuple[float, Floats, int]:
    """Return a category's mean, its bootstrap replicates and its number of examples."""
    means = {example: _mean(seeds) for example, seeds in sorted(examples.items()) if len(seeds)}
    sums: dict[str, list[float]] = {}
    for example, mean in means.items():
        sums.setdefault(clusters.get(example, example), []).append(mean)
    groups = tuple(sorted(sums))
    totals = np.array([sum(sums[group]) for group in groups])
    sizes = np.array([len(sums[group]) for group in groups], dtype=np.float64)
    counts = cluster_counts(name, groups, replicates, seed)
    # Groups of one are the rule: then every replicate has as many examples as there are.
    drawn = counts @ sizes if (sizes != 1).any() else float(len(groups))
    return float(np.mean(list(means.values()))), (counts @ totals) / drawn, len(means)


def _mean(seeds: Sequence[float]) -> float:
    return float(seeds[0]) if len(seeds) == 1 else float(np.mean(seeds))


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


def interval(draws: Floats) -> tuple[float, float] | None:
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


def p_value(differences: Floats) -> float:
    """Compute the two-sided bootstrap p-value of a paired difference.

    Args:
        differences: [R], one per replicate, of the same draws on both sides; replicates without a value are nan and
            count for nothing.

    Returns:
        2 min(share <= 0, share >= 0), shares with +1 in numerator and denominator, at most 1. A method against
        itself gives 1.
    """
    found = differences[np.isfinite(differences)]
    below, above = int((found <= 0).sum()), int((found >= 0).sum())
    return min(1.0, 2 * (min(below, above) + 1) / (len(found) + 1))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjust p-values by Holm's step-down method inside one family of tests.

    Args:
        p_values: comparison -> raw p.
    """
    if not p_values:
        return {}
    from statsmodels.stats.multitest import multipletests

    adjusted = multipletests([*p_values.values()], method="holm")[1]
    return {name: float(p) for name, p in zip(p_values, adjusted, strict=True)}


def rank_groups(areas: Mapping[str, Floats]) -> dict[str, int]:
    """Rank methods by areas, in groups that cannot be told apart.

    A method's group is 1 + the number of methods that are better with an adjusted p below 0.05; all pairs are one
    family of tests.

    Args:
        areas: method -> [1 + R]: the observed area, then its bootstrap replicates, of the same draws for all.

    Returns:
        Method -> rank group; methods that cannot be told apart from the best are all in group 1.
    """
    names = sorted(areas)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    raw = {f"{a}\n{b}": p_value((areas[a] - areas[b])[1:]) for a, b in pairs}
    adjusted = holm(raw)
    groups = dict.fromkeys(names, 1)
    for a, b in pairs:
        if adjusted[f"{a}\n{b}"] < ALPHA:
            groups[b if areas[a][0] > areas[b][0] else a] += 1
    return groups


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
