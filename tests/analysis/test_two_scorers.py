"""Ranks by two scorers: what pleases one of them alone ranks where the other puts it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from leaderboard_runs import EXAMPLES, add_run, numbers, printed_rows

from riebench.analysis.leaderboard import make_leaderboard, methods
from riebench.analysis.leaderboard.methods import ONE_SCORER
from riebench.analysis.standings import LOOKS_AT_SCORER, MethodComparison
from riebench.analysis.tradeoff import BUDGETS, Examples, best_per_example, cross_fit


@pytest.fixture(autouse=True)
def fewer_replicates(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of the bootstrap's replicates, which tell the same apart here."""
    monkeypatch.setattr(methods, "MethodComparison", partial(MethodComparison, replicates=1000))


def add_methods(results: Path, *, second: bool) -> None:
    """Store three methods and an attack on the first scorer."""
    for name, method, gain in (
        ("sae_sweep", "sae", 0.03), ("units", "neurons", 0.02), ("random", "random_features", 0.002),
    ):  # fmt: skip
        add_run(results, name, gain, method=method, second=gain / 2 if second else False)
    add_run(results, "adversarial", 0.06, method="adversarial", access="P", second=0.0005 if second else False)


def test_an_attack_on_the_first_scorer_ranks_last_once_a_second_one_has_measured(tmp_path: Path) -> None:
    add_methods(tmp_path, second=True)
    board = make_leaderboard(tmp_path)
    stored, shown = numbers(board), printed_rows(board)
    assert {name: (row["rank"], row["rank_by_first"], row["rank_by_second"]) for name, row in stored.items()} == {
        "sae_sweep": ("1", "2", "1"), "units": ("2", "3", "2"), "random": ("3", "4", "3"),
        "adversarial": ("4", "1", "4"), "sae_sweep_best_strength": ("", "", ""),
    }  # fmt: skip
    assert [*shown][-2:] == ["adversarial", "sae_sweep_best_strength"]
    assert LOOKS_AT_SCORER in stored["sae_sweep_best_strength"]["notes"]
    assert stored["adversarial"]["control_of"] == "sae" and stored["adversarial"]["table"] == "PAM"
    assert stored["adversarial"]["decided_by"] == "second"
    shares = {name: float(row["confirmed"]) for name, row in stored.items()}
    assert shares["adversarial"] < 0.1 < shares["units"] < shares["sae_sweep"]
    # Both gains, each with its interval, on the page as in the file.
    row = stored["sae_sweep"]
    for column, name in (("first scorer", "score"), ("second scorer", "second_scorer")):
        gain, low, high = (100 * float(row[f"{name}{end}"]) for end in ("", "_low", "_high"))
        assert shown["sae_sweep"][column] == f"{gain:.2f} [{low:.2f}, {high:.2f}]"
    assert shown["sae_sweep"]["first scorer"] != shown["sae_sweep"]["second scorer"]
    text = board.document.markdown()
    assert (
        "`sae_sweep` (prompt + target activations + masks) has the largest mean gain that both scorers confirm" in text
    )
    assert "A control gains more by the first scorer, and less by what both confirm: `adversarial`." in text
    assert "significantly better (p < 0.05, corrected, by what both scorers confirm) than " in text
    assert ONE_SCORER not in text


def test_shares_are_of_the_target_prompts_gain_by_each_scorer(tmp_path: Path) -> None:
    add_methods(tmp_path, second=True)
    before = numbers(make_leaderboard(tmp_path))
    add_run(tmp_path, "target_prompt", 0.2, method="target_prompt", access="P", levels=1, second=0.04)
    stored = numbers(make_leaderboard(tmp_path))
    # Its one strength is 0.5: it gains 0.1 by the first scorer and 0.02 by the second.
    for row in (stored["sae_sweep"], stored["units"]):
        shares = float(row["score"]) / 0.1, float(row["second_scorer"]) / 0.02
        assert row["decided_by"] == "first" and float(row["confirmed"]) == pytest.approx(min(shares), rel=0.03)
        assert float(row["confirmed_low"]) < float(row["confirmed"]) < float(row["confirmed_high"])
    assert stored["adversarial"]["decided_by"] == "second"
    # Without the target prompt the largest gain of a method is the scale: the same order of methods.
    for row in before["sae_sweep"], stored["sae_sweep"]:
        assert row["rank"] == "1"
    assert float(before["sae_sweep"]["confirmed"]) == pytest.approx(1)


def test_without_a_second_scorer_ranks_are_said_to_be_by_one_and_attacks_have_none(tmp_path: Path) -> None:
    add_methods(tmp_path, second=False)
    board = make_leaderboard(tmp_path)
    stored, text = numbers(board), board.document.markdown()
    assert {name: row["rank"] for name, row in stored.items()} == {
        "sae_sweep": "1", "units": "2", "random": "3", "adversarial": "",
    }  # fmt: skip
    assert "ranked only where a second scorer has measured" in stored["adversarial"]["notes"]
    assert {row["second_scorer"] + row["rank_by_second"] + row["second_scorer_network"] for row in stored.values()} == {
        ""
    }
    assert text.split("\n\n")[1].endswith(ONE_SCORER) and "second scorer |" not in text


def test_a_method_that_the_second_scorer_did_not_measure_has_no_rank_among_those_it_did(tmp_path: Path) -> None:
    add_run(tmp_path, "whole", 0.02, method="neurons", second=0.01)
    add_run(tmp_path, "other", 0.01, method="neurons", second=0.005)
    add_run(tmp_path, "earlier", 0.05, method="neurons")
    found = printed_rows(make_leaderboard(tmp_path))
    assert {name: row["rank"] for name, row in found.items()} == {"whole": "1", "other": "2", "earlier": "–"}
    assert found["earlier"]["notes"] == "not measured by the second scorer, which a rank needs"
    assert found["earlier"]["second scorer"] == "–" and found["earlier"]["first scorer"] != "–"


def test_a_strength_chosen_for_each_example_by_the_scorer_gains_by_that_scorer_alone(tmp_path: Path) -> None:
    add_run(tmp_path, "sae_sweep", 0.002, second=0.002, spread=0.05)
    add_run(tmp_path, "units", 0.02, method="neurons", second=0.02, spread=0.01)
    stored = numbers(make_leaderboard(tmp_path))
    control = stored["sae_sweep_best_strength"]
    assert control["control_of"] == "sae" and control["table"] == "PAM"
    assert float(control["score"]) > float(stored["units"]["score"]) > float(control["second_scorer"])
    assert (control["rank"], control["rank_by_first"]) == ("", "") and stored["units"]["rank"] == "1"
    # It is made of numbers of its sweep and adds no votes to what all methods share.
    assert control["runs"] == stored["sae_sweep"]["runs"]


def test_the_best_place_of_each_example_is_read_inside_every_budget() -> None:
    rng = np.random.default_rng(0)
    examples = Examples.of(EXAMPLES)
    n = len(examples.ids)
    distances = np.cumsum(rng.uniform(0.02, 0.12, (n, 5)), axis=1)
    gains, other = rng.normal(0, 1, (2, n, 5))
    weights = np.ones((1, n))
    found = best_per_example(distances, gains, examples, weights)
    # By hand: the largest of no edit, the levels within, and the point where the curve leaves the budget.
    path, values = (np.hstack([np.zeros((n, 1)), one]) for one in (distances, gains))
    expected = np.zeros(n)
    for budget in BUDGETS:
        for row in range(n):
            within = [v for d, v in zip(path[row], values[row], strict=True) if d <= budget]
            expected[row] += max([*within, float(np.interp(budget, path[row], values[row]))]) / len(BUDGETS)
    assert found.area.observed == pytest.approx(expected)
    assert 0 < found.realised <= BUDGETS[-1]
    # What chose is what gained: another's noise at the same places is none, and so is a choice by other examples.
    assert abs(best_per_example(distances, gains, examples, weights, read=other).area.values[0]) < 0.3
    assert found.area.values[0] > 0.5 > cross_fit(distances, gains, examples, weights).area.values[0]
