"""What `riebench export` writes: the same numbers as the tables, in files that other programs read."""

from __future__ import annotations

import csv
import io
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import example as tried
from hypothesis import given
from hypothesis import strategies as st
from latex import check_latex
from leaderboard_runs import add_run
from scored_runs import EXAMPLES, TASKS, stored_run
from typer.testing import CliRunner

from riebench.analysis.configurations import configurations
from riebench.analysis.export import data_frame, export, push, save_dataset, to_dataset, unit_rows
from riebench.analysis.export.figures import figure_files
from riebench.cli.main import app
from riebench.errors import RiebenchError
from riebench.store.folder import RunFolder, find_run_folders
from riebench.utils.files import temporary_path
from riebench.utils.markup import NUMBER, Document, Heading, MarkupTable, Paragraph, csv_rows, csv_text, latex_table


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods, one of them with gaps."""
    place = tmp_path_factory.mktemp("results")
    add_run(place, "good", 0.03, backbone="a-clip", levels=2)
    add_run(place, "gap_y", 0.01, backbone="b-clip", levels=2, fail="change_color-3", unscored="change_color-1")
    return place


def test_everything_is_exported_and_the_same_again(results: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        result = CliRunner().invoke(app, ["export", "--results", str(results), "--out", str(tmp_path / name)])
        assert result.exit_code == 0, result.output
    written = sorted(file.relative_to(tmp_path / "one") for file in (tmp_path / "one").rglob("*") if file.is_file())
    names = {str(path) for path in written}
    assert {f"{n}.{end}" for n in ("units", "configurations", "methods") for end in ("csv", "tex", "parquet")} <= names
    tables = {
        f"toy/toy-turbo/tables/{n}.tex"
        for n in ("per_block", "per_category", "per_method", "feature_share", "switched")
    }
    assert tables | {"toy/toy-turbo/figures/trade_off.svg", "toy/toy-turbo/figures/trade_off.png"} <= names
    assert all((tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes() for path in written)
    for path in written:
        if path.suffix == ".tex":
            check_latex((tmp_path / "one" / path).read_text())
    units = pd.read_csv(tmp_path / "one" / "units.csv")
    assert len(units) == 96 and not units.duplicated(["setting", "unit"]).any()
    gaps = units[units["setting"] == "gap_y"]
    assert (gaps["status"] == "error").sum() == 2 and gaps["clip_gain:b-clip"].isna().sum() == 4
    assert gaps["clip_gain:a-clip"].isna().all()
    assert set(units.loc[units["status"] == "ok", "features_added"]) == {4}
    stored = pd.read_parquet(tmp_path / "one" / "units.parquet")
    assert str(stored["strength"].dtype) == "Float64" and str(stored["seed"].dtype) == "Int64"
    assert stored["clip_gain:a-clip"].mean() == pytest.approx(units["clip_gain:a-clip"].mean(), rel=1e-5)
    cells = pd.read_parquet(tmp_path / "one" / "configurations.parquet")
    (found,) = cells.query(
        "setting == 'good' and strength == 1 and metric == 'clip_gain' and category == 'all'"
    ).to_dict("records")
    row = next(c for c in configurations(find_run_folders(results)[1]) if c.strength == 1).row("clip_gain", "all")
    assert (found["mean"], found["ci_low"], found["ci_high"]) == (row.mean, row.ci_low, row.ci_high)
    methods = pd.read_csv(tmp_path / "one" / "methods.csv").set_index("method")
    assert methods.loc["gap_y", "notes"] == "2 units failed" and str(methods.loc["gap_y", "score"]) == "nan"
    assert (
        methods.loc["good", "notes"] == "2 of 6 edit strengths tested" and float(str(methods.loc["good", "score"])) > 0
    )


def test_a_score_of_an_older_picture_is_not_exported(tmp_path: Path) -> None:
    folder = add_run(tmp_path, "good", 0.03, levels=1)
    (file,) = tmp_path.rglob("scores.jsonl")
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0].replace('"picture":"00000000"', '"picture":"11111111"'), *lines[1:]]) + "\n")
    rows = unit_rows([folder])
    assert sum("clip_gain" not in row for row in rows) == 1
    assert data_frame(rows)["clip_gain"].isna().sum() == 1


def test_columns_keep_their_types_whatever_is_missing() -> None:
    found = data_frame([{"seed": 1, "strength": 1.0, "reason": None, "gain": None}, {"seed": None, "strength": 2.0}])
    assert [str(kind) for kind in found.dtypes] == ["Int64", "Float64", "string", "Float64"]


def test_latex_escapes_everything() -> None:
    nasty = "50% & $x_1$ #{a}^~\\ – line\nbreak\x07"
    text = latex_table(["a_b", "100%"], [["[0, 1]", nasty], ["*", None], ["x", float("nan")]], "Kept, % & more")
    check_latex(text)
    assert r"50\% \& \$x\_1\$ \#\{a\}" in text and "line break" in text and r"\caption{Kept, \% \& more}" in text
    assert "{}[0, 1]" in text and "{}* & --" in text and "x & --" in text
    check_latex(latex_table(["n"], [[i] for i in range(60)]))
    assert r"\begin{longtable}" in latex_table(["n"], [[i] for i in range(60)])


MARKS = st.sampled_from(["", "'", "''"]), st.sampled_from([*"=+-@\t\r\n\uff1d"]), st.text(max_size=5)


@given(st.lists(st.one_of(st.text(max_size=8), st.tuples(*MARKS).map("".join)), min_size=3, max_size=3))
@tried(["a\r=1", "\r", "b\n=1"])
@tried(["=cmd|' /C calc'!A0", "+1+1", "-2+3"])
@tried(["@SUM(1)", "\t=1", "'=1"])
def test_no_cell_of_a_csv_file_is_a_formula_and_all_are_read_back(cells: list[str]) -> None:
    """Neither a value nor a column's name, which holds the name of a network."""
    text = csv_text(["a", f"clip:{cells[0]}", cells[1] + "x"], [cells])
    fields = [field for row in csv.reader(io.StringIO(text, newline="")) for field in row]
    assert not any(re.match(r"[=+@\-\t\r\n\uff1d]", field) and not NUMBER.fullmatch(field) for field in fields)
    (row,) = csv_rows(io.StringIO(text, newline=""))
    assert row["a"] == cells[0] and row[cells[1] + "x"] == cells[2]


def test_numbers_in_csv_files_stay_numbers() -> None:
    text = csv_text(["a", "b", "c", "d", "e"], [[-1.5, -2, "-0.25", "+1e-3", None]])
    assert text == "a,b,c,d,e\n-1.5,-2,-0.25,+1e-3,\n"


def test_reasons_of_failed_units_are_no_formulas_in_exports_and_tables(tmp_path: Path) -> None:
    folder = add_run(tmp_path / "results", "good", 0.03, levels=1)
    record = folder.records()[0].model_copy(update={"status": "error", "reason": "=HYPERLINK(1)", "image": None})
    folder.append(record)
    for file in export([folder], tmp_path / "out", ["csv"]):
        for row in csv.reader(file.read_text().splitlines()):
            assert not any(field.startswith(("=", "+", "@")) for field in row)
    assert "'=HYPERLINK(1)" in (tmp_path / "out" / "units.csv").read_text()


def test_the_tables_of_a_document_are_latex_with_the_heading_above_as_caption() -> None:
    words = (Heading(1, ("Title",)), Paragraph(("no table",)))
    assert Document(words).latex() == ""
    table = MarkupTable(("a|b",), (("c",),))
    text = Document((*words, table, Heading(2, ("Second",)), table)).latex()
    check_latex(text)
    assert text.index(r"\caption{Title}") < text.index(r"\caption{Second}") and text.count("a|b") == 2


def test_figures_are_the_same_twice_and_absent_without_numbers(tmp_path: Path) -> None:
    found = configurations(add_run(tmp_path, "good", 0.03, levels=3))
    files = figure_files(found)
    assert [*files] == ["trade_off.svg", "trade_off.png"] and files == figure_files(found)
    assert b"<dc:date>" not in files["trade_off.svg"] and files["trade_off.png"].startswith(b"\x89PNG")
    assert figure_files(configurations(add_run(tmp_path, "none", None))) == {}


def test_a_dataset_has_pictures_prompts_and_missing_ones(tmp_path: Path) -> None:
    from datasets import load_from_disk

    folder = stored_run(tmp_path / "results")
    place = save_dataset(to_dataset([folder], TASKS), tmp_path / "out" / "dataset")
    first = {file.name: file.read_bytes() for file in place.iterdir()}
    loaded: Any = load_from_disk(str(place))
    records = folder.records()
    for row, record, example in zip(loaded, records, EXAMPLES, strict=True):
        assert row["unit"] == record.key.digest and row["source_prompt"] == example.plain.source
        for name, pixels in (("edited", folder.read_image(record.image or "")),
                             ("source", folder.shared.read_image(record.source_image or ""))):  # fmt: skip
            assert (pixels == row[f"{name}_picture"]).all()
    assert b"/results/" not in first["data-00000-of-00001.arrow"]
    (folder.path / str(records[0].image)).unlink()
    save_dataset(to_dataset([folder]), place)
    again: Any = load_from_disk(str(place))
    assert again[0]["edited_picture"] is None and again[1]["edited_picture"] is not None
    assert again[0]["source_prompt"] is None
    assert [path.name for path in place.parent.iterdir()] == ["dataset"]


def test_what_is_no_dataset_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "thesis.txt").write_text("years of work")
    made = to_dataset([stored_run(tmp_path / "results")])
    with pytest.raises(RiebenchError, match="is there and no dataset"):
        save_dataset(made, tmp_path / "dataset")
    assert (tmp_path / "dataset" / "thesis.txt").exists()


def test_two_exports_at_once_do_not_collide(tmp_path: Path) -> None:
    """Both end, one complete data set stays, and nothing beside it."""
    from datasets import load_from_disk

    made = to_dataset([stored_run(tmp_path / "results")], TASKS)
    place = tmp_path / "out" / "dataset"
    for _ in range(4):
        with ThreadPoolExecutor(4) as pool:
            assert [*pool.map(lambda _: save_dataset(made, place), range(4))] == [place] * 4
    assert len(load_from_disk(str(place))) == 2 and [one.name for one in place.parent.iterdir()] == ["dataset"]


def test_what_a_killed_export_left_goes_with_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = to_dataset([stored_run(tmp_path / "results")], TASKS)
    place = tmp_path / "out" / "dataset"
    with monkeypatch.context() as killed:
        killed.setattr("riebench.utils.files.os.getpid", lambda: 999_999_999)
        left = temporary_path(place)
    left.mkdir(parents=True)
    (left / "half").touch()
    running = temporary_path(place)
    running.mkdir()
    save_dataset(made, place)
    assert {*place.parent.iterdir()} == {place, running}


def test_an_upload_happens_only_when_asked_and_fails_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datasets import Dataset

    asked: list[tuple[str, bool]] = []

    def refuse(self: Dataset, name: str, *, private: bool) -> None:
        asked.append((name, private))
        raise ConnectionError("401 Unauthorized\nrequest id: 12")

    monkeypatch.setattr(Dataset, "push_to_hub", refuse)
    stored_run(tmp_path / "results")
    line = ["export", "--results", str(tmp_path / "results"), "--out", str(tmp_path / "out"), "--format", "dataset"]
    assert CliRunner().invoke(app, line).exit_code == 0 and not asked
    refused = CliRunner().invoke(app, [*line, "--push-to", "me/mine"])
    assert refused.exit_code == 2 and asked == [("me/mine", True)]
    assert (
        refused.stderr.strip().splitlines()[-1].startswith("riebench: me/mine could not be uploaded: 401 Unauthorized;")
    )
    with pytest.raises(RiebenchError, match="write OWNER/NAME"):
        push(to_dataset([RunFolder(tmp_path / "results" / "mine" / "m" / "sae")]), "mine")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--format", "latecks"], "no format 'latecks' (did you mean 'latex'?)"),
        (["--push-to", "me/mine"], "add --format dataset"),
        (["--format", "dataset", "--push-to", "mine"], "write OWNER/NAME"),
        ([], "holds no runs"),
    ],
)
def test_what_cannot_be_exported_is_one_line_and_writes_nothing(tmp_path: Path, options: list[str], words: str) -> None:
    result = CliRunner().invoke(app, ["export", "--results", str(tmp_path), "--out", str(tmp_path / "out"), *options])
    assert result.exit_code == 2 and words in result.stderr and len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_formats_can_be_chosen(tmp_path: Path) -> None:
    folder = add_run(tmp_path, "good", 0.03, levels=1)
    written = export([folder], tmp_path / "out", ["csv"])
    assert [path.name for path in written] == ["units.csv", "configurations.csv", "methods.csv"]


def test_a_models_name_leads_nowhere(tmp_path: Path) -> None:
    run = add_run(tmp_path / "results", "good", 0.03, levels=1)
    file = run.path / "run.json"
    meta = json.loads(file.read_text())
    meta["spec"]["model"]["name"] = "../../../evil"
    file.write_text(json.dumps(meta))
    # A folder of another name than its run is left out, so that the name is not even looked at.
    assert find_run_folders(tmp_path / "results") == []
    with pytest.raises(RiebenchError, match="leaves the folder of exports"):
        export([RunFolder(run.path)], tmp_path / "a" / "out", ["latex", "figures"])
    assert not list(tmp_path.rglob("*evil*"))
