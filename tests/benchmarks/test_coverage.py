"""Coverage of intervals: a quick run of the simulation, and what its last long run found."""

from __future__ import annotations

import json
from itertools import chain
from typing import Any

import pytest

from benchmarks.coverage import AREAS, MEANS, RESULTS, AreaExperiments, mean_coverage, true_area


def stored() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("kind", MEANS)
def test_intervals_of_means_cover_at_four_examples_a_category(kind: str) -> None:
    # The standard error of the share is 0.011; percentiles cover 0.80 to 0.89 of these.
    assert 0.91 <= mean_coverage(kind, 4, 400, 300) <= 0.99


@pytest.mark.parametrize("kind", ["on a budget", "noise"])
def test_intervals_of_areas_cover_at_four_examples_a_category(kind: str) -> None:
    assert AreaExperiments(kind, 4, 200).coverage(true_area(kind), 150) >= 0.91


def test_equal_methods_are_rarely_told_apart_at_four_examples_a_category() -> None:
    pairs, splits = AreaExperiments("skewed", 4, 200).false_differences(100)
    assert pairs <= 0.12 and splits <= 0.12


def test_the_long_run_covered_as_documents_say() -> None:
    found = stored()
    sizes = {"36", "108", "297"}
    assert set(found["means"]) == set(MEANS) and set(found["areas"]) == set(AREAS)
    for table in (found["means"], found["areas"]):
        assert all(set(row) == sizes for row in table.values())
        assert all(0.93 <= share <= 0.985 for share in chain(*(row.values() for row in table.values())))
    for name in ("equal methods told apart", "equal methods ranked apart"):
        assert all(share <= 0.09 for share in chain(*(row.values() for row in found[name].values())))
