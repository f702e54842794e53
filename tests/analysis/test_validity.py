"""Scores held against a planted truth: perfect, inverted and noisy scores are seen as what they are."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from records import make_key, make_record, make_spec
from scipy.stats import kendalltau, mannwhitneyu
from typer.testing import CliRunner

from riebench.analysis.tradeoff import Examples
from riebench.analysis.validity.agreement import Tracking, pair_agreement, sign_rates, track_scores
from riebench.analysis.validity.conclusions import conclusions
from riebench.analysis.validity.document import PARTS, TEMPLATE, fill_validity
from riebench.analysis.validity.findings import Findings
from riebench.analysis.validity.plots import rank_scatter
from riebench.analysis.validity.ranking import rank_methods, taus
from riebench.analysis.validity.units import KEPT, SUCCESS, TARGET, JudgedResults, Units, split_by_verdicts
from riebench.cli.common import folders_in
from riebench.cli.main import app
from riebench.errors import RiebenchError
from riebench.store.folder import RunFolder, find_run_folders
from riebench.store.records import EditRecord, ScoreRecord

CATEGORIES = ("change_object", "change_color")
LEVELS = (0.5, 1.0, 2.0)
REPLICATES = 400
Scores = Callable[[random.Random, float, float, float], dict[str, float]]
"""Generator, target, kept, strength -> what scorers say."""


def planted(rng: random.Random, target: float, kept: float, strength: float) -> dict[str, float]:
    """`clip_gain` knows success, `clip_margin` says the opposite, `clip_direction` nothing; distances know kept."""
    success = float(target == 1 and kept == 1)
    return {
        # A power of two, so that equal means are equal to the last bit for score and truth.
        "clip_gain": 0.125 * success,
        "clip_margin": -0.125 * success,
        "clip_direction": rng.uniform(-1, 1),
        "lpips": 0.05 * strength + 0.2 * (1 - kept) + 0.001 * rng.random(),
        "lpips_bg": 0.2 * (1 - kept) + 0.01 * rng.random(),
    }


def add_run(
    results: Path, name: str, chance: float = 0.5, *, scores: Scores = planted, judged: bool = True, seeds: int = 1,
    examples: int = 6, target: float | None = None, fail: str | None = None, model: str = "toy-turbo",
    method: str = "sae", skip: str | None = None,
) -> RunFolder:  # fmt: skip
    """A run that reaches the target with some chance and keeps everything with chance one half."""
    rng = random.Random(name)
    spec = make_spec(name=name, method=method, block_mode="together", strengths=LEVELS)
    spec = spec.model_copy(update={"model": spec.model.model_copy(update={"name": model})})
    folder = RunFolder(results / "toy" / model / name, spec)
    keys = [
        make_key(example_id=f"{category}-{i}", category=category, task=category, strength=strength, seed=seed)
        for category in CATEGORIES for i in range(examples) for strength in LEVELS for seed in range(seeds)
    ]  # fmt: skip
    records, lines = [], []
    for key in keys:
        if key.example_id == fail:
            records.append(EditRecord(key=key, status="error", reason="out of memory"))
            continue
        record = make_record(key, f"images/{key.digest}.png", "0" * 64)
        records.append(record)
        reached = float(rng.random() < chance) if target is None else target
        kept = rng.choice([1.0, 1.0, 0.75, 0.5])
        found = scores(rng, reached, kept, key.strength)
        found |= {TARGET: reached, KEPT: kept} if judged else {}
        lines += [
            ScoreRecord(unit=key.digest, metric=metric, version=1, picture=record.picture_id, value=value)
            for metric, value in found.items() if metric != skip
        ]  # fmt: skip
    with folder.open_for_writing(plan=keys) as run:
        run.append_many(records)
        run.append_scores(lines)
    return folder


def read(results: Path) -> JudgedResults:
    found, _ = split_by_verdicts(find_run_folders(results))
    (one,) = found
    return replace(one, units=replace(one.units, replicates=REPLICATES))


@pytest.fixture
def world(tmp_path: Path) -> JudgedResults:
    """Three methods of different worth."""
    for name, chance in (("good", 0.9), ("fair", 0.5), ("poor", 0.2)):
        add_run(tmp_path, name, chance, seeds=2, examples=12)
    return read(tmp_path)


def made_units(score: list[float], truth: list[float], example: list[int], n: int, replicates: int = 200) -> Units:
    """Pictures of one category with one score, in the place of `clip_gain`, and one truth."""
    names = {f"e{i:02d}": "change_object" for i in range(n)}
    values = {"clip_gain": np.array(score, float), SUCCESS: np.array(truth, float), TARGET: np.array(truth, float)}
    zeros = np.zeros(len(score), dtype=np.intp)
    return Units(
        Examples.of(names), ("m",), np.array(example, dtype=np.intp), zeros, zeros, zeros == 0, values, replicates
    )


def tracking(units: Units) -> Tracking:
    return Tracking(units, "clip_gain", SUCCESS, np.ones(len(units.example), dtype=np.bool_))


def test_the_conclusions_follow_the_numbers(world: JudgedResults, tmp_path: Path) -> None:
    ranks, pairs, sign = conclusions(Findings(world))
    assert "**Ranks of 3 methods**: the mean gain over LPIPS budgets passes the bar of 0.8" in ranks and "1.00" in ranks
    assert "100 [100, 100] % of pairs are in the right order" in pairs
    assert "since 0 [0, 0] % of the pictures" in sign

    def inverted(rng: random.Random, target: float, kept: float, strength: float) -> dict[str, float]:
        found = planted(rng, target, kept, strength)
        return {**found, "clip_gain": 0.125 - found["clip_gain"]}

    for name, chance in (("good", 0.9), ("fair", 0.5), ("poor", 0.2)):
        add_run(tmp_path / "inverted", name, chance, seeds=2, examples=12, scores=inverted)
    ranks, pairs, sign = conclusions(Findings(read(tmp_path / "inverted")))
    assert "fails the bar of 0.8" in ranks and "no better than chance" in pairs
    assert "since 100 [100, 100] % of the pictures" in sign


@pytest.mark.parametrize(("shared", "verdict"), [(True, "do not see through it"), (False, "see no more than is true")])
def test_a_choice_by_the_scorer_is_judged_by_the_truth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool, verdict: str
) -> None:
    monkeypatch.setattr(import_module("riebench.analysis.standings.entries"), "MIN_LEVELS", len(LEVELS))

    def scores(rng: random.Random, target: float, kept: float, strength: float) -> dict[str, float]:
        # Every edit reaches its target. Both scorers err alike, or the second one knows the truth.
        error = rng.gauss(0, 0.2)
        gains = {"clip_gain": 0.1 * target + error, "clip_gain_2": 0.1 * target + (error if shared else 0.0)}
        return {**planted(rng, target, kept, strength), **gains, "lpips": 0.05 * strength}

    add_run(tmp_path, "sweep", target=1.0, examples=30, scores=scores)
    add_run(tmp_path, "target_prompt", target=1.0, examples=30, method="target_prompt", scores=scores)
    found = conclusions(Findings(read(tmp_path)))
    assert len(found) == 4
    assert verdict in found[-1] and "those of `sweep` are chosen" in found[-1]


def test_planted_scores_are_seen_as_what_they_are(world: JudgedResults) -> None:
    found = track_scores(world.units, SUCCESS)
    for category in (*CATEGORIES, "all"):
        perfect, inverted = (found[score].preference()[category] for score in ("clip_gain", "clip_margin"))
        assert (perfect.value, perfect.low, perfect.high) == (1, 1, 1)
        assert (inverted.value, inverted.low, inverted.high) == (0, 0, 0)
        assert found["clip_gain"].correlation()[category].value == found["clip_gain"].preference()[category].value
        assert found["clip_margin"].correlation()[category].value == -1
    noise, tau = found["clip_direction"].preference()["all"], found["clip_direction"].correlation()["all"]
    assert noise.low is not None and noise.high is not None and noise.low < 0.5 < noise.high
    assert tau.low is not None and tau.high is not None and tau.low < 0 < tau.high
    kept = track_scores(world.units, KEPT)
    # A distance is turned round: less of it is better.
    assert kept["lpips_bg"].preference()["all"].value == 1
    assert found["clip_gain"].preference()["all"].n == 2 * 12 * 3 * 2 * 3


def test_a_noise_scores_interval_holds_one_half_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    held = 0
    for _ in range(100):
        # Pictures of one example are alike in score and in truth: only resampling whole examples allows for it.
        example = np.repeat(np.arange(24), 4)
        score = rng.normal(size=24)[example] + rng.normal(size=96)
        truth = (rng.normal(size=24)[example] + rng.normal(size=96) > 0).astype(float)
        cell = tracking(made_units(list(score), list(truth), list(example), 24)).preference()["all"]
        assert cell.low is not None and cell.high is not None
        held += cell.low <= 0.5 <= cell.high
    assert 88 <= held <= 100


def test_pairs_count_as_in_scipy_also_in_resampled_pictures() -> None:
    rng = np.random.default_rng(1)
    example = np.repeat(np.arange(8), 5)
    score, truth = rng.integers(0, 6, 40).astype(float), rng.integers(0, 2, 40).astype(float)
    units = made_units(list(score), list(truth), list(example), 8, replicates=5)
    found = tracking(units)
    sums = found._sums["change_object"]
    for column, weights in enumerate(units.weights.astype(int)):
        some = np.concatenate([np.flatnonzero(example == e) for e, n in enumerate(weights) for _ in range(n)])
        up, down = score[some][truth[some] == 1], score[some][truth[some] == 0]
        expected = mannwhitneyu(up, down).statistic / (len(up) * len(down))
        right, wrong, level, apart = sums[:, column]
        assert (right + level / 2) / (right + wrong + level) == pytest.approx(expected)
        tau = (right - wrong) / np.sqrt((right + wrong + level) * apart)
        assert tau == pytest.approx(kendalltau(score[some], truth[some]).statistic)
    assert found.correlation()["all"].value == pytest.approx(kendalltau(score, truth).statistic)


def test_a_truth_of_several_values_counts_as_in_scipy() -> None:
    rng = np.random.default_rng(2)
    score, truth = rng.integers(0, 9, 30).astype(float), rng.integers(0, 4, 30) / 4
    units = made_units(list(score), list(truth), [i // 3 for i in range(30)], 10)
    assert tracking(units).correlation()["all"].value == pytest.approx(kendalltau(score, truth).statistic)


def test_what_is_undefined_is_missing_with_its_reason(tmp_path: Path) -> None:
    add_run(tmp_path, "always", target=1.0)
    add_run(tmp_path, "never", target=1.0, skip="lpips_bg")
    units = read(tmp_path).units
    found = track_scores(units, TARGET)
    cell = found["clip_gain"].preference()["all"]
    assert cell.value is None and cell.text() == "– (truth always 100 %)"
    assert found["clip_gain"].correlation()["change_color"].reason == "truth always 100 %"
    assert sign_rates(units, "clip_gain")["all"].false.text() == "– (target always there)"
    lone = track_scores(units, KEPT, method="never")
    assert lone["lpips_bg"].preference()["all"].text() == "– (no value)"
    constant = made_units([1.0] * 6, [0, 1, 0, 1, 0, 1], [0, 0, 1, 1, 2, 2], 3)
    assert tracking(constant).preference()["all"].text() == "– (score constant)"


def test_an_interval_that_cannot_be_had_is_not_made_up() -> None:
    single = made_units([0.1, 0.2, 0.3], [0, 1, 0], [0, 0, 0], 1)
    assert tracking(single).preference()["all"].text() == "0.50 [fewer than 2 independent examples in a category]"
    rare = made_units([0.1, 0.2, 0.3, 0.4], [1, 0, 0, 0], [0, 1, 2, 3], 4)
    cell = tracking(rare).preference()["all"]
    assert cell.value == 0 and cell.low is None and "undefined in more than" in cell.reason


def test_signs_are_counted_with_ties_apart() -> None:
    # Right, right, above without the target, below with it, and a tie.
    units = made_units([0.1, -0.1, 0.2, -0.2, 0.0], [1, 0, 0, 1, 1], [0, 0, 1, 1, 2], 3)
    row = sign_rates(units, "clip_gain")["all"]
    found = (row.reached, row.agree, row.ties, row.false, row.missed)
    assert [cell.value for cell in found] == pytest.approx([3 / 5, 2 / 4, 1 / 5, 1 / 2, 1 / 3])
    assert [cell.n for cell in found] == [5, 4, 5, 2, 3]


def test_pairs_of_methods_are_of_one_example_and_seed() -> None:
    # Example 0: b is better by both, and the two pictures of `a` are no rivals; example 1: score and truth disagree in
    # seed 0, and the scores are equal in seed 1; example 2: equal truth.
    rows = [(0, 0, 0, 0.1, 0), (0, 0, 0, 0.9, 0), (0, 0, 1, 1.0, 1), (1, 0, 0, 0.5, 1), (1, 0, 1, 0.6, 0),
            (1, 1, 0, 0.5, 1), (1, 1, 1, 0.5, 0), (2, 0, 0, 0.5, 1), (2, 0, 1, 0.6, 1)]  # fmt: skip
    example, seed, method, score, truth = (list(column) for column in zip(*rows, strict=True))
    units = replace(
        made_units(score, truth, example, 3), methods=("a", "b"), seed=np.array(seed), method=np.array(method)
    )
    row = pair_agreement(units, "clip_gain", SUCCESS)["all"]
    assert [cell.value for cell in (row.agree, row.level, row.undecided)] == pytest.approx([2 / 3, 1 / 4, 1 / 5])
    assert [cell.n for cell in (row.agree, row.level, row.undecided)] == [3, 4, 5]


def test_methods_are_ranked_by_score_and_by_truth(world: JudgedResults) -> None:
    found = rank_methods(world)
    assert found.methods == ("good", "fair", "poor") and found.levels == (3, 3, 3)
    cell = found.agreement("area", "area_success")
    assert cell.value == 1 and cell.n == 3
    assert found.agreement("clip_gain", SUCCESS).value == 1 and found.agreement("clip_margin", SUCCESS).value == -1
    success, chosen, area = (found.columns[name] for name in ("area_success", "success_at_choice", "area"))
    assert success is not None and chosen is not None and area is not None
    # A perfect score chooses what the truth would choose, in every replicate.
    assert success.shape == (1 + REPLICATES, 3)
    assert chosen == pytest.approx(success) and area == pytest.approx(0.125 * success)


def test_rankings_agree_as_in_scipy() -> None:
    rng = np.random.default_rng(3)
    first, second = rng.integers(0, 4, (6, 5)).astype(float), rng.integers(0, 4, (6, 5)).astype(float)
    expected = [kendalltau(a, b).statistic for a, b in zip(first, second, strict=True)]
    assert taus(first, second) == pytest.approx(expected, nan_ok=True)
    assert np.isnan(taus(np.ones((1, 5)), second[:1])).all()


def test_incomplete_methods_are_not_ranked_and_few_have_no_tau(tmp_path: Path) -> None:
    add_run(tmp_path, "whole", 0.8)
    add_run(tmp_path, "failing", 0.8, fail="change_color-2")
    add_run(tmp_path, "target_prompt", 0.99, method="target_prompt")
    judged = read(tmp_path)
    found = rank_methods(judged)
    assert found.methods == ("whole",) and found.left_out == {"failing": "3 units failed"}
    assert found.agreement("area", "area_success").text() == "– (fewer than 3 methods)"
    # The end of the scale is no method, and failed units have no truth.
    assert judged.units.methods == ("failing", "whole")
    assert len(judged.units.example) == (2 * 6 + 2 * 6 - 1) * 3


def test_nothing_depends_on_the_order_of_lines(tmp_path: Path) -> None:
    names = ("good", "fair", "poor")
    for name in names:
        add_run(tmp_path / "a", name)
    for name in reversed(names):
        folder = add_run(tmp_path / "b", name)
        for file in ("records.jsonl", "scores.jsonl"):
            lines = (folder.path / file).read_text().splitlines(keepends=True)
            random.Random(1).shuffle(lines)
            (folder.path / file).write_text("".join(lines))
    texts = []
    for results in (tmp_path / "a", tmp_path / "b"):
        findings = Findings(read(results))
        texts.append([make(findings, {}) for make in PARTS.values()] + [rank_scatter(findings).digest])
    assert texts[0] == texts[1]


def test_adding_a_method_moves_no_other_methods_number(tmp_path: Path) -> None:
    for name in ("good", "fair"):
        add_run(tmp_path, name)
    before = Findings(read(tmp_path)).preference(SUCCESS, "method")
    add_run(tmp_path, "poor", 0.1)
    after = Findings(read(tmp_path)).preference(SUCCESS, "method")
    assert {name: after[name] for name in before} == before


def test_without_a_judge_there_is_one_clear_line(tmp_path: Path) -> None:
    add_run(tmp_path, "real", judged=False, model="sdxl-turbo")
    with pytest.raises(RiebenchError, match="no edited picture has a verdict"):
        fill_validity(folders_in(tmp_path), tmp_path / "validity.md")
    assert not (tmp_path / "validity.md").exists()
    add_run(tmp_path, "toy")
    document = tmp_path / "validity.md"
    document.write_text("<!-- validity: about -->\n<!-- end -->\n")
    fill_validity(folders_in(tmp_path), document)
    assert "\ntoy on sdxl-turbo: no verdicts, so nothing is said about it.\n" in document.read_text()


def test_document_and_figures_follow_the_scores(tmp_path: Path) -> None:
    results, document = tmp_path / "results", tmp_path / "docs" / "validity.md"
    for name in ("good", "fair", "poor"):
        add_run(results, name, examples=3)
    with pytest.raises(RiebenchError, match="is missing; run `riebench validity"):
        fill_validity(folders_in(results), document, check=True)
    paths = fill_validity(folders_in(results), document)
    assert [path.suffix for path in paths] == [".md", ".png", ".png"]
    first = [path.read_bytes() for path in paths]
    assert TEMPLATE.count("<!-- end -->") == first[0].decode().count("<!-- end -->")
    for path in paths[1:]:
        path.unlink()
    assert [path.read_bytes() for path in fill_validity(folders_in(results), document)] == first
    fill_validity(folders_in(results), document, check=True)

    paths[1].write_bytes(first[2])
    with pytest.raises(RiebenchError, match=rf"{paths[1].name} is out of date"):
        fill_validity(folders_in(results), document, check=True)
    paths[1].write_bytes(first[1])
    add_run(results, "fourth", examples=3)
    with pytest.raises(RiebenchError, match=r"validity\.md is out of date"):
        fill_validity(folders_in(results), document, check=True)
    assert document.read_bytes() == first[0]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("preferd", "no validity part 'preferd'.*preferred"),
        ("figure name=trusd", "no validity figure 'trusd'.*trust"),
        ("preferred truth=kepd", "truth=kepd.*kept"),
    ],
)
def test_a_part_that_is_unknown_is_named(tmp_path: Path, part: str, message: str) -> None:
    add_run(tmp_path, "sae")
    document = tmp_path / "validity.md"
    document.write_text(f"<!-- validity: {part} -->\n<!-- end -->\n")
    with pytest.raises(RiebenchError, match=message):
        fill_validity(folders_in(tmp_path), document)


def test_untrusted_names_are_words_and_lead_nowhere(tmp_path: Path) -> None:
    document = tmp_path / "docs" / "deep" / "validity.md"
    document.parent.mkdir(parents=True)
    document.write_text("<!-- validity: about -->\n<!-- end -->\n")
    add_run(tmp_path / "results", "sae")
    file = add_run(tmp_path / "results", "other").path / "run.json"
    meta = json.loads(file.read_text())
    meta["spec"]["model"]["source"] = "x\n# <img src=y> [l](javascript:z)"
    file.write_text(json.dumps(meta))
    add_run(tmp_path / "results", "unjudged", judged=False, model="<b>bold")
    add_run(tmp_path / "results", "third")
    fill_validity(folders_in(tmp_path / "results"), document)
    text = document.read_text()
    assert "`other` is left out: made by another model of this name: source is x # \\<img src=y>" in text
    assert "](javascript" not in text and "\ntoy on \\<b>bold: no verdicts" in text
    for file in (tmp_path / "results").glob("*/*/*/run.json"):
        meta = json.loads(file.read_text())
        meta["spec"]["model"]["name"] = "../../../evil"
        file.write_text(json.dumps(meta))
    document.write_text("<!-- validity: figure name=trust -->\n<!-- end -->\n")
    runs = [RunFolder(file.parent) for file in sorted((tmp_path / "results").glob("*/*/*/run.json"))]
    with pytest.raises(RiebenchError, match=r"the name of a figure .* leaves the folder images"):
        fill_validity(runs, document)
    assert not list(tmp_path.rglob("*.png"))


def test_the_verb_prints_what_it_wrote_and_refuses_in_one_line(tmp_path: Path) -> None:
    add_run(tmp_path / "results", "sae", examples=3)
    document = tmp_path / "validity.md"
    document.write_text("<!-- validity: signs -->\n<!-- end -->\n")
    line = ["validity", "--results", str(tmp_path / "results"), "--out", str(document)]
    written = CliRunner().invoke(app, line)
    assert written.exit_code == 0 and written.stdout == f"{document}\n"
    assert CliRunner().invoke(app, [*line, "--check"]).exit_code == 0
    add_run(tmp_path / "results", "fair", examples=3)
    stale = CliRunner().invoke(app, [*line, "--check"])
    assert (
        stale.exit_code == 2 and stale.stderr.count("\n") == 1 and f"riebench validity --out {document}" in stale.stderr
    )


def test_a_document_without_parts_is_refused(tmp_path: Path) -> None:
    add_run(tmp_path, "sae")
    document = tmp_path / "validity.md"
    document.write_text("words alone\n")
    with pytest.raises(RiebenchError, match="no part to fill"):
        fill_validity(folders_in(tmp_path), document)
