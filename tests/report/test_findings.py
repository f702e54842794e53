"""The findings claim only what the stored numbers support."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_runs import make_block_results, make_run

from riebench.report.data import read_groups
from riebench.report.findings import Findings, category_words, find, listed
from riebench.report.heat_maps import finding_maps


def findings(results: Path) -> Findings:
    """Return the findings on the only suite and model of a results folder."""
    (group,) = read_groups(results)
    found = find(group)
    assert found is not None
    return found


def sentences(found: Findings) -> list[str]:
    """Return the sentences with plain spaces."""
    return [f"{one.subject}{one.text}".replace("\u00a0", " ") for one in found.items]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_block_results(tmp_path_factory.mktemp("made") / "results")


def test_a_sentence_for_each_block_says_what_it_does_with_intervals(results: Path) -> None:
    found = findings(results)
    mid, up, whole = sentences(found)
    assert found.setting == "sae" and found.metric == "clip_gain" and (found.examples, found.seeds) == (24, 2)
    assert mid.startswith("mid.0 gains more than each other block in object (+10.") and mid.endswith("]).")
    assert up.startswith("up.0.1 gains more than each other block in color (+")
    assert ", and loses alignment in object (-" in up
    assert found.best == {("mid.0", "change_object"), ("up.0.1", "change_color")}
    assert whole.startswith("All blocks together gain +") and "their control random_features +1.00 [" in whole
    assert ": a difference of +" in whole and "judge" not in whole


def test_numbers_of_sentences_are_those_of_the_tables(results: Path) -> None:
    found = findings(results)
    row = next(c for c in found.rows if c.block_set == "mid.0").row("clip_gain", "change_object")
    assert row.mean is not None and row.ci_low is not None and row.ci_high is not None
    numbers = f"({100 * row.mean:+.2f} [{100 * row.ci_low:+.2f}, {100 * row.ci_high:+.2f}])"
    assert numbers in sentences(found)[0]


def test_the_heat_map_marks_the_best_blocks_and_carries_intervals(results: Path) -> None:
    gain, distance = finding_maps(findings(results), ["change_object", "change_color"])
    cells = dict(gain.rows)
    assert [cell.best for cell in cells["mid.0"]] == [True, False, False]
    assert [cell.best for cell in cells["up.0.1"]] == [False, True, False]
    assert not any(cell.best for cell in cells["all"]) and not any(c.best for _, row in distance.rows for c in row)
    assert "[" in cells["mid.0"][0].title and cells["mid.0"][0].title.endswith("24/24 scored")


def test_few_examples_make_no_claim(tmp_path: Path) -> None:
    found = findings(make_block_results(tmp_path / "results", examples=3))
    first, whole = sentences(found)
    assert first.startswith("Too few examples for a claim: a category here has 3 independent examples")
    assert found.best == frozenset() and "difference" not in whole


def test_blocks_that_do_the_same_are_not_told_apart(tmp_path: Path) -> None:
    found = findings(make_block_results(tmp_path / "results", means={}))
    assert "In object and color the best block is not told apart from the next." in sentences(found)
    assert found.best == frozenset() and not any("gains more" in one for one in sentences(found))


def test_the_judge_decides_where_it_measured(tmp_path: Path) -> None:
    found = findings(make_block_results(tmp_path / "results", judged=True))
    mid, up, whole = sentences(found)
    assert found.metric == "judge_target"
    assert mid.startswith("mid.0 reaches the target more often than each other block in object (100 [")
    assert up.startswith("up.0.1 reaches the target more often than each other block in color (100 [")
    assert "The judge finds the target in 100 [" in whole and "of their other attributes kept" in whole
    _, judged = finding_maps(found, ["change_object", "change_color"])
    assert [cell.best for cell in dict(judged.rows)["mid.0"]] == [True, False, False]


def test_no_difference_to_the_control_is_said_to_be_none(tmp_path: Path) -> None:
    results = make_block_results(tmp_path / "results", means={("all", "change_object"): 0.012})
    assert ": not told apart (difference " in sentences(findings(results))[-1]


def test_results_without_blocks_have_no_findings(tmp_path: Path) -> None:
    make_run(tmp_path / "results", "embed_lerp", "embed_lerp", ("none",), (0.5, 1.0), pictures=False)
    (group,) = read_groups(tmp_path / "results")
    assert find(group) is None


def test_the_run_that_is_shown_first_is_sae(results: Path, tmp_path: Path) -> None:
    (group,) = read_groups(results)
    assert group.folders[0].spec.setting.name == "activation_patch" and group.leading.spec.setting.name == "sae"
    make_run(tmp_path / "results", "no_edit", "no_edit", ("none",), (1.0,), pictures=False)
    make_run(tmp_path / "results", "zeta", "sae", ("mid.0", "all"), (1.0,), pictures=False)
    make_run(tmp_path / "results", "alpha", "neurons", ("mid.0", "all"), (1.0,), pictures=False)
    (other,) = read_groups(tmp_path / "results")
    assert other.leading.spec.setting.name == "zeta"


def test_lists_and_categories_are_words() -> None:
    assert listed(["a"]) == "a" and listed(["a", "b", "c"]) == "a, b and c"
    assert category_words("change_color") == "color" and category_words("add_object") == "add object"
