"""Tables of the leaderboard: which methods stand together, in which order, and what leaderboard.csv holds."""

from __future__ import annotations

from pathlib import Path

import pytest
from leaderboard_runs import add_profile_scores, add_run, numbers, printed_rows, tables
from paths import ROOT
from typer.testing import CliRunner

from riebench.analysis.leaderboard import Leaderboard, make_leaderboard
from riebench.analysis.leaderboard.rows import COLUMNS
from riebench.cli.main import app
from riebench.tasks.schema import INPUTS, inputs_in_words
from riebench.utils.markup import BulletList, Code, MarkupTable

MOST_COLUMNS = 8


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Methods of several inputs, controls, both ends, methods that lack something; two are scored by a profile too."""
    place = tmp_path_factory.mktemp("results")
    add_run(place, "sae_sweep", 0.02)
    add_run(place, "patch", 0.04, method="activation_patch")
    add_run(place, "wrong", 0.03, method="wrong_example", access="PAMT")
    add_run(place, "random_features", -0.01, method="random_features")
    add_run(place, "random_two", 0.05, method="random_features", levels=2)
    add_run(place, "failing", 0.09, method="neurons", fail="change_color-3")
    lerp = add_run(place, "lerp", 0.03, method="neurons", access="P")
    add_run(place, "switch", 0.01, method="neurons", access="P", levels=1)
    add_run(place, "steering", 0.01, method="concept_steering", access="T", levels=1)
    add_run(place, "invert", 0.01, method="neurons", access="PV", levels=1)
    add_run(place, "masked", 0.01, method="neurons", access="PM", levels=1)
    add_run(place, "target_prompt", 0.1, method="target_prompt", access="P", levels=1)
    add_run(place, "no_edit", 0.0, method="no_edit", access="", levels=1)
    add_profile_scores(lerp)
    return place


@pytest.fixture(scope="module")
def board(results: Path) -> Leaderboard:
    return make_leaderboard(results)


def test_one_table_for_each_choice_of_inputs_fewest_first_and_best_first(board: Leaderboard) -> None:
    found = {heading: [row["method"] for row in its] for heading, its in tables(board).items()}
    assert found == {
        "prompt only": ["lerp", "target_prompt", "no_edit", "switch"],
        "training examples only": ["steering"],
        "prompt + masks": ["masked"],
        "prompt + inversion": ["invert"],
        "prompt + target activations + masks": [
            "patch",
            "wrong",
            "sae_sweep",
            "random_features",
            "random_two",
            "failing",
        ],
    }
    assert [*found] == sorted(found, key=lambda words: words.count("+"))


def test_controls_ends_and_incomplete_methods_are_marked(board: Leaderboard) -> None:
    notes = {name: (row["rank"], row["notes"]) for name, row in printed_rows(board).items()}
    assert notes["wrong"] == ("2", "control of sae") and notes["sae_sweep"][1] == ""
    assert notes["random_two"] == ("–", "control of sae; 2 of 6 edit strengths tested")
    assert notes["no_edit"] == notes["target_prompt"] == ("–", "end of the scale")
    assert notes["failing"] == ("–", "6 units failed")
    assert {name: row["control_of"] for name, row in numbers(board).items() if row["control_of"]} == {
        "wrong": "sae", "random_features": "sae", "random_two": "sae",
    }  # fmt: skip


def test_tables_are_narrow_and_every_column_is_defined_below_them(board: Leaderboard) -> None:
    header: tuple[str, ...] = ()
    defined = 0
    for block in board.document.blocks:
        if isinstance(block, MarkupTable):
            assert len(block.header) <= MOST_COLUMNS and block.header[0] in ("rank", "SAE")
            assert block.header[-1] == "notes"
            header = block.header
        elif isinstance(block, BulletList) and header:
            assert [item[0] for item in block.items] == [Code(name) for name in header]
            assert all(len("".join(str(piece) for piece in item[1:])) > 10 for item in block.items)
            defined, header = defined + 1, ()
    # Of methods and of SAEs, in both profiles.
    assert defined == 4


def test_profiles_have_the_same_form(board: Leaderboard) -> None:
    section = board.document.markdown().split("\n## ")[2]
    assert section.startswith("toy on toy-turbo, profile `paper`\n\n### Inputs used: no inputs")
    only = section.split("### Inputs used: prompt only")[1].split("###")[0].splitlines()
    assert "| rank | configuration | paper_text_target | 95 % interval | lpips | notes |" in only
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in only if line.startswith("| 1 |")]
    assert cells[0][1] == "lerp x3" and cells[0][4:] == ["0.300", ""]
    assert "| – | switch | – | – | 0.050 | 24 of 24 units have no score |" in only
    paper = [line for line in board.numbers.splitlines() if line.startswith("toy,toy-turbo,paper,P,P,1,")]
    assert len(paper) == 1 and ",lerp x3," in paper[0] and ",paper_text_target," in paper[0]


def test_the_csv_has_a_row_for_each_method_with_all_numbers(board: Leaderboard) -> None:
    lines = board.numbers.splitlines()
    assert lines[0].split(",") == [*COLUMNS]
    stored = numbers(board)
    assert [*stored] == [*printed_rows(board)] and sum(",default," in line for line in lines) == len(stored)
    for name, row in printed_rows(board).items():
        mine = stored[name]
        assert (mine["rank"] or "–", mine["notes"]) == (row["rank"], row["notes"])
        assert inputs_in_words(mine["table"]) in tables(board)
        if row["mean gain"] != "–":
            low, high = (f"{round(100 * float(mine[end]), 2) + 0.0:.2f}" for end in ("score_low", "score_high"))
            assert row["95 % interval"] == f"[{low}, {high}]"
            assert f"{100 * float(mine['score']):.2f}" == row["mean gain"] and mine["micro_average"]
    assert stored["failing"]["score"] == "" and stored["failing"]["n_scored"] == "138"


def test_the_command_writes_and_checks_both_files(tmp_path: Path) -> None:
    add_run(tmp_path, "good", 0.03, levels=1)
    written = CliRunner().invoke(app, ["leaderboard", "--results", str(tmp_path)])
    assert written.stdout.split() == [str(tmp_path / "leaderboard.md"), str(tmp_path / "leaderboard.csv")]
    checked = CliRunner().invoke(app, ["leaderboard", "--check", "--results", str(tmp_path)])
    assert checked.exit_code == 0 and "leaderboard.csv are up to date" in " ".join(checked.output.split())
    (tmp_path / "leaderboard.csv").write_text("suite\n")
    assert CliRunner().invoke(app, ["leaderboard", "--check", "--results", str(tmp_path)]).exit_code != 0


def test_the_documentation_has_every_column_of_the_csv() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    for name, about in COLUMNS.items():
        assert f"| `{name}` | {about} |" in text


def test_inputs_are_named_in_words() -> None:
    assert inputs_in_words("") == "no inputs" and inputs_in_words("P") == "prompt only"
    assert inputs_in_words("MAP") == "prompt + target activations + masks"
    assert all(letter not in inputs_in_words(letter).split() for letter in INPUTS)
