"""Signs: does a gain above 0 mean that the target is there, and does the better score mean the better method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from riebench.configurations import EVERYTHING
from riebench.tasks.schema import ALL_CATEGORIES
from riebench.validity.cells import Cell, estimated, missing, ratio
from riebench.validity.units import TARGET, Units

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
Bools = NDArray[np.bool_]

SIGNED = ("clip_gain", "clip_margin", "clip_direction")
"""Scores whose sign says something; 0 is no edit at all."""


@dataclass(frozen=True)
class SignRow:
    """What the sign of a score says about the target being there.

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


def signs(units: Units, score: str, chosen: Bools | None = None) -> dict[str, SignRow]:
    """Category, or "all" -> what the sign says; "all" counts the pictures of all categories together.

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
    """Whether two methods' scores on the same example and seed differ as the truth does.

    Attributes:
        agree: of the pairs in which both differ, how many differ the same way.
        level: of the pairs whose truth differs, how many score alike.
        undecided: share of pairs whose truth is the same: they say nothing.
    """

    agree: Cell
    level: Cell
    undecided: Cell


def paired(units: Units, score: str, truth: str) -> dict[str, PairedRow]:
    """Category, or "all" -> how often the difference of two methods has the truth's sign.

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
    """[E, 4]: pairs that differ the same way, the other way, in truth alone, and not in truth."""
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
    """How many of some pictures each example has, [E]."""
    return np.bincount(units.example[which], minlength=len(units.examples.ids)).astype(np.float64)


def _groups(units: Units) -> Mapping[str, Ints]:
    strata = units.examples.strata
    named = {category: strata[category] for category in ALL_CATEGORIES if category in strata}
    return {**named, EVERYTHING: np.arange(len(units.examples.ids))}


def _share(units: Units, above: Floats, below: Floats, members: Ints, reason: str) -> Cell:
    n = int(below[members].sum())
    if not n:
        return missing(reason)
    weights = units.weights[:, members]
    behind = members[below[members] > 0].tolist()
    return estimated(ratio(weights @ above[members], weights @ below[members]), n, units.examples, behind, reason)
