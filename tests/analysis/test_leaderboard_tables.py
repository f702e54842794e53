"""Tables of the leaderboard: which methods stand together, in which order, and what leaderboard.csv holds."""

from __future__ import annotations

from pathlib import Path

import pytest
from leaderboard_runs import add_run, numbers, rows, tables
from paths import ROOT
from typer.testing import CliRunner

from riebench.analysis.leaderboard import leaderboard_document, leaderboard_text
from riebench.analysis.leaderboard.rows import COLUMNS, MAX_COLUMNS
from riebench.cli.main import app
from riebench.tasks.schema import INPUTS, inputs_in_words
from riebench.utils.markup import BulletList, Code, Heading, MarkupTable


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Methods of several inputs, controls, both ends, and methods that lack something."""
    add_run(tmp_path, "sae_sweep", 0.02)
    add_run(tmp_path, "patch", 0.04, method="activation_patch")
    add_run(tmp_path, "wrong", 0.03, method="wrong_example", access="PAMT")
    add_run(tmp_path, "random_features", -0.01, method="random_features")
    add_run(tmp_path, "random_two", 0.05, method="random_features", levels=2)
    add_run(tmp_path, "sae", 0.01, levels=1)
    add_run(tmp_path, "failing", 0.09, method="neurons", fail="change_color-3")
    add_run(tmp_path, "switch", 0.01, method="neurons", access="P")
    add_run(tmp_path, "lerp", 0.03, method="neurons", access="P")
    add_run(tmp_path, "steering", 0.01, method="concept_steering", access="T")
    add_run(tmp_path, "invert", 0.01, method="neurons", access="PV")
    add_run(tmp_path, "masked", 0.01, method="neurons", access="PM")
    add_run(tmp_path, "target_prompt", 0.1, method="target_prompt", access="P", levels=1)
    add_run(tmp_path, "no_edit", 0.0, method="no_edit", access="", levels=1)
    return tmp_path


def test_one_table_for_each_choice_of_inputs_fewest_first_and_best_first(results: Path) -> None:
    found = {heading: [row["method"] for row in its] for heading, its in tables(results).items()}
    assert found == {
        "prompt only": ["lerp", "switch", "target_prompt", "no_edit"],
        "training examples only": ["steering"],
        "prompt + masks": ["masked"],
        "prompt + inversion": ["invert"],
        "prompt + target activations + masks": [
            "patch",
            "wrong",
            "sae_sweep",
            "random_features",
            "random_two",
            "sae",
            "failing",
        ],
    }
    assert [*found] == sorted(found, key=lambda words: words.count("+"))


def test_controls_ends_and_incomplete_methods_are_marked(results: Path) -> None:
    notes = {name: (row["rank"], row["notes"]) for name, row in rows(results).items()}
    assert notes["wrong"] == ("2", "control of sae") and notes["sae_sweep"][1] == ""
    assert notes["random_two"] == ("–", "control of sae; 2 of 6 edit strengths tested")
    assert notes["no_edit"] == notes["target_prompt"] == ("–", "end of the scale")
    assert notes["failing"] == ("–", "6 units failed")
    assert {name: row["control_of"] for name, row in numbers(results).items() if row["control_of"]} == {
        "wrong": "sae", "random_features": "sae", "random_two": "sae",
    }  # fmt: skip


def test_tables_are_narrow_and_every_column_is_defined_below_them(results: Path) -> None:
    blocks = leaderboard_document(results).blocks
    headers = {block.header for block in blocks if isinstance(block, MarkupTable)}
    assert len(headers) == 1 and 3 < len(next(iter(headers))) <= MAX_COLUMNS
    (index,) = (i for i, block in enumerate(blocks) if isinstance(block, BulletList))
    last = max(i for i, block in enumerate(blocks) if isinstance(block, MarkupTable))
    assert index == last + 2 and blocks[index - 1] == Heading(3, ("Columns",))
    defined = blocks[index]
    assert isinstance(defined, BulletList)
    assert [item[0] for item in defined.items] == [Code(name) for name in next(iter(headers))]
    assert all(len("".join(str(piece) for piece in item[1:])) > 10 for item in defined.items)


def test_profiles_have_the_same_form(results: Path) -> None:
    for name in ("sae_sweep", "lerp"):
        folder = add_run(results, name, 0.02, access="P" if name == "lerp" else "PAM")
        scores = [score for score in folder.scores().values() if score.metric == "clip_gain"]
        with folder.open_for_writing():
            folder.append_scores(
                score.model_copy(update={"metric": metric})
                for score in scores for metric in ("paper_text_target", "paper_text_source", "paper_image_source",
                                                   "paper_image_target", "lpips_target")
            )  # fmt: skip
    section = leaderboard_text(results).split("\n## ")[2]
    assert section.startswith("toy on toy-turbo, profile `paper`")
    header = next(line for line in section.splitlines() if line.startswith("| rank"))
    assert len(header.split("|")) - 2 == MAX_COLUMNS and "| paper_text_target |" in header
    for name in (cell.strip() for cell in header.split("|")[1:-1]):
        assert f"\n- `{name}`: " in section
    ranked = [line.split(" | ") for line in section.splitlines() if line.startswith(("| 1 |", "| 2 |", "| 3 |"))]
    assert [cells[1] for cells in ranked[:3]] == ["lerp x3", "lerp x2.5", "lerp x2"]
    assert "| – | switch x0.5 | all | – | – | – | – | 24 of 24 units have no paper_text_target |" in section
    table = results / "leaderboard.csv"
    assert CliRunner().invoke(app, ["leaderboard", "--results", str(results)]).exit_code == 0
    paper = [line for line in table.read_text().splitlines() if ",paper," in line]
    assert paper[0].startswith("toy,toy-turbo,paper,P,P,1,lerp x3,") and ",paper_text_target," in paper[0]


def test_the_csv_has_a_row_for_each_method_with_all_numbers(results: Path) -> None:
    result = CliRunner().invoke(app, ["leaderboard", "--results", str(results)])
    assert result.stdout.split() == [str(results / "leaderboard.md"), str(results / "leaderboard.csv")]
    lines = (results / "leaderboard.csv").read_text().splitlines()
    assert lines[0].split(",") == [*COLUMNS] and len(lines) == 1 + len(rows(results))
    stored = numbers(results)
    assert [*stored] == [*rows(results)]
    for name, row in rows(results).items():
        mine = stored[name]
        assert (mine["rank"] or "–", mine["notes"]) == (row["rank"], row["notes"])
        assert inputs_in_words(mine["table"]) in tables(results)
        if row["mean gain"] != "–":
            low, high = (f"{100 * float(mine[end]) + 0.0:.2f}" for end in ("score_low", "score_high"))
            assert row["95 % interval"] == f"[{low}, {high}]".replace("-0.00", "0.00")
            assert f"{100 * float(mine['score']):.2f}" == row["mean gain"] and float(mine["micro_average"]) > -1
    assert stored["failing"]["score"] == "" and stored["failing"]["n_scored"] == "138"
    check = CliRunner().invoke(app, ["leaderboard", "--check", "--results", str(results)])
    assert check.exit_code == 0 and "leaderboard.md and " in check.output and "leaderboard.csv are up" in check.output


def test_the_documentation_has_every_column_of_the_csv() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    for name, about in COLUMNS.items():
        assert f"| `{name}` | {about} |" in text


def test_inputs_are_named_in_words() -> None:
    assert inputs_in_words("") == "no inputs" and inputs_in_words("P") == "prompt only"
    assert inputs_in_words("MAP") == "prompt + target activations + masks"
    assert all(letter not in inputs_in_words(letter).split() for letter in INPUTS)
