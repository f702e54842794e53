"""The mixed world's table of blocks against planted shares and patching.

The null world has the same edits, but the four blocks of each example change places at random, so that no block has a
role. What a table seems to show there, it shows by chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from riebench.analysis.compare.blocks import MEASURES, shares
from riebench.models.families.sdxl.names import BLOCKS
from riebench.toyworld.networks.mixed.roles import PLANTED
from riebench.toyworld.scenes import CATEGORY_ATTRIBUTE

PATCHING = "patching"
"""Name of the edit that is the truth in any model: activation patching at full strength and all positions."""
TRUTH = ("pixels",)
"""Metrics of `PATCHING` that are the truth: the way of the picture from source to target."""
WORLDS = 200
"""Null worlds."""
PERMUTATIONS = 2000
"""Random exchanges of blocks that a p-value is computed from."""
SEED = 83
LEVEL = 0.05
"""Level of significance."""
BAR = 0.8
"""The least correlation of the table of blocks with patching."""
Floats = NDArray[np.float64]


def planted_table() -> Floats:
    """Return the planted shares, float [categories, blocks]."""
    return np.array([[PLANTED[attribute][block] for block in BLOCKS] for attribute in CATEGORY_ATTRIBUTE.values()])


def outcomes(frame: pd.DataFrame, edit: str, metrics: Sequence[str]) -> list[Floats]:
    """Return what edits of single blocks reach, by example.

    Args:
        frame: as `riebench.toyworld.networks.mixed.pictures.measure_pictures` returns it.
        edit: of its edits.
        metrics: of its metrics.

    Returns:
        For each category float [examples, blocks, metrics], means over seeds, in units of the category's standard
        deviation: categories and metrics differ in scale.
    """
    some = frame[frame["edit"] == edit]
    tables = []
    for category in CATEGORY_ATTRIBUTE:
        mine = some[some["category"] == category]
        values = []
        for metric in metrics:
            one = mine[mine["metric"] == metric].pivot_table(index="example", columns="block", values="value")
            numbers = one[list(BLOCKS)].to_numpy(float)
            values.append(numbers / max(numbers.std(), 1e-12))
        tables.append(np.stack(values, axis=-1))
    return tables


def block_table(mean: Floats) -> Floats:
    """Return the shares of blocks, the mean of those by each metric.

    Args:
        mean: float [..., blocks, metrics], mean outcomes.

    Returns:
        float [..., blocks].
    """
    table: Floats = shares(mean.swapaxes(-1, -2)).mean(-2)
    return table


def means(values: Sequence[Floats]) -> Floats:
    """Return the mean outcomes, float [categories, blocks, metrics]."""
    return np.stack([one.mean(0) for one in values])


def exchanged(values: Sequence[Floats], count: int, rng: np.random.Generator) -> Floats:
    """Return mean outcomes after the blocks of every example changed places at random.

    Args:
        values: see `outcomes`.
        count: how often.
        rng: the source of randomness.

    Returns:
        float [count, categories, blocks, metrics]; the metrics of an example change places together.
    """
    parts = []
    for one in values:
        places = rng.random((count, *one.shape[:2]), dtype=np.float32).argsort(axis=2)[..., None]
        parts.append(np.take_along_axis(one[None], places, axis=2).mean(1))
    return np.stack(parts, axis=1)


def rank_correlation(tables: Floats, other: Floats) -> Floats:
    """Compute Spearman's correlation over the cells of tables.

    Args:
        tables: float [N, categories, blocks].
        other: float [categories, blocks].

    Returns:
        float [N]; 0 where one of the two is constant.
    """
    one = pd.DataFrame(tables.reshape(len(tables), -1)).rank(axis=1).to_numpy()
    two = pd.Series(other.ravel()).rank().to_numpy()
    one, two = one - one.mean(1, keepdims=True), two - two.mean()
    size = np.sqrt((one**2).sum(1) * (two**2).sum())
    result: Floats = np.divide(one @ two, size, out=np.zeros(len(one)), where=size > 0)
    return result


def spread(tables: Floats) -> Floats:
    """Return the variance of mean outcomes over blocks.

    It is summed over categories and metrics.

    Args:
        tables: float [N, categories, blocks, metrics].

    Returns:
        float [N].
    """
    result: Floats = tables.var(axis=2).sum((1, 2))
    return result


def _p_values(measured: Floats, by_chance: Floats) -> Floats:
    more = (by_chance[None] >= measured[:, None] - 1e-12).sum(1)
    result: Floats = (more + 1) / (len(by_chance) + 1)
    return result


def role_evidence(values: Sequence[Floats]) -> float:
    """Compute the p-value of "no block has a role in any category".

    The statistic is `spread`. If no block has a role, the four outcomes of an example may change places among its
    blocks: that is done at random many times.

    Args:
        values: see `outcomes`.

    Returns:
        The share of random exchanges with at least the measured spread, above 0 and at most 1.
    """
    chance = exchanged(values, PERMUTATIONS, np.random.default_rng(SEED))
    return float(_p_values(spread(means(values)[None]), spread(chance))[0])


def null_figures(values: Sequence[Floats], planted: Floats) -> dict[str, Any]:
    """Measure what a table of blocks shows in null worlds.

    Args:
        values: see `outcomes`.
        planted: the planted shares.

    Returns:
        `planted` (the 2.5th, 50th and 97.5th percentile of the correlation with the planted shares), `significant` (the
        share of null worlds in which that is significant, one-sided) and `evidence` (in which `role_evidence` is).
    """
    rng = np.random.default_rng(SEED)
    worlds, chance = exchanged(values, WORLDS, rng), exchanged(values, PERMUTATIONS, rng)
    found, by_chance = (rank_correlation(block_table(some), planted) for some in (worlds, chance))
    return {
        "planted": [round(float(value), 4) for value in np.percentile(found, [2.5, 50, 97.5])],
        "significant": round(float((_p_values(found, by_chance) < LEVEL).mean()), 4),
        "evidence": round(float((_p_values(spread(worlds), spread(chance)) < LEVEL).mean()), 4),
    }


def recovery_figures(frame: pd.DataFrame, settings: Sequence[str]) -> dict[str, Any]:
    """Hold the tables of blocks against planted shares and patching.

    Null worlds stand beside the mixed one.

    Args:
        frame: rows of `PATCHING` and of each setting.
        settings: names of the settings.

    Returns:
        `planted` and `shares` (table's name -> table), where a table is category -> block -> share, and `recovery`,
        which has for each table `planted` and `patching` (correlations), `first` (categories whose first block is that
        of patching), `evidence` (`role_evidence`) and `null` (`null_figures`). Names are `PATCHING`, and those of
        `table_name`.
    """
    planted, goal = planted_table(), block_table(means(outcomes(frame, PATCHING, TRUTH)))
    tables, recovery = {}, {}
    for name, edit, metrics in [
        (PATCHING, PATCHING, TRUTH),
        *((table_name(edit, measure), edit, metrics) for edit in settings for measure, metrics in MEASURES.items()),
    ]:
        values = outcomes(frame, edit, metrics)
        tables[name] = table = block_table(means(values))
        recovery[name] = {
            "planted": round(float(rank_correlation(table[None], planted)[0]), 4),
            "patching": round(float(rank_correlation(table[None], goal)[0]), 4),
            "first": int((table.argmax(1) == goal.argmax(1)).sum()),
            "evidence": round(role_evidence(values), 4),
            "null": null_figures(values, planted),
        }
    return {
        "planted": _as_dict(planted),
        "shares": {measure: _as_dict(table) for measure, table in tables.items()},
        "recovery": recovery,
    }


def table_name(edit: str, measure: str) -> str:
    """Return the name of a benchmark's table of blocks, as "sae by margin"."""
    return f"{edit} by {measure}"


def _as_dict(table: Floats) -> dict[str, dict[str, float]]:
    frame = pd.DataFrame(table, index=list(CATEGORY_ATTRIBUTE), columns=list(BLOCKS)).round(4)
    return {
        str(category): {str(b): float(v) for b, v in row.items()} for category, row in frame.to_dict("index").items()
    }
