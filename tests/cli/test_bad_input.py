"""Results that do not belong together: refused, or shown as what they are, by every verb that reads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from leaderboard_runs import CATEGORIES, add_run, rows
from typer.testing import CliRunner

from riebench.analysis.configurations import Origin, majority_model, majority_origins, model_gap, origin_gap
from riebench.analysis.leaderboard import leaderboard_text
from riebench.cli.main import app
from riebench.store.folder import RunFolder
from riebench.store.records import EditRecord


def call(results: Path, *words: str) -> Any:
    result = CliRunner().invoke(app, [*words, "--results", str(results)])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def refusal(results: Path, *words: str) -> str:
    """The one line of a refused command."""
    result = call(results, *words)
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.strip().splitlines()
    return str(line)


def rewrite(folder: RunFolder, change: Callable[[dict[str, Any]], bool]) -> None:
    """Changes keys of stored units, and moves their scores along; `change` says whether it changed anything."""
    moved: dict[str, str] = {}
    lines = []
    for line in (folder.path / "records.jsonl").read_text().splitlines():
        record = json.loads(line)
        before = EditRecord.model_validate(record).key.digest
        if change(record["key"]):
            moved[before] = EditRecord.model_validate(record).key.digest
        lines.append(json.dumps(record))
    (folder.path / "records.jsonl").write_text("\n".join(lines) + "\n")
    scores = folder.path / "scores.jsonl"
    stored = [json.loads(line) for line in scores.read_text().splitlines()]
    scores.write_text("".join(json.dumps(s | {"unit": moved.get(s["unit"], s["unit"])}) + "\n" for s in stored))


def is_raised(key: dict[str, Any]) -> bool:
    key.update(task_version=2, example_hash="1" * 16)
    return True


def test_two_versions_of_a_task_are_never_compared(tmp_path: Path) -> None:
    for name in ("old", "older"):
        add_run(tmp_path, name, 0.09)
    rewrite(add_run(tmp_path, "new", 0.03), is_raised)
    found = rows(tmp_path)
    assert found["new"]["rank"] == "1" and found["new"]["notes"] == ""
    for name in ("old", "older"):
        assert (found[name]["rank"], found[name]["mean gain"]) == ("–", "–")
        assert found[name]["notes"] == (
            "24 of 24 examples are of another version: change_color@1, change_object@1, not change_color@2, "
            "change_object@2"
        )
    assert "old on all cannot be compared: 24 of 24 examples are of another version" in refusal(
        tmp_path, "compare", "old", "new"
    )
    assert call(tmp_path, "tables").exit_code == 0
    table = (tmp_path / "toy" / "toy-turbo" / "tables" / "per_method.md").read_text()
    assert "Not to be compared with the other rows: old, 24 of 24 examples are of another version" in table
    assert "rows: new" not in table


def test_an_example_that_changed_without_a_version_is_a_gap(tmp_path: Path) -> None:
    def edited(key: dict[str, Any]) -> bool:
        if key["example_id"] != "change_color-3":
            return False
        key["example_hash"] = "e" * 16
        return True

    for name in ("one", "two"):
        add_run(tmp_path, name, 0.03)
    rewrite(add_run(tmp_path, "odd", 0.09), edited)
    assert rows(tmp_path)["odd"]["notes"] == (
        "1 of 24 examples are of another version: their content in change_color@1 is not what others have"
    )
    # Of two, nobody can say which is right.
    for first, second in (("one", "odd"), ("odd", "one")):
        message = refusal(tmp_path, "compare", first, second)
        assert f"{first} on all cannot be compared: 1 of 24 examples are of another version" in message


def test_an_example_that_changed_between_two_seeds_is_not_averaged(tmp_path: Path) -> None:
    def second_seed(key: dict[str, Any]) -> bool:
        if key["seed"] != 1:
            return False
        key["example_hash"] = "5" * 16
        return True

    add_run(tmp_path, "one", 0.03, seeds=2)
    add_run(tmp_path, "two", 0.03, seeds=2)
    rewrite(add_run(tmp_path, "odd", 0.03, seeds=2), second_seed)
    assert rows(tmp_path)["odd"]["notes"].startswith("24 of 24 examples are of another version")


def test_models_of_one_name_are_not_ranked_together(tmp_path: Path) -> None:
    for name in ("one", "two"):
        add_run(tmp_path, name, 0.03)
    folder = add_run(tmp_path, "other", 0.09)
    meta = json.loads((folder.path / "run.json").read_text())
    meta["spec"]["model"]["steps"] = 1
    (folder.path / "run.json").write_text(json.dumps(meta))
    found = rows(tmp_path)
    assert found["other"]["notes"] == "made by another model of this name: steps is 1, not 4"
    assert found["one"]["rank"] == "1" and found["other"]["mean gain"] == "–"
    assert "made by another model of this name" in refusal(tmp_path, "compare", "one", "other")


def test_a_copied_run_is_not_counted(tmp_path: Path) -> None:
    folder = add_run(tmp_path, "good", 0.03)
    copy = tmp_path / "copied" / "toy-turbo" / "good"
    copy.mkdir(parents=True)
    for file in folder.path.glob("*.json*"):
        (copy / file.name).write_bytes(file.read_bytes())
    assert [(name, row["rank"], row["notes"]) for name, row in rows(tmp_path).items()] == [("good", "1", "")]


def test_suites_and_profiles_have_sections_of_their_own(tmp_path: Path) -> None:
    both = add_run(tmp_path, "both", 0.03)
    add_run(tmp_path, "plain", 0.03)
    scores = list(both.scores().values())
    both.append_scores([
        score.model_copy(update={"metric": "paper_text_target"}) for score in scores if score.metric == "clip_gain"
    ])  # fmt: skip
    folder = add_run(tmp_path / "else", "good", 0.09)
    meta = json.loads((folder.path / "run.json").read_text())
    meta["spec"]["suite"] = "mine"
    target = tmp_path / "mine" / "toy-turbo" / "good"
    target.mkdir(parents=True)
    for file in folder.path.glob("*.jsonl"):
        (target / file.name).write_bytes(file.read_bytes())
    (target / "run.json").write_text(json.dumps(meta))
    text = leaderboard_text(tmp_path)
    sections = {part.splitlines()[0]: part for part in text.split("\n## ")[1:]}
    assert [*sections] == ["mine on toy-turbo", "toy on toy-turbo", "toy on toy-turbo, profile `paper`"]
    assert "plain x1 " not in sections["mine on toy-turbo"]
    paper = [
        line.split("|") for line in sections["toy on toy-turbo, profile `paper`"].splitlines() if "| plain x" in line
    ]
    assert paper and all(line[1].strip() == "–" for line in paper)
    refused = refusal(tmp_path, "compare", "both", "plain")
    assert "one suite and model can be compared at a time" in refused and "--suite mine --model toy-turbo" in refused


def test_an_edited_record_is_refused_by_every_verb(tmp_path: Path) -> None:
    folder = add_run(tmp_path, "good", 0.03)
    add_run(tmp_path, "fair", 0.01)
    text = (folder.path / "records.jsonl").read_text()
    (folder.path / "records.jsonl").write_text(text.replace('"strength":0.5', '"strength":7.5', 1))
    verbs = (["leaderboard"], ["tables"], ["compare", "good", "fair"], ["export", "--out", str(tmp_path / "out")])
    for verb in verbs:
        line = refusal(tmp_path, *verb)
        assert "strength 7.5) was never planned; `riebench leaderboard --verify" in line, verb
    (folder.path / "records.jsonl").write_text(text.replace('"status":"ok"', '"status":"fine"', 1))
    for verb in verbs:
        assert "records.jsonl, line 1: status" in refusal(tmp_path, *verb)


def test_gaps_are_named_and_not_compared(tmp_path: Path) -> None:
    add_run(tmp_path, "good", 0.03)
    add_run(tmp_path, "short", 0.09, leave_out="change_color-3")
    row = rows(tmp_path)["short"]
    assert row["rank"] == "–" and row["notes"] == "1 of 24 units of short x0.5 have no clip_gain"
    assert "short on all cannot be compared: 1 of 24 units" in refusal(tmp_path, "compare", "good", "short")
    assert call(tmp_path, "tables").exit_code == 0
    table = (tmp_path / "toy" / "toy-turbo" / "tables" / "per_method.md").read_text()
    assert "23/24" in next(line for line in table.splitlines() if line.startswith("| short x0.5 |"))


def test_a_method_with_one_edit_strength_is_shown_as_such(tmp_path: Path) -> None:
    add_run(tmp_path, "good", 0.03)
    add_run(tmp_path, "single", 0.09, levels=1)
    row = rows(tmp_path)["single"]
    assert (row["rank"], row["notes"]) == ("–", "1 of 6 edit strengths tested")
    result = call(tmp_path, "compare", "good", "single")
    assert result.exit_code == 0
    assert "single: 1 of 6 edit strengths tested; its mean gain" in result.stdout and "good: " not in result.stdout


def test_one_cluster_in_one_category_has_no_interval_to_stand_on(tmp_path: Path) -> None:
    """Many clusters in one category do not make up for a single one in another."""
    for name in ("good", "fair"):
        folder = add_run(tmp_path, name, 0.03)
        file = folder.path / "records.jsonl"
        records = [json.loads(line) for line in file.read_text().splitlines()]
        for record in records:
            if record["key"]["category"] == CATEGORIES[0]:
                record["cluster"] = "template"
        file.write_text("".join(json.dumps(record) + "\n" for record in records))
    row = rows(tmp_path)["good"]
    assert row["rank"] == "–" and row["notes"] == "fewer than 2 independent examples in a category"
    assert "fewer than 2 independent examples in a category" in refusal(tmp_path, "compare", "good", "fair")


@pytest.mark.parametrize(
    ("votes", "agreed"),
    [
        (["1a", "1a", "1b"], "1a"),
        (["1a", "1a", "2b"], "2b"),
        (["1a", "1b"], None),
        (["2b", "2c", "1a", "1a"], None),
    ],
)
def test_the_version_that_counts(votes: list[str], agreed: str | None) -> None:
    def origin(vote: str) -> Origin:
        return Origin("task", int(vote[0]), vote[1])

    stated = [{"e": frozenset({origin(vote)})} for vote in votes]
    found = majority_origins(stated)
    assert found == {"e": None if agreed is None else origin(agreed)}
    assert found == majority_origins(reversed(stated))
    comparable = [origin_gap(one, found) is None for one in stated]
    assert comparable == [vote == agreed for vote in votes]


def test_examples_that_a_new_version_has_dropped_are_not_asked_for() -> None:
    old = {name: frozenset({Origin("task", 1, name)}) for name in "ab"}
    new = {"a": frozenset({Origin("task", 2, "a")})}
    agreed = majority_origins([old, new])
    assert agreed == {"a": Origin("task", 2, "a")}
    assert origin_gap(new, agreed) is None and (origin_gap(old, agreed) or "").startswith("2 of 2 examples")


def test_the_model_that_counts() -> None:
    one, other = '{"steps": 1}', '{"steps": 2}'
    assert majority_model([[one], [one], [other]]) == one and majority_model([[one], [other]]) is None
    assert majority_model([]) is None
    assert model_gap([one], one) is None and model_gap([other], one) is not None
    assert model_gap([one, other], one) == "its edit strengths were made by different models of this name"
