"""Statistics of a measure on the ladder: order, noise, discriminability and ranks.

The order of some rungs is known by construction: more training steps are better than fewer, and the trained SAE is
better than its frozen twins and than random directions. `kendall` counts how many of these pairs a measure puts in the
right order; `noise` says how much it moves by training seed and by picture seed; `compare_rungs` sets the gap of two
rungs against that noise; `first_rank_group` finds the rungs that cannot be told from the best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtri

from riebench.analysis.stats import LEVEL
from riebench.analysis.validity.ranking import taus
from riebench.analysis.validity.units import Cell, empty_cell
from riebench.sae_validity.rungs import Rung
from riebench.sae_validity.study.means import MeasureTable, SaeMeans, cell, example_weights, nan_mean

TRAINED = "full"
"""Rung that is trained to the end, at the usual k and width."""
TRUE = "true_dictionary"
"""Rung that is made from the truth itself; nobody has it elsewhere."""
RANDOM = ("random_init", "random_orthogonal")
"""Rungs of random directions."""
UNTRAINED = (*RANDOM, "neurons")
"""Rungs that nothing was fitted for."""
TRAINING, TWIN = "training", "twin"
"""Families: SAEs by training steps; SAEs of which one half is frozen at random."""
MIN_RUNGS = 3
"""Fewer cannot be ranked in more than two ways."""

Pair = tuple[str, str]
"""The better rung and the worse one."""
Bools = NDArray[np.bool_]


def training_order(rungs: Sequence[Rung]) -> list[str]:
    """Return the rungs of the family "training", least trained first."""
    known = [(rung.order, rung.name) for rung in rungs if rung.family == TRAINING and rung.order is not None]
    return [name for _, name in sorted(known)]


def twins(rungs: Sequence[Rung]) -> list[str]:
    """Return the names of the frozen twins."""
    return [rung.name for rung in rungs if rung.family == TWIN]


def neighbours(rungs: Sequence[Rung]) -> list[Pair]:
    """Return neighbouring rungs of the family "training", the better one first."""
    names = training_order(rungs)
    return [(better, worse) for worse, better in pairwise(names)]


def training_pairs(rungs: Sequence[Rung]) -> list[Pair]:
    """Return all pairs of the family "training", the better one first."""
    return [(better, worse) for worse, better in combinations(training_order(rungs), 2)]


def known_pairs(rungs: Sequence[Rung]) -> list[Pair]:
    """Return all pairs of rungs whose order is known by construction."""
    names = {rung.name for rung in rungs}
    pairs = training_pairs(rungs) + [(TRAINED, twin) for twin in twins(rungs)]
    pairs += [(better, worse) for better in (TRAINED, TRUE) for worse in RANDOM]
    return [pair for pair in dict.fromkeys(pairs) if set(pair) <= names]


def kendall(means: SaeMeans, pairs: Sequence[Pair]) -> Cell:
    """Return Kendall's tau over pairs whose order is known.

    It is the share of pairs in the right order minus the share in the wrong one; equal means count for neither, and so
    do rungs without a value.

    Args:
        means: of one measure.
        pairs: the better rung and the worse one; those of which one was not measured are left out.
    """
    there = [pair for pair in pairs if set(pair) <= set(means.places)]
    if not there:
        return empty_cell("no pair of known order")
    better, worse = (means.rungs([pair[side] for pair in there]) for side in (0, 1))
    signs = np.nan_to_num(np.sign(better - worse))
    if not np.isfinite(better[0]).any():
        return empty_cell("no value", len(there))
    return cell(signs.mean(axis=1), len(there))


def rank_correlation(means: SaeMeans, truth: SaeMeans, names: Sequence[str]) -> Cell:
    """Return Kendall's tau-b of a measure and a truth over rungs.

    Args:
        means: of the measure.
        truth: of the truth, with the same replicates.
        names: rungs; those that lack one of the two are left out.
    """
    shared = [name for name in names if name in means.places and name in truth.places]
    first, second = means.rungs(shared), truth.rungs(shared)
    known = np.isfinite(first[0]) & np.isfinite(second[0])
    if known.sum() < MIN_RUNGS:
        return empty_cell(f"fewer than {MIN_RUNGS} rungs", int(known.sum()))
    draws = taus(first[:, known], second[:, known])
    return cell(draws, int(known.sum()), "all rungs equal")


@dataclass(frozen=True)
class Noise:
    """Standard deviations of one SAE's mean if everything were repeated.

    Attributes:
        training: with other training seeds, the same pictures.
        pictures: with other picture seeds, the same SAE.
        total: with both.
    """

    training: Cell
    pictures: Cell
    total: float | None


def noise(table: MeasureTable, means: SaeMeans, family: Sequence[str]) -> Noise:
    """Estimate how much the mean of one SAE moves by training and picture seed.

    Training: the variance over training seeds inside each rung, pooled over rungs; its interval is that of a normal
    variance (chi-square). Pictures: the variance of each example over picture seeds, by the weight that examples have
    in the mean, averaged over the SAEs with several picture seeds; its interval is a bootstrap over examples.

    Args:
        table: the measure's values.
        means: its means, in the order of the table's SAEs.
        family: rungs whose training seeds are pooled.
    """
    training, pictures = _training_noise(means, family), _picture_noise(table, len(means.means) - 1, means.seed)
    parts = [one.value for one in (training, pictures) if one.value is not None]
    return Noise(training, pictures, float(np.sqrt(sum(part**2 for part in parts))) if parts else None)


def _training_noise(means: SaeMeans, family: Sequence[str]) -> Cell:
    squares, freedom = 0.0, 0
    for name in family:
        place = means.places.get(name)
        values = means.means[0, place] if place is not None else np.array([])
        values = values[np.isfinite(values)]
        if len(values) > 1:
            squares += float(values.var(ddof=1)) * (len(values) - 1)
            freedom += len(values) - 1
    if not freedom:
        return empty_cell("a single training seed")
    tail = (1 - LEVEL) / 2
    low, high = (float(np.sqrt(squares / chdtri(freedom, q))) for q in (tail, 1 - tail))
    return Cell(float(np.sqrt(squares / freedom)), low, high, freedom)


def _picture_noise(table: MeasureTable, replicates: int, seed: int) -> Cell:
    counts = np.isfinite(table.values).sum(axis=2)
    several = counts > 1
    if not several.any():
        return empty_cell("a single picture seed")
    centred = table.values - nan_mean(table.values, axis=2)[:, :, None]
    squares = np.where(np.isfinite(centred), centred, 0.0) ** 2
    variances = np.where(several, squares.sum(axis=2) / np.maximum(counts - 1, 1), np.nan)
    # One variance for each example: SAEs share the pictures' noise.
    by_example = nan_mean(variances, axis=0)
    weights = example_weights(table.examples, replicates, seed)
    known = np.isfinite(by_example)
    parts = []
    for members in table.examples.strata.values():
        inside = members[known[members]]
        if len(inside):
            drawn = weights[:, inside].sum(axis=1)
            total = weights[:, inside] @ by_example[inside]
            # The variance of a category's mean over as many examples as there are.
            parts.append(np.where(drawn > 0, total / np.where(drawn > 0, drawn, 1), np.nan) / len(members))
    shares = np.stack(parts)
    return cell(np.sqrt(nan_mean(shares, axis=0) / len(parts)), int(several.any(axis=0).sum()))


@dataclass(frozen=True)
class RungComparison:
    """Two rungs, the first one known to be the better.

    Attributes:
        better: name of the rung.
        worse: name of the other one.
        gap: difference of their means.
        over_noise: the gap divided by the noise of one SAE; None without either, or without noise.
        separated: share of pairs of single SAEs, one of each rung, whose difference is above 0 with 95 % certainty.
        reversed: share whose difference is below 0 with that certainty.
    """

    better: str
    worse: str
    gap: Cell
    over_noise: float | None
    separated: Cell
    reversed: Cell


def compare_rungs(means: SaeMeans, pair: Pair, noise: float | None) -> RungComparison:
    """Compare two rungs by their means, and SAE by SAE.

    Args:
        means: of one measure.
        pair: the better rung and the worse one.
        noise: standard deviation of one SAE's mean over seeds.
    """
    better, worse = pair
    gap = means.difference(better, worse)
    if gap.value is None:
        nothing = empty_cell(gap.reason)
        return RungComparison(better, worse, gap, None, nothing, nothing)
    ratio = None if noise is None or gap.value is None or noise == 0 else gap.value / noise
    above, below = _single_saes(means, pair)
    return RungComparison(better, worse, gap, ratio, above, below)


def _single_saes(means: SaeMeans, pair: Pair) -> tuple[Cell, Cell]:
    """Return the shares of pairs of SAEs that clearly differ.

    The first share differs in the known order, the second one against it.

    Each pair of SAEs has its own bootstrap over examples; the shares' intervals are over training seeds.
    """
    first, second = (means.means[:, means.places[name]] for name in pair)
    differences = first[:, :, None] - second[:, None, :]
    tail = (1 - LEVEL) / 2
    drawn = differences[1:]
    known = np.isfinite(differences[0]) & np.isfinite(drawn).all(axis=0)
    low, high = np.quantile(np.where(known, drawn, 0.0), [tail, 1 - tail], axis=0)
    one, other = (means.draws[name] for name in pair)
    found = []
    for separated in (known & (low > 0), known & (high < 0)):
        draws = np.einsum("ri,ij,rj->r", one, separated.astype(np.float64), other) / separated.size
        found.append(cell(draws, separated.size))
    return found[0], found[1]


def first_rank_group(means: SaeMeans, names: Sequence[str]) -> list[str]:
    """Return the rungs that cannot be told from the best one, the best first.

    A rung is told from the best if the interval of their difference lies above 0; the intervals hold for all rungs
    together (Bonferroni).

    Args:
        means: of one measure.
        names: the rungs that are ranked.
    """
    there = [name for name in names if name in means.places]
    table = means.rungs(there)
    known = np.isfinite(table[0])
    there, table = [name for name, is_known in zip(there, known, strict=True) if is_known], table[:, known]
    if not there:
        return []
    best = int(table[0].argmax())
    tail = (1 - LEVEL) / 2 / max(len(there) - 1, 1)
    group = []
    for column in sorted(range(len(there)), key=lambda column: -table[0, column]):
        differences = table[1:, best] - table[1:, column]
        finite = differences[np.isfinite(differences)]
        if column == best or not len(finite) or np.quantile(finite, tail) <= 0:
            group.append(there[column])
    return group
