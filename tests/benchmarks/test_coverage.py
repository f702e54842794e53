"""Coverage of intervals: a quick run of the simulation, and what its last long run found."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks.coverage import AREAS, MEANS, RESULTS, AreaExperiments, mean_coverage, share_of, true_area

MEANT = (0.93, 0.97)
"""Shares of experiments in which an interval of 95 % is to hold the truth."""


def stored() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("kind", MEANS)
def test_intervals_of_means_cover_at_four_examples_a_category(kind: str) -> None:
    # The standard error of the share is 0.011; percentiles cover 0.80 to 0.89 of these.
    assert 0.91 <= mean_coverage(kind, 4, 400, 300) / 400 <= 0.985


@pytest.mark.parametrize("kind", ["on a budget", "noise"])
def test_intervals_of_areas_cover_at_four_examples_a_category(kind: str) -> None:
    found = AreaExperiments(kind, 4, 199).count(true_area(kind), 200)
    # The standard error of a share is 0.015. With choices counted in full, differences are held in 0.985.
    assert 0.91 <= found["areas"] / 200 <= 0.98
    assert 0.91 <= found["differences"] / 200 <= 0.98
    assert found["told apart"] <= 20 and found["ranked apart"] <= 20


def test_the_long_run_covered_as_documents_say() -> None:
    found = stored()
    sizes = {"36", "108", "297"}
    experiments = {name: found["experiments"]["means" if name == "means" else "areas"] for name in TABLES}
    assert experiments["means"] >= 4000 and min(experiments.values()) >= 1000
    for name, of in experiments.items():
        assert set(found[name]) == set(MEANS if name == "means" else AREAS)
        for row in found[name].values():
            assert set(row) == sizes
            assert all(one == share_of(round(one["share"] * of), of) for one in row.values())
