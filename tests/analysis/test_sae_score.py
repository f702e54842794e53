"""Measures of SAEs by few features: planted gains come back, and SAEs are ranked by them on the leaderboard."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from feature_runs import EXAMPLES, PATCH_GAIN, Planted, add_features, add_patch, within
from records import make_spec

from riebench.analysis.leaderboard import make_leaderboard
from riebench.analysis.sae_score import FEATURE_COUNTS, MEASURES, measure_runs
from riebench.analysis.sae_score.effects import counted, gains_at_budgets
from riebench.analysis.sae_score.ranking import SaeComparison
from riebench.store.folder import find_run_folders
from riebench.utils.markup import csv_rows

FEW = (1, 2, 3, 5)
SOME = dict(list(EXAMPLES.items())[::6])
"""Two examples of each category."""


def measured(results: Path, block: str = "together") -> dict[str, float]:
    """Return the mean of each measure over the only SAE's rows."""
    frame = measure_runs(find_run_folders(results))
    assert list(frame.columns) == ["measure", "sae", "block", "category", "example", "seed", "value"]
    return dict(frame[frame.block == block].groupby("measure").value.mean())


def test_a_gain_counts_in_full_within_a_budget_and_up_to_it_beyond() -> None:
    gains, distances = np.array([0.2, 0.2, -0.1, 0.3, np.nan]), np.array([0.05, 1.0, 0.5, np.nan, 0.1])
    found = gains_at_budgets(gains, distances)
    budgets = np.arange(1, 11) * 0.05
    expected = [0.2, float(np.mean(0.2 * budgets)), float(np.mean(-0.1 * budgets / 0.5))]
    assert found[:3] == pytest.approx(expected, abs=1e-12)
    assert np.isnan(found[3:]).all()


def test_planted_gains_come_back_as_the_measures_that_are_defined_by_them(tmp_path: Path) -> None:
    """Gains of 1 % a feature up to 5 %, fixed features half of it, random ones none, a patch of 8 %."""

    def gain(count: int) -> float:
        return 0.01 * min(count, 5)

    add_features(tmp_path, "ab", within(gain), noise=0.0, examples=SOME)
    add_features(tmp_path, "ab", within(lambda count: gain(count) / 2), method="sae_fixed", noise=0.0, examples=SOME)
    add_features(tmp_path, "ab", within(lambda _: 0.0), method="random_features", noise=0.0, examples=SOME)
    add_patch(tmp_path, 0.08, noise=0.0, examples=SOME)
    found = measured(tmp_path)
    few = np.mean([gain(count) for count in FEW])
    assert found["gain_few"] == pytest.approx(few)
    assert found["over_random_few"] == pytest.approx(few)
    assert found["fixed_gain_few"] == pytest.approx(few / 2)
    assert found["agreement"] == pytest.approx(0.5)
    assert found["best_feature_share"] == pytest.approx(0.01 / 0.05)
    # Half of the patch, 4 %, is reached between 3 and 5 features, halfway on the gain's scale.
    middle = math.log2(3) + 0.5 * (math.log2(5) - math.log2(3))
    assert found["log_features_for_half"] == pytest.approx(middle)
    for count in FEATURE_COUNTS:
        assert found[f"gain_at_{count}"] == pytest.approx(gain(count))
    gains, places = np.array([gain(count) for count in FEATURE_COUNTS]), np.log2(FEATURE_COUNTS)
    area = ((gains[1:] + gains[:-1]) / 2 * np.diff(places)).sum() / np.log2(20)
    assert found["gain_area"] == pytest.approx(area)
    assert found["selectivity_few"] == pytest.approx(few)
    # Nothing was judged.
    absent = {"gain_few_2", *(name for name, one in MEASURES.items() if one.judge)}
    assert set(found) == set(MEASURES) - absent


def test_measures_of_judge_second_scorer_and_selectivity_are_read_where_they_are_stored(tmp_path: Path) -> None:
    def planted(count: int) -> dict[str, float]:
        judged = {"judge_target": float(count >= 3), "judge_kept": 0.75}
        return {"clip_gain": 0.01, "clip_gain_2": 0.02, "lpips": 0.04, "clip_selectivity": 0.1 * count, **judged}

    add_features(tmp_path, "ab", planted, noise=0.0, examples=SOME)
    found = measured(tmp_path)
    assert found["targets_few"] == 0.5 and found["targets_at_2"] == 0 and found["targets_at_3"] == 1
    assert found["judged_selectivity_few"] == pytest.approx(0.5 - 0.25)
    assert found["gain_few_2"] == pytest.approx(0.02) and found["gain_few"] == pytest.approx(0.01)
    assert found["selectivity_few"] == pytest.approx(0.1 * np.mean(FEW))
    # Without the patch nothing has a share, and there is no half to reach.
    assert not {"agreement", "best_feature_share", "log_features_for_half"} & set(found)


def test_a_share_of_nothing_is_nothing(tmp_path: Path) -> None:
    """An SAE that gains next to nothing agrees on nothing, instead of on noise over noise."""
    add_features(tmp_path, "ab", within(lambda _: 1e-4), noise=0.0, examples=SOME)
    add_features(tmp_path, "ab", within(lambda _: 1e-4), method="sae_fixed", noise=0.0, examples=SOME)
    add_patch(tmp_path, noise=0.0, examples=SOME)
    found = measured(tmp_path)
    assert found["agreement"] == pytest.approx(1e-4 / (0.1 * PATCH_GAIN))
    # More features than were tested stand for the half that is never reached.
    assert found["log_features_for_half"] == pytest.approx(math.log2(40))


def test_each_block_is_measured_by_itself(tmp_path: Path) -> None:
    add_features(tmp_path, "ab", within(lambda count: 0.02 * count), examples=SOME)
    add_features(tmp_path / "other", "ab", within(lambda count: 0.01 * count), block_mode="each", examples=SOME)
    add_patch(tmp_path, block_mode="both", examples=SOME)
    folders = [*find_run_folders(tmp_path), *find_run_folders(tmp_path / "other")]
    frame = measure_runs(folders)
    means = frame[frame.measure == "gain_few"].groupby("block").value.mean()
    assert set(means.index) == {"together", "down.2.1", "mid.0", "up.0.0", "up.0.1"}
    assert means["together"] == pytest.approx(0.02 * np.mean(FEW), rel=0.05)
    assert means["mid.0"] == pytest.approx(0.01 * np.mean(FEW), rel=0.05)
    halves = frame[frame.measure == "log_features_for_half"]
    assert halves[halves.block == "mid.0"].value.mean() > halves[halves.block == "together"].value.mean() + 0.5


def test_only_runs_of_the_same_method_and_budget_are_read() -> None:
    usual = make_spec(params={"n_features": 5}).setting
    assert counted(usual) == ("sae", 5)
    assert counted(make_spec(method="activation_patch", params={}).setting) == ("activation_patch", 0)
    for change in (
        {"params": {"n_features": 4}}, {"params": {"n_features": 5, "adaptive": True}}, {"strengths": (2.0,)},
        {"edit_steps": (0.0, 0.5)}, {"method": "neurons"},
    ):  # fmt: skip
        assert counted(usual.model_copy(update=change))[0] is None, change


def rank_three(results: Path) -> None:
    """Two SAEs that cannot be told apart, and a poor one with as much gain at 20 features."""

    def planted(size: float) -> Planted:
        return within(lambda count: size * count if count < 10 else 0.1)

    for sae, size in (("aa", 0.010), ("bb", 0.0101), ("cc", 0.002)):
        add_features(results, sae, planted(size), noise=0.01)
    add_patch(results)


def test_saes_are_ranked_by_few_features_and_equal_ones_share_a_rank(tmp_path: Path) -> None:
    rank_three(tmp_path)
    standings = SaeComparison.of(find_run_folders(tmp_path), replicates=500).standings()
    ranks = {one.effects.sae: one.rank for one in standings}
    assert ranks == {"aa/ aa": 1, "bb/ bb": 1, "cc/ cc": 3}
    for one in standings:
        assert one.score is not None and None not in (one.score.low, one.score.mean, one.score.high)
        assert float(one.score.low or 0) < float(one.score.mean or 0) < float(one.score.high or 0)
    # At 20 features nothing tells the poor one apart.
    last = {one.effects.sae: one.measures["gain_at_20"] for one in standings}
    assert float(last["aa/ aa"].low or 0) < float(last["cc/ cc"].high or 0)


def test_the_leaderboard_has_a_table_of_saes_and_their_rows(tmp_path: Path) -> None:
    rank_three(tmp_path)
    board = make_leaderboard(tmp_path)
    text = board.document.markdown()
    assert "### SAE score" in text and "rank first together by their SAE scores" in text
    table = [line for line in text.split("### SAE score")[1].splitlines() if line.startswith("| ")]
    assert [line.split("|")[1].strip() for line in table[2:]] == ["1", "1", "3"]
    rows = [row for row in csv_rows(board.numbers.splitlines()) if row["table"] == "SAEs"]
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    assert metrics[0] == "sae_selectivity_few" and {"sae_gain_few", "sae_log_features_for_half"} < set(metrics)
    assert len(rows) == 3 * len(metrics)
    assert {row["sae"]: row["rank"] for row in rows[:3]} == {"aa/ aa": "1", "bb/ bb": "1", "cc/ cc": "3"}
    assert not any(row["rank"] for row in rows[3:])
    assert float(rows[0]["score_low"]) < float(rows[0]["score"]) < float(rows[0]["score_high"])


def test_nothing_stands_there_without_runs_of_few_features(tmp_path: Path) -> None:
    add_features(tmp_path, "ab", within(float), counts=(10, 20))
    board = make_leaderboard(tmp_path)
    assert "SAE score" not in board.document.markdown()
    assert not [row for row in csv_rows(board.numbers.splitlines()) if row["table"] == "SAEs"]


def test_incomplete_saes_are_unranked_and_say_why(tmp_path: Path) -> None:
    some = dict(list(EXAMPLES.items())[:20])
    add_features(tmp_path, "aa", within(float))
    add_features(tmp_path, "bb", within(float), examples=some)
    add_features(tmp_path, "cc", within(float), fail="change_object-03")
    standings = SaeComparison.of(find_run_folders(tmp_path), replicates=100).standings()
    notes = {one.effects.sae: (one.rank, one.note) for one in standings}
    assert notes["aa/ aa"] == (1, "")
    assert notes["bb/ bb"] == (None, "20 of 24 examples")
    assert notes["cc/ cc"] == (None, "6 units failed")


def test_an_sae_scored_without_selectivity_says_what_adds_it(tmp_path: Path) -> None:
    add_features(tmp_path, "aa", within(float))
    add_features(tmp_path, "bb", lambda count: {"clip_gain": float(count), "lpips": 0.04})
    standings = SaeComparison.of(find_run_folders(tmp_path), replicates=100).standings()
    notes = {one.effects.sae: (one.rank, one.note) for one in standings}
    assert notes["aa/ aa"] == (1, "")
    assert notes["bb/ bb"] == (None, "pictures without `clip_selectivity`, which `riebench score` adds")


def test_few_examples_give_numbers_and_no_rank(tmp_path: Path) -> None:
    add_features(tmp_path, "aa", within(float), examples={f"e{i}": "change_color" for i in range(5)})
    (only,) = SaeComparison.of(find_run_folders(tmp_path), replicates=100).standings()
    assert only.rank is None and only.note == "5 of 12 examples in a category" and only.score is not None
