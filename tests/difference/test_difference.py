"""Why two runs differ: what they state, and the units that are made again until the numbers meet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from riebench.cli.main import app
from riebench.difference.causes import CAUSES, causes, shared_units
from riebench.difference.job import Difference, explain
from riebench.difference.recompute import agrees
from riebench.errors import RiebenchError
from riebench.jobs.request import RunRequest
from riebench.jobs.run import produce
from riebench.store.folder import RunFolder
from riebench.tasks.schema import Setting

EXAMPLES = ("toy-change-object-01",)
STATED = Setting(
    name="sae", method="sae", params={"n_features": 2}, blocks=("mid.0", "up.0.1"), block_mode="together", access="PAM"
)


def made(results: Path, setting: Setting = STATED, **options: Any) -> Path:
    """Make and score two units with the toy world; return the run folder."""
    request = RunRequest(results=results, examples=EXAMPLES, given=(setting,), progress=False, offline=True, **options)
    (folder,) = produce(request, lambda line: None)
    return folder.path


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run that others are compared with."""
    return made(tmp_path_factory.mktemp("first"))


def differing(found: Difference) -> list[str]:
    """Return the names of the statements that differ."""
    return [one.name for one in found.causes if one.differs]


def explained(first: Path, second: Path, units: int = 2) -> Difference:
    """Compare two runs; make units again."""
    return explain(first, second, units, {"offline": True, "device": "cpu"}, lambda line: None)


def test_two_runs_of_the_same_agree(first: Path, tmp_path: Path) -> None:
    found = explained(first, made(tmp_path))
    assert differing(found) == [] and found.steps == () and found.units == found.same_pictures == 1
    assert found.sentence == "The numbers of the only shared unit agree."
    assert tuple(one.name for one in found.causes) == CAUSES


def test_the_first_cause_is_named_and_the_numbers_meet_once_it_is_exchanged(first: Path, tmp_path: Path) -> None:
    # Two statements differ. With the steps alone the numbers do not meet yet.
    second = made(tmp_path, STATED.model_copy(update={"params": {"n_features": 6}}), steps=2)
    found = explained(first, second)
    assert differing(found)[:2] == ["steps", "method configuration"] and "features" in differing(found)
    assert [step.name for step in found.steps] == ["", "steps", "method configuration"]
    begin, between, end = found.steps
    assert agrees(begin.to_first) and not agrees(begin.to_second)
    assert not agrees(between.to_first) and not agrees(between.to_second) and between.problem is None
    assert agrees(end.to_second)
    assert "The first thing that differs is: steps (4 there, 2 here)" in found.sentence
    assert found.sentence.endswith("they meet once steps and method configuration are as in the second run.")


def test_what_no_option_exchanges_is_named(first: Path, tmp_path: Path) -> None:
    second = made(tmp_path)
    stored = json.loads((second / "run.json").read_text())
    for one in stored["invocations"]:
        one["versions"]["torch"] = "1.0"
    (second / "run.json").write_text(json.dumps(stored))
    lines = [json.loads(line) for line in (second / "scores.jsonl").read_text().splitlines()]
    for line in lines:
        line["value"] = None if line["value"] is None else line["value"] + 0.5
    (second / "scores.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = explained(first, second)
    assert differing(found) == ["package versions"] and found.apart["clip_gain"] == 1
    assert "torch 1.0 here" in found.sentence
    assert found.sentence.endswith("Made again, they do not meet; what was not exchanged is left: package versions.")
    assert [step.name for step in found.steps] == [""]
    assert explained(first, second, units=0).steps == ()


def test_changed_prompts_are_found_by_their_hashes(first: Path) -> None:
    folder = RunFolder(first)
    pairs = shared_units(folder, folder)
    changed = [
        type(pair)(
            pair.slot, pair.first,
            pair.second.model_copy(update={"key": pair.second.key.model_copy(update={"example_hash": "f" * 20})}),
            pair.first_scores, pair.second_scores,
        )
        for pair in pairs
    ]  # fmt: skip
    (cause,) = [one for one in causes(folder, folder, changed) if one.differs]
    assert cause.name == "prompts and brackets" and cause.second == "hash ffffffff"
    assert cause.first.startswith("1 of 1 examples differ, such as toy-ch")


def test_what_cannot_be_compared_is_refused_in_one_line(first: Path, tmp_path: Path) -> None:
    with pytest.raises(RiebenchError, match=r"no run folder: it has no run\.json"):
        explained(first, tmp_path)
    with pytest.raises(RiebenchError, match=r"share no unit: block sets .* give two runs of the same examples"):
        explained(first, made(tmp_path, STATED.model_copy(update={"blocks": ("mid.0",)})))


def test_the_command_prints_the_conclusion_first_and_json_if_asked(first: Path) -> None:
    result = CliRunner().invoke(app, ["diff", str(first), str(first)])
    assert result.exit_code == 0 and result.stdout.startswith("The numbers of the only shared unit agree.")
    assert "the same in both: package versions, model" in result.stdout.replace("\n", " ")
    found = json.loads(CliRunner().invoke(app, ["diff", str(first), str(first), "--json"]).stdout)
    assert found["units"] == 1 and [one["name"] for one in found["causes"]] == list(CAUSES)
