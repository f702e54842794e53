"""Agreement of scores with the truth, picture by picture and pair by pair.

`Tracking` counts pairs of pictures of one category in which a score puts the truly better one first; `sign_rates` looks
at the sign of a score, and `pair_agreement` at two methods on the same example and seed.

Everything counted is a sum over pairs of examples, so that a bootstrap replicate, in which example e was drawn w_e
times, is a quadratic form in w: exactly what the same count gives on the resampled pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from riebench.analysis.configurations import EVERYTHING
from riebench.analysis.validity.units import TARGET, Cell, Units, bootstrap_cell, empty_cell, ratio
from riebench.tasks.schema import ALL_CATEGORIES

SIGNED = ("clip_gain", "clip_margin", "clip_direction")
"""Scores whose sign has a meaning; 0 is no edit at all."""

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
Bools = NDArray[np.bool_]
Statistic = Callable[[Floats], Floats]
"""Sums over pairs [4, 1 + R] -> a number in every replicate [1 + R]."""


@dataclass(frozen=True)
class PairCounts:
    """Counts of pairs of pictures by the two examples that they come from.

    Each is float64 [E, E], and every pair is counted once.

    Attributes:
        right: truth differs, and the score puts the better one first.
        wrong: truth differs, and the score puts the worse one first.
        level: truth differs, and the scores are equal.
        apart: the scores differ, whatever the truth.
    """

    right: Floats
    wrong: Floats
    level: Floats
    apart: Floats


def pair_counts(score: Floats, truth: Floats, example: Ints, n_examples: int) -> PairCounts:
    """Count all pairs of some pictures at once.

    Args:
        score: [N], more is meant to be better.
        truth: [N], more is better.
        example: position of each picture's example, [N].
        n_examples: how many examples there are.
    """
    ranks, levels = np.unique(score, return_inverse=True)[1], np.unique(truth, return_inverse=True)[1]
    n_levels = int(levels.max(initial=0)) + 1
    counts = np.zeros((n_examples * n_levels, int(ranks.max(initial=0)) + 1))
    np.add.at(counts, (example * n_levels + levels, ranks), 1)
    below = np.cumsum(counts, axis=1) - counts
    shape = (n_examples, n_levels, n_examples, n_levels)
    # higher[e, l, f, m]: pairs of a picture of e with truth l and one of f with truth m that scores lower.
    higher, equal = (counts @ below.T).reshape(shape), (counts @ counts.T).reshape(shape)
    better = np.tril(np.ones((n_levels, n_levels)), -1)
    return PairCounts(
        right=np.einsum("elfm,lm->ef", higher, better),
        wrong=np.einsum("fmel,lm->ef", higher, better),
        level=np.einsum("elfm,lm->ef", equal, better),
        apart=higher.sum(axis=(1, 3)),
    )


@dataclass(frozen=True, eq=False)
class Tracking:
    """Agreement of the scores of some pictures with a truth.

    Attributes:
        units: all pictures.
        score: name of the score.
        truth: name of the truth.
        chosen: which pictures, bool [N].
    """

    units: Units
    score: str
    truth: str
    chosen: Bools

    @cached_property
    def _known(self) -> Bools:
        found: Bools = self.chosen & np.isfinite(self.units.values[self.score])
        return found & np.isfinite(self.units.values[self.truth])

    def _inside(self, category: str) -> Ints:
        """Return the positions of a category's pictures that have both numbers."""
        return np.flatnonzero(self._known & np.isin(self.units.example, self.units.examples.strata[category]))

    @cached_property
    def _sums(self) -> dict[str, Floats]:
        """Sums in every replicate [4, 1 + R] of each category: right, wrong, level, apart."""
        found: dict[str, Floats] = {}
        for category, members in self.units.examples.strata.items():
            inside = self._inside(category)
            if len(inside):
                place = np.searchsorted(members, self.units.example[inside])
                score, truth = self.units.values[self.score][inside], self.units.values[self.truth][inside]
                counts = pair_counts(score, truth, place, len(members))
                weights = self.units.weights[:, members]
                tables = (counts.right, counts.wrong, counts.level, counts.apart)
                found[category] = np.array([((weights @ table) * weights).sum(axis=1) for table in tables])
        return found

    def preference(self) -> dict[str, Cell]:
        """Return the share of pairs in which the truly better picture scores higher.

        The values are of each category and of "all"; pairs whose truth is the same are left out.

        Equal scores count half. Where the truth has two values this is the area under the ROC curve. "all" takes
        the pairs of all categories together; two pictures of different categories are never a pair.
        """
        return self._cells(lambda s: ratio(s[0] + s[2] / 2, s[0] + s[1] + s[2]))

    def correlation(self) -> dict[str, Cell]:
        """Return Kendall's tau-b over the same pairs, by category and for "all"."""
        return self._cells(lambda s: ratio(s[0] - s[1], np.sqrt((s[0] + s[1] + s[2]) * s[3])))

    def _cells(self, statistic: Statistic) -> dict[str, Cell]:
        """Return a statistic of the pair counts as a cell for each category and for "all"."""
        cells = {}
        for category in (*(c for c in ALL_CATEGORIES if c in self.units.examples.strata), EVERYTHING):
            inside = np.flatnonzero(self._known) if category == EVERYTHING else self._inside(category)
            parts = [s for c, s in self._sums.items() if category in (c, EVERYTHING)]
            reason = self._undefined(inside, parts)
            if reason is not None:
                cells[category] = empty_cell(reason, len(inside))
                continue
            behind = np.unique(self.units.example[inside]).tolist()
            draws = statistic(np.sum(parts, axis=0))
            cells[category] = bootstrap_cell(draws, len(inside), self.units.examples, behind, "undefined")
        return cells

    def _undefined(self, inside: Ints, parts: list[Floats]) -> str | None:
        """Return the reason why a statistic of these pictures is undefined, or None."""
        if not len(inside):
            return "no value"
        right, wrong, level, apart = np.sum([part[:, 0] for part in parts], axis=0)
        if not right + wrong + level:
            truth = np.unique(self.units.values[self.truth][inside])
            return f"truth always {100 * truth[0]:.0f} %" if len(truth) == 1 else "truth constant in every category"
        return None if apart else "score constant"


def track_scores(units: Units, truth: str, *, method: str | None = None) -> dict[str, Tracking]:
    """Return each score's tracking of a truth, over all pictures or one method's."""
    chosen = np.ones(len(units.example), dtype=np.bool_) if method is None else units.of_method(method)
    return {score: Tracking(units, score, truth, chosen) for score in units.scores}


@dataclass(frozen=True)
class SignRow:
    """Rates at which the sign of a score agrees with the target being there.

    Attributes:
        reached: share of pictures with the target.
        agree: of the pictures with a sign, how many have the right one.
        ties: share of pictures whose score is 0.
        false: of the pictures without the target, how many score above 0.
        missed: of the pictures with the target, how many score below 0.
    """

    reached: Cell
    agree: Cell
    ties: Cell
    false: Cell
    missed: Cell


def sign_rates(units: Units, score: str, chosen: Bools | None = None) -> dict[str, SignRow]:
    """Compute the rates of a score's sign in each category and in "all".

    "all" counts the pictures of all categories together.

    Args:
        units: all pictures.
        score: one of `SIGNED`.
        chosen: which pictures, bool [N]; None for all.
    """
    values, there = units.values[score], units.values[TARGET] == 1
    known = np.isfinite(values) & (True if chosen is None else chosen)
    up, down = known & (values > 0), known & (values < 0)
    tables = {
        name: (_per_example(units, above), _per_example(units, below))
        for name, (above, below) in {
            "reached": (known & there, known),
            "agree": ((up & there) | (down & ~there), up | down),
            "ties": (known & (values == 0), known),
            "false": (up & ~there, known & ~there),
            "missed": (down & there, known & there),
        }.items()
    }
    reasons = {"agree": "no picture with a sign", "false": "target always there", "missed": "target never there"}
    rows = {}
    for category, members in _groups(units).items():
        cells = {
            name: _share(units, above, below, members, reasons.get(name, "not scored"))
            for name, (above, below) in tables.items()
        }
        rows[category] = SignRow(**cells)
    return rows


@dataclass(frozen=True)
class PairedRow:
    """Rates at which two methods' scores of one example and seed differ as the truth.

    Attributes:
        agree: of the pairs in which both differ, how many differ the same way.
        level: of the pairs whose truth differs, how many score alike.
        undecided: share of pairs whose truth is the same: they say nothing.
    """

    agree: Cell
    level: Cell
    undecided: Cell


def pair_agreement(units: Units, score: str, truth: str) -> dict[str, PairedRow]:
    """Compute how often the difference of two methods has the truth's sign.

    A pair is two pictures of one example and seed by different methods, each with all its blocks.

    Args:
        units: all pictures.
        score: which score.
        truth: which truth.
    """
    counts = _paired_counts(units, score, truth)
    right, wrong, level, same = counts.T
    rows = {}
    for category, members in _groups(units).items():
        rows[category] = PairedRow(
            _share(units, right, right + wrong, members, "no pair differs in both"),
            _share(units, level, right + wrong + level, members, "no pair differs in truth"),
            _share(units, same, right + wrong + level + same, members, "no pairs"),
        )
    return rows


def _paired_counts(units: Units, score: str, truth: str) -> Floats:
    """Count each example's pairs, [E, 4].

    The columns are pairs that differ the same way, the other way, in truth alone, and not in truth.
    """
    s, t = units.values[score], units.values[truth]
    known = np.flatnonzero(units.whole & np.isfinite(s) & np.isfinite(t))
    counts = np.zeros((len(units.examples.ids), 4))
    # Pictures are sorted by example and seed: each stretch of equals is one noise.
    noise = np.stack([units.example[known], units.seed[known]], axis=1)
    cuts = np.flatnonzero((np.diff(noise, axis=0) != 0).any(axis=1)) + 1
    for some in np.split(known, cuts):
        if not len(some):
            continue
        methods = units.method[some]
        other = methods[:, None] < methods[None, :]
        by_score = np.sign(s[some][:, None] - s[some][None, :])[other]
        by_truth = np.sign(t[some][:, None] - t[some][None, :])[other]
        product = by_score * by_truth
        kinds = (product > 0, product < 0, (by_score == 0) & (by_truth != 0), by_truth == 0)
        counts[units.example[some[0]]] += [float(kind.sum()) for kind in kinds]
    return counts


def _per_example(units: Units, which: Bools) -> Floats:
    """Count the selected pictures of each example, [E]."""
    return np.bincount(units.example[which], minlength=len(units.examples.ids)).astype(np.float64)


def _groups(units: Units) -> Mapping[str, Ints]:
    """Return the positions of the examples of each category and of "all"."""
    strata = units.examples.strata
    named = {category: strata[category] for category in ALL_CATEGORIES if category in strata}
    return {**named, EVERYTHING: np.arange(len(units.examples.ids))}


def _share(units: Units, above: Floats, below: Floats, members: Ints, reason: str) -> Cell:
    """Return the share of one count in another over some examples, as a cell."""
    n = int(below[members].sum())
    if not n:
        return empty_cell(reason)
    weights = units.weights[:, members]
    behind = members[below[members] > 0].tolist()
    return bootstrap_cell(ratio(weights @ above[members], weights @ below[members]), n, units.examples, behind, reason)
