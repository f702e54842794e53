"""`riebench.run` and `riebench.score`: what the command line does, from Python."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import typer.main
from tiny_jobs import UNITS, records_by_setting

import riebench
from riebench.api.runs import RunOptions, run_request
from riebench.cli.main import app
from riebench.jobs.request import RunRequest
from riebench.models.spec import ModelOptions
from riebench.store.folder import find_run_folders
from riebench.tasks.schema import Setting

OWN = {"suite", "model", "saes", "limit", "results", "progress"}
"""Options with a place of their own in the signature of `run`."""
COMMAND_ALONE = {"config", "report", "shard", "dry_run", "measure_saes", "help"}
"""Options that only a command has a use for."""


def options_of(job: RunRequest) -> Any:
    """Return the arguments of `riebench.run` that a job stands for."""
    return {
        "suite": job.suite, "model": job.model, "steps": 2, "guidance": 0.0, "batch_size": 2, "device": "cpu",
        "scorer": "toy-clip", "results": job.results, "progress": False,
    }  # fmt: skip


def test_every_option_of_the_command_has_its_name_here() -> None:
    command: Any = typer.main.get_command(app)
    known = {parameter.name for parameter in command.commands["run"].params} - {"settings"}
    here = set(get_type_hints(RunOptions)) | OWN
    assert {"sae" if name == "saes" else name for name in here - {"progress"}} == known - COMMAND_ALONE


def test_a_run_gives_its_results_and_makes_nothing_twice(job: RunRequest, capfd: pytest.CaptureFixture[str]) -> None:
    results = riebench.run(list(job.settings), **options_of(job))
    assert results.settings == ("no_edit", "features")
    frame = results.frame()
    assert len(frame) == UNITS and set(frame["status"]) == {"ok"} and frame["clip_gain"].notna().any()
    assert results.picture(0).size == results.picture(0, which="target").size
    printed = capfd.readouterr()
    assert printed.out == "" and printed.err == ""
    assert sorted(path.name for path in job.results.iterdir()) == [Path(job.suite).name]
    before = records_by_setting(job)
    times = {file: file.stat().st_mtime_ns for file in job.results.rglob("*.png")}
    again = riebench.run([Path(one) if "/" in one else one for one in job.settings], **options_of(job))
    assert records_by_setting(job) == before and len(again) == 2
    assert {file: file.stat().st_mtime_ns for file in job.results.rglob("*.png")} == times


def test_the_call_is_noted_with_the_run(job: RunRequest) -> None:
    results = riebench.run("no_edit", **options_of(job))
    riebench.score(results, metrics="lpips", scorer="toy-clip", device="cpu", progress=False)
    (folder,) = riebench.load_results(job.results).run_folders
    made = folder.invocations[0]
    assert made.command.startswith("riebench.run(['no_edit'], suite=") and "steps=2" in made.command
    assert made.request is not None and RunRequest.from_config(made.request).steps == 2


def test_a_notebook_shows_bars(
    job: RunRequest, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("riebench.utils.terminal.in_notebook", lambda: True)
    riebench.run("no_edit", **{**options_of(job), "progress": True})
    printed = capsys.readouterr()
    assert printed.out == "" and "scoring: 100%" in printed.err
    riebench.run("no_edit", **{**options_of(job), "redo": "all"})
    assert capsys.readouterr().err == ""


def test_a_configuration_as_an_object_is_the_one_of_its_file(job: RunRequest) -> None:
    riebench.run(job.settings[1], **options_of(job))
    (folder,) = find_run_folders(job.results)
    sae = folder.spec.setting.sae
    made = Setting(
        name="features",
        method="sae",
        params={"n_features": 3},
        block_mode="both",
        strengths=(40,),
        access="PAM",
        sae=sae,
    )
    results = riebench.run(made, **options_of(job))
    assert results.run_folders[0].spec.run_id == folder.spec.run_id
    with pytest.raises(riebench.RiebenchError, match=r"'features' is given twice"):
        run_request([made, made], {"results": job.results})
    with pytest.raises(riebench.RiebenchError, match=r"odd: unknown method 'sa'.*'sae'"):
        run_request(made.model_copy(update={"name": "odd", "method": "sa"}), {"results": job.results})


def test_own_suites_are_found_again_for_scoring(job: RunRequest) -> None:
    results = riebench.run("no_edit", **options_of(job))
    (folder,) = results.run_folders
    (folder.path / "scores.jsonl").unlink()
    (folder.path / "seal.json").unlink()
    assert len(riebench.load_results(job.results).scores) == 0
    scored = riebench.score(results, metrics="lpips", scorer="toy-clip", device="cpu", progress=False)
    assert set(scored.scores["metric"]) == {"lpips"}
    with pytest.raises(riebench.RiebenchError, match=r"a suite of your own"):
        riebench.score(job.results, metrics="lpips", scorer="toy-clip", device="cpu", progress=False)


def test_a_run_without_a_picture_is_an_error_after_all_is_done(job: RunRequest) -> None:
    broken = Setting(name="broken", method="sae", params={"n_features": 100000}, access="PAM")
    saes = job.plan()[1][1].sae
    with pytest.raises(riebench.RiebenchError, match=r"no edited picture"):
        riebench.run([broken, "no_edit"], saes=saes, **options_of(job))
    found = riebench.load_results(job.results).records
    assert set(found[found["setting"] == "broken"]["status"]) == {"error"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"limits": 2}, "no option 'limits' .did you mean 'limit'"),
        ({"limit": "many"}, "riebench.run: limit: .*valid integer.*'many'"),
        ({"model": 3}, "riebench.run: model: .*valid string.*3"),
        ({"batch_size": 0}, "riebench.run: batch_size"),
        ({"profile": "papr"}, "unknown profile 'papr'"),
        ({"dtype": "fp16"}, "dtype.*'fp16'"),
        ({"suite": "tooy"}, "unknown suite 'tooy'"),
        ({"engine": "rai"}, "--engine 'rai'"),
        ({"saes": 4}, "a int names no SAEs"),
        ({"edit_steps": (0.9, 0.5)}, "is no part of a run"),
        ({"workers": 0}, "riebench.run: workers"),
        ({"address": "auto"}, "belongs to --engine ray"),
    ],
)
def test_wrong_options_are_one_line(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    run: Any = riebench.run
    with pytest.raises(riebench.RiebenchError, match=words):
        run("sae", **{"device": "cpu", "results": tmp_path, **options})
    assert list(tmp_path.iterdir()) == []


def test_something_else_is_no_configuration() -> None:
    run: Any = riebench.run
    with pytest.raises(riebench.RiebenchError, match=r"len is no method configuration; .*@riebench.method"):
        run(len)


def test_options_take_one_word_or_several(tmp_path: Path) -> None:
    request = run_request(
        (), {
            "results": tmp_path, "categories": ["change_color", "add_object"], "examples": "a, b", "seeds": 3,
            "scorer": ("a", "b"), "blocks": ["mid.0", "up.0.1"], "edit_steps": (0, 0.5), "size": 64,
            "lora": "style.safetensors:0.5",
            "weights": {"dino": "folder"}, "saes": {"mid.0": tmp_path}, "batch_size": "auto", "model": Path("m"),
        },
    )  # fmt: skip
    wanted = RunRequest(
        results=tmp_path, leaderboard=tmp_path / "leaderboard.md", categories=("change_color", "add_object"),
        examples=("a", "b"), seeds=(3,), scorers=("a", "b"), blocks="mid.0,up.0.1", edit_steps="0:0.5",
        weights=("dino=folder",), sae=f"mid.0={tmp_path}", model="m",
        options=ModelOptions(size=64, loras=("style.safetensors:0.5",)),
    )  # fmt: skip
    assert request == wanted
    assert run_request("sae", {"results": tmp_path}) == replace(
        RunRequest(), settings=("sae",), results=tmp_path, leaderboard=tmp_path / "leaderboard.md"
    )


def test_a_copied_run_is_read_where_it_lies(toy_results: riebench.Results, tmp_path: Path) -> None:
    shutil.copytree(toy_results.folder, tmp_path / "runs")
    stored = riebench.load_results(tmp_path / "runs")
    names = ["setting", "unit"]
    first, second = (one.frame().sort_values(names, ignore_index=True) for one in (stored, toy_results))
    assert first.equals(second[first.columns]) and len(first) == 14
    comparison = stored.compare("sae", "random_features")
    assert {one.block_set for one in comparison.differences} == {"all"}
