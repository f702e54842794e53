"""Ranking of methods by scores and by truth, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from riebench.analysis.standings import ENDS, GAIN, Entry, MethodComparison
from riebench.analysis.tradeoff import Examples, macro_means
from riebench.analysis.validity.units import (
    KEPT,
    SCORES,
    SUCCESS,
    TARGET,
    Cell,
    JudgedResults,
    bootstrap_cell,
    empty_cell,
    ratio,
)

Floats = NDArray[np.float64]

MIN_METHODS = 3
"""Fewer cannot be ranked in more than two ways."""

AREA, AREA_TARGET, AREA_SUCCESS, AT_CHOICE = "area", "area_target", "area_success", "success_at_choice"
CONFIRMED = "confirmed"
"""What both scorers confirm, by which the leaderboard ranks."""

COMPARED: tuple[tuple[str, str], ...] = (
    (CONFIRMED, AREA_SUCCESS),
    (CONFIRMED, AREA_TARGET),
    (AREA, AREA_SUCCESS),
    (AREA, AREA_TARGET),
    (GAIN, SUCCESS),
    (GAIN, TARGET),
    ("clip_margin", SUCCESS),
    ("clip_margin", TARGET),
    ("clip_direction", SUCCESS),
    ("clip_direction", TARGET),
    ("lpips", KEPT),
    ("lpips_bg", KEPT),
    ("lpips", SUCCESS),
    ("lpips_bg", SUCCESS),
)
"""Score and truth that methods are ranked by, means over all edit strengths if not over LPIPS budgets."""


@dataclass(frozen=True, eq=False)
class Ranking:
    """Methods with a number for everything, in the order of their mean gain.

    Attributes:
        methods: their names.
        levels: edit strengths tested of each method.
        columns: what is ranked by -> [1 + R, M], more is better; None where a method lacks it everywhere.
        examples: behind the means over LPIPS budgets.
        left_out: name -> why it is not ranked.
    """

    methods: tuple[str, ...]
    levels: tuple[int, ...]
    columns: Mapping[str, Floats | None]
    examples: Examples
    left_out: Mapping[str, str]

    def ranks(self, column: str) -> Floats | None:
        """Return ranks, 1 for the best; equals share the mean of their ranks, [M]."""
        values = self.columns[column]
        if values is None:
            return None
        ranks: Floats = rankdata(-values[0], method="average")
        return ranks

    def agreement(self, score: str, truth: str) -> Cell:
        """Return Kendall's tau-b between two rankings."""
        first, second = self.columns[score], self.columns[truth]
        if len(self.methods) < MIN_METHODS:
            return empty_cell(f"fewer than {MIN_METHODS} methods", len(self.methods))
        if first is None or second is None:
            return empty_cell("no value", len(self.methods))
        draws = taus(first, second)
        everything = range(len(self.examples.ids))
        return bootstrap_cell(draws, len(self.methods), self.examples, everything, "all methods equal")


def taus(first: Floats, second: Floats) -> Floats:
    """Compute Kendall's tau-b of two rankings in every replicate.

    Both are [R, M], the result is [R]; it is nan where one of them has no order.
    """
    one, other = np.triu_indices(first.shape[1], 1)
    a, b = (np.sign(values[:, one] - values[:, other]) for values in (first, second))
    return ratio((a * b).sum(axis=1), np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1)))


def rank_methods(judged: JudgedResults) -> Ranking:
    """Rank the complete methods of one suite and model.

    Each is taken with its blocks edited together; the two ends of the scale are not ranked.
    """
    comparison = MethodComparison(judged.entries, judged.units.replicates, judged.units.generator_seed)
    ranked, left_out = _complete_entries(judged, comparison)
    areas = [_areas(comparison, entry, _truth_without_edit(judged, comparison)) for entry in ranked]
    order = sorted(range(len(ranked)), key=lambda i: (-areas[i][AREA][0], judged.labels[ranked[i]]))
    ranked, areas = [ranked[i] for i in order], [areas[i] for i in order]
    columns: dict[str, Floats | None] = {
        name: np.stack([found[name] for found in areas], axis=1) if areas else None
        for name in (AREA, AREA_TARGET, AREA_SUCCESS, AT_CHOICE)
    }
    confirmed = comparison.has_second and all(entry in comparison.second_trade_offs for entry in ranked)
    columns[CONFIRMED] = (
        np.stack([comparison.shares[entry].values for entry in ranked], axis=1) if ranked and confirmed else None
    )
    for metric in (*SCORES, TARGET, KEPT, SUCCESS):
        columns[metric] = _level_means(comparison, ranked, metric)
    return Ranking(
        tuple(judged.labels[entry] for entry in ranked),
        tuple(entry.levels for entry in ranked),
        columns,
        comparison.examples,
        left_out,
    )


def _complete_entries(judged: JudgedResults, comparison: MethodComparison) -> tuple[list[Entry], dict[str, str]]:
    """Return the methods that can be ranked, and the reasons of the others."""
    ranked, left_out = [], {}
    for entry in (entry for entry in judged.entries if entry.method not in ENDS):
        gap = comparison.gap(entry)
        if gap is None and entry.values(SUCCESS, comparison.examples) is None:
            gap = "pictures without a verdict"
        if gap is None:
            ranked.append(entry)
        else:
            left_out[judged.labels[entry]] = gap
    return ranked, left_out


def _truth_without_edit(judged: JudgedResults, comparison: MethodComparison) -> Mapping[str, Floats]:
    """Return the share of each truth in the unedited pictures, [E].

    It is 0 where no judge has looked at them.
    """
    for entry in judged.entries:
        found = {truth: entry.values(truth, comparison.examples) for truth in (TARGET, SUCCESS)}
        if entry.method == ENDS[0] and all(values is not None for values in found.values()):
            return {truth: values[:, 0] for truth, values in found.items() if values is not None}
    return dict.fromkeys((TARGET, SUCCESS), np.zeros(len(comparison.examples.ids)))


def _areas(comparison: MethodComparison, entry: Entry, unedited: Mapping[str, Floats]) -> dict[str, Floats]:
    """Compute an entry's means over LPIPS budgets in every replicate, [1 + R] each.

    They are by the score, by the truth, and the true success where the score has chosen.
    """
    gains = _entry_values(entry, GAIN, comparison)
    target, success = (
        _entry_values(entry, truth, comparison) - unedited[truth][:, None] for truth in (TARGET, SUCCESS)
    )
    return {
        AREA: _area(comparison, entry, gains),
        AREA_TARGET: _area(comparison, entry, target),
        AREA_SUCCESS: _area(comparison, entry, success),
        AT_CHOICE: _area(comparison, entry, gains, success),
    }


def _area(comparison: MethodComparison, entry: Entry, gains: Floats, read: Floats | None = None) -> Floats:
    """Compute an entry's mean over LPIPS budgets in every replicate, [1 + R]."""
    found = comparison.cross_fit(entry, gains, read)
    if found is None:
        raise ValueError(f"{entry.name} lacks LPIPS: only complete methods are ranked")
    return found.area.values


def _entry_values(entry: Entry, metric: str, comparison: MethodComparison) -> Floats:
    """Return an entry's values of a metric, which it must have."""
    values = entry.values(metric, comparison.examples)
    if values is None:
        raise ValueError(f"{entry.name} lacks {metric}: only complete methods are ranked")
    return values


def _level_means(comparison: MethodComparison, ranked: Sequence[Entry], metric: str) -> Floats | None:
    """Return the mean over edit strengths, then examples, then categories, [1 + R, M].

    Only examples for which all methods have a value are used; None if there are none.
    """
    examples = comparison.examples
    values = np.full((len(examples.ids), len(ranked)), np.nan)
    for column, entry in enumerate(ranked):
        levels = [c.example_means(metric) for c in entry.configurations]
        for row, example in enumerate(examples.ids):
            found = [means[example] for means in levels if example in means]
            if found:
                values[row, column] = SCORES.get(metric, 1) * sum(found) / len(found)
    shared = np.flatnonzero(np.isfinite(values).all(axis=1)) if ranked else np.array([], dtype=np.intp)
    if not len(shared):
        return None
    some = Examples(
        *(tuple(names[i] for i in shared) for names in (examples.ids, examples.categories, examples.clusters))
    )
    return macro_means(values[shared], comparison.weights[:, shared], some)
