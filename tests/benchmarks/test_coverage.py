"""Coverage of intervals: a quick run of the simulation, and what its last long run found."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks.coverage import AREAS, MEANS, RESULTS, AreaExperiments, mean_coverage, share_of, true_area

MEANT = {
    "means": (0.93, 0.97),
    "areas": (0.93, 0.97),
    "differences": (0.93, 0.97),
    "told apart": (0.03, 0.08),
    "ranked apart": (0.01, 0.08),
}
"""Least and largest share of experiments that is meant: intervals that hold the truth, and false differences."""


def stored() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("kind", MEANS)
def test_intervals_of_means_cover_at_four_examples_a_category(kind: str) -> None:
    # The standard error of the share is 0.011; percentiles cover 0.80 to 0.89 of these.
    assert 0.91 <= mean_coverage(kind, 4, 400, 300) / 400 <= 0.985


@pytest.mark.parametrize(("kind", "experiments"), [("on a budget", 80), ("noise", 160)])
def test_intervals_of_areas_cover_at_four_examples_a_category(kind: str, experiments: int) -> None:
    found = AreaExperiments(kind, 4, 199).count(true_area(kind, 20_000), experiments)
    shares = {name: count / experiments for name, count in found.items()}
    # The standard errors of shares are 0.024 and 0.017. With choices counted in full, differences are held in 0.985.
    assert 0.90 <= shares["areas"] <= 0.98
    assert 0.90 <= shares["differences"] <= 0.98
    assert shares["told apart"] <= 0.1 and shares["ranked apart"] <= 0.1


def test_the_long_run_covered_as_documents_say() -> None:
    """A share of N experiments is known to 1.96 sqrt(share (1 - share) / N): 0.7 points for 4,000 and 1.4 for 1,000.

    So each may leave its range by this much, which is when its Wilson interval leaves it, and their mean may not.
    """
    found = stored()
    assert found["experiments"]["means"] >= 4000 and found["experiments"]["areas"] >= 1000
    for name, (least, most) in MEANT.items():
        of = found["experiments"]["means" if name == "means" else "areas"]
        assert set(found[name]) == set(MEANS if name == "means" else AREAS)
        assert all(set(row) == {"36", "108", "297"} for row in found[name].values())
        cells = [one for row in found[name].values() for one in row.values()]
        for one in cells:  # quantiles differ in their last digits from version to version of scipy
            assert one == pytest.approx(share_of(round(one["share"] * of), of), rel=1e-9)
        assert all(one["low"] <= most and least <= one["high"] for one in cells)
        assert least <= sum(one["share"] for one in cells) / len(cells) <= most
