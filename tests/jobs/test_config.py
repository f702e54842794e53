"""Options of a run in a file, and runs that are repeated from their run.json."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from records import make_spec
from tiny_jobs import job_lines, last_line, records_by_setting, run_command
from typer.testing import CliRunner

from riebench.cli.main import app
from riebench.cli.run import request_from_options
from riebench.errors import RiebenchError, TaskFileError
from riebench.jobs.config import RunConfig
from riebench.jobs.repeat import options_of_run, stored_setting
from riebench.jobs.request import EngineOptions, RunRequest
from riebench.models.spec import ModelOptions
from riebench.store.folder import RunFolder, run_path
from riebench.store.records import RunSpec

EVERYTHING = RunRequest(
    suite="mine", settings=("sae", "a/b.yaml"), settings_set="sweep", model="m", sae="s", sae_name="one",
    accept_sae=True, blocks="mid.0", edit_steps="0:0.5", categories=("change_color",), steps=2, guidance=1.5,
    seeds=(3, 4), limit=5, batch_size=6, device="cpu", dtype="float16", results=Path("out"),
    report=Path("out/report"), redo="all", offline=True,
    regions="attention", profile="paper", scorers=("one", "two"), weights=("dino=x",), stop_after=7, trust_plugins=True,
    engine=EngineOptions("ray", "auto", 8, (1, 3)), repeat=Path("run.json"), repeat_exactly=False,
    options=ModelOptions(size=64, config="sdxl-turbo", vae="v", offload="model", vae_slicing=True, vae_tiling=True,
                         attention="math", channels_last=True, unet="u", loras=("l:0.5",)),
)  # fmt: skip


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[RunRequest]:
    """The requests that commands would have run, in a folder of their own."""
    requests: list[RunRequest] = []
    monkeypatch.setattr("riebench.jobs.run.run_job", lambda request, say: requests.append(request))
    monkeypatch.chdir(tmp_path)
    return requests


def test_a_file_can_say_all_that_the_command_line_can() -> None:
    options = set(inspect.signature(request_from_options).parameters) - {"context", "config"}
    assert options == set(RunConfig.model_fields) - {"repeat", "repeat_exactly"}
    changed = {
        name for name, value in EVERYTHING.to_config(defaults=True).items() if value != getattr(RunConfig(), name)
    }
    assert changed | {"report"} == set(RunConfig.model_fields)


@pytest.mark.parametrize("request_", [EVERYTHING, RunRequest(), RunRequest(profile="paper", settings_set="sweep")])
def test_options_survive_json(request_: RunRequest) -> None:
    for defaults in (False, True):
        stored = json.loads(json.dumps(request_.to_config(defaults=defaults)))
        assert RunRequest.from_config(stored) == request_
    assert set(RunRequest().to_config()) == {"seeds", "report"}


def test_options_of_the_command_line_override_those_of_a_file(seen: list[RunRequest]) -> None:
    Path("run.yaml").write_text(
        'settings: sae\nseeds: [1, 2]\nlimit: 3\nbatch_size: 4\nlora: ["a.safetensors:0.5"]\nedit_steps: "0:0.5"\n'
        "shard: 1/2\nreport: false\n"
    )
    line = ["run", "no_edit", "--config", "run.yaml", "--limit", "9", "--batch-size", "auto", "--results", "mine"]
    for arguments in (["run", "--config", "run.yaml"], line):
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.output
    file, both = seen
    assert (file.settings, file.seeds, file.limit, file.batch_size) == (("sae",), (1, 2), 3, 4)
    assert (file.results, file.leaderboard, file.report) == (Path("runs"), Path("runs/leaderboard.md"), None)
    assert (file.options.loras, file.edit_steps, file.engine.shard) == (("a.safetensors:0.5",), "0:0.5", (1, 2))
    changes: dict[str, Any] = {"settings": ("no_edit",), "limit": 9, "batch_size": None}
    assert both == replace(file, **changes, results=Path("mine"), leaderboard=Path("mine/leaderboard.md"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("limit: 1\nsetings: [sae]\n", "run.yaml, line 2: setings: unknown key (did you mean 'settings'?)"),
        ("\n\nlimit: yes\n", "run.yaml, line 3: limit: Input should be a valid integer, not True"),
        ("limit: '3'\n", "run.yaml, line 1: limit: Input should be a valid integer, not '3'"),
        ("limit: 0\n", "run.yaml, line 1: limit: Input should be greater than or equal to 1"),
        ("seeds: [1, a]\n", "run.yaml, line 1: seeds[1]: Input should be a valid integer, not 'a'"),
        ("offline: 1\n", "run.yaml, line 1: offline: Input should be a valid boolean, not 1"),
        ("dtype: fp16\n", "run.yaml, line 1: dtype: Input should be 'float32', 'float16' or 'bfloat16', not 'fp16'"),
        ("limit: 1\nlimit: 2\n", "run.yaml, line 2: key 'limit' is given twice"),
        ("offload: modle\n", "--offload 'modle' (did you mean 'model'?)"),
    ],
)
def test_a_fault_in_a_file_is_one_line(text: str, message: str, seen: list[RunRequest]) -> None:
    Path("run.yaml").write_text(text)
    done = CliRunner().invoke(app, ["run", "--config", "run.yaml"])
    assert done.exit_code == 2 and message in last_line(done)
    assert not seen


def test_other_files_are_no_configuration(seen: list[RunRequest]) -> None:
    done = CliRunner().invoke(app, ["run", "--config", "sdxl-turbo"])
    assert "the configuration of a model in a single file is --single-file-config" in last_line(done)
    assert "nowhere.yaml: no such file" in last_line(CliRunner().invoke(app, ["run", "--config", "nowhere.yaml"]))
    assert "only the run.json of a run folder" in last_line(CliRunner().invoke(app, ["run", "--config", "seal.json"]))
    with pytest.raises(TaskFileError, match=r"^the options: limt: unknown key \(did you mean 'limit'\?\)$"):
        RunRequest.from_config({"limt": 1})


def digests(job: RunRequest) -> dict[str, list[tuple[str, str | None]]]:
    """The units of each setting with the hashes of their pictures."""
    found = records_by_setting(job)
    return {name: sorted((r.key.digest, r.image_sha256) for r in records) for name, records in found.items()}


def repeat(job: RunRequest, *more: str) -> Any:
    """Repeat a tiny job's run of features, into a folder beside it."""
    file = next(job.results.glob("*/*/features/run.json"))
    line = [
        "run",
        "--config",
        str(file),
        "--results",
        f"{job.results}-again",
        "--scorer",
        "toy-clip",
        "--device",
        "cpu",
    ]
    return CliRunner().invoke(app, [*line, "--no-report", *more])


def test_a_run_is_repeated_from_its_run_file(job: RunRequest) -> None:
    line = ["--limit", "1", "--seeds", "2", "--blocks", "mid.0", "--edit-steps", "0.5:1", "--no-report"]
    assert run_command(job, *line).exit_code == 0
    # A run.json that does not hold the options of its command has to be told where things lie.
    file = next(job.results.glob("*/*/features/run.json"))
    stored = json.loads(file.read_text())
    for one in stored["invocations"]:
        assert one.pop("request")["suite"] == job.suite
    file.write_text(json.dumps(stored))
    assert "the suite 'mine' lies; name its folder with --suite" in last_line(repeat(job))
    places = ["--suite", job.suite]
    assert re.search(r"the model .* lies; name it with --model$", last_line(repeat(job, *places)))
    places += ["--model", str(job.model)]
    done = repeat(job, *places)
    assert done.exit_code == 0, done.output
    again = replace(job, results=Path(f"{job.results}-again"))
    (first,), (second,) = (list(one.results.glob("*/*/features/run.json")) for one in (job, again))
    assert json.loads(first.read_text())["run_id"] == json.loads(second.read_text())["run_id"]
    assert first.relative_to(job.results) == second.relative_to(again.results)
    assert digests(again) == {"features": digests(job)["features"]} and len(digests(again)["features"]) == 1
    # Another setting under its name is refused before anything is made; a variation that is asked for is made.
    other = Path(job.settings[1])
    other.write_text(other.read_text().replace("n_features: 3", "n_features: 4"))
    refused = repeat(job, str(other), *places, "--results", f"{job.results}-third")
    assert "cannot be repeated with what is here: " in last_line(refused)
    assert "params.n_features is 3 there and 4 here" in last_line(refused)
    assert not Path(f"{job.results}-third").exists()
    varied = repeat(job, *places, "--blocks", "up.0.1", "--results", f"{job.results}-third")
    assert varied.exit_code == 0, varied.output


def test_places_come_from_the_options_of_the_earlier_command(job: RunRequest) -> None:
    job_lines(job, limit=1, report=None)
    file = next(job.results.glob("*/*/features/run.json"))
    stored = json.loads(file.read_text())
    file.write_text(json.dumps({**stored, "invocations": [{"request": {"suite": "x"}}, {"request": job.to_config()}]}))
    assert options_of_run(file, {}) == {
        "suite": job.suite, "model": job.model, "steps": 2, "guidance": 0.0, "scorer": ["toy-clip"], "seeds": [0],
        "limit": 1, "repeat": str(file), "repeat_exactly": True,
    }  # fmt: skip
    Path(job.suite).rename(f"{job.suite}-moved")
    with pytest.raises(RiebenchError, match=r"cannot be repeated: .*name the suite's folder with --suite"):
        options_of_run(file, {})


def stored_run(tmp_path: Path, change: Callable[[RunSpec], RunSpec]) -> Path:
    """Store a run without records and return its run.json."""
    folder = RunFolder(run_path(tmp_path, "toy", "toy-turbo", "sae"), change(make_spec()))
    with folder.open_for_writing():
        pass
    return folder.path / "run.json"


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({"source": "riebench/toy-turbo"}, {"model": "toy-turbo"}),
        (
            {"name": "toy-turbo-steps2-px32-float16-tiled", "source": "riebench/toy-turbo", "steps": 2, "size": 32,
             "dtype": "float16", "vae_tiling": True},
            {"model": "toy-turbo", "steps": 2, "size": 32, "dtype": "float16", "vae_tiling": True},
        ),
        ({"name": "toy-turbo-paper", "source": "riebench/toy-turbo", "fixed_noise": True},
         {"model": "toy-turbo", "profile": "paper"}),
        ({"name": "b", "source": "a/b"}, {"model": "a/b@r1"}),
        ({"name": "b-vae-fp16-fix", "source": "a/b", "vae": "m/v@1"}, {"model": "a/b@r1", "vae": "fp16-fix"}),
    ],
)  # fmt: skip
def test_a_model_is_found_by_what_a_run_stores(fields: dict[str, Any], options: dict[str, Any], tmp_path: Path) -> None:
    file = stored_run(tmp_path, lambda spec: spec.model_copy(update={"model": spec.model.model_copy(update=fields)}))
    found = options_of_run(file, {})
    assert found == {"suite": "toy", **options, "repeat": str(file), "repeat_exactly": True}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"source": "my_model"}, r"does not say where the model my_model lies; name it with --model$"),
        ({"source": "a/b", "unet": "u.safetensors@12"}, r"the U-Net u.safetensors lies; name it with --unet$"),
        ({"source": "a/b", "loras": ("l@1 x1",)}, r"its 1 LoRA files lie; name each of them with --lora"),
        ({"source": "a/b", "vae": "mine@12"}, r"the autoencoder mine lies; name it with --vae$"),
    ],
)
def test_what_a_run_does_not_store_is_asked_for(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = stored_run(tmp_path, lambda spec: spec.model_copy(update={"model": spec.model.model_copy(update=fields)}))
    with pytest.raises(RiebenchError, match=message):
        options_of_run(file, {})


def test_a_plug_in_is_asked_for(tmp_path: Path) -> None:
    plugin = {"plugin": "mine.py", "plugin_sha256": "ab"}
    file = stored_run(
        tmp_path, lambda spec: spec.model_copy(update={"setting": spec.setting.model_copy(update=plugin)})
    )
    message = r"does not say where its plug-in mine.py lies; add the configuration's YAML file to the command$"
    for ask in (lambda: options_of_run(file, {}), lambda: stored_setting(file)):
        with pytest.raises(RiebenchError, match=message):
            ask()
