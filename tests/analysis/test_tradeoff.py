"""The trade-off summary: check values of the definition, invariances, and that its intervals tell the truth."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from riebench.analysis.stats import clustered_standard_error, holm, interval, p_value, rank_groups
from riebench.analysis.tradeoff import (
    BUDGETS,
    Examples,
    best_within,
    cross_fit,
    folds,
    macro_means,
    micro_means,
    with_no_edit,
)
from riebench.errors import RiebenchError

SEED = 5


def examples(per_category: int = 6, categories: int = 3) -> Examples:
    return Examples.of({f"c{c}-{i:02}": f"cat{c}" for c in range(categories) for i in range(per_category)})


def observed(n: int) -> np.ndarray:
    return np.ones((1, n))


def test_the_check_value_of_the_definition() -> None:
    far, gain = with_no_edit(np.array([[0.1, 0.3]])), with_no_edit(np.array([[0.010, 0.020]]))
    gains = [float(gain[0, best_within(far, gain, budget)[0]]) for budget in BUDGETS]
    assert gains == [0.0] + [0.010] * 4 + [0.020] * 5
    assert np.mean(gains) == pytest.approx(0.0140)


def test_budgets_are_inclusive_and_ties_go_to_the_nearer_one() -> None:
    assert best_within(np.array([[0.0, 0.1 + 5e-10]]), np.array([[0.0, 1.0]]), 0.1)[0] == 1
    assert best_within(np.array([[0.0, 0.1 + 5e-9]]), np.array([[0.0, 1.0]]), 0.1)[0] == 0
    assert best_within(np.array([[0.0, 0.3, 0.2]]), np.array([[0.0, 1.0, 1.0]]), 0.5)[0] == 2
    assert best_within(np.array([[0.0, 0.2]]), np.array([[0.0, -1.0]]), 0.5)[0] == 0


@given(st.dictionaries(st.text(min_size=1, max_size=8), st.sampled_from(["a", "b", "c"]), min_size=1, max_size=60))
@settings(deadline=None)
def test_halves_are_even_and_follow_the_hash(categories: dict[str, str]) -> None:
    found = folds(categories)
    for category in set(categories.values()):
        names = [name for name in categories if categories[name] == category]
        ones = sum(found[name] for name in names)
        assert abs(2 * ones - len(names)) <= 1
        digest = {n: hashlib.sha256(f"riebench-fold-v1:{n}".encode()).hexdigest() for n in names}
        moved = [n for n in names if found[n] != int(digest[n], 16) & 1]
        stayed = [n for n in names if int(digest[n], 16) & 1 == (int(digest[moved[0]], 16) & 1 if moved else 2)]
        # Only the examples with the largest hashes of the larger half move, and no more than needed.
        assert all(digest[m] > digest[s] for m in moved for s in stayed if s not in moved)
    assert found == folds(dict(reversed(list(categories.items()))))


def test_means_weigh_categories_alike_and_micro_means_examples() -> None:
    some = Examples.of({"a1": "a", "a2": "a", "a3": "a", "b1": "b"})
    values = np.array([[1.0], [2.0], [3.0], [10.0]])
    assert macro_means(values, observed(4), some)[0, 0] == pytest.approx(6.0)
    assert micro_means(values, observed(4), some)[0, 0] == pytest.approx(4.0)
    # A category that a replicate did not draw is left out of that replicate alone.
    drawn = np.array([[1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 2.0, 1.0]])
    assert macro_means(values, drawn, some)[:, 0] == pytest.approx([2.0, 6.5])


def test_cross_fitting_reads_the_half_it_did_not_choose_on() -> None:
    some = examples(per_category=2, categories=1)
    first = some.halves == 0
    # Configuration 1 looks good on the first half only, configuration 2 on the second half only.
    gains = np.where(first[:, None], [1.0, -1.0], [-1.0, 1.0]).astype(float)
    far = np.full((2, 2), 0.1)
    found = cross_fit(far, gains, some, observed(2))
    assert found.gains[0].tolist() == [0.0] + [-1.0] * 9
    assert found.distances[0].tolist() == pytest.approx([0.0] + [0.1] * 9)
    assert found.area[0] == pytest.approx(-0.9)
    assert found.realised[0] == pytest.approx(0.09)


def test_order_of_rows_and_other_methods_change_nothing() -> None:
    rng = np.random.default_rng(0)
    names = {f"c{c}-{i}": f"cat{c}" for c in range(3) for i in range(7)}
    some, again = Examples.of(names), Examples.of(dict(reversed(list(names.items()))))
    assert some == again
    draws = some.draws(200, SEED)
    assert np.array_equal(draws, again.draws(200, SEED))
    assert not np.array_equal(draws, some.draws(200, SEED + 1))
    far, gain = rng.random((21, 4)) * 0.5, rng.normal(size=(21, 4))
    assert np.array_equal(cross_fit(far, gain, some, draws).area, cross_fit(far, gain, some, draws).area)
    turned = [2, 0, 3, 1]
    assert cross_fit(far[:, turned], gain[:, turned], some, draws).area == pytest.approx(
        cross_fit(far, gain, some, draws).area
    )


def test_clusters_are_drawn_whole_and_inside_their_category() -> None:
    some = Examples.of({"a1": "a", "a2": "a", "a3": "a", "b1": "b", "b2": "b"}, {"a1": "t", "a2": "t"})
    draws = some.draws(500, SEED)
    assert np.array_equal(draws[:, 0], draws[:, 1])
    assert set((draws[:, 0] + draws[:, 2]).tolist()) == {2.0}
    assert set((draws[:, 3] + draws[:, 4]).tolist()) == {2.0}


def test_a_method_against_itself_differs_by_nothing() -> None:
    assert p_value(np.zeros(1000)) == 1.0
    assert p_value(np.ones(999)) == pytest.approx(2 / 1000)
    assert interval(np.full(4, np.nan)) is None


def test_replicates_without_a_value_count_for_nothing() -> None:
    draws = np.array([0.1, -0.1, 0.2, 0.3])
    assert p_value(np.append(draws, np.full(96, np.nan))) == p_value(draws) == pytest.approx(2 * 2 / 5)
    assert p_value(np.full(5, np.nan)) == 1.0


def test_holm_is_the_textbook_one() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
    assert holm({}) == {}


def test_rank_groups_hold_together_what_cannot_be_told_apart() -> None:
    rng = np.random.default_rng(1)
    noise = rng.normal(size=(3, 2000)) * 0.1
    areas = {name: np.concatenate([[mean], mean + noise[i]]) for i, (name, mean) in enumerate(
        {"best": 1.0, "also": 0.95, "worse": 0.0}.items())}  # fmt: skip
    assert rank_groups(areas) == {"best": 1, "also": 1, "worse": 3}


def test_clustered_standard_error() -> None:
    assert clustered_standard_error([1, 2, 3, 5], ["a", "a", "b", "b"]) == pytest.approx(1.25)
    assert clustered_standard_error([1, 2], ["a", "a"]) is None
    with pytest.raises(RiebenchError, match="no cluster"):
        clustered_standard_error([1, 2], ["a", None])


def synthetic(rng: np.random.Generator, some: Examples, seeds: int, effect: float, levels: int = 6) -> np.ndarray:
    """Gains [E, levels] with an example effect, seed noise and a true mean of `effect` at every level."""
    n = len(some.ids)
    prompt = rng.normal(size=(n, 1)) * 0.02
    return effect + prompt + rng.normal(size=(n, levels, seeds)).mean(axis=2) * 0.02


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(2024)
    some = examples(per_category=33, categories=9)
    draws = some.draws(1000, SEED)
    covered = 0
    for _ in range(1000):
        means = macro_means(synthetic(rng, some, 3, 0.01, levels=1), draws, some)[:, 0]
        found = interval(means)
        assert found is not None
        covered += found[0] <= 0.01 <= found[1]
    assert 940 <= covered <= 960


def test_a_null_method_is_rarely_called_better() -> None:
    """A/A runs: two methods without any difference, chosen and read by the cross-fitted area."""
    rng = np.random.default_rng(7)
    some = examples(per_category=12, categories=9)
    draws = some.draws(400, SEED)
    far = np.tile(np.linspace(0.04, 0.44, 6), (len(some.ids), 1))
    called = 0
    for _ in range(400):
        areas = [cross_fit(far, synthetic(rng, some, 3, 0.0), some, draws).area for _ in range(2)]
        called += p_value(areas[0] - areas[1]) < 0.05
    assert called / 400 <= 0.05


def test_choosing_on_other_examples_keeps_noise_from_counting_as_gain() -> None:
    """With nothing but noise the cross-fitted area's interval holds 0; chosen and read on the same data it does not."""
    rng = np.random.default_rng(11)
    some = examples(per_category=12, categories=9)
    draws = some.draws(300, SEED)
    far = np.tile(np.linspace(0.04, 0.44, 6), (len(some.ids), 1))
    honest = naive = 0
    for _ in range(200):
        gain = rng.normal(size=(len(some.ids), 6)) * 0.02
        found = interval(cross_fit(far, gain, some, draws).area)
        assert found is not None
        honest += found[0] <= 0 <= found[1]
        best = macro_means(gain, draws, some).max(axis=1)
        low = float(np.quantile(best, 0.025))
        naive += low <= 0
    assert honest / 200 >= 0.95
    assert naive / 200 <= 0.7


def test_budgets_are_those_of_the_definition() -> None:
    assert BUDGETS == (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5)
