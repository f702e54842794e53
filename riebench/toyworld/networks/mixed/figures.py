"""The mixed world's tables: effects of single blocks against planted shares.

The null world's stand beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from riebench.models.families.sdxl.names import BLOCKS
from riebench.toyworld.networks.mixed.edits import planted_shares
from riebench.toyworld.scenes import CATEGORY_ATTRIBUTE

PERMUTATIONS = 2000
PERMUTATION_SEED = 83


def block_table(frame: pd.DataFrame, method: str) -> pd.DataFrame:
    """Return the share of edits that reach their target, by category and edited block.

    Args:
        frame: as `riebench.toyworld.networks.mixed.measure.reached` returns it.
        method: "patch" or "sae_N".

    Returns:
        Categories by the four blocks, shares from 0 to 1.
    """
    some = frame[(frame["method"] == method) & frame["block"].isin(BLOCKS)]
    table = some.pivot_table(index="category", columns="block", values="reached", aggfunc="mean")
    return table.reindex(index=list(CATEGORY_ATTRIBUTE), columns=list(BLOCKS)).astype(float)


def planted_table(counts: Sequence[int]) -> pd.DataFrame:
    """Return the planted shares, laid out like `block_table`."""
    rows = {category: planted_shares(category, counts) for category in CATEGORY_ATTRIBUTE}
    return pd.DataFrame.from_dict(rows, orient="index").reindex(columns=list(BLOCKS))


def rank_correlation(first: pd.DataFrame, second: pd.DataFrame) -> float:
    """Compute Spearman's correlation over the cells of two tables.

    It is 0 where one of them is constant.
    """
    one, other = (pd.Series(table.to_numpy().ravel()).rank() for table in (first, second))
    if one.nunique() < 2 or other.nunique() < 2:
        return 0.0
    return float(one.corr(other))


def role_evidence(frame: pd.DataFrame, method: str) -> float:
    """Compute the p-value of "no block has a role in any category".

    The statistic is the spread of a category's shares over blocks, summed over categories. If no block has a role, the
    four outcomes of an edit may change places among its blocks: that is done at random many times.

    Args:
        frame: as `riebench.toyworld.networks.mixed.measure.reached` returns it, edits in the same order for each block.
        method: "patch" or "sae_N".

    Returns:
        The share of random placements with at least the measured spread, above 0 and at most 1.
    """
    some = frame[(frame["method"] == method) & frame["block"].isin(BLOCKS)]
    rng = np.random.default_rng(PERMUTATION_SEED)
    measured, by_chance = 0.0, np.zeros(PERMUTATIONS)
    for category in CATEGORY_ATTRIBUTE:
        mine = some[some["category"] == category]
        outcomes = np.stack([mine[mine["block"] == block]["reached"].to_numpy(float) for block in BLOCKS], axis=1)
        measured += outcomes.mean(0).var()
        places = rng.random((PERMUTATIONS, *outcomes.shape), dtype=np.float32).argsort(axis=2)
        by_chance += np.take_along_axis(outcomes[None], places, axis=2).mean(1).var(axis=1)
    more = int((by_chance >= measured - 1e-12).sum())
    return (more + 1) / (PERMUTATIONS + 1)


def recovery_figures(
    mixed: pd.DataFrame, null: pd.DataFrame, counts: Sequence[int], methods: Sequence[str]
) -> dict[str, Any]:
    """Hold both worlds' tables against planted shares and patching.

    Args:
        mixed: outcomes in the mixed world.
        null: outcomes in the null world.
        counts: edits in the mixed world that a category's first, second, third and last block decide.
        methods: names of methods beside "patch".

    Returns:
        `tables` (world -> method -> category -> block -> share), `spearman` (method -> correlation with the planted
        shares and with patching, in the mixed world), `null_p` (method -> p-value of "no role" in the null world) and
        `mixed_p` (the same in the mixed world).
    """
    planted = planted_table(counts)
    tables = {
        world: {method: block_table(frame, method) for method in ("patch", *methods)}
        for world, frame in (("mixed", mixed), ("null", null))
    }
    correlations = {
        method: {
            "planted": round(rank_correlation(table, planted), 4),
            "patch": round(rank_correlation(table, tables["mixed"]["patch"]), 4),
            "null_planted": round(rank_correlation(tables["null"][method], planted), 4),
        }
        for method, table in tables["mixed"].items()
    }
    return {
        "planted": planted.round(4).to_dict("index"),
        "tables": {
            world: {method: table.round(4).to_dict("index") for method, table in some.items()}
            for world, some in tables.items()
        },
        "spearman": correlations,
        "mixed_p": {method: round(role_evidence(mixed, method), 4) for method in tables["mixed"]},
        "null_p": {method: round(role_evidence(null, method), 4) for method in tables["null"]},
    }
