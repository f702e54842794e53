"""Sentences of the leaderboard: the largest mean gain, and the SAE against its controls and activation patching."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
from leaderboard_runs import add_profile_scores, add_run, numbers

from riebench.analysis.leaderboard import leaderboard_text, make_leaderboard
from riebench.analysis.leaderboard.methods import ONE_SCORER
from riebench.analysis.standings import Entry, MethodComparison


def conclusion(results: Path) -> str:
    """The paragraph below the title, less what is said of a missing second scorer."""
    return leaderboard_text(results).split("\n\n")[1].replace(f" {ONE_SCORER}", "")


def test_the_largest_gain_is_named_and_better_only_where_its_test_says_so(tmp_path: Path) -> None:
    add_run(tmp_path, "good", 0.03, method="neurons")
    add_run(tmp_path, "also", 0.0298, method="neurons", access="P")
    add_run(tmp_path, "fair", 0.01, method="neurons")
    row = numbers(make_leaderboard(tmp_path))["good"]
    mean, low, high = (f"{100 * float(row[name]):.2f}" for name in ("score", "score_low", "score_high"))
    assert conclusion(tmp_path) == (
        "`good` (prompt + target activations + masks) has the largest mean gain over LPIPS budgets of the 3 ranked "
        f"methods: {mean} [{low}, {high}] (x100). It is significantly better (p < 0.05, corrected) than all others "
        "that are ranked but `also`."
    )
    add_run(tmp_path, "prime", 0.09, method="neurons", access="P")
    assert "`prime` (prompt only) has the largest" in conclusion(tmp_path)
    assert conclusion(tmp_path).endswith("better (p < 0.05, corrected) than all others that are ranked.")


def test_a_lead_that_no_test_supports_is_said_to_be_none(tmp_path: Path) -> None:
    add_run(tmp_path, "one", 0.03, method="neurons")
    add_run(tmp_path, "two", 0.02993, method="neurons")
    assert conclusion(tmp_path).endswith("(x100). It is not significantly better (p < 0.05, corrected) than the other.")


def test_the_sentence_agrees_with_the_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_run(tmp_path, "one", 0.03, method="neurons")
    add_run(tmp_path, "two", 0.02, method="neurons")
    original = MethodComparison.differences

    def unsure(
        self: MethodComparison, reference: Entry, others: Iterable[Entry]
    ) -> dict[Entry, tuple[float, float, float]]:
        return {entry: (mean, 0.9, power) for entry, (mean, _, power) in original(self, reference, others).items()}

    assert "It is significantly better" in conclusion(tmp_path)
    monkeypatch.setattr(MethodComparison, "differences", unsure)
    assert "It is not significantly better" in conclusion(tmp_path)


def test_equal_gains_are_a_tie(tmp_path: Path) -> None:
    # Whatever they do makes it worse: each is best where it does nothing.
    for name in ("left", "right"):
        add_run(tmp_path, name, -0.03, method="neurons")
    assert conclusion(tmp_path) == (
        "`left` and `right` tie for the largest mean gain over LPIPS budgets of the 2 ranked methods: 0.00 [0.00, "
        "0.00] (x100)."
    )


def test_the_sae_is_held_against_its_controls_and_activation_patching(tmp_path: Path) -> None:
    add_run(tmp_path, "sae_sweep", 0.03)
    add_run(tmp_path, "random", 0.01, method="random_features")
    add_run(tmp_path, "patch", 0.05, method="activation_patch")
    text = conclusion(tmp_path)
    assert "The SAE (`sae_sweep`, " in text
    assert (
        "is significantly better (p < 0.05, corrected) than its control `random`, and significantly worse than "
        "activation patching, `patch` ("
    ) in text
    add_run(tmp_path, "wrong", 0.03001, method="wrong_example", access="PAMT")
    assert (
        ") is not significantly different (p < 0.05, corrected) from its control `wrong`, significantly better than "
        "its control `random`, and significantly worse than activation patching, `patch` ("
    ) in conclusion(tmp_path)


def test_a_control_above_all_methods_is_said(tmp_path: Path) -> None:
    add_run(tmp_path, "sae_sweep", 0.01)
    add_run(tmp_path, "random", 0.03, method="random_features")
    text = conclusion(tmp_path)
    assert text.startswith(
        "`sae_sweep` is the only ranked method beside controls: its mean gain over LPIPS budgets is "
    )
    assert " A control has a larger one: `random`. The SAE " in text
    assert " is significantly worse (p < 0.05, corrected) than its control `random`, and ranked without" in text


def test_what_is_lacking_is_said_of_the_sae(tmp_path: Path) -> None:
    add_run(tmp_path, "steer", 0.02, method="mean_steering")
    assert "SAE" not in conclusion(tmp_path)
    add_run(tmp_path, "sae", 0.03, levels=2)
    assert conclusion(tmp_path).endswith("The SAE is unranked, so it is not compared with its controls.")
    add_run(tmp_path, "sae_sweep", 0.03)
    assert conclusion(tmp_path).endswith("is ranked without a control, and ranked without activation patching.")
    # Another access is another table: nothing was tested.
    add_run(tmp_path, "patch", 0.05, method="activation_patch", access="PA")
    assert "is not tested against activation patching, `patch` (" in conclusion(tmp_path)


def test_nothing_ranked_or_complete_gives_a_plain_sentence(tmp_path: Path) -> None:
    add_run(tmp_path / "few", "few", 0.03, levels=2)
    assert conclusion(tmp_path / "few").startswith("No method is ranked yet, so nothing can be concluded")
    add_run(tmp_path / "gaps", "gap", 0.03, leave_out="change_color-3")
    add_run(tmp_path / "gaps", "failed", 0.03, fail="change_color-3")
    assert conclusion(tmp_path / "gaps").startswith("No method is complete yet, so nothing can be concluded")
    add_run(tmp_path / "ends", "no_edit", 0.0, method="no_edit", access="", levels=1)
    assert conclusion(tmp_path / "ends") == "No method has results yet, so nothing can be concluded."
    add_run(tmp_path / "controls", "random", 0.0, method="random_features")
    assert conclusion(tmp_path / "controls").startswith("Only controls are ranked so far")
    add_run(tmp_path / "single", "alone", 0.03, method="neurons")
    assert conclusion(tmp_path / "single").startswith("`alone` is the only ranked method: ")


def test_each_scorer_and_each_section_has_its_own_sentences(tmp_path: Path) -> None:
    add_run(tmp_path, "one", 0.02, method="neurons", backbone="a-clip")
    folder = add_run(tmp_path, "two", 0.09, method="neurons", backbone="b-clip")
    text = conclusion(tmp_path)
    assert text.startswith("Measured by a-clip: `one` is the only") and " Measured by b-clip: `two` is the only" in text
    add_profile_scores(folder)
    lines = conclusion(tmp_path).splitlines()
    assert lines[0].startswith("- toy on toy-turbo: Measured by a-clip: ")
    assert lines[1].startswith("- toy on toy-turbo, profile `paper`: two x3 has the largest `paper_text_target`: ")
    assert "tests no differences" in lines[1]
