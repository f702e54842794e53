"""Methods ranked by what scores say and by what is true, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from riebench.analysis.standings import DISTANCE, ENDS, GAIN, Entry, Field
from riebench.analysis.tradeoff import Examples, cross_fit, macro_means
from riebench.analysis.validity.units import KEPT, SCORES, SUCCESS, TARGET, Cell, Ground, estimated, missing, ratio

Floats = NDArray[np.float64]

MIN_METHODS = 3
"""Fewer cannot be ranked in more than two ways."""

AREA, AREA_TARGET, AREA_SUCCESS, AT_CHOICE = "area", "area_target", "area_success", "success_at_choice"

COMPARED: tuple[tuple[str, str], ...] = (
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
"""Score and truth that methods are ranked by, means over all levels but for the areas."""


@dataclass(frozen=True, eq=False)
class Ranking:
    """Methods with a number for everything, in the order of the area.

    Attributes:
        methods: their names.
        levels: of each method's knob.
        columns: what is ranked by -> [1 + R, M], more is better; None where a method lacks it everywhere.
        examples: behind the areas.
        left_out: name -> why it is not ranked.
    """

    methods: tuple[str, ...]
    levels: tuple[int, ...]
    columns: Mapping[str, Floats | None]
    examples: Examples
    left_out: Mapping[str, str]

    def ranks(self, column: str) -> Floats | None:
        """1 for the best; equals share the mean of their ranks, [M]."""
        values = self.columns[column]
        if values is None:
            return None
        ranks: Floats = rankdata(-values[0], method="average")
        return ranks

    def agreement(self, score: str, truth: str) -> Cell:
        """Kendall's tau-b between two rankings."""
        first, second = self.columns[score], self.columns[truth]
        if len(self.methods) < MIN_METHODS:
            return missing(f"fewer than {MIN_METHODS} methods", len(self.methods))
        if first is None or second is None:
            return missing("no value", len(self.methods))
        draws = taus(first, second)
        everything = range(len(self.examples.ids))
        return estimated(draws, len(self.methods), self.examples, everything, "all methods equal")


def taus(first: Floats, second: Floats) -> Floats:
    """Kendall's tau-b of two rankings in every replicate: [R, M] each -> [R]; nan where one of them has no order."""
    one, other = np.triu_indices(first.shape[1], 1)
    a, b = (np.sign(values[:, one] - values[:, other]) for values in (first, second))
    return ratio((a * b).sum(axis=1), np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1)))


def ranking(ground: Ground) -> Ranking:
    """Ranks the complete methods of one suite and model, their blocks together; the two ends are no rivals."""
    field = Field(ground.entries, ground.units.replicates, ground.units.generator_seed)
    rivals, left_out = _complete(ground, field)
    areas = [_areas(field, entry, _unedited(ground, field)) for entry in rivals]
    order = sorted(range(len(rivals)), key=lambda i: (-areas[i][AREA][0], ground.labels[rivals[i]]))
    rivals, areas = [rivals[i] for i in order], [areas[i] for i in order]
    columns: dict[str, Floats | None] = {
        name: np.stack([found[name] for found in areas], axis=1) if areas else None
        for name in (AREA, AREA_TARGET, AREA_SUCCESS, AT_CHOICE)
    }
    for metric in (*SCORES, TARGET, KEPT, SUCCESS):
        columns[metric] = _level_means(field, rivals, metric)
    return Ranking(
        tuple(ground.labels[entry] for entry in rivals),
        tuple(entry.levels for entry in rivals),
        columns,
        field.examples,
        left_out,
    )


def _complete(ground: Ground, field: Field) -> tuple[list[Entry], dict[str, str]]:
    rivals, left_out = [], {}
    for entry in (entry for entry in ground.entries if entry.method not in ENDS):
        gap = field.gap(entry)
        if gap is None and entry.values(SUCCESS, field.examples) is None:
            gap = "pictures without a verdict"
        if gap is None:
            rivals.append(entry)
        else:
            left_out[ground.labels[entry]] = gap
    return rivals, left_out


def _unedited(ground: Ground, field: Field) -> Mapping[str, Floats]:
    """Truth -> what the unedited pictures have of it, [E]; 0 where nobody looked at them."""
    for entry in ground.entries:
        found = {truth: entry.values(truth, field.examples) for truth in (TARGET, SUCCESS)}
        if entry.method == ENDS[0] and all(values is not None for values in found.values()):
            return {truth: values[:, 0] for truth, values in found.items() if values is not None}
    return dict.fromkeys((TARGET, SUCCESS), np.zeros(len(field.examples.ids)))


def _areas(field: Field, entry: Entry, unedited: Mapping[str, Floats]) -> dict[str, Floats]:
    """The area by the score, by the truth, and what is true where the score has chosen: [1 + R] each."""
    distances, gains = _stored(entry, DISTANCE, field), _stored(entry, GAIN, field)
    target, success = (_stored(entry, truth, field) - unedited[truth][:, None] for truth in (TARGET, SUCCESS))
    rows = (field.examples, field.weights)
    return {
        AREA: cross_fit(distances, gains, *rows).area,
        AREA_TARGET: cross_fit(distances, target, *rows).area,
        AREA_SUCCESS: cross_fit(distances, success, *rows).area,
        AT_CHOICE: cross_fit(distances, gains, *rows, read=success).area,
    }


def _stored(entry: Entry, metric: str, field: Field) -> Floats:
    values = entry.values(metric, field.examples)
    if values is None:
        raise ValueError(f"{entry.name} lacks {metric}: only complete methods are ranked")
    return values


def _level_means(field: Field, rivals: Sequence[Entry], metric: str) -> Floats | None:
    """Mean over levels, then examples, then categories, [1 + R, M], of the examples for which all methods have one."""
    examples = field.examples
    values = np.full((len(examples.ids), len(rivals)), np.nan)
    for column, entry in enumerate(rivals):
        levels = [c.example_means(metric) for c in entry.configurations]
        for row, example in enumerate(examples.ids):
            found = [means[example] for means in levels if example in means]
            if found:
                values[row, column] = SCORES.get(metric, 1) * sum(found) / len(found)
    shared = np.flatnonzero(np.isfinite(values).all(axis=1)) if rivals else np.array([], dtype=np.intp)
    if not len(shared):
        return None
    some = Examples(
        *(tuple(names[i] for i in shared) for names in (examples.ids, examples.categories, examples.clusters))
    )
    return macro_means(values[shared], field.weights[:, shared], some)
