"""Measures of a response curve.

They are the monotone share, linearity, evenness, the range until artifacts, and gains at equal LPIPS. The first three
are computed picture by picture, since a strength is moved on one picture, and averaged over seeds, examples and
categories. The range is that of all pictures together. Intervals of 95 % are over examples inside categories.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from riebench.analysis.configurations import FAR
from riebench.analysis.standings import DISTANCE, GAIN, SAME_LEVEL, MethodComparison
from riebench.analysis.stats import Estimate, estimate, percentile_interval
from riebench.analysis.tradeoff.area import budget_means
from riebench.analysis.tradeoff.means import SampleMean, macro_means
from riebench.analysis.tradeoff.response.curves import ArtifactRule, CurveSet, ResponseCurve

Floats = NDArray[np.float64]

ARTIFACT_LIMIT = 0.1
"""Share of pictures that may be artifacts within the range of a method."""
READ_BUDGETS = (0.1, 0.2, 0.3)
"""LPIPS budgets at which gains are read one by one."""


@dataclass(frozen=True)
class CurvePoint:
    """One strength of a curve.

    Attributes:
        strength: 0 for no edit.
        gain: mean gain with its interval.
        distance: mean LPIPS.
        artifacts: share of pictures that are artifacts.
        far: share of positions that left the distribution of activations; None if not measured.
    """

    strength: float
    gain: Estimate
    distance: float
    artifacts: float
    far: float | None = None


@dataclass(frozen=True)
class Reach:
    """A range until artifacts.

    Attributes:
        value: where the share of artifacts first exceeds `ARTIFACT_LIMIT`, between two strengths if need be; the end
            of the curve if it does not.
        low: lower end of its 95 % interval; None without one.
        high: upper end.
        reached: whether the limit is exceeded at all.
    """

    value: float
    low: float | None
    high: float | None
    reached: bool


@dataclass(frozen=True)
class CurveMeasures:
    """Everything that is said of a curve.

    Attributes:
        curve: the curve.
        points: its strengths, no edit first where that is strength 0.
        monotone: share of neighbouring strengths between which the gain does not fall.
        linearity: how well a rising straight line describes the gain, 0 to 1.
        evenness: of the visible change along the strengths, 0 to 1.
        strength_range: strength at which artifacts begin.
        distance_range: mean LPIPS there.
        budgets: LPIPS budget -> gain there.
    """

    curve: ResponseCurve
    points: tuple[CurvePoint, ...]
    monotone: Estimate
    linearity: Estimate
    evenness: Estimate
    strength_range: Reach
    distance_range: Reach
    budgets: dict[float, Estimate]


def monotone_share(gains: Sequence[float]) -> float:
    """Return the share of neighbouring gains of which the later one is not lower.

    A difference of rounding is none. [0, 1, 2, 1] gives 2 / 3.
    """
    steps = np.diff(np.asarray(gains, dtype=np.float64))
    return float((steps >= -SAME_LEVEL).mean())


def linearity(gains: Sequence[float], places: Sequence[float]) -> float | None:
    """Return how well a rising straight line describes gains.

    It is the squared correlation of gain and strength, and 0 where the line falls.

    Args:
        gains: along the curve.
        places: their strengths.

    Returns:
        0 to 1, or None if the gain never changes.
    """
    y, x = (np.asarray(values, dtype=np.float64) for values in (gains, places))
    y, x = y - y.mean(), abs(x - x[0]) - abs(x - x[0]).mean()
    if float(np.abs(y).max()) <= SAME_LEVEL:
        return None
    along = float(x @ y)
    return along**2 / float((x @ x) * (y @ y)) if along > 0 else 0.0


def evenness(distances: Sequence[float], places: Sequence[float]) -> float | None:
    """Return how evenly a picture moves away from the source along the strengths.

    Each step's change of the distance is divided by the step's length. With r the sizes of these slopes and K their
    number, it is (1 - max(r) / sum(r)) / (1 - 1 / K): 1 if all slopes are equally large, 0 if one step makes the whole
    change.

    Args:
        distances: to the source, along the curve.
        places: their strengths.

    Returns:
        0 to 1, or None if nothing changes.
    """
    change = np.diff(np.asarray(distances, dtype=np.float64)) / np.diff(np.asarray(places, dtype=np.float64))
    slopes = np.abs(change)
    total, most = float(slopes.sum()), float(slopes.max())
    if total <= SAME_LEVEL:
        return None
    return (1 - most / total) / (1 - 1 / len(slopes))


def first_crossing(places: Floats, shares: Floats, limit: float) -> tuple[Floats, NDArray[np.bool_]]:
    """Return where shares first exceed a limit, straight between places.

    Args:
        places: [K], along the curve.
        shares: [R, K].
        limit: that may be reached and not exceeded.

    Returns:
        [R], as positions along the curve (0 for the first place, K - 1 for the last; the last where no share exceeds
        it), and whether it is exceeded.
    """
    above = shares > limit + 1e-9
    crossed: NDArray[np.bool_] = np.asarray(above.any(axis=1), dtype=np.bool_)
    after = np.where(crossed, above.argmax(axis=1), len(places) - 1)
    before = np.maximum(after - 1, 0)
    rows = np.arange(len(shares))
    rise = shares[rows, after] - shares[rows, before]
    with np.errstate(invalid="ignore", divide="ignore"):
        along = np.where(rise > 0, (limit - shares[rows, before]) / rise, 0.0)
    return np.where(crossed, before + np.clip(along, 0, 1), len(places) - 1.0), crossed


def measure_curves(found: CurveSet) -> list[CurveMeasures]:
    """Measure all curves of one suite and model, in their order."""
    return [_measure(curve, found.comparison, found.rule) for curve in found.curves]


def _measure(curve: ResponseCurve, comparison: MethodComparison, rule: ArtifactRule) -> CurveMeasures:
    examples, weights = comparison.examples, comparison.weights
    gains, distances = (curve.table(metric, examples.ids) for metric in (GAIN, DISTANCE))
    artifacts = curve.table(rule.metric, examples.ids, lambda value: float(rule.broken(value)))
    if curve.starts_at_zero:
        shown = [np.hstack([np.zeros((len(examples.ids), 1)), table]) for table in (gains, distances, artifacts)]
    else:
        shown = [gains, distances, artifacts]
    far, broken = (macro_means(table, weights, examples) for table in shown[1:])
    crossing, crossed = first_crossing(curve.places, broken, ARTIFACT_LIMIT)
    levels = np.arange(len(curve.places))
    strengths = np.interp(crossing, levels, curve.places)
    reached_far = np.array([np.interp(at, levels, row) for at, row in zip(crossing, far, strict=True)])
    budgets = {
        budget: comparison.estimate(
            SampleMean.of(_at_budget(distances, gains, budget), examples, weights).replicates
        )
        for budget in READ_BUDGETS
    }  # fmt: skip
    points = tuple(
        CurvePoint(
            float(place), comparison.estimate(SampleMean.of(shown[0][:, level], examples, weights).replicates),
            float(far[0, level]), float(broken[0, level]), _far_share(curve, level),
        )
        for level, place in enumerate(curve.places)
    )  # fmt: skip
    places = curve.places.tolist()
    return CurveMeasures(
        curve=curve,
        points=points,
        monotone=_over_pictures(curve, comparison, GAIN, monotone_share),
        linearity=_over_pictures(curve, comparison, GAIN, lambda one: linearity(one, places)),
        evenness=_over_pictures(curve, comparison, DISTANCE, lambda one: evenness(one, places)),
        strength_range=_reach(strengths, bool(crossed[0])),
        distance_range=_reach(reached_far, bool(crossed[0])),
        budgets=budgets,
    )


def _far_share(curve: ResponseCurve, level: int) -> float | None:
    """Return the mean share of far positions at a level; None for no edit."""
    place = level - curve.starts_at_zero
    return None if place < 0 else estimate(curve.configurations[place].values.get(FAR, {}), replicates=1).mean


def _at_budget(distances: Floats, gains: Floats, budget: float) -> Floats:
    """Return each example's gain where its curve exceeds a budget or ends, [E]."""
    order = np.argsort(distances.mean(axis=0), kind="stable").tolist()
    return budget_means(distances, gains, order, (budget,))[:, -1]


def _over_pictures(
    curve: ResponseCurve, comparison: MethodComparison, metric: str, measure: Callable[[list[float]], float | None]
) -> Estimate:
    """Return the mean of a measure of each picture's curve.

    Pictures without one are left out.
    """
    levels = curve.units(metric)
    categories = dict(zip(comparison.examples.ids, comparison.examples.categories, strict=True))
    clusters = dict(zip(comparison.examples.ids, comparison.examples.clusters, strict=True))
    values: dict[str, dict[str, list[float]]] = {}
    for example, seed in sorted(levels[-1]):
        value = measure([level[example, seed] for level in levels])
        if example in categories and value is not None:
            values.setdefault(categories[example], {}).setdefault(example, []).append(value)
    return estimate(values, clusters, bounds=(0.0, 1.0), replicates=comparison.replicates, seed=comparison.seed)


def _reach(values: Floats, reached: bool) -> Reach:
    ends = percentile_interval(values[1:]) if len(values) > 2 else None
    low, high = ends or (None, None)
    return Reach(float(values[0]), low, high, reached)
