"""Means over examples in every replicate, against sums written out replicate by replicate."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from riebench.analysis.tradeoff import Examples, SampleMean, paired_differences
from riebench.analysis.tradeoff.means import MOST_COLUMNS

REPLICATES, SEED = 40, 5
# Names of clusters stand in another order than those of examples, and one category has a cluster of three.
CATEGORIES = {f"{c}{i}": c for c in "abc" for i in range(5)}
CLUSTERS = {f"a{i}": f"t{9 - i}" for i in range(5)} | dict.fromkeys(("b0", "b2", "b4"), "z")


def some_mean(rng: np.random.Generator, examples: Examples, weights: np.ndarray, alternatives: int) -> SampleMean:
    values = 1000 + rng.normal(size=(alternatives, len(examples.ids)))
    return SampleMean(examples, weights, values, rng.integers(0, alternatives, len(weights)), centre=1001.0)


def drawn() -> tuple[Examples, np.ndarray]:
    examples = Examples.of(CATEGORIES, CLUSTERS)
    return examples, np.vstack([np.ones((1, len(examples.ids))), examples.draws(REPLICATES, SEED)])


def written_out(examples: Examples, weights: np.ndarray, read: np.ndarray) -> tuple[list[float], list[float]]:
    """Return means and standard errors of what each replicate reads, [1 + R, E]."""
    means, errors = [], []
    for counts, values in zip(weights, read, strict=True):
        mean, variance = 0.0, 0.0
        for category in "abc":
            members = [i for i, its in enumerate(examples.categories) if its == category]
            size = sum(counts[i] for i in members)
            level = sum(counts[i] * values[i] for i in members) / size
            names = {examples.clusters[i] for i in members}
            for name in names:
                its = [i for i in members if examples.clusters[i] == name]
                total = sum(values[i] - level for i in its)
                variance += counts[its[0]] * len(names) / (len(names) - 1) * total**2 / size**2 / 9
            mean += level / 3
        means.append(mean)
        errors.append(math.sqrt(variance))
    return means, errors


@pytest.mark.parametrize("alternatives", [1, 3, MOST_COLUMNS + 10])
def test_means_and_errors_are_the_sums_written_out(alternatives: int) -> None:
    rng = np.random.default_rng(1)
    examples, weights = drawn()
    mean = some_mean(rng, examples, weights, alternatives)
    values, errors = written_out(examples, weights, mean.alternatives[mean.chosen])
    assert mean.values == pytest.approx(values, rel=1e-12)
    assert mean.replicates.errors == pytest.approx(errors, rel=1e-9)
    at_choice = mean.replicates.at_choice
    assert at_choice is not None
    assert at_choice == pytest.approx(
        [values[0], *written_out(examples, np.ones_like(weights), mean.alternatives[mean.chosen])[0][1:]]
    )


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_differences_and_ratios_are_the_sums_written_out(seed: int, alternatives: int) -> None:
    rng = np.random.default_rng(seed)
    examples, weights = drawn()
    one, other = (some_mean(rng, examples, weights, alternatives) for _ in "ab")
    reads = [mean.alternatives[mean.chosen] for mean in (one, other)]
    difference = (one - other).replicates
    values, errors = written_out(examples, weights, reads[0] - reads[1])
    assert difference.values == pytest.approx(values, abs=1e-9) and difference.errors == pytest.approx(errors, rel=1e-6)
    ratio = one.over(other)
    levels = other.values[:, None]
    changes = written_out(examples, weights, (reads[0] - ratio.values[:, None] * reads[1]) / levels)[1]
    assert ratio.values == pytest.approx(one.values / other.values) and ratio.errors == pytest.approx(changes, rel=1e-6)


def test_pairs_are_single_differences() -> None:
    rng = np.random.default_rng(2)
    examples, weights = drawn()
    means = {name: some_mean(rng, examples, weights, 4) for name in "abcd"}
    every, with_b = paired_differences(means), paired_differences(means, "b")
    assert set(with_b) == {("a", "b"), ("c", "b"), ("d", "b")} and len(every) == 6
    for (one, other), found in (every | with_b).items():
        single = (means[one] - means[other]).replicates
        assert found.values == pytest.approx(single.values)
        assert found.errors == pytest.approx(single.errors, rel=1e-6)
        assert found.at_choice == pytest.approx(single.at_choice)


@pytest.mark.parametrize("value", [0.1, 1 / 3, -1e6 / 7])
def test_equal_values_have_no_error_at_all(value: float) -> None:
    examples, weights = drawn()
    steady = SampleMean.of(np.full(len(examples.ids), value), examples, weights)
    assert not steady.replicates.errors.any()
    other = SampleMean.of(np.random.default_rng(3).normal(size=len(examples.ids)), examples, weights)
    same = (other - SampleMean.of(other.observed.copy(), examples, weights)).replicates
    assert not same.values.any() and not same.errors.any()
    assert not other.over(other).errors.any()
    assert not paired_differences({"a": other, "b": other.scaled(1.0)})["a", "b"].errors.any()


def test_a_single_cluster_has_no_error_to_tell() -> None:
    examples = Examples.of({"a": "one", "b": "one"}, {"a": "t", "b": "t"})
    found = SampleMean.of(np.array([1.0, 2.0]), examples, np.ones((3, 2))).replicates
    assert found.values == pytest.approx([1.5] * 3) and np.isnan(found.errors).all() and found.interval() is None
