"""Measures of SAEs by what few of their features do, and the registry of them.

A measure gives one number for each example and seed, so that means, intervals and differences follow from rows alone.
Shares divide each example's number by a mean over all examples: the mean of the quotients is the quotient of the means.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from riebench.analysis.sae_score.effects import (
    FEATURE_COUNTS,
    FEW,
    GAIN,
    JUDGED,
    KEPT,
    SECOND,
    SELECTIVITY,
    Effects,
    Floats,
    Kind,
    read_effects,
)

if TYPE_CHECKING:
    from pandas import DataFrame

    from riebench.store.folder import RunFolder

LEAST_SHARE = 0.1
"""Least denominator of a share, as a part of the patch's mean gain: an SAE that gains nothing has no share of it."""
BEYOND = 2 * FEATURE_COUNTS[-1]
"""Number of features that stands for "more than the largest number tested"."""
CLEAR = 0.5
"""Least gain of the patch on an example, as a part of its mean gain, for half of it to be looked for."""
COLUMNS = ("measure", "sae", "block", "category", "example", "seed", "value")


@dataclass(frozen=True)
class Measure:
    """One measure of an SAE.

    Attributes:
        name: in tables and files.
        title: what it is, in words.
        direction: the better direction.
        judge: takes the toy world's judge, so that it exists there alone.
        official: stands in the leaderboard's table of SAEs.
        values: effects -> one number for each unit, [U]; NaN where there is none.
        whole: for a share, what the values are a part of: effects -> [U]. Its mean is the denominator.
        scale: factor between the stored and the printed number.
        decimals: of the printed number.
    """

    name: str
    title: str
    direction: Literal["higher", "lower"]
    judge: bool
    official: bool
    values: Callable[[Effects], Floats]
    whole: Callable[[Effects], Floats] | None = None
    scale: float = 100
    decimals: int = 2

    def of(self, effects: Effects) -> Floats:
        """Return the measure's number for each unit, [U]; NaN where there is none."""
        values = self.values(effects)
        return values if self.whole is None else share(effects, values, self.whole(effects))


def mean_of_few(numbers: Floats) -> Floats:
    """Compute the mean over the numbers of features in `FEW`: [U, counts] -> [U]."""
    return np.asarray(numbers[:, [FEATURE_COUNTS.index(count) for count in FEW]].mean(axis=1))


def area(numbers: Floats) -> Floats:
    """Compute the mean over the logarithm of the number of features, [U].

    It is the area below straight lines between the numbers tested, divided by its width.

    Args:
        numbers: [U, counts].
    """
    places = np.log2(FEATURE_COUNTS)
    widths = np.diff(places)
    return np.asarray(((numbers[:, 1:] + numbers[:, :-1]) / 2 * widths).sum(axis=1) / widths.sum())


def features_for_half(effects: Effects) -> Floats:
    """Compute log2 of the number of features that reach half of the patch's gain.

    Between two numbers tested it is read on the straight line over the logarithm; 1 feature that is enough gives 0,
    and `BEYOND` stands for examples on which no number tested is enough. Examples on which the patch itself does little
    (`CLEAR`) have none.

    Returns:
        [U].
    """
    patch, gains = effects.patch(budgets=False), effects.numbers("sae", GAIN)
    found = np.full(len(patch), np.nan)
    mean = effects.mean(patch)
    if not mean > 0 or not np.isfinite(gains).all():
        return found
    places = np.log2(FEATURE_COUNTS)
    for unit in np.flatnonzero(np.isfinite(patch) & (patch >= CLEAR * mean)):
        half, reached = patch[unit] / 2, np.flatnonzero(gains[unit] >= patch[unit] / 2)
        if not len(reached):
            found[unit] = math.log2(BEYOND)
        elif reached[0] == 0:
            found[unit] = 0.0
        else:
            first = int(reached[0])
            low, high = gains[unit, first - 1], gains[unit, first]
            found[unit] = places[first - 1] + (half - low) / (high - low) * (places[first] - places[first - 1])
    return found


def share(effects: Effects, part: Floats, whole: Floats) -> Floats:
    """Divide the parts of examples by the mean of a whole.

    The whole is at least `LEAST_SHARE` of what activation patching gains, both within LPIPS budgets: below, nothing is
    there to have a share of, and the share tends to 0 instead of to noise over noise.

    Args:
        effects: of the SAE.
        part: [U].
        whole: [U].

    Returns:
        [U]; NaN where nothing is known of the patch or of the whole.
    """
    mean, least = effects.mean(whole), least_whole(effects)
    if not (math.isfinite(mean) and least > 0):
        return np.full(len(part), np.nan)
    return np.asarray(part / max(mean, least))


def least_whole(effects: Effects) -> float:
    """Return the least denominator of shares; NaN where nothing is known of the patch."""
    return LEAST_SHARE * effects.mean(effects.patch(budgets=True))


def _best_count(effects: Effects) -> Floats:
    """Return the gains at the number of features that gains most on average, [U]."""
    means = [effects.mean(effects.gain[:, column]) for column in range(len(FEATURE_COUNTS))]
    known = [mean if math.isfinite(mean) else -math.inf for mean in means]
    return effects.gain[:, int(np.argmax(known))]


def _judged_selectivity(effects: Effects) -> Floats:
    """Return the wished attribute reached minus the share of others lost, [U].

    It is the mean over few features.
    """
    return mean_of_few(effects.numbers("sae", JUDGED) - (1 - effects.numbers("sae", KEPT)))


def _few_at_budgets(kind: Kind) -> Callable[[Effects], Floats]:
    return lambda effects: mean_of_few(effects.at_budgets(kind))


def _gain_at(count: int) -> Callable[[Effects], Floats]:
    column = FEATURE_COUNTS.index(count)
    return lambda effects: effects.gain[:, column]


def _targets_at(count: int) -> Callable[[Effects], Floats]:
    column = FEATURE_COUNTS.index(count)
    return lambda effects: effects.numbers("sae", JUDGED)[:, column]


def _features(count: int) -> str:
    return "1 feature" if count == 1 else f"{count} features"


SCORE = "selectivity_few"
"""The measure that ranks SAEs: of those that need no judge, it orders SAEs of known quality best."""

_ALL = (
    Measure(
        SCORE, "CLIP change along the wish minus changes along others, mean of 1, 2, 3 and 5 features",
        "higher", False, True, lambda effects: mean_of_few(effects.numbers("sae", SELECTIVITY)),
    ),
    Measure(
        "gain_few", "gain within LPIPS budgets, mean of 1, 2, 3 and 5 features", "higher", False, False,
        lambda effects: mean_of_few(effects.gain),
    ),
    Measure(
        "agreement", "gain of features fixed on other examples, % of that of features chosen for each", "higher", False,
        False, _few_at_budgets("sae_fixed"), lambda effects: mean_of_few(effects.gain), decimals=0,
    ),
    Measure(
        "fixed_gain_few", "gain of features fixed on other examples, mean of 1, 2, 3 and 5", "higher", False, False,
        _few_at_budgets("sae_fixed"),
    ),
    Measure(
        "over_random_few", "gain minus that of random features, mean of 1, 2, 3 and 5", "higher", False, False,
        lambda effects: mean_of_few(effects.gain) - mean_of_few(effects.at_budgets("random_features")),
    ),
    Measure(
        "gain_few_2", "gain within LPIPS budgets by the second scorer, mean of 1, 2, 3 and 5 features", "higher", False,
        False, lambda effects: mean_of_few(effects.at_budgets("sae", SECOND)),
    ),
    Measure(
        "gain_area", "gain within LPIPS budgets, mean over the logarithm of 1 to 20 features", "higher", False, False,
        lambda effects: area(effects.gain),
    ),
    Measure(
        "log_features_for_half", "logarithm (base 2) of the features that reach half of the patch's gain", "lower",
        False, True, features_for_half, scale=1,
    ),
    Measure(
        "best_feature_share", "gain of the best feature, % of that of the best number of features", "higher", False,
        False, _gain_at(1), _best_count, decimals=0,
    ),
    Measure(
        "judged_selectivity_few", "wished attribute reached minus others lost, mean of 1, 2, 3 and 5 features, %",
        "higher", True, False, _judged_selectivity, decimals=0,
    ),
    Measure(
        "targets_few", "wished attribute reached, mean of 1, 2, 3 and 5 features, %", "higher", True, False,
        lambda effects: mean_of_few(effects.numbers("sae", JUDGED)), decimals=0,
    ),
    Measure(
        "fixed_targets_few", "wished attribute reached by fixed features, mean of 1, 2, 3 and 5, %", "higher", True,
        False, lambda effects: mean_of_few(effects.numbers("sae_fixed", JUDGED)), decimals=0,
    ),
    *(
        Measure(
            f"gain_at_{count}", f"gain within LPIPS budgets with {_features(count)}", "higher", False, False,
            _gain_at(count),
        )
        for count in FEATURE_COUNTS
    ),
    *(
        Measure(
            f"targets_at_{count}", f"wished attribute reached with {_features(count)}, %", "higher", True, False,
            _targets_at(count), decimals=0,
        )
        for count in FEATURE_COUNTS
    ),
)  # fmt: skip

MEASURES: Mapping[str, Measure] = {measure.name: measure for measure in _ALL}
"""Name -> measure, the one that ranks first."""


def measure_runs(runs: Sequence[RunFolder], patch: Sequence[RunFolder] = ()) -> DataFrame:
    """Measure the SAEs of some runs of one suite and model.

    Args:
        runs: folders of the set `features`; others are left out.
        patch: further folders, with activation patching on the same examples.

    Returns:
        The columns of `COLUMNS`: one row for each measure, SAE, block (or "together"), example and seed that has a
        number. Measures that lack their numbers (no judge, no fixed features, a number of features that was not
        tested) have no rows.
    """
    return frame_of(read_effects(runs, patch))


def frame_of(effects: Sequence[Effects]) -> DataFrame:
    """Return the rows of `measure_runs` for effects that were read already."""
    import pandas as pd

    rows = [
        (measure.name, found.sae, found.block, *unit, float(value))
        for found in effects
        for measure in MEASURES.values()
        for unit, value in zip(found.units, measure.of(found), strict=True)
        if np.isfinite(value)
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))
