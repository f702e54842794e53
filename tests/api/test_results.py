"""`riebench.Results`: frames, tables, pictures and comparisons of stored runs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from leaderboard_runs import add_run
from records import make_score
from scored_runs import SIDE, stored_run

import riebench
from riebench.analysis.compare import compare, comparison_text, few_levels_note
from riebench.analysis.tables import model_tables
from riebench.api.results import CONFIGURATION_TABLES, RECORD_TABLES
from riebench.store.folder import RunFolder, find_run_folders


def scored(results: Path) -> RunFolder:
    """A run of two pictures, with numbers of two metrics, one of them by two networks."""
    run = stored_run(results)
    first, second = run.records()
    one = make_score(first, 0.5, "a")
    run.append_scores([
        one, one.model_copy(update={"backbone": "b", "value": 0.7}),
        one.model_copy(update={"backbone": "", "metric": "lpips", "value": 0.1}),
        make_score(second, 0.0, "b").model_copy(update={"value": None, "reason": "same_prompts"}),
        make_score(second, 9.0).model_copy(update={"metric": "lpips", "picture": "other"}),
    ])  # fmt: skip
    return run


def test_frames_have_a_row_for_each_picture_and_for_each_score(tmp_path: Path) -> None:
    run = scored(tmp_path)
    results = riebench.load_results(tmp_path)
    records = results.records
    assert list(records["unit"]) == [record.key.digest for record in run.records()]
    assert list(records["status"]) == ["ok", "ok"] and list(records["method"]) == ["sae", "sae"]
    long = results.scores
    # The score of a picture that was made anew since is left out.
    assert len(long) == 4 and 9.0 not in list(long["value"].dropna())
    assert list(long[long["value"].isna()]["reason"]) == ["same_prompts"]
    wide = results.frame()
    assert list(wide["lpips"].fillna(-1)) == [0.1, -1]
    # The network that tables show gives the column its plain name.
    assert wide.loc[0, "clip_gain"] == 0.7 and wide.loc[0, "clip_gain:a"] == 0.5


def test_results_without_scores_have_empty_frames(tmp_path: Path) -> None:
    stored_run(tmp_path)
    results = riebench.load_results(tmp_path)
    assert len(results.scores) == 0 and {"unit", "metric", "value"} <= set(results.scores.columns)
    assert len(results.frame()) == 2


def test_a_row_a_number_and_a_digest_name_the_same_picture(tmp_path: Path) -> None:
    run = scored(tmp_path)
    results = riebench.load_results(tmp_path)
    stored = run.read_image(str(run.records()[1].image))
    rows: list[Any] = [1, results.frame().iloc[1], results.records.iloc[1], next(results.frame()[1:].itertuples())]
    rows += [run.records()[1].key.digest, dict(results.frame().iloc[1])]
    for row in rows:
        assert np.array_equal(np.asarray(results.picture(row)), stored)
    source = results.picture(0, which="source")
    assert np.array_equal(np.asarray(source), run.shared.read_image(str(run.records()[0].source_image)))
    assert source.size == (SIDE, SIDE)
    assert results.grid(results.frame()).height > results.grid([0], which=["edited"]).height


def test_a_picture_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    run = scored(tmp_path)
    results = riebench.load_results(tmp_path)
    for image in (run.path / "images").iterdir():
        image.unlink()
    with pytest.raises(riebench.RiebenchError, match=r"edited picture of unit .* is not on this machine"):
        results.picture(0)
    with pytest.raises(riebench.RiebenchError, match=r"there is no row 2; these results have 2 rows"):
        results.picture(2)
    with pytest.raises(riebench.RiebenchError, match=r"no picture 'edit'.*'edited'"):
        results.picture(0, which="edit")  # type: ignore[arg-type]
    with pytest.raises(riebench.RiebenchError, match=r"no unit 'x' among these"):
        results.picture("x")
    with pytest.raises(riebench.RiebenchError, match=r"give a row of frame\(\)"):
        results.picture(results.frame()[["unit"]].iloc[0])


def test_tables_are_those_of_the_files(tmp_path: Path) -> None:
    add_run(tmp_path, "sae", 0.1, levels=3)
    add_run(tmp_path, "other", 0.05, levels=3)
    folders = find_run_folders(tmp_path)
    results = riebench.load_results(tmp_path)
    written = model_tables(folders)
    assert {path.name for path in written} == {*CONFIGURATION_TABLES, *RECORD_TABLES}
    for path, (_, text) in written.items():
        table = results.table(path.name)
        assert len(table) == len(text.splitlines()) - 1
    means = results.table("per_block")
    cell = means.query("setting == 'sae' and metric == 'clip_gain' and category == 'all' and strength == 1.5").iloc[0]
    assert abs(cell["mean"] - 0.15) < 0.01 and cell["n_scored"] == 24 and cell["ci_low"] < cell["mean"]
    with pytest.raises(riebench.RiebenchError, match=r"no table 'per_blok'.*'per_block'"):
        results.table("per_blok")
    with pytest.raises(riebench.RiebenchError, match=r"unknown profile 'papr'"):
        results.table("per_block", profile="papr")


def test_a_comparison_is_that_of_the_command(tmp_path: Path) -> None:
    add_run(tmp_path, "sae", 0.1, levels=3)
    add_run(tmp_path, "other", 0.05, levels=3)
    folders = find_run_folders(tmp_path)
    found = riebench.load_results(tmp_path).compare("sae", "other")
    wanted = compare(folders, "sae", "other")
    notes = few_levels_note(folders, ("sae", "other"))
    assert found.differences == tuple(wanted)
    assert repr(found) == comparison_text(wanted, "sae", "other", notes).rstrip("\n")
    assert list(found.frame()["mean"]) == [one.mean for one in wanted] and found.frame()["clear"].all()
    with pytest.raises(riebench.RiebenchError, match=r"no method 'othr'.*'other'"):
        riebench.load_results(tmp_path).compare("sae", "othr")


def test_one_suite_and_model_are_compared_at_a_time(tmp_path: Path) -> None:
    run = add_run(tmp_path, "sae", 0.1, levels=3)
    add_run(tmp_path, "other", 0.05, levels=3)
    stored_run(tmp_path)
    results = riebench.load_results(tmp_path)
    with pytest.raises(riebench.RiebenchError, match=r"suite='mine', model='m'"):
        results.compare("sae", "other")
    assert results.compare("sae", "other", suite="toy").first == "sae"
    assert results.select(suite="toy", settings="sae").run_folders[0].path == run.path
    with pytest.raises(riebench.RiebenchError, match=r"no method configuration 'sea'.*'sae'"):
        results.select(settings=["sea"])


def test_the_leaderboard_has_a_row_for_each_method(tmp_path: Path) -> None:
    add_run(tmp_path, "sae", 0.1, levels=3)
    add_run(tmp_path, "other", 0.05, levels=3)
    assert list(riebench.load_results(tmp_path).leaderboard()["method"]) == ["sae", "other"]


def test_printed_results_list_their_runs_and_quote_nothing_raw(tmp_path: Path) -> None:
    scored(tmp_path)
    place = tmp_path / "<b>bold"
    shutil.copytree(tmp_path / "mine", place / "mine")
    results = riebench.load_results(place)
    assert "1 run" in repr(results) and "mine" in repr(results).splitlines()[-1]
    html = results._repr_html_()
    assert "<td>sae</td>" in html and "&lt;b&gt;bold" in html and "<b>bold" not in html


def test_a_part_of_a_results_folder_is_opened_too(tmp_path: Path) -> None:
    run = scored(tmp_path)
    for place in (tmp_path, tmp_path / "mine", tmp_path / "mine" / "m", run.path):
        assert riebench.load_results(place).settings == ("sae",)
    with pytest.raises(riebench.RiebenchError, match=r"holds no runs"):
        riebench.load_results(run.path / "images")
    with pytest.raises(riebench.RiebenchError, match=r"there is no results folder"):
        riebench.load_results(tmp_path / "nowhere")


def test_results_on_the_hub_are_fetched_by_their_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scored(tmp_path)
    asked: list[Any] = []

    def fetch_results(address: str, *, offline: bool) -> Path:
        asked.append((address, offline))
        return tmp_path

    monkeypatch.setattr("riebench.store.remote.fetch_results", fetch_results)
    results = riebench.load_results("hf://datasets/someone/results@main", offline=True)
    assert asked == [("hf://datasets/someone/results@main", True)] and results.settings == ("sae",)
