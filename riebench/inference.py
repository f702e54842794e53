"""What may be said about a difference: intervals, p-values, families of tests, groups that cannot be told apart."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from riebench.errors import RiebenchError
from riebench.stats import LEVEL

Floats = NDArray[np.float64]
ALPHA = 0.05


def interval(draws: Floats) -> tuple[float, float] | None:
    """Percentile interval of 95 % over bootstrap replicates, or None if none is finite.

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
    """Two-sided bootstrap p-value of a paired difference.

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
    """Holm's step-down adjustment inside one family of tests.

    Args:
        p_values: comparison -> raw p.
    """
    if not p_values:
        return {}
    from statsmodels.stats.multitest import multipletests

    adjusted = multipletests([*p_values.values()], method="holm")[1]
    return {name: float(p) for name, p in zip(p_values, adjusted, strict=True)}


def rank_groups(areas: Mapping[str, Floats]) -> dict[str, int]:
    """1 + the number of methods that are better beyond doubt (adjusted p below 0.05, all pairs one family).

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
    """Standard error of a plain mean when values come in clusters: the cross-check of the bootstrap.

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
