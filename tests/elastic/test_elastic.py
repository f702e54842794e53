"""The command that finds strengths, on a tiny random model and on names that stand for nothing."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from paths import ROOT
from tiny import tiny_folder
from tiny_jobs import TASK, fake_networks, last_line
from typer.testing import CliRunner

import riebench.elastic.job
from riebench.cli.main import app
from riebench.elastic.document import configuration_text
from riebench.elastic.pictures import chosen_examples, unseen_examples
from riebench.jobs.config import read_config
from riebench.jobs.request import RunRequest
from riebench.jobs.run import generate
from riebench.runs.references import reference_order
from riebench.store.folder import find_run_folders
from riebench.tasks.schema import Setting
from riebench.tasks.settings import load_setting_file
from riebench.tasks.suites import load_suite

SETTING = "method: embed_lerp\naccess: P\nblocks: []\nstrengths: [0.5, 0.9, 1]\ndescription: mine\n"


@pytest.fixture
def line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A search on one of two examples of a tiny random model, whose distances need no weights."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "change_color.yaml").write_text(TASK)
    (tmp_path / "lerp.yaml").write_text(SETTING)
    monkeypatch.setattr(riebench.elastic.job, "Networks", lambda **options: fake_networks("toy-clip", **options))
    return [
        "elastic", str(tmp_path / "lerp.yaml"), "--suite", str(tmp_path / "mine"), "--model", str(tiny_folder()),
        "--steps", "2", "--guidance", "0", "--device", "cpu", "--examples", "1", "--points", "3", "--most", "0.9",
        "--gap", "0.5", "--out", str(tmp_path / "out"),
    ]  # fmt: skip


def call(*words: str) -> Any:
    """Run a command line."""
    return CliRunner().invoke(app, list(words))


def pictures(folder: Path) -> Iterator[tuple[str, int, bytes]]:
    """Yield every file of a folder's run folders, with its time and content."""
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.suffix in (".png", ".jsonl"):
            yield str(file), file.stat().st_mtime_ns, file.read_bytes()


def test_a_search_writes_a_configuration_that_runs_and_makes_nothing_twice(line: list[str], tmp_path: Path) -> None:
    result = call(*line)
    assert result.exit_code == 0, result.stderr
    out = tmp_path / "out"
    written = [Path(name).name for name in result.stdout.splitlines()]
    assert written == [
        "lerp_elastic.yaml", "elastic.csv", "elastic_curves.csv", "elastic.md", "elastic.png", "unseen.yaml"
    ]  # fmt: skip
    found, given = load_setting_file(out / "lerp_elastic.yaml"), load_setting_file(tmp_path / "lerp.yaml")
    assert found.model_copy(update={"name": "lerp", "strengths": given.strengths, "description": "mine"}) == given
    assert found.description.startswith("mine; at strengths of about equal LPIPS") and len(found.strengths) == 3
    # Strengths of this method end at 1, and nothing it makes is as far as 0.9.
    assert list(found.strengths) == sorted(found.strengths) and found.strengths[-1] == 1
    (row,) = csv.DictReader((out / "elastic.csv").open())
    assert row["category"] == "change_color" and row["limit_reached"] == "false" and row["end"] == "1"
    assert float(row["evenness_after"]) > float(row["evenness_before"])
    assert row["beyond_before"] == row["beyond_after"] == "0"
    (folder,) = find_run_folders(out / "runs")
    records = folder.records()
    assert {record.key.seed for record in records} == {100}
    assert int(row["pictures"]) == sum(bool(record.key.strength) for record in records)
    text = (out / "elastic.md").read_text()
    assert str(tmp_path / "out") not in text and "riebench elastic lerp.yaml" in text
    first = list(pictures(out / "runs"))
    again = call(*line)
    assert again.exit_code == 0 and list(pictures(out / "runs")) == first
    options = yaml.safe_load((out / "unseen.yaml").read_text())
    assert set(options["examples"]) | {record.key.example_id for record in records} == {"one", "two"}
    given_options = {"results": str(tmp_path / "scored"), "scorer": ["toy-clip"]}
    run = RunRequest.from_config(read_config(out / "unseen.yaml", given_options))
    (scored,) = generate(run, *run.plan(), lambda text: None)
    assert scored.spec.setting.name == "lerp_elastic"
    assert {one.key.strength for one in scored.records()} == set(found.strengths)
    assert {one.key.example_id for one in scored.records()} == set(options["examples"])


def test_a_method_that_changes_nothing_or_does_not_begin_at_the_source_is_refused(
    line: list[str], tmp_path: Path
) -> None:
    (tmp_path / "lerp.yaml").write_text("method: no_edit\nblocks: []\n")
    assert "no picture changes up to strength" in last_line(call(*line))
    other = tmp_path / "p2p.yaml"
    other.write_text("method: p2p\naccess: P\nblocks: []\nstrengths: [1, 0]\n")
    assert "p2p: strength 0 is not the source picture" in last_line(call("elastic", str(other), *line[2:]))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["text_directon"], "unknown configuration 'text_directon' (did you mean 'text_direction'?)"),
        (["text_direction", "--distance", "lpip"], "--distance 'lpip' (did you mean 'lpips'?)"),
        (["text_direction", "--points", "1"], "Invalid value for '--points'"),
        (["text_direction", "--categories", "colour"], "colour"),
        (["text_direction", "--model", "nothing"], "nothing"),
        (["text_direction", "--distance", "dreamsim", "--weights", "dreamsim=none"], "there is no none"),
        (["text_direction", "--offline", "--distance", "dreamsim"], "lacks"),
    ],
)
def test_wrong_names_are_refused_in_one_line(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.chdir(tmp_path)
    result = call("elastic", *words)
    assert result.exit_code == 2 and said in last_line(result) and len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "elastic").exists()


def test_examples_are_the_first_in_the_order_of_reference_and_clusters_stay_together() -> None:
    tasks = load_suite("toy")
    chosen = chosen_examples(tasks, 2)
    assert list(chosen) == [task.category for task in tasks]
    assert all(chosen[task.category] == tuple(reference_order(task.examples)[:2]) for task in tasks)
    looked_at = [one for some in chosen.values() for one in some]
    clustered = [one.model_copy(update={"cluster": "same"}) for one in tasks[0].examples]
    whole = [tasks[0].model_copy(update={"examples": tuple(clustered)}), *tasks[1:]]
    unseen = unseen_examples(whole, [clustered[0]])
    assert unseen == [one.id for task in tasks[1:] for one in task.examples]
    assert len(unseen_examples(tasks, looked_at)) <= sum(len(task.examples) for task in tasks) - len(looked_at)


def test_a_configuration_is_written_as_it_is_read(tmp_path: Path) -> None:
    stated = Setting(
        name="some", method="sae", params={"n_features": 3, "ranking": "separate"}, blocks=("mid.0",),
        block_mode="both", strengths=(0.5, 2.0), access="PAM", edit_steps=(0, 0.5), group="together",
        description="a: b",
    )  # fmt: skip
    file = tmp_path / "some.yaml"
    file.write_text(configuration_text(stated, "by hand"))
    assert load_setting_file(file) == stated.model_copy(update={"group": None})


def test_the_shipped_elastic_configuration_differs_by_its_strengths_alone() -> None:
    folder = ROOT / "baselines" / "toy-sweep"
    plain, elastic = (load_setting_file(folder / f"text_direction{end}.yaml") for end in ("", "_elastic"))
    kept = {"name", "strengths", "description"}
    assert plain.model_dump(exclude=kept) == elastic.model_dump(exclude=kept)
    assert len(elastic.strengths) == 6 and np.all(np.diff(elastic.strengths) > 0)
