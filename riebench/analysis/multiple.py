"""Tests of many paired differences at once, and rank groups.

Adjusted p-values are those of the step-down procedure of Westfall and Young (1993) with the largest studentised
difference, on replicates that all differences share (Romano and Wolf 2005). It keeps the chance of any false
difference in a family below 5 % and, unlike bounds that multiply p-values, has no floor that grows with the family:
differences that hang together count as little more than one.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from riebench.analysis.stats import Replicates

Floats = NDArray[np.float64]

ALPHA = 0.05
"""Adjusted p-values below this count as a difference."""
LEAST_ERROR = 0.5
"""Least standard error of a replicate, as a share of the observed one: one difference that few examples make must not
widen all others."""


def statistics(difference: Replicates) -> tuple[float, Floats]:
    """Return a difference's studentised size, and those that chance would give it.

    Args:
        difference: a paired one.

    Returns:
        |difference| / error, and the same of each replicate about the replicates' mean, [R]. A difference without
        error is endless; one that is 0 is 0.
    """
    value, error = float(difference.values[0]), float(difference.errors[0])
    if not (np.isfinite(value) and np.isfinite(error)):
        return 0.0, np.zeros(len(difference.values) - 1)
    if not error:
        return (np.inf if value else 0.0), np.zeros(len(difference.values) - 1)
    return abs(value) / error, np.abs(_roots(difference))


def _roots(difference: Replicates) -> Floats:
    """Return the studentised differences of replicates from their mean, [R].

    Where levels were chosen, half of what choices differ by is left out, see `Replicates`. Replicates without a number
    have 0.
    """
    found = np.isfinite(difference.values[1:]) & np.isfinite(difference.errors[1:])
    chosen = 0.0 if difference.at_choice is None else difference.at_choice[1:] / 2
    values = np.where(found, difference.values[1:] - chosen, 0.0)
    errors = np.maximum(np.where(found, difference.errors[1:], 0.0), LEAST_ERROR * difference.errors[0])
    apart = values - values[found].mean() if found.any() else values * 0
    roots: Floats = np.where(found, apart / np.where(errors > 0, errors, 1.0), 0.0)
    return roots


def step_down(differences: Mapping[str, Replicates]) -> dict[str, float]:
    """Adjust the p-values of a family of paired differences.

    Args:
        differences: name -> difference, all from the same draws.

    Returns:
        Name -> p-value, in the order given. A method against itself has 1.
    """
    names = list(differences)
    if not names:
        return {}
    found = [statistics(differences[name]) for name in names]
    return dict(zip(names, adjust(np.array([size for size, _ in found]), np.array([c for _, c in found])), strict=True))


def adjust(sizes: Floats, chance: Floats) -> list[float]:
    """Adjust p-values by the step-down procedure.

    Args:
        sizes: [F], studentised sizes of the differences.
        chance: [F, R], the sizes that chance would give them.
    """
    order = np.argsort(-sizes, kind="stable")
    # Row i holds the largest size of the i-th largest difference and all below it.
    largest = np.maximum.accumulate(chance[order][::-1], axis=0)[::-1]
    raw = ((largest >= sizes[order][:, None]).sum(axis=1) + 1) / (chance.shape[1] + 1)
    adjusted = np.empty(len(sizes))
    adjusted[order] = np.minimum(np.maximum.accumulate(raw), 1.0)
    return [float(p) for p in adjusted]


def rank_groups(means: Mapping[str, float], p_values: Mapping[tuple[str, str], float]) -> dict[str, int]:
    """Rank methods in groups that cannot be told apart.

    A method's group is 1 + the number of methods that are better with an adjusted p below 0.05.

    Args:
        means: method -> its area.
        p_values: pair of methods -> adjusted p of their difference.
    """
    groups = dict.fromkeys(means, 1)
    for (first, second), p in p_values.items():
        if p < ALPHA:
            groups[second if means[first] > means[second] else first] += 1
    return groups
