"""Agreement of scorers with each other, on numbers whose ranks are known, and calibration of named scorers."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr
from scored_runs import EXAMPLES, key_of, stored_run
from typer.testing import CliRunner

from riebench.analysis.configurations import EVERYTHING
from riebench.analysis.tradeoff import Examples
from riebench.analysis.validity.document import preference_table, verdict_table
from riebench.analysis.validity.findings import Findings
from riebench.analysis.validity.plots import trust_heat_maps
from riebench.analysis.validity.scorers import (
    ScoredPictures,
    agreement_document,
    agreement_figure,
    compare_scorers,
    read_pictures,
)
from riebench.analysis.validity.units import JudgedResults, Units
from riebench.cli.main import app
from riebench.store.records import ScoreRecord


def pictures(**values: np.ndarray) -> ScoredPictures:
    """Two categories of ten examples, three pictures each."""
    names = {f"{category}-{i:02}": category for category in ("change_object", "change_color") for i in range(10)}
    examples = Examples.of(names)
    return ScoredPictures(
        examples, np.repeat(np.arange(20), 3), values, {name: (f"net of {name}",) for name in values}
    )  # fmt: skip


def test_the_correlation_of_a_category_is_spearmans_over_its_pictures() -> None:
    rng = np.random.default_rng(0)
    first = rng.normal(size=60)
    second = first + rng.normal(size=60)
    second[5] = np.nan
    second[30:] = -first[30:]
    (row,) = compare_scorers(pictures(clip_gain=first, vqa_gain=second), replicates=400)
    # Categories stand in their fixed order; examples of change_color come first in the arrays.
    known = np.isfinite(second[:30])
    expected = spearmanr(first[:30][known], second[:30][known]).statistic
    assert (row.first, row.second) == ("clip_gain", "vqa_gain")
    color, other, whole = (row.cells[name] for name in ("change_color", "change_object", EVERYTHING))
    assert color.value == pytest.approx(expected) and color.n == 29
    assert [other.value, other.low, other.high] == pytest.approx([-1, -1, -1])
    assert whole.value == pytest.approx((expected - 1) / 2) and whole.n == 59
    assert color.low is not None and color.high is not None and color.low < expected < color.high


def test_only_scorers_that_answer_the_same_question_are_compared() -> None:
    values = {name: np.arange(60.0) for name in ("clip_gain", "clip_gain_2", "lpips", "dreamsim")}
    values["dreamsim"] = np.zeros(60)
    rows = compare_scorers(pictures(**values), replicates=50)
    assert [(row.first, row.second) for row in rows] == [("clip_gain", "clip_gain_2"), ("lpips", "dreamsim")]
    assert rows[1].cells["change_color"].value is None and rows[1].cells[EVERYTHING].reason == "no category"
    text = agreement_document(pictures(**values), rows, "toy on m").markdown()
    assert "`dreamsim` (version 1) by net of dreamsim" in text
    assert "## Is the edit there?" in text and "– (one score is constant)" in text
    assert agreement_figure(rows).png().startswith(b"\x89PNG")


def test_the_command_writes_table_numbers_and_figure_of_stored_runs(tmp_path: Path) -> None:
    results = tmp_path / "results"
    run = stored_run(results)
    done = CliRunner().invoke(app, ["agreement", "--results", str(results)])
    assert done.exit_code == 2 and "no picture was measured by two scorers" in done.stderr
    records = {record.key.digest: record.picture_id for record in run.records()}
    unit = [key_of(example).digest for example in EXAMPLES]
    scores = [
        ScoreRecord(unit=digest, metric=metric, version=1, backbone=metric, picture=records[digest], value=value)
        for metric, values in {"lpips": (0.1, 0.3), "dinov2_image": (0.9, 0.2)}.items()
        for digest, value in zip(unit, values, strict=True)
    ]
    with run.lock(None):
        run.append_scores(scores)
    found = read_pictures([run])
    # A distance is turned round, so that both agree.
    assert np.argsort(found.values["lpips"]).tolist() == np.argsort(found.values["dinov2_image"]).tolist()
    done = CliRunner().invoke(app, ["agreement", "--results", str(results), "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert files == [f"scorer_agreement-mine-m.{end}" for end in ("csv", "md", "png")]
    with (tmp_path / "out" / files[0]).open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {(row["first"], row["second"]) for row in rows} == {("lpips", "dinov2_image")}
    assert rows[0]["pictures"] == "2" and rows[0]["reason"] == "too few pictures"
    command = ["agreement", "--results", str(results), "--out", str(tmp_path / "out"), "--check"]
    assert "3 files are up to date" in CliRunner().invoke(app, command).output
    for name in files:
        before = (tmp_path / "out" / name).read_bytes()
        (tmp_path / "out" / name).write_bytes(b"older")
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 2 and f"{name} is out of date; run `riebench agreement`" in done.stderr
        (tmp_path / "out" / name).write_bytes(before)


def judged(**values: np.ndarray) -> Findings:
    """Results in which every second of 40 pictures is a success."""
    examples = Examples.of({f"e{i:02}": "change_color" for i in range(20)})
    truth = np.tile([0.0, 1.0], 20)
    usual = {name: np.full(40, np.nan) for name in ("clip_margin", "clip_direction", "lpips", "lpips_bg")}
    units = Units(
        examples, ("sae",), np.repeat(np.arange(20), 2), np.zeros(40, dtype=np.intp), np.zeros(40, dtype=np.intp),
        np.ones(40, dtype=np.bool_),
        {**usual, "clip_gain": truth, "judge_target": truth, "judge_kept": truth, "success": truth, **values},
        replicates=50,
    )  # fmt: skip
    return Findings(JudgedResults("toy", "m", units, (), {}, {}))


def test_a_named_scorer_is_held_against_the_truth_where_it_measured() -> None:
    plain, asked = judged(), judged(vqa_gain=np.tile([0.1, 0.7], 20), dreamsim=np.full(40, np.nan))
    assert "vqa_gain" not in verdict_table(plain, {}) and "vqa_gain" not in preference_table(plain, {})
    assert asked.judged.units.scores[-1] == "vqa_gain"
    assert asked.preference("success")["change_color"]["vqa_gain"].value == 1
    assert "| vqa_gain | success | yes | 1.00 [1.00, 1.00] |" in verdict_table(asked, {})
    assert "dreamsim" not in verdict_table(asked, {})
    assert trust_heat_maps(asked).numbers["rows"][-1] == "vqa_gain"
    assert trust_heat_maps(plain).numbers["rows"] == trust_heat_maps(judged()).numbers["rows"]
