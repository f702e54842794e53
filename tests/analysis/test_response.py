"""Response curves: their measures on numbers made by hand, on made-up runs, and as a document."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from leaderboard_runs import EXAMPLES, LEVELS, add_run, numbers
from records import make_key, make_record, make_score, make_spec
from typer.testing import CliRunner

from riebench.analysis.leaderboard import make_leaderboard
from riebench.analysis.stats import macro_mean
from riebench.analysis.tables import write_tables
from riebench.analysis.tradeoff.response.curves import CurveSet, read_curves
from riebench.analysis.tradeoff.response.distances import distance_rows
from riebench.analysis.tradeoff.response.document import fill_response
from riebench.analysis.tradeoff.response.measures import (
    CurveMeasures,
    evenness,
    first_crossing,
    linearity,
    measure_curves,
    monotone_share,
)
from riebench.cli.main import app
from riebench.errors import RiebenchError
from riebench.report import write_report
from riebench.store.folder import RunFolder, find_run_folders
from riebench.store.records import BlockDistribution
from riebench.utils.markup import csv_rows

REPLICATES = 200


def test_measures_of_curves_made_by_hand() -> None:
    assert monotone_share([0, 1, 2, 1]) == pytest.approx(2 / 3) and monotone_share([0, 0, 0]) == 1
    places = [0.0, 0.5, 1.0, 2.0, 3.0]
    line = [2 * place for place in places]
    assert evenness(line, places) == pytest.approx(1) and linearity(line, places) == pytest.approx(1)
    assert evenness([0, 0, 0, 0, 1], places) == pytest.approx(0)
    assert evenness([0, 0, 0, 0, 0], places) is None and linearity([1, 1, 1, 1, 1], places) is None
    assert linearity([-value for value in line], places) == 0
    found = linearity([0, 1, 1, 1, 1], places)
    assert found == pytest.approx(np.corrcoef(places, [0, 1, 1, 1, 1])[0, 1] ** 2)
    # Where less strength does more, the curve goes down the strengths.
    assert linearity([0, 1, 2], [1.0, 0.5, 0.0]) == pytest.approx(1)


def test_a_limit_is_crossed_between_strengths() -> None:
    shares = np.array([[0, 0, 0.2, 0.1], [0, 0.1, 0.1, 0.1], [0.3, 0, 0, 0], [0, 0, 0, 1.0]])
    at, crossed = first_crossing(np.arange(4.0), shares, 0.1)
    assert at.tolist() == pytest.approx([1.5, 3, 0, 2.1]) and crossed.tolist() == [True, False, True, True]


def add(
    results: Path, name: str, gain: Callable[[float], float], distance: Callable[[float], float], *, far: float = 0.0,
    method: str = "sae", strengths: tuple[float, ...] = LEVELS, kept: Callable[[float], float] | None = None,
) -> RunFolder:  # fmt: skip
    """Store a run whose gain, LPIPS and kept share follow the strength, with a little noise in the gain."""
    spec = make_spec(name=name, method=method, block_mode="together", strengths=strengths)
    folder = RunFolder(results / "toy" / "toy-turbo" / name, spec)
    keys = [
        make_key(example_id=example, category=category, task=category, strength=strength)
        for example, category in EXAMPLES.items() for strength in strengths
    ]  # fmt: skip
    with folder.open_for_writing(plan=keys) as run:
        for key in keys:
            record = make_record(key, f"images/{key.digest}.png", "0" * 64)
            if far:
                share = min(1.0, far * key.strength)
                one = BlockDistribution(
                    reference="0123abcd", steps=(0, 3), norm=(0.5, 0.7), distance=(1.0, 2.0), far=(share, share / 2),
                    far_before=(0.0, 0.02),
                )  # fmt: skip
                record = record.model_copy(update={"distribution": {"mid.0": one}})
            run.append(record)
            noise = random.Random(f"{key.example_id}{key.strength}").gauss(0, 0.001)
            score = make_score(record, gain(key.strength) + noise)
            found = {"lpips": distance(key.strength), **({} if kept is None else {"judge_kept": kept(key.strength)})}
            run.append_scores(
                [score, *(score.model_copy(update={"metric": m, "value": value}) for m, value in found.items())]
            )
    return folder


def measured(results: Path) -> tuple[CurveSet, dict[str, CurveMeasures]]:
    """The curves below a results folder, by name."""
    found = read_curves("toy", "toy-turbo", find_run_folders(results), REPLICATES)
    return found, {one.curve.name: one for one in measure_curves(found)}


def test_sliders_are_told_from_what_overshoots_and_breaks(tmp_path: Path) -> None:
    add(tmp_path, "even", lambda s: 0.05 * s, lambda s: 0.1 * s)
    add(tmp_path, "overshoots", lambda s: 0.05 * s * (3 - s), lambda s: 0.25 * s)
    add(tmp_path, "jumps", lambda s: 0.1 * (s > 2), lambda s: 0.02 + 0.2 * (s > 2))
    add(tmp_path, "down", lambda s: 0.1 - 0.02 * s, lambda s: 0.4 - 0.1 * s, method="p2p")
    add(tmp_path, "two", lambda s: s, lambda s: s, strengths=(1.0, 2.0))
    found, curves = measured(tmp_path)
    assert set(curves) == {"even", "overshoots", "jumps", "down"}
    assert "fewer than 3 strengths" in found.left_out["two"]
    assert found.rule.metric == "lpips"
    even, over, jump, down = (curves[name] for name in ("even", "overshoots", "jumps", "down"))
    assert even.monotone.mean == 1 and even.evenness.mean == pytest.approx(1) and (even.linearity.mean or 0) > 0.99
    assert over.monotone.mean == pytest.approx(0.5) and (over.linearity.mean or 0) < 0.1
    assert (jump.evenness.mean or 0) < 0.2
    # Distance 0.25 a unit of strength passes 0.5 at every picture above strength 2.
    assert not even.strength_range.reached and even.strength_range.value == 3
    assert over.strength_range.reached and over.strength_range.value == pytest.approx(2.05)
    assert over.distance_range.value == pytest.approx(0.25 * 2.05)
    assert even.budgets[0.1].mean == pytest.approx(0.05, abs=0.002) and even.budgets[0.2].low is not None
    assert even.points[0].strength == 0 and even.points[0].gain.mean == 0
    assert not down.curve.starts_at_zero and down.curve.strengths == LEVELS[::-1] and down.monotone.mean == 1
    assert down.points[0].strength == 3


def test_artifacts_are_read_by_the_judge_where_all_curves_have_a_verdict(tmp_path: Path) -> None:
    add(tmp_path, "breaks", lambda s: 0.05 * s, lambda s: 0.1 * s, kept=lambda s: 0.4 if s > 1.5 else 1.0)
    found, curves = measured(tmp_path)
    assert found.rule.metric == "judge_kept"
    assert curves["breaks"].strength_range.value == pytest.approx(1.55)
    assert [point.artifacts for point in curves["breaks"].points] == [0, 0, 0, 0, 1, 1, 1]
    add_run(tmp_path, "unjudged", 0.05)
    assert measured(tmp_path)[0].rule.metric == "lpips"


def test_the_document_is_generated_and_checked(tmp_path: Path) -> None:
    results, document = tmp_path / "results", tmp_path / "docs" / "curves.md"
    with pytest.raises(RiebenchError, match="no method was scored at three edit strengths or more"):
        fill_response([], document)
    add(results, "even", lambda s: 0.05 * s, lambda s: 0.1 * s, far=0.1)
    folders = find_run_folders(results)
    with pytest.raises(RiebenchError, match=r"curves.md is missing; run `riebench curves"):
        fill_response(folders, document, check=True)
    files = fill_response(folders, document)
    text = document.read_text()
    assert "| even | 0.5 to 3, 6 | 1.00 [1.00, 1.00] |" in text and "none to 3.00" in text
    assert "Dotted: share of edited positions" in text
    assert all(file.exists() for file in files) and len(files) == 3
    row = csv_rows(files[1].read_text().splitlines())[0]
    assert row["curve"] == "even" and row["artifacts_begin"] == "no" and float(row["monotone"]) == 1
    line = ["curves", "--results", str(results), "--out", str(document), "--check"]
    done = CliRunner().invoke(app, line)
    assert done.exit_code == 0 and "3 files are up to date" in done.output
    files[1].write_text(files[1].read_text().replace("even", "odd"))
    with pytest.raises(RiebenchError, match=r"curves.csv is out of date; run `riebench curves"):
        fill_response(folders, document, check=True)
    files[2].unlink()
    fill_response(folders, document)
    fill_response(folders, document, check=True)
    document.write_text(document.read_text().replace("response: about", "response: abut"))
    with pytest.raises(RiebenchError, match=r"no response part 'abut' \(did you mean 'about'\?\)"):
        fill_response(folders, document)


def test_distances_are_means_over_seeds_examples_and_categories_where_steps_differ(tmp_path: Path) -> None:
    rng = random.Random(0)
    places = [
        (f"{category}-{i}", category, seed)
        for category, many in (("change_style", 9), ("change_color", 3), ("change_pose", 12))
        for i in range(many) for seed in range(1 + i % 3)
    ]  # fmt: skip
    folder = RunFolder(tmp_path / "toy" / "toy-turbo" / "sae", make_spec(name="sae", strengths=(1.0,)))
    keys = [make_key(example_id=one, category=category, task=category, seed=seed) for one, category, seed in places]
    values: dict[int | str, dict[str, dict[str, list[float]]]] = {}
    with folder.open_for_writing(plan=keys) as run:
        for key in keys:
            steps = (0, 1, 2) if rng.random() < 0.5 else (1,)
            found = tuple(rng.random() for _ in steps)
            one = BlockDistribution(
                reference="0123abcd", steps=steps, norm=found, distance=found, far=found, far_before=found
            )
            by_step: list[tuple[int | str, float]] = [("all", sum(found) / len(found)), *zip(steps, found, strict=True)]
            for step, value in by_step:
                examples = values.setdefault(step, {}).setdefault(key.category, {})
                examples.setdefault(key.example_id, []).append(value)
            record = make_record(key, f"images/{key.digest}.png", "0" * 64)
            run.append(record.model_copy(update={"distribution": {"mid.0": one}}))
    rows = distance_rows([folder])
    assert [one.step for one in rows] == ["all", 0, 1, 2] and rows[0].units == len(keys)
    for row in rows:
        assert row.norm == row.distance == row.far == row.far_before == pytest.approx(macro_mean(values[row.step]))
    assert rows[0].far_low is not None and rows[0].far_low < rows[0].far < (rows[0].far_high or 0)


def test_shares_off_the_distribution_stand_beside_gain(tmp_path: Path) -> None:
    folders = [
        add(tmp_path, "far", lambda s: 0.05 * s, lambda s: 0.1 * s, far=0.1),
        add(tmp_path, "old", lambda s: 0.05 * s, lambda s: 0.1 * s),
    ]
    rows = distance_rows(folders)
    assert {one.setting for one in rows} == {"far"}
    whole = next(one for one in rows if one.strength == 2 and one.step == "all")
    assert whole.far == pytest.approx(0.15) and whole.far_before == pytest.approx(0.01) and whole.distance == 1.5
    assert whole.clip_gain == pytest.approx(0.1, abs=0.002) and whole.lpips == pytest.approx(0.2)
    last = next(one for one in rows if one.strength == 2 and one.step == 3)
    assert last.far == pytest.approx(0.1) and last.norm == pytest.approx(0.7) and last.far_low is None
    write_tables(folders)
    table = (tmp_path / "toy" / "toy-turbo" / "tables" / "off_distribution.md").read_text()
    assert "| far | 2 | all | mid.0 | 15 [15, 15] | 1 | 1.50 | 0.60 | " in table
    board = numbers(make_leaderboard(tmp_path))
    assert float(board["far"]["off_distribution"]) == pytest.approx(0.225)
    assert float(board["far"]["off_distribution_before"]) == pytest.approx(0.01)
    assert board["old"]["off_distribution"] == ""


def test_the_page_shows_the_curves(tmp_path: Path) -> None:
    add(tmp_path, "even", lambda s: 0.05 * s, lambda s: 0.1 * s)
    page = write_report(tmp_path, tmp_path / "page").page.read_text()
    assert "Response to the edit strength of toy on toy-turbo" in page
    assert "Gain at equal LPIPS" in page and "its LPIPS to the source exceeds 0.5" in page
