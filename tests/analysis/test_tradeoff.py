"""The trade-off summary: check values of the definition, invariances, and that its intervals tell the truth."""

from __future__ import annotations

import hashlib
import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from riebench.analysis.multiple import adjust, rank_groups, step_down
from riebench.analysis.standings import MethodComparison, entries
from riebench.analysis.stats import Replicates, clustered_standard_error, percentile_interval, quantiles
from riebench.analysis.tradeoff import (
    BUDGETS,
    Examples,
    SampleMean,
    along_curves,
    budget_means,
    cross_fit,
    folds,
    macro_means,
    paired_differences,
)
from riebench.errors import RiebenchError
from riebench.store.folder import find_run_folders

ROOT = Path(__file__).parents[2]
METRICS_DOC = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
SEED = 5


def examples(per_category: int = 6, categories: int = 3) -> Examples:
    return Examples.of({f"c{c}-{i:02}": f"cat{c}" for c in range(categories) for i in range(per_category)})


def observed(n: int) -> np.ndarray:
    return np.ones((1, n))


def weights(some: Examples, replicates: int) -> np.ndarray:
    return np.vstack([observed(len(some.ids)), some.draws(replicates, SEED)])


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200), st.lists(st.floats(0, 1), min_size=1, max_size=3))
def test_quantiles_are_numpys(values: list[float], shares: list[float]) -> None:
    found = np.array(values)
    expected = np.quantile(found, shares, method="weibull")
    assert quantiles(found, shares) == pytest.approx(expected, rel=1e-12, abs=1e-9)
    assert np.array_equal(found, values)


def test_the_check_value_of_the_definition() -> None:
    far, gain = np.array([[0.1, 0.3]]), np.array([[0.010, 0.020]])
    found = budget_means(far, gain, (0, 1))
    # Straight to the first level, straight to the second one, which is the largest level from a budget of 0.3 on.
    assert found[0, 0] == pytest.approx((0.005 + 9 * 0.010) / 10)
    assert found[0, 1] == pytest.approx((0.005 + 0.010 + 0.0125 + 0.015 + 0.0175 + 5 * 0.020) / 10)
    each = [float(budget_means(far, gain, (0, 1), (budget,))[0, 1]) for budget in (0.05, 0.1, 0.2, 0.3, 0.5)]
    assert each == pytest.approx([0.005, 0.010, 0.015, 0.020, 0.020])


def test_budgets_are_inclusive_and_bind_where_the_curve_first_exceeds_them() -> None:
    # The second level lies within the budget again: nothing beyond the first crossing counts.
    far, gain = np.array([[0.2, 0.05, 0.4]]), np.array([[1.0, 9.0, 9.0]])
    assert budget_means(far, gain, (0, 1, 2), (0.1,))[0].tolist() == pytest.approx([0.5, 0.5, 0.5])
    assert budget_means(far, gain, (0, 1, 2), (0.2 - 5e-10,))[0, 0] == 1.0
    assert budget_means(far, gain, (0, 1, 2), (0.2 - 1e-3,))[0, 0] == pytest.approx(0.995)


def test_editing_only_easy_examples_gains_nothing() -> None:
    """The trick of a budget on means: the target picture where it is near, the source picture elsewhere."""
    rng = np.random.default_rng(3)
    some = examples(per_category=40, categories=3)
    far, gain = rng.uniform(0.05, 0.6, (120, 1)), rng.gamma(2, 0.05, (120, 1))
    honest = cross_fit(far, gain, some, observed(120)).area.values[0]
    for most in (0.1, 0.2, 0.3, 0.45):
        easy = far <= most
        assert cross_fit(far * easy, gain * easy, some, observed(120)).area.values[0] <= honest
    # As a sweep whose levels take in more and more examples it is the same curve of every example.
    sweep = [far <= most for most in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)]
    as_sweep = cross_fit(np.hstack([far * e for e in sweep]), np.hstack([gain * e for e in sweep]), some, observed(120))
    assert as_sweep.area.values[0] == pytest.approx(honest)


def test_any_levels_that_reach_the_end_give_nearly_the_same_area() -> None:
    rng = np.random.default_rng(4)
    some = examples(per_category=20, categories=3)
    knob = np.linspace(0.125, 1, 8)
    far = rng.uniform(0.2, 0.5, (60, 1)) * knob
    gain = rng.gamma(3, 0.03, (60, 1)) * (knob * (2 - knob)) + rng.normal(size=(60, 8)) * 0.003
    whole = cross_fit(far, gain, some, observed(60)).area.values[0]
    for left_out in itertools.combinations(range(7), 2):
        kept = [level for level in range(8) if level not in left_out]
        area = cross_fit(far[:, kept], gain[:, kept], some, observed(60)).area.values[0]
        assert area == pytest.approx(whole, rel=0.03)


def test_sub_grids_of_stored_results_have_the_areas_that_the_documents_state() -> None:
    """Any six of the eight strengths of masked_target on the toy world, with and without an end of their knob."""
    folders = [folder for folder in find_run_folders(ROOT / "results") if folder.spec.setting.group == "masked_target"]
    (entry,) = entries(folder for folder in folders if folder.spec.model.name == "toy-turbo")
    comparison = MethodComparison((entry,), replicates=0)
    far, gain = (entry.values(metric, comparison.examples) for metric in ("lpips", "clip_gain"))
    assert far is not None and gain is not None
    levels = [(c.setting, c.strength) for c in entry.configurations]
    areas: dict[bool, list[float]] = {True: [], False: []}
    for chosen in itertools.combinations([i for i, (_, strength) in enumerate(levels) if strength], 6):
        curves = along_curves(far[:, chosen], [levels[i][0] for i in chosen])
        found = cross_fit(far[:, chosen], gain[:, chosen], comparison.examples, comparison.weights, curves)
        areas[any(levels[i][1] == 1 for i in chosen)].append(100 * found.area.values[0])
    words = r"either configuration give ([\d.]+) to\s+([\d.]+); without both they give ([\d.]+)"
    stated = re.search(words, METRICS_DOC)
    assert stated is not None
    numbers = (min(areas[True]), max(areas[True]), *areas[False])
    assert [f"{number:.1f}" for number in numbers] == [*stated.groups()]


def test_curves_follow_lpips_and_join_settings_of_one_level() -> None:
    far = np.array([[0.4, 0.1, 0.2, 0.3, 0.05]])
    assert along_curves(far, ["back", "back", "k1", "k2", "back"]) == ((4, 1, 0), (2, 3))


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


def test_means_weigh_categories_alike() -> None:
    some = Examples.of({"a1": "a", "a2": "a", "a3": "a", "b1": "b"})
    values = np.array([[1.0], [2.0], [3.0], [10.0]])
    assert macro_means(values, observed(4), some)[0, 0] == pytest.approx(6.0)
    # A category that a replicate did not draw is left out of that replicate alone.
    drawn = np.array([[1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 2.0, 1.0]])
    assert macro_means(values, drawn, some)[:, 0] == pytest.approx([2.0, 6.5])


def test_cross_fitting_reads_the_half_it_did_not_choose_on() -> None:
    some = examples(per_category=2, categories=1)
    first = some.halves == 0
    # Configuration 1 looks good on the first half only, configuration 2 on the second half only.
    gains = np.where(first[:, None], [1.0, -1.0], [-1.0, 1.0]).astype(float)
    far = np.full((2, 2), 0.1)
    found = cross_fit(far, gains, some, observed(2), [(0,), (1,)])
    assert found.choice[0].tolist() == [1, 2]
    # Half of it at the budget of 0.05, all from 0.1 on.
    assert found.area.values[0] == pytest.approx(-0.95)
    assert found.realised == pytest.approx(0.095)


def test_a_choice_that_is_known_is_read_and_not_made_again() -> None:
    rng = np.random.default_rng(4)
    some = examples()
    far, gain, other = (rng.random((len(some.ids), 3)) * scale for scale in (0.5, 1.0, 2.0))
    drawn = weights(some, 60)
    found = cross_fit(far, gain, some, drawn, read=other)
    assert len(np.unique(found.choice)) > 1
    again = cross_fit(far, np.full_like(gain, np.nan), some, drawn, read=other, choice=found.choice)
    assert np.array_equal(again.area.values, found.area.values) and again.realised == found.realised
    assert again.choice is found.choice


def test_order_of_rows_and_other_methods_change_nothing() -> None:
    rng = np.random.default_rng(0)
    names = {f"c{c}-{i}": f"cat{c}" for c in range(3) for i in range(7)}
    some, again = Examples.of(names), Examples.of(dict(reversed(list(names.items()))))
    assert some == again
    draws = some.draws(200, SEED)
    assert np.array_equal(draws, again.draws(200, SEED))
    assert not np.array_equal(draws, some.draws(200, SEED + 1))
    far, gain = rng.random((21, 4)) * 0.5, rng.normal(size=(21, 4))
    found = cross_fit(far, gain, some, weights(some, 200)).area.replicates
    turned = [2, 0, 3, 1]
    other = cross_fit(far[:, turned], gain[:, turned], some, weights(some, 200)).area.replicates
    assert other.values == pytest.approx(found.values) and other.errors == pytest.approx(found.errors)


def test_clusters_are_drawn_whole_and_inside_their_category() -> None:
    some = Examples.of({"a1": "a", "a2": "a", "a3": "a", "b1": "b", "b2": "b"}, {"a1": "t", "a2": "t"})
    draws = some.draws(500, SEED)
    assert np.array_equal(draws[:, 0], draws[:, 1])
    assert set((draws[:, 0] + draws[:, 2]).tolist()) == {2.0}
    assert set((draws[:, 3] + draws[:, 4]).tolist()) == {2.0}


def replicates(mean: float, error: float, draws: np.ndarray) -> Replicates:
    return Replicates(np.append(mean, mean + error * draws), np.full(len(draws) + 1, error))


def test_a_method_against_itself_differs_by_nothing() -> None:
    zero = Replicates(np.zeros(1000), np.zeros(1000))
    assert step_down({"itself": zero}) == {"itself": 1.0}
    assert zero.interval() == (0.0, 0.0)
    assert percentile_interval(np.full(4, np.nan)) is None


def test_a_difference_without_error_is_certain() -> None:
    assert step_down({"sure": Replicates(np.ones(1000), np.zeros(1000))}) == {"sure": pytest.approx(1 / 1000)}


def test_step_down_is_the_textbook_one() -> None:
    sizes = np.array([2.0, 3.0, 1.0])
    chance = np.array([[0.5, 2.5, 0.1, 0.2], [0.1, 0.2, 3.5, 0.3], [0.1, 0.3, 0.2, 1.5]])
    # By hand: the largest of all three, of the first and third, and of the third alone reach their sizes once each.
    assert adjust(sizes, chance) == pytest.approx([2 / 5, 2 / 5, 2 / 5])
    chance[1, 2] = 0.4
    assert adjust(sizes, chance) == pytest.approx([2 / 5, 1 / 5, 2 / 5])
    assert step_down({}) == {}


def test_step_down_is_never_below_the_single_test() -> None:
    rng = np.random.default_rng(5)
    family = {str(i): replicates(mean, 1.0, rng.normal(size=999)) for i, mean in enumerate((0.0, 1.0, 2.5, 4.0))}
    together = step_down(family)
    for name, one in family.items():
        assert together[name] >= step_down({name: one})[name]
    assert together["3"] < 0.05 < together["1"]


@pytest.mark.parametrize("methods", [5, 23, 60])
def test_clearly_different_methods_get_ranks_of_their_own(methods: int) -> None:
    rng = np.random.default_rng(6)
    some = examples(per_category=12, categories=3)
    drawn = weights(some, 2000)
    prompt = rng.normal(size=36) * 0.02
    names = [f"m{i:02}" for i in range(methods)]
    means = {
        name: SampleMean.of(prompt - 0.01 * i + rng.normal(size=36) * 0.003, some, drawn)
        for i, name in enumerate(names)
    }
    differences = paired_differences(means)
    adjusted = step_down({"\t".join(pair): one for pair, one in differences.items()})
    p_values = dict(zip(differences, adjusted.values(), strict=True))
    found = rank_groups({name: mean.replicates.mean for name, mean in means.items()}, p_values)
    assert [found[name] for name in names] == list(range(1, methods + 1))
    # The errors of pairs are those of the differences themselves.
    pair = (names[0], names[-1])
    alone = (means[pair[0]] - means[pair[1]]).replicates
    assert differences[pair].errors == pytest.approx(alone.errors) and differences[pair].mean == pytest.approx(
        alone.mean
    )


def test_equal_methods_share_a_rank() -> None:
    """A/A runs of 23 methods: any false split of ranks in about 5 % of them."""
    rng = np.random.default_rng(8)
    some = examples(per_category=12, categories=3)
    drawn = weights(some, 300)
    split = 0
    for _ in range(60):
        prompt = rng.normal(size=36) * 0.02
        means = {str(i): SampleMean.of(prompt + rng.normal(size=36) * 0.01, some, drawn) for i in range(23)}
        differences = paired_differences(means)
        split += min(step_down({"\t".join(p): one for p, one in differences.items()}).values()) < 0.05
    assert split <= 8


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


def test_a_null_method_is_rarely_called_better() -> None:
    """A/A runs: two methods without any difference, chosen and read by the cross-fitted area."""
    rng = np.random.default_rng(7)
    some = examples(per_category=12, categories=9)
    drawn = weights(some, 200)
    far = np.tile(np.linspace(0.04, 0.44, 6), (len(some.ids), 1))
    called = 0
    for _ in range(200):
        areas = [cross_fit(far, synthetic(rng, some, 3, 0.0), some, drawn).area for _ in range(2)]
        called += step_down({"": (areas[0] - areas[1]).replicates})[""] < 0.05
    assert called / 200 <= 0.08


def test_choosing_on_other_examples_keeps_noise_from_counting_as_gain() -> None:
    """With nothing but noise the cross-fitted area's interval holds 0; chosen and read on the same data it does not."""
    rng = np.random.default_rng(11)
    some = examples(per_category=12, categories=9)
    drawn = weights(some, 200)
    far = np.tile(np.linspace(0.04, 0.44, 6), (len(some.ids), 1))
    honest = naive = 0
    for _ in range(150):
        gain = rng.normal(size=(len(some.ids), 6)) * 0.02
        found = cross_fit(far, gain, some, drawn).area.replicates.interval()
        assert found is not None
        honest += found[0] <= 0 <= found[1]
        best = macro_means(gain, drawn[1:], some).max(axis=1)
        low = float(np.quantile(best, 0.025))
        naive += low <= 0
    # The standard error of the share is 0.018.
    assert honest / 150 >= 0.91
    assert naive / 150 <= 0.7


def test_what_the_choices_of_replicates_give_on_the_observed_examples() -> None:
    rng = np.random.default_rng(12)
    some = Examples.of({"a1": "a", "a2": "a", "a3": "a", "a4": "a", "b1": "b", "b2": "b"})
    drawn = weights(some, 40)
    far, gain = np.sort(rng.uniform(0, 0.6, size=(6, 3)), axis=1), rng.normal(size=(6, 3))
    found = cross_fit(far, gain, some, drawn)
    levels = np.hstack([np.zeros((6, 1)), budget_means(far, gain, (0, 1, 2))])
    expected = [
        np.mean([
            np.mean([levels[i, choice[1 - some.halves[i]]] for i in members]) for members in some.strata.values()
        ])
        for choice in found.choice
    ]  # fmt: skip
    at_choice = found.area.replicates.at_choice
    assert at_choice is not None and len({tuple(choice) for choice in found.choice}) > 2
    assert at_choice == pytest.approx(expected)
    # With the observed examples themselves it is the observed number.
    assert at_choice[0] == pytest.approx(found.area.replicates.mean)
    alone = cross_fit(far, gain, some, drawn, category="b").area.replicates.at_choice
    assert alone == pytest.approx(
        [np.mean([levels[i, choice[1 - some.halves[i]]] for i in some.strata["b"]]) for choice in found.choice]
    )


def test_intervals_and_tests_leave_out_half_of_what_choices_differ_by() -> None:
    rng = np.random.default_rng(13)
    noise, gains = rng.normal(size=999), rng.choice([-3.0, 3.0], size=999)
    plain = Replicates(np.append(0.0, noise), np.ones(1000))
    chosen = Replicates(np.append(0.0, noise + gains / 2), np.ones(1000), at_choice=np.append(0.0, gains))
    assert chosen.interval() == pytest.approx(plain.interval())
    high = Replicates(np.append(1.5, plain.values[1:]), plain.errors)
    same = Replicates(np.append(1.5, chosen.values[1:]), chosen.errors, at_choice=chosen.at_choice)
    assert step_down({"": same}) == step_down({"": high})
    # Halfway between the replicates' mean and the best on all examples, and halfway between that and each choice.
    moved = Replicates(plain.values, plain.errors, centre=1.0, at_choice=np.zeros(1000)).interval()
    by = (float(noise.mean()) + 1.0) / 4
    ends = plain.interval()
    assert ends is not None and moved == pytest.approx((ends[0] + by, ends[1] + by))


def test_pairs_differ_by_their_choices_as_single_differences_do() -> None:
    rng = np.random.default_rng(14)
    some = examples(per_category=4)
    drawn = weights(some, 50)
    far = np.tile(np.linspace(0.04, 0.44, 6), (len(some.ids), 1))
    means = {name: cross_fit(far, synthetic(rng, some, 1, 0.0), some, drawn).area for name in "ab"}
    means["c"] = SampleMean.of(rng.normal(size=len(some.ids)), some, drawn)
    for (one, other), pair in paired_differences(means).items():
        single = (means[one] - means[other]).replicates
        assert single.at_choice is not None and pair.at_choice == pytest.approx(single.at_choice)
    with_a = means["a"].over(means["c"])
    chosen = means["a"].replicates.at_choice
    assert chosen is not None and with_a.at_choice == pytest.approx(chosen / means["c"].values[0])


def test_an_interval_of_few_replicates_ends_at_the_right_ones() -> None:
    # Of 39 replicates the least and the largest are the tails of 1 in 40.
    few = Replicates(np.append(0.0, np.arange(-19.0, 20.0)), np.ones(40))
    assert few.interval() == pytest.approx((-19.0, 19.0))


def test_budgets_are_those_of_the_definition() -> None:
    assert BUDGETS == (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5)
