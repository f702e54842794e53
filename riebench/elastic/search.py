"""Search for the range of useful strengths, and strengths at equal spacing in it.

It follows the elastic range of Ekin and Gandelsman (arXiv 2603.17998) in what it finds: from strength 0 on, strengths
whose neighbouring pictures are about equally far apart, up to the largest one whose picture stays within a distance to
the unedited one. As there, a first strength is doubled while its pictures stay within that distance, eight points are
spread over the range, and points are put into gaps that are too wide. It differs in three ways:

- **Points are not moved.** Where the paper moves points until their gaps are equal, and so makes a picture at every
  move, the length of the way through all pictures is read off the points there are, and inverted: the k-th of n
  strengths lies where k / n of the way is done, straight between points. At a plateau, where pictures do not change, it
  is the smallest such strength.
- **Roots of distances are added up.** LPIPS is a sum of squares, and DreamSim's 1 - cosine is half the square of a
  difference of unit vectors: in both, half a step is a quarter as far. Their roots are lengths, whose sum along a way
  does not depend on how many points lie on it.
- **Many pictures are asked, not one.** The paper looks at one picture; here the range of a category comes from medians
  over its examples, and one list of strengths has to serve all of them, so that of several categories the medians are
  taken, too: half of them leave their own range within the list, or at its end. The end of a range is found between
  the last accepted strength and the first refused one, instead of being the last accepted one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SAME_PICTURE = 1e-6
"""Distances up to this are rounding."""
DIGITS = 4
"""Significant digits of the strengths that are found."""
CHECKS = 4
"""How often the outcome is checked and corrected, at most."""


class Pictures(Protocol):
    """Pictures of some examples at the strengths of an axis."""

    def make(self, strengths: Sequence[float]) -> None:
        """Make the pictures at some strengths that are missing."""

    def distances(self, first: float, second: float) -> Floats:
        """Return the distance of each example's pictures at two strengths, [E].

        Strength 0 is the unedited picture; other strengths have been made.
        """


@dataclass(frozen=True)
class Limits:
    """Numbers of the search; those of the paper for edits of whole pictures.

    Attributes:
        most: largest distance to the unedited picture.
        gap: distance between neighbouring points that is close enough.
        start: strength that is tried first.
        largest: largest strength that means anything to the method.
        doublings: how often the first strength is doubled, at most.
        first_points: points that are spread over the range, strength 0 among them.
        most_points: points of a category, at most; those that only check the outcome do not count.
    """

    most: float = 0.2
    gap: float = 0.01
    start: float = 1.0
    largest: float = float("inf")
    doublings: int = 3
    first_points: int = 8
    most_points: int = 24


@dataclass(frozen=True, eq=False)
class Way:
    """Length of the way that pictures go as the strength grows.

    Attributes:
        strengths: rising from 0, [G]; the last one is the end of the range.
        lengths: sums of roots of distances up to each of them, not falling, [G].
    """

    strengths: Floats
    lengths: Floats

    @property
    def end(self) -> float:
        """The largest strength of the range."""
        return float(self.strengths[-1])

    def place(self, count: int) -> tuple[float, ...]:
        """Return strengths at equal spacing along the way, the last one at its end.

        They have `DIGITS` digits; the last one is rounded down, so that it does not leave the range. Where the way is
        too short for as many numbers, there are fewer.

        Args:
            count: how many.
        """
        total = float(self.lengths[-1])
        if total <= sqrt(SAME_PICTURE) or not self.end:
            return ()
        found = [self._strength_at(total * step / count) for step in range(1, count)]
        # The whole length itself, not a product that rounding may have made larger.
        last = _rounded(self._strength_at(total), down=True)
        return tuple(sorted({last, *(one for one in map(_rounded, found) if 0 < one < last)}))

    def _strength_at(self, length: float) -> float:
        """Return the smallest strength at which so much of the way is done."""
        after = int(np.searchsorted(self.lengths, length, side="left"))
        if after == 0:
            return float(self.strengths[0])
        low, high = self.lengths[after - 1 : after + 1]
        share = (length - low) / (high - low)
        return float(self.strengths[after - 1] + share * (self.strengths[after] - self.strengths[after - 1]))


@dataclass(frozen=True, eq=False)
class Curve:
    """Distances along an axis of strengths, medians over a category's examples.

    Attributes:
        strengths: rising from 0, [G].
        to_source: distance to the unedited picture, [G].
        gaps: distance between neighbours, [G - 1].
        lengths: sum of the roots of the gaps up to each strength, [G].
        most: largest distance to the unedited picture.
    """

    strengths: Floats
    to_source: Floats
    gaps: Floats
    lengths: Floats
    most: float

    @property
    def last_valid(self) -> int:
        """Place of the last strength before the first whose pictures are too far."""
        beyond = np.flatnonzero(self.to_source > self.most)
        return int(beyond[0]) - 1 if len(beyond) else len(self.strengths) - 1

    @property
    def is_limited(self) -> bool:
        """True if the distance ends the range, False if the axis does."""
        return self.last_valid < len(self.strengths) - 1

    @property
    def end(self) -> float:
        """The largest strength of the range, straight between two strengths if need be."""
        at = self.last_valid
        if not self.is_limited:
            return float(self.strengths[at])
        near, far = np.sqrt(self.to_source[at : at + 2])
        share = (sqrt(self.most) - near) / (far - near)
        return float(self.strengths[at] + share * (self.strengths[at + 1] - self.strengths[at]))

    @property
    def way(self) -> Way:
        """The way up to the end of the range."""
        return way_until(self.strengths, self.lengths, self.end)


def way_until(strengths: Floats, lengths: Floats, end: float) -> Way:
    """Return the part of a way up to a strength."""
    kept = strengths < end
    last = np.interp(end, strengths, lengths)
    return Way(np.append(strengths[kept], end), np.append(lengths[kept], last))


def measure(pictures: Pictures, strengths: Sequence[float], most: float) -> Curve:
    """Measure the pictures at some strengths, which are made if they are missing.

    Args:
        pictures: of a category's examples.
        strengths: strength 0 is added.
        most: largest distance to the unedited picture.
    """
    places = sorted({0.0, *strengths})
    pictures.make(places)
    gaps = np.stack([pictures.distances(*pair) for pair in pairwise(places)])
    to_source = np.stack([pictures.distances(0.0, place) for place in places])
    lengths = np.concatenate([np.zeros((1, gaps.shape[1])), np.cumsum(np.sqrt(np.maximum(gaps, 0)), axis=0)])
    return Curve(
        np.array(places), np.median(to_source, axis=1), np.median(gaps, axis=1), np.median(lengths, axis=1), most
    )


def search(pictures: Pictures, limits: Limits) -> Curve:
    """Find the range of a category and the way through it.

    Args:
        pictures: of the category's examples.
        limits: numbers of the search.

    Returns:
        Distances at the strengths that were looked at.
    """
    accepted, refused = find_end(pictures, limits)
    end = accepted or min(limits.start, limits.largest)
    places = {float(one) for one in np.linspace(0, end, limits.first_points)}
    places |= {refused} if refused is not None else set()
    while True:
        curve = measure(pictures, sorted(places), limits.most)
        added = _wide_gaps(curve, limits.gap)[: limits.most_points - len(places)]
        if not added:
            return curve
        places |= set(added)


def find_end(pictures: Pictures, limits: Limits) -> tuple[float, float | None]:
    """Double the first strength while its pictures stay within the largest distance.

    Args:
        pictures: of a category's examples.
        limits: numbers of the search.

    Returns:
        The last strength that was accepted, 0 if none was, and the first that was refused, None if none was.
    """
    accepted = 0.0
    for doubling in range(limits.doublings + 1):
        strength = min(limits.start * 2**doubling, limits.largest)
        if strength == accepted:
            break
        pictures.make([strength])
        if float(np.median(pictures.distances(0.0, strength))) > limits.most:
            return accepted, strength
        accepted = strength
    return accepted, None


def _wide_gaps(curve: Curve, gap: float) -> list[float]:
    """Return the middles of the gaps that are too wide, the widest first.

    Gaps beyond the end of the range do not matter.
    """
    last = curve.last_valid + 1 if curve.is_limited else curve.last_valid
    wide = sorted((index for index in range(last) if curve.gaps[index] > gap), key=lambda index: -curve.gaps[index])
    return [float(curve.strengths[index] + curve.strengths[index + 1]) / 2 for index in wide]


def settle(pictures: Sequence[Pictures], curves: Sequence[Curve], count: int) -> tuple[tuple[float, ...], list[Curve]]:
    """Place strengths for several categories, and look at the pictures there.

    What is between two strengths was taken for straight. Where it is not, and a picture at one of the strengths is too
    far, they are placed again with what is known now. At last they are spread up to an end whose pictures were seen.

    Args:
        pictures: of each category.
        curves: of `search` on them.
        count: how many strengths.

    Returns:
        The strengths, none if no picture changes, and distances at all strengths that were looked at.
    """
    known = list(curves)
    for _ in range(CHECKS):
        strengths = combine(known).place(count)
        if not strengths:
            return (), known
        known = [
            measure(some, [*curve.strengths.tolist(), *strengths], curve.most)
            for some, curve in zip(pictures, known, strict=True)
        ]
        if strengths[-1] <= median_end([curve.end for curve in known]):
            end = strengths[-1]
            break
    else:
        end = median_end([float(curve.strengths[curve.last_valid]) for curve in known])
    return combine(known, end).place(count), known


def combine(curves: Sequence[Curve], end: float | None = None) -> Way:
    """Return one way for several categories: the median of theirs.

    A category that is followed beyond the strengths that were looked at counts as if nothing changed there.

    Args:
        curves: one for each category.
        end: where it ends; by default the median of their ends.
    """
    end = median_end([curve.end for curve in curves]) if end is None else end
    places = np.unique(np.concatenate([*(one.strengths[one.strengths < end] for one in curves), [end]]))
    lengths = np.median([np.interp(places, one.strengths, one.lengths) for one in curves], axis=0)
    return Way(places, lengths)


def median_end(ends: Sequence[float]) -> float:
    """Return the median of some ends; of two in the middle, the smaller one."""
    return sorted(ends)[(len(ends) - 1) // 2]


def evenness(gaps: Sequence[float]) -> float | None:
    """Return how evenly a way is divided.

    With g the distances between neighbouring pictures and K their number, it is (1 - max(g) / sum(g)) / (1 - 1 / K): 1
    if all are equally large, 0 if one step makes the whole change.

    Args:
        gaps: from the unedited picture on, two or more.

    Returns:
        0 to 1, or None if nothing changes, or there is one step alone.
    """
    total = float(sum(gaps))
    if total <= SAME_PICTURE or len(gaps) < 2:
        return None
    return (1 - max(gaps) / total) / (1 - 1 / len(gaps))


def _rounded(value: float, *, down: bool = False) -> float:
    """Return a number with `DIGITS` significant digits."""
    text = f"{value:.{DIGITS - 1}e}"
    if down and float(text) > value:
        digits, _, power = text.partition("e")
        text = f"{float(digits) - 10 ** (1 - DIGITS):.{DIGITS - 1}f}e{power}"
    return float(text)
