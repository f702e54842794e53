"""Every measure of blocks that was tried, held against patching, with its noise.

What a table of blocks misses can come from the edit, which is confined to regions, or from the score. So each measure
is also taken of the patched pictures themselves, where the edit is the truth's own. Patching in pixels is the truth.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import rankdata

from riebench.analysis.compare.blocks import MEASURES
from riebench.models.families.sdxl.names import BLOCKS
from riebench.toyworld.networks.mixed.figures import PATCHING, TRUTH, block_table, outcomes, rank_correlation
from riebench.toyworld.networks.mixed.pictures import JUDGED, LPIPS_WAY, PIXELS
from riebench.toyworld.scenes import CATEGORY_ATTRIBUTE

Floats = NDArray[np.float64]
TRIED: dict[str, tuple[str, ...]] = {
    **MEASURES,
    "margin of the first scorer": ("clip_margin",),
    "margin of the second scorer": ("clip_margin_2",),
    "gain of the second scorer": ("clip_gain_2",),
    "gain of both scorers": ("clip_gain", "clip_gain_2"),
    "gain, negative kept": ("clip_gain",),
    "direction": ("clip_direction",),
    "selectivity": ("clip_selectivity",),
    "LPIPS to the source": ("lpips",),
    "LPIPS to the target": (LPIPS_WAY,),
    "judge": (JUDGED,),
    "pixels": (PIXELS,),
}
"""Measure -> the metrics whose shares it is the mean of."""
SIGNED = "gain, negative kept"
"""The measure whose negative means are divided by the sum of the positive ones instead of counting as none."""
LEFT_OUT = "change_pose"
"""The category whose weight in the disagreement is shown."""
REPLICATES = 2000
SEED = 84
SHOWN = {"pixels": PIXELS, "judge": JUDGED, "gain": "clip_gain", "margin": "clip_margin"}
"""Name -> metric of which the means of `LEFT_OUT` are stored."""


def agreement_figures(frame: pd.DataFrame, settings: Sequence[str]) -> dict[str, dict[str, dict[str, float]]]:
    """Compare every tried measure of every edit with patching.

    Args:
        frame: rows of `PATCHING` and of each setting, as `pictures.measure_pictures` returns them.
        settings: names of the settings.

    Returns:
        Edit -> measure -> `spearman` with `low` and `high` (95 % of replicates over examples, of both sides alike),
        `within` (mean of the categories' own correlations), `without_pose`, and `ceiling`: the largest correlation that
        the noise of both sides allows, the root of the product of their reliabilities.
    """
    truth = outcomes(frame, PATCHING, TRUTH)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for edit in (PATCHING, *settings):
        found[edit] = {
            measure: _agreement(outcomes(frame, edit, metrics), truth, signed=measure == SIGNED)
            for measure, metrics in TRIED.items()
            if (edit, metrics) != (PATCHING, TRUTH)
        }
    return found


def _agreement(values: Sequence[Floats], truth: Sequence[Floats], *, signed: bool) -> dict[str, float]:
    rng = np.random.default_rng(SEED)
    table, goal = _tables(values, None, signed), _tables(truth, None)
    draws = [rng.integers(0, len(one), (REPLICATES, len(one))) for one in values]
    orders = [rng.random((REPLICATES, len(one))).argsort(1) for one in values]
    # A single example, in a quick look, is its own other half.
    sizes = [max(one.shape[1] // 2, 1) for one in orders]
    rows = [(one[:, :size], one[:, -size:]) for one, size in zip(orders, sizes, strict=True)]
    halves = [[half[place] for half in rows] for place in (0, 1)]
    correlations = _paired(_tables(values, draws, signed), _tables(truth, draws))
    low, high = np.percentile(correlations, [2.5, 97.5])
    reliability = [
        _reliability(_paired(*(_tables(some, half, sign) for half in halves)))
        for some, sign in ((values, signed), (truth, False))
    ]
    kept = [place for place, category in enumerate(CATEGORY_ATTRIBUTE) if category != LEFT_OUT]
    within = [float(_paired(table[:, [place]], goal[:, [place]])[0]) for place in range(len(CATEGORY_ATTRIBUTE))]
    figures = {
        "spearman": float(rank_correlation(table, goal[0])[0]), "low": float(low), "high": float(high),
        "within": float(np.mean(within)), "without_pose": float(_paired(table[:, kept], goal[:, kept])[0]),
        "ceiling": float(np.sqrt(np.prod(np.clip(reliability, 0, 1)))),
    }  # fmt: skip
    return {name: round(value, 4) for name, value in figures.items()}


def _tables(values: Sequence[Floats], draws: Sequence[NDArray[np.intp]] | None, signed: bool = False) -> Floats:
    """Return tables of shares from chosen examples, float [N, categories, blocks].

    Args:
        values: see `riebench.toyworld.networks.mixed.figures.outcomes`.
        draws: for each category the examples of each table, int [N, examples]; None for one table of all.
        signed: whether negative means stay negative.
    """
    chosen = [one[None] if draws is None else one[draws[place]] for place, one in enumerate(values)]
    mean = np.stack([one.mean(1) for one in chosen], axis=1)
    if not signed:
        return block_table(mean)
    total = np.maximum(mean.clip(min=0).sum(2, keepdims=True), 1e-12)
    found: Floats = (mean / total).mean(-1)
    return found


def _paired(first: Floats, second: Floats) -> Floats:
    """Return Spearman's correlations of tables with tables, float [N]."""
    one, two = (rankdata(tables.reshape(len(tables), -1), axis=1) for tables in (first, second))
    one, two = one - one.mean(1, keepdims=True), two - two.mean(1, keepdims=True)
    size = np.sqrt((one**2).sum(1) * (two**2).sum(1))
    return np.divide((one * two).sum(1), size, out=np.zeros(len(one)), where=size > 0)


def _reliability(halves: Floats) -> float:
    """Return the reliability of a whole table, from correlations of its halves.

    It is that of Spearman and Brown.
    """
    half = float(np.median(halves))
    return 2 * half / (1 + half) if half > 0 else 0.0


def example_figures(frame: pd.DataFrame) -> dict[str, dict[str, dict[str, float]]]:
    """Return the means of `LEFT_OUT` as edit -> name of `SHOWN` -> block -> mean."""
    some = frame[frame["category"] == LEFT_OUT]
    means = some.groupby(["edit", "metric", "block"])["value"].mean()
    return {
        str(edit): {
            name: {block: round(float(means[edit, metric, block]), 4) for block in BLOCKS}
            for name, metric in SHOWN.items()
        }
        for edit in some["edit"].unique()
    }
