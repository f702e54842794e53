"""The search for strengths on pictures that are points of a known way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest

from riebench.elastic.search import Curve, Floats, Limits, Way, combine, evenness, measure, search, settle

Place = Callable[[float], float]
"""Strength -> where the picture lies on a line."""


class Line:
    """Pictures on a line, one line for each example; their distance is a square, as LPIPS is."""

    def __init__(self, *places: Place) -> None:
        self.places = places
        self.made: list[float] = []

    def make(self, strengths: Sequence[float]) -> None:
        self.made += [one for one in strengths if one not in self.made]

    def distances(self, first: float, second: float) -> Floats:
        assert {first, second} <= {0.0, *self.made}
        return np.array([(place(first) - place(second)) ** 2 for place in self.places])


def found(pictures: Line, count: int, limits: Limits) -> tuple[tuple[float, ...], Curve]:
    """Search one category; return its strengths and its curve."""
    strengths, curves = settle([pictures], [search(pictures, limits)], count)
    return strengths, curves[0]


def gaps(place: Place, strengths: Sequence[float]) -> list[float]:
    """Return the distances between neighbours, from no edit on."""
    return [(place(one) - place(other)) ** 2 for one, other in pairwise([0.0, *strengths])]


@pytest.mark.parametrize(
    ("place", "inverse"),
    [
        (lambda s: 0.1 * s, lambda y: 10 * y),
        (lambda s: 0.05 * s**2, lambda y: (20 * y) ** 0.5),
        (lambda s: 0.3 * s**0.5, lambda y: (y / 0.3) ** 2),
        (lambda s: 0.5 / (1 + np.exp(4 - 4 * s)) - 0.5 / (1 + np.exp(4)), None),
    ],
)
def test_strengths_invert_a_rising_curve(place: Place, inverse: Callable[[float], float] | None) -> None:
    strengths, curve = found(Line(place), 5, Limits(most=0.09, gap=0.001, most_points=64))
    assert len(strengths) == 5 and place(strengths[-1]) ** 2 <= 0.09
    assert place(strengths[-1]) == pytest.approx(0.3, abs=3e-3) and curve.is_limited
    assert evenness(gaps(place, strengths)) == pytest.approx(1, abs=0.03)
    if inverse is not None:
        assert strengths == pytest.approx([inverse(0.06 * step) for step in range(1, 6)], rel=0.02)


def test_lengths_do_not_depend_on_how_many_points_lie_on_the_way() -> None:
    pictures = Line(lambda s: 0.4 * s)
    few, many = (measure(pictures, places, 1.0) for places in ([1.0], [0.1, 0.11, 0.12, 0.5, 1.0]))
    assert few.lengths[-1] == pytest.approx(many.lengths[-1]) == pytest.approx(0.4)
    # The distances themselves are not lengths: their sum falls with every point.
    assert many.gaps.sum() < few.gaps.sum()


def test_of_a_plateau_the_smallest_strength_is_taken() -> None:
    def place(s: float) -> float:
        return float(0.2 * min(s, 1) + 0.2 * max(s - 3, 0))

    strengths, _ = found(Line(place), 4, Limits(most=0.16, gap=1e-4, most_points=99))
    assert strengths == pytest.approx([0.5, 1, 3.5, 4], abs=0.06)
    ending = Line(lambda s: 0.2 * min(s, 1))
    strengths, curve = found(ending, 2, Limits(most=0.16, gap=1e-4, most_points=99))
    # Nothing changes between 1 and the largest strength that is tried.
    assert strengths == pytest.approx([0.5, 1], abs=0.06) and not curve.is_limited and curve.end == 8


def test_a_jump_over_the_limit_ends_the_range_before_it() -> None:
    def place(s: float) -> float:
        return 0.1 * s if s < 1.3 else 5 + s

    pictures = Line(place)
    strengths, curve = found(pictures, 3, Limits(most=0.09, gap=0.01))
    assert strengths[-1] <= 1.3 and len(strengths) == 3
    assert max(place(one) ** 2 for one in strengths) <= 0.09
    assert curve.is_limited and max(pictures.made) == 2.0


def test_what_comes_back_beyond_the_limit_does_not_count() -> None:
    def place(s: float) -> float:
        return float(0.5 * np.sin(s))

    strengths, curve = found(Line(place), 4, Limits(most=0.16, gap=0.005, start=3.0, most_points=64))
    # At 3 the picture is near its source again, and was accepted; between, it was too far.
    first_crossing = float(np.arcsin(0.8))
    assert strengths[-1] == pytest.approx(first_crossing, abs=0.02) and place(strengths[-1]) ** 2 <= 0.16
    assert evenness(gaps(place, strengths)) == pytest.approx(1, abs=0.05) and curve.is_limited


def test_a_way_that_turns_back_within_the_limit_is_measured_along_it() -> None:
    # The turn lies on one of the first points; what turns back between two points of equal distance is not seen.
    turn = 8 / 7
    limits = Limits(most=0.16, doublings=1, gap=1e-4, most_points=99)
    strengths, curve = found(Line(lambda s: 0.2 * min(s, 2 * turn - s)), 4, limits)
    assert not curve.is_limited and strengths == pytest.approx([0.5, 1, 1.5, 2], abs=0.01)


def test_the_first_strength_is_doubled_until_it_is_too_far_or_too_large() -> None:
    slow = Line(lambda s: 0.001 * s)
    limits = Limits(first_points=3)
    search(slow, limits)
    assert sorted(slow.made) == [0, 1, 2, 4, 8]
    bounded = Line(lambda s: 0.001 * s)
    search(bounded, Limits(first_points=2, start=0.4, largest=1.0))
    assert sorted(bounded.made) == [0, 0.4, 0.8, 1]
    fast = Line(lambda s: 1.0 * s)
    curve = search(fast, limits)
    assert max(fast.made) == 1 and curve.end == pytest.approx(0.2**0.5, abs=0.01)


def test_points_are_limited_and_go_to_the_widest_gaps() -> None:
    pictures = Line(lambda s: 0.5 / (1 + np.exp(20 - 20 * s)))
    curve = search(pictures, Limits(most=1, gap=1e-4, first_points=4, most_points=12, doublings=1))
    assert len(curve.strengths) == 12
    assert sum(0.5 < one < 1.5 for one in curve.strengths) >= 9


def test_medians_over_examples_and_over_categories_decide() -> None:
    three = Line(lambda s: 0.1 * s, lambda s: 0.2 * s, lambda s: 4.0 * s)
    strengths, curve = found(three, 2, Limits(most=0.16, gap=0.001, most_points=64))
    assert strengths == pytest.approx([1, 2], abs=0.02)
    slow = Line(lambda s: 0.05 * s)
    both = [three, slow]
    curves = [curve, search(slow, Limits(most=0.16))]
    way = combine(curves)
    assert way.end == pytest.approx(2, abs=0.01)
    assert way.lengths[-1] == pytest.approx((0.4 + 0.1) / 2, abs=0.01)
    together, known = settle(both, curves, 2)
    assert together == pytest.approx([1, 2], abs=0.02) and len(known) == 2


def test_nothing_is_placed_where_nothing_changes() -> None:
    assert found(Line(lambda s: 0.0), 3, Limits())[0] == ()


def test_numbers_are_short_and_the_last_one_stays_inside() -> None:
    way = Way(np.array([0.0, 1.99999]), np.array([0.0, 1.0]))
    assert way.place(3) == (0.6667, 1.333, 1.999)
    tiny = Way(np.array([0.0, 1e-5]), np.array([0.0, 1.0]))
    assert tiny.place(2) == (5e-6, 1e-5)


def test_evenness_of_the_definition() -> None:
    assert evenness([1, 1, 1, 1]) == 1
    assert evenness([0, 0, 3]) == 0
    assert evenness([2, 1, 1]) == pytest.approx((1 - 0.5) / (1 - 1 / 3))
    assert evenness([0, 0]) is None and evenness([1]) is None
