"""The trade-off of alignment and preservation as one number a method, the area.

The number is declared before any result is seen. Each strength level of a method gives every example a point, its
LPIPS and its gain; with no edit as the first point they make a curve for each example, straight between levels. At a
budget of LPIPS an example is read where its own curve first exceeds the budget, or at a largest level, whichever comes
first. So a budget binds each example: leaving hard examples alone frees nothing for easy ones. And two methods are read
at the same LPIPS, wherever their levels happen to lie. The mean over the budgets is what the example gives at that
largest level, and its mean over examples and categories the `area`.

The largest level is chosen by the area on one half of the examples and read on the other half, and the halves change
places: a level is never chosen by the pictures it is judged by. A bootstrap replicate redoes means, selection and area
(`riebench.analysis.tradeoff.means`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from riebench.analysis.tradeoff.means import Examples, Floats, SampleMean, macro_means

BUDGETS: tuple[float, ...] = tuple(round(0.05 * i, 2) for i in range(1, 11))
"""LPIPS that the edit of an example may cost: 0.05 to 0.5."""
TOLERANCE = 1e-9
"""An LPIPS this little above a budget is within it."""


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
    choice: NDArray[np.intp] | None = None,
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
        choice: see `TradeOff`; None if it was not made yet.
    """
    curves = along_curves(distances, [""] * distances.shape[1]) if curves is None else curves
    gained, given, cost = (
        with_no_edit(np.hstack([budget_means(distances, table, curve) for curve in curves]))
        for table in (gains, gains if read is None else read, distances)
    )
    # Of equal levels the first, which is the nearer.
    if choice is None:
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
    area = SampleMean(examples, weights, lines["given"], pair, category, float(at_best))
    realised = SampleMean(examples, weights[:1], lines["cost"], pair[:1], category).values[0]
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
