"""Measures with known answers, held against a made-up ladder: order, noise, discriminability, ranks and bars."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import pytest
from ladders import CATEGORIES, RUNGS, levels, made_results, rows_of

from riebench.analysis.tradeoff import Examples
from riebench.sae_validity.study.bars import Study, above_zero
from riebench.sae_validity.study.means import (
    MeasureTable,
    SaeMeans,
    category_means,
    example_weights,
    training_draws,
)
from riebench.sae_validity.study.statistics import (
    TRAINED,
    compare_rungs,
    first_rank_group,
    kendall,
    known_pairs,
    neighbours,
    noise,
    rank_correlation,
    training_pairs,
)

REPLICATES = 400
Value = Callable[[str, int, int, int], float]
"""Rung, training seed, example, picture seed -> value."""


def means_of(value: Value, *, sign: int = 1, rungs: Sequence[str] | None = None) -> SaeMeans:
    return SaeMeans.of(table_of(value, sign=sign, rungs=rungs), REPLICATES)


def table_of(
    value: Value, *, sign: int = 1, rungs: Sequence[str] | None = None, picture_seeds: Sequence[int] = (0,)
) -> MeasureTable:
    frame = rows_of("m", value, rungs=rungs, picture_seeds=picture_seeds)
    return MeasureTable.of(frame, sign)


def perfect(rung: str, seed: int, example: int, picture: int) -> float:
    return levels()[rung]


def test_the_known_order_holds_training_twins_and_random_directions() -> None:
    pairs = known_pairs(RUNGS)
    assert len(training_pairs(RUNGS)) == 15 and set(training_pairs(RUNGS)) < set(pairs)
    assert ("full", "steps_2") in pairs and ("steps_2", "full") not in pairs
    assert {("full", "frozen_decoder"), ("full", "random_orthogonal"), ("true_dictionary", "random_init")} < set(pairs)
    # Nothing is known of these, or of other k and widths.
    assert not any({"pca", "neurons", "k_4"} & set(pair) for pair in pairs)
    assert neighbours(RUNGS)[0] == ("steps_2", "random_init") and len(neighbours(RUNGS)) == 5


def test_kendall_is_one_for_a_perfect_measure_minus_one_for_its_opposite_and_zero_for_a_constant() -> None:
    pairs = known_pairs(RUNGS)
    for value, expected in ((perfect, 1.0), (lambda *a: -perfect(*a), -1.0), (lambda *_: 3.0, 0.0)):
        found = kendall(means_of(value), pairs)
        assert (found.value, found.low, found.high) == (expected, expected, expected)
        assert found.n == len(pairs)
    # Of a measure of which less is better, the opposite is perfect.
    assert kendall(means_of(lambda *a: -perfect(*a), sign=-1), pairs).value == 1


def test_kendall_counts_each_pair_once() -> None:
    swapped = {**levels(), "steps_180": levels()["full"], "full": levels()["steps_180"]}
    names = [rung.name for rung in RUNGS if rung.family == "training"]
    found = kendall(means_of(lambda rung, *_: swapped[rung], rungs=names), training_pairs(RUNGS))
    assert found.value == pytest.approx(13 / 15)
    without = kendall(means_of(perfect, rungs=names[:3]), training_pairs(RUNGS))
    assert without.value == 1 and without.n == 3
    assert kendall(means_of(perfect, rungs=["pca"]), training_pairs(RUNGS)).value is None


def test_intervals_of_kendall_widen_with_the_noise_of_examples_and_of_training_seeds() -> None:
    rng = np.random.default_rng(0)
    by_example = rng.normal(size=(40, 40))
    by_seed = {rung.name: rng.normal(size=3) for rung in RUNGS}
    names = {rung.name: place for place, rung in enumerate(RUNGS)}
    pairs = known_pairs(RUNGS)
    quiet = kendall(means_of(perfect), pairs)
    examples = kendall(means_of(lambda r, s, e, p: perfect(r, s, e, p) + 3 * by_example[names[r], e]), pairs)
    seeds = kendall(means_of(lambda r, s, e, p: perfect(r, s, e, p) + 2 * by_seed[r][s]), pairs)
    for found in (examples, seeds):
        assert found.low is not None and found.high is not None and quiet.low == quiet.high == 1
        assert found.high - found.low > 0.05


def test_the_correlation_with_a_truth_takes_rungs_that_have_both() -> None:
    names = [rung.name for rung in RUNGS]
    truth = means_of(perfect, rungs=names[:5])
    same = rank_correlation(means_of(perfect), truth, names)
    assert same.value == 1 and same.n == 5
    assert rank_correlation(means_of(lambda *a: -perfect(*a)), truth, names).value == -1
    assert rank_correlation(means_of(perfect, rungs=names[:2]), truth, names).value is None


def test_noise_over_training_seeds_is_the_pooled_standard_deviation() -> None:
    shifts = {0: -0.3, 1: 0.0, 2: 0.3}
    table = table_of(lambda r, s, e, p: perfect(r, s, e, p) + shifts[s])
    names = [rung.name for rung in RUNGS if rung.family == "training"]
    found = noise(table, SaeMeans.of(table, REPLICATES), names)
    assert found.training.value == pytest.approx(0.3) and found.training.n == 12
    assert found.training.low is not None and found.training.high is not None
    assert found.training.low < 0.3 < found.training.high
    assert found.pictures.value is None and found.total == pytest.approx(0.3)


def test_noise_over_training_seeds_has_an_interval_of_95_per_cent() -> None:
    rng, held = np.random.default_rng(4), 0
    names = [rung.name for rung in RUNGS if rung.family == "training"]
    for _ in range(200):
        draws = {(name, seed): rng.normal() for name in names for seed in range(3)}
        saes = tuple(sorted(draws))
        means = SaeMeans(saes, np.array([[draws[sae] for sae in saes]]))
        table = MeasureTable(saes, Examples.of({"e": "c"}), np.zeros((len(saes), 1, 1)))
        found = noise(table, means, names).training
        held += found.low is not None and found.high is not None and found.low <= 1 <= found.high
    assert 182 <= held <= 198


def test_noise_over_picture_seeds_is_that_of_a_mean_over_the_examples() -> None:
    rng = np.random.default_rng(1)
    draws = rng.normal(size=(len(CATEGORIES) * 8, 2))
    table = table_of(lambda r, s, e, p: perfect(r, s, e, p) + draws[e, p], picture_seeds=(0, 1))
    found = noise(table, SaeMeans.of(table, REPLICATES), ["full"])
    expected = np.sqrt((np.diff(draws, axis=1) ** 2 / 2).mean() / len(draws))
    assert found.pictures.value == pytest.approx(expected)
    assert found.pictures.low is not None and found.pictures.low < expected
    assert found.total == pytest.approx(expected)


def test_neighbours_with_a_wide_gap_are_told_apart_and_equal_ones_are_not() -> None:
    rng = np.random.default_rng(2)
    jitter = rng.normal(scale=0.2, size=(len(RUNGS) * 3, len(CATEGORIES) * 8))
    places = {(rung.name, seed): 3 * i + seed for i, rung in enumerate(RUNGS) for seed in range(3)}
    same = {**levels(), "steps_15": levels()["steps_60"]}
    means = means_of(lambda r, s, e, p: same[r] + jitter[places[r, s], e])
    wide, flat, backwards = (
        compare_rungs(means, pair, 0.1)
        for pair in (("steps_60", "steps_2"), ("steps_60", "steps_15"), ("steps_2", "steps_60"))
    )
    assert wide.separated.value == 1 and wide.reversed.value == 0
    assert wide.gap.value == pytest.approx(2, abs=0.2) and wide.over_noise == pytest.approx(20, abs=2)
    assert flat.separated.value is not None and flat.separated.value < 0.5
    assert backwards.separated.value == 0 and backwards.reversed.value == 1
    assert compare_rungs(means, ("full", "none"), 0.1).gap.value is None


def test_the_first_rank_group_holds_what_cannot_be_told_from_the_best() -> None:
    rng = np.random.default_rng(3)
    jitter = rng.normal(scale=0.3, size=(len(RUNGS) * 3, len(CATEGORIES) * 8))
    places = {(rung.name, seed): 3 * i + seed for i, rung in enumerate(RUNGS) for seed in range(3)}
    near = {**levels(), "neurons": levels()["full"] - 0.01}
    names = [rung.name for rung in RUNGS if rung.name != "true_dictionary"]
    found = first_rank_group(means_of(lambda r, s, e, p: near[r] + jitter[places[r, s], e]), names)
    assert set(found) == {"full", "neurons"}
    assert first_rank_group(means_of(perfect), names) == [TRAINED]
    assert set(first_rank_group(means_of(lambda *_: 1.0), names)) == set(names)


def test_means_are_over_examples_then_categories_and_leave_out_what_is_missing() -> None:
    examples = Examples.of({"a": "x", "b": "x", "c": "x", "d": "y"})
    values = np.array([[1.0, 2.0, 3.0, 10.0], [1.0, np.nan, 3.0, np.nan], [np.nan] * 4])
    found = category_means(values, np.ones((1, 4)), examples)
    assert found[0, :2].tolist() == [6, 2] and np.isnan(found[0, 2])
    assert category_means(values, np.array([[0.0, 3.0, 0.0, 1.0]]), examples)[0, 0] == 6


def test_training_seeds_of_a_rung_are_drawn_alike_for_all_measures() -> None:
    first, other = training_draws("full", 3, 50, 1), training_draws("steps_2", 3, 50, 1)
    assert (first == training_draws("full", 3, 50, 1)).all() and (first != other).any()
    assert first[0].tolist() == [1, 1, 1] and np.allclose(first.sum(axis=1), 3)
    assert (training_draws("pca", 1, 50, 1) == 1).all()


def test_replicates_vary_as_much_as_new_examples_and_seeds_would() -> None:
    values = np.array([1.0, 4.0, 7.0])
    examples = Examples.of({name: "c" for name in "abc"})
    for drawn in (training_draws("full", 3, 20_000, 1), example_weights(examples, 20_000, 1)):
        means = drawn[1:] @ values / 3
        # The usual bootstrap would show two thirds of it.
        assert means.var() == pytest.approx(values.var(ddof=1) / 3, rel=0.03)
        assert means.mean() == pytest.approx(4, abs=0.05)
    assert (example_weights(Examples.of({"a": "c"}), 5, 1) == 1).all()


def test_two_values_of_one_unit_are_refused() -> None:
    frame = rows_of("m", perfect)
    with pytest.raises(ValueError, match="two values"):
        MeasureTable.of(pd.concat([frame, frame.head(1)]), 1)


def test_a_good_measure_passes_all_bars_and_a_blind_one_none() -> None:
    study = Study(made_results(), REPLICATES)
    found = {one.key: one for one in study.measures}
    good = found["selectivity_few"]
    assert good.bars.passed and not good.failing_twins and not good.noisy and not good.untrained_first
    assert good.order.value == 1 and above_zero(good.twins["frozen_decoder", "mid.0"])
    blind = found["at_20:area"]
    assert (blind.bars.order, blind.bars.twins, blind.bars.noise, blind.bars.ranks) == (False, False, False, False)
    assert {"random_init", "random_orthogonal"} <= set(blind.untrained_first)
    # The truth has no pictures, so that it is not known of single blocks.
    assert found["truth"].bars.order is True and found["truth"].bars.twins is None
    assert not found["truth"].bars.passed
    assert found["selectivity_few"].truth.value == 1 and found["selectivity_few"].judge.value == 1


def test_a_twin_that_is_as_good_in_one_block_fails_that_bar_by_name() -> None:
    def weak(rung: str, block: str) -> float:
        return levels()["full"] if (rung, block) == ("soft_frozen", "up.0.1") else levels()[rung]

    study = Study(made_results(weak), REPLICATES)
    good = next(one for one in study.measures if one.key == "selectivity_few")
    assert good.failing_twins == [("soft_frozen", "up.0.1")]
    assert good.bars.twins is False and good.bars.order is True and not good.bars.passed


@pytest.mark.parametrize(("size", "noisy"), [(0.30, []), (0.32, ["steps_2"])])
def test_noise_of_more_than_a_third_of_one_gap_fails_that_bar_by_name(size: float, noisy: list[str]) -> None:
    near = {**levels(), "random_init": levels()["steps_2"] - 0.95}
    results = made_results(lambda rung, _: near[rung], shift=lambda seed: size * (seed - 1))
    good = next(one for one in Study(results, REPLICATES).measures if one.key == "selectivity_few")
    assert [one.better for one in good.noisy] == noisy
    assert good.bars.noise is not bool(noisy)
