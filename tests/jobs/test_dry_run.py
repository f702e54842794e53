"""`--dry-run`: what it counts is what a run then does, and nothing is loaded for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_folder, tiny_model, tiny_saes
from typer.testing import CliRunner

from riebench.cli.main import app
from riebench.errors import RiebenchError
from riebench.generation.generator import GenerationResult, Generator
from riebench.generation.hooks import known_sites
from riebench.generation.memory import UNITS_SHARE, automatic_batch_size
from riebench.jobs.dry_run import describe, forecast_job, prepare_forecast, sae_bytes
from riebench.jobs.forecast import Forecast
from riebench.jobs.request import EngineOptions, RunRequest
from riebench.models.families.sdxl.shape import SDXL, folder_shape
from riebench.models.lookup import look_up
from riebench.models.presets import SAE_BYTES_PER_BLOCK
from riebench.models.spec import ModelOptions
from riebench.runs.runner import run_benchmark
from riebench.tasks.schema import Setting
from riebench.utils import machine
from riebench.utils.machine import size_text

TASK = """\
category: {category}
version: 1
examples:
  - {{id: {category}-1, source: a red cat, target: a blue cat, source_region: whole, target_region: whole}}
  - {{id: {category}-2, source: a red dog, target: a grey dog, source_region: whole, target_region: whole}}
"""
SETTINGS = {
    "features": "method: sae\nparams: {n_features: 3}\nblock_mode: both\nstrengths: [20, 40]\naccess: PAM\n",
    "units": "method: neurons\nparams: {n_units: 50}\naccess: PAM\n",
}


@pytest.fixture
def job(tmp_path: Path) -> RunRequest:
    """Two categories of two examples; no_edit, SAE features on five block sets at two strengths, and neurons."""
    suite = tmp_path / "mine"
    suite.mkdir()
    for category in ("change_color", "change_object"):
        (suite / f"{category}.yaml").write_text(TASK.format(category=category))
    for name, text in SETTINGS.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    return RunRequest(
        suite=str(suite), settings=("no_edit", *(str(tmp_path / f"{name}.yaml") for name in SETTINGS)),
        model=str(tiny_folder()), sae=str(tiny_saes()), steps=2, guidance=3.0, batch_size=4, device="cpu",
        results=tmp_path / "out",
    )  # fmt: skip


def run(job: RunRequest) -> None:
    """Makes what the job asks for, without scoring it."""
    tasks, settings = job.plan()
    run_benchmark(
        tasks, settings, tiny_model(2, 3.0), results_root=job.results, seeds=job.seeds, batch_size=job.batch_size,
        progress=False, provenance={"device": "cpu"},
    )  # fmt: skip


def test_a_run_does_what_was_counted(job: RunRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    before = forecast_job(job)
    assert (before.units, before.missing, before.copies) == (4 * (1 + 10 + 1), 48, 4)
    assert (before.pairs, before.edited, before.extra_runs) == (4, 44, 0)
    assert before.generations == 2 * 4 + 44
    assert before.evaluations == 52 * 2 * 2  # two steps, two guidance halves
    assert {(line.setting, line.category): line.units for line in before.lines}["features", "change_color"] == 20
    assert before.model.name == tiny_model(2, 3.0).spec.name
    assert not job.results.exists()

    rows = 0
    generate: Any = Generator.generate

    def counted(self: Generator, prompts: Any, *args: Any, **options: Any) -> GenerationResult:
        nonlocal rows
        rows += len(prompts)
        made: GenerationResult = generate(self, prompts, *args, **options)
        return made

    monkeypatch.setattr(Generator, "generate", counted)
    run(job)
    assert before.sae_runs == 4 and "first 4 source pictures, 16 U-Net" in dict(describe(before))["SAE check"]
    assert rows == before.generations + before.sae_runs
    after = forecast_job(job)
    assert (after.units, after.missing, after.generations, after.disk) == (48, 0, 0, 0)
    next(job.results.rglob("features/images/*.png")).unlink()
    again = forecast_job(job)
    assert (again.missing, again.pairs, again.edited) == (1, 1, 1)
    assert forecast_job(replace(job, redo="all")).missing == 48
    assert forecast_job(replace(job, limit=1)).units == 24


def test_time_comes_from_stored_times_of_the_same_model(job: RunRequest) -> None:
    assert "assumed" in forecast_job(job).basis
    run(job)
    for file in job.results.rglob("records.jsonl"):
        lines = [{**json.loads(line)} for line in file.read_text().splitlines()]
        timed = [{**line, "seconds": 8.0} if "seconds" in line else line for line in lines]
        file.write_text("".join(json.dumps(line) + "\n" for line in timed))
    found = forecast_job(replace(job, redo="all"))
    assert found.seconds == pytest.approx(2.0 * found.evaluations)  # 8 s for 2 steps of 2 halves
    assert "44 stored times" in found.basis
    # Other steps of the same weights go by evaluations; another number format says nothing.
    assert forecast_job(replace(job, steps=1)).seconds == pytest.approx(2.0 * 52 * 2)
    assert "assumed" in forecast_job(replace(job, dtype="bfloat16")).basis


def test_another_runs_folder_is_refused_as_by_the_run(job: RunRequest) -> None:
    run(job)
    setting = Path(job.settings[1])
    setting.write_text(setting.read_text().replace("n_features: 3", "n_features: 4"))
    with pytest.raises(RiebenchError, match="n_features is 3 there and 4 here"):
        forecast_job(job)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks": "down.1.0"}, "has no block down.1.0"),
        ({"blocks": "mid.res.0"}, "works on attention blocks, not on mid.res.0"),
        ({"options": ModelOptions(config="sdxl-turbo")}, "--single-file-config is for single files"),
        ({"options": ModelOptions(size=33)}, "33 is no multiple of 2"),
        ({"model": "no/such/model"}, "no model 'no/such/model'"),
        ({"dtype": "float61"}, "did you mean 'float16'"),
        ({"regions": "grounded-sam", "options": ModelOptions(size=48)}, "do not divide a picture side of 48"),
    ],
)
def test_what_a_run_would_refuse_is_refused(job: RunRequest, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RiebenchError, match=message):
        forecast_job(replace(job, **changes))


def test_region_models_look_at_pictures_first(job: RunRequest) -> None:
    file = Path(job.suite) / "change_color.yaml"
    file.write_text(file.read_text().replace("source_region: whole", "source_region: red"))
    assert forecast_job(job).region_pairs == 0
    found = forecast_job(replace(job, regions="clipseg"))
    assert (found.region_pairs, found.generations) == (2, 52 + 4)


def test_a_folders_shape_is_what_the_loaded_model_has() -> None:
    shape, unet = folder_shape(tiny_folder()), tiny_model().denoiser
    assert set(shape.blocks) == set(known_sites(unet))
    assert shape.parameters["unet"] == sum(value.numel() for value in unet.parameters())
    assert (shape.width("mid.0"), shape.positions("mid.0", 32), shape.units("up.0.1")) == (64, 16, 256)
    assert shape.positions("up.2.res.0", 32) == 256


@pytest.mark.parametrize(
    ("block", "width", "small", "large", "units"),
    [
        ("down.2.1", 1280, 256, 1024, 51200),
        ("mid.0", 1280, 256, 1024, 51200),
        ("up.0.0", 1280, 256, 1024, 51200),
        ("down.1.0", 640, 1024, 4096, 5120),
        ("up.1.2", 640, 1024, 4096, 5120),
        ("up.2.res.1", 320, 4096, 16384, 0),
    ],
)
def test_sdxls_shape(block: str, width: int, small: int, large: int, units: int) -> None:
    assert (SDXL.width(block), SDXL.positions(block, 512), SDXL.positions(block, 1024)) == (width, small, large)
    assert SDXL.units(block) == units


@pytest.mark.parametrize("guidance", [0.0, 3.0])
def test_a_model_is_named_without_loading_as_with(guidance: float) -> None:
    loaded = tiny_model(2, guidance).spec
    known = look_up(str(tiny_folder()), steps=2, guidance=guidance).spec
    assert known == loaded.model_copy(update={"revision": None})


def large(**changes: Any) -> Forecast:
    """The published suite on SDXL, forecast for a GPU."""
    values = {"suite": "sdxl", "device": "cuda", "results": Path("nowhere"), **changes}
    return forecast_job(RunRequest(**values))


def test_sdxl_needs_no_model_to_be_counted() -> None:
    turbo = large(settings=("sae_k160", "no_edit", "target_prompt"))
    assert (turbo.pairs, turbo.copies, turbo.edited) == (360, 720, 3600)
    assert turbo.evaluations == (720 + 3600) * 4
    assert 7.0e9 < turbo.memory.weights < 7.6e9
    base = large(model="sdxl-base", settings=("sae_k160",), blocks="down.1.0,up.0.2")
    assert base.evaluations == (720 + 720) * 20 * 2
    assert large(model="sdxl-base", settings=("sae_k160",), batch_size=1).memory.traces < 0.5e9
    half = large(model="sdxl-base", settings=("sae_k160",), blocks="mid.0", options=ModelOptions(offload="model"))
    assert half.memory.weights < 5.3e9


@pytest.mark.parametrize("fitting", [0, 1, 20])
def test_large_neuron_edits_are_counted_as_memory_or_as_further_runs(
    monkeypatch: pytest.MonkeyPatch, fitting: int
) -> None:
    # Four blocks of ten layers of 5120 units at 256 positions: two runs of four steps in 16 bits.
    needed = 2 * 4 * (4 * 10 * 5120 * 256) * 2
    monkeypatch.setattr("riebench.utils.machine.free_ram", lambda: int((fitting + 0.5) * needed / UNITS_SHARE))
    found = large(settings=("neurons_k5000",), batch_size=32)
    lines = dict(describe(found))
    if fitting:
        held = min(fitting, 16) * needed
        assert (found.extra_runs, found.memory.units) == (0, held)
        assert lines["memory (estimate)"].endswith(f"; and in the host's memory units kept {size_text(held)}")
        on_host = large(settings=("neurons_k5000",), batch_size=32, device="cpu", dtype="float16")
        assert on_host.memory.total == found.memory.total + held
    else:
        # Ranked by one more pair an example, and read from pairs beside both strengths of it.
        assert (found.extra_runs, found.memory.units) == (360 * (2 + 2 * 2), 0)
        assert "units" not in lines["memory (estimate)"]


def test_the_command_prints_it_and_loads_nothing(tmp_path: Path) -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from riebench.cli.main import app; "
        "r = CliRunner().invoke(app, sys.argv[1:]); print(r.output); "
        "print(r.exit_code, [m for m in ('diffusers', 'transformers', 'open_clip') if m in sys.modules])"
    )
    line = ["run", "sae_k160", "no_edit", "--suite", "sdxl", "--model", "some/finetune@v1", "--device", "cuda"]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hub")}
    line += ["--dry-run", "--results", str(tmp_path / "out")]
    command = [sys.executable, "-c", code, *line]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    text = done.stdout
    assert text.splitlines()[-1] == "0 []"
    assert "3960: 0 done, 3960 to make, of which 360 are copies by construction" in text
    assert "(estimate)" in text and "assumed 12 TFLOP/s in float32" in text
    assert not list(tmp_path.iterdir())


def test_the_printed_table_says_what_is_done(job: RunRequest) -> None:
    run(replace(job, settings=job.settings[:1]))
    line = ["run", *job.settings, "--suite", job.suite, "--model", str(job.model), "--sae", str(job.sae)]
    more = ["--steps", "2", "--guidance", "3", "--results", str(job.results), "--device", "cpu", "--dry-run"]
    done = CliRunner().invoke(app, [*line, *more])
    assert done.exit_code == 0, done.output
    assert "48: 4 done, 44 to make, of which 0 are copies" in done.stdout
    assert "0 (4)" in done.stdout
    assert prepare_forecast(job).known.spec.name in done.stdout


def test_a_shard_is_counted_alone_and_all_shards_are_the_whole(job: RunRequest) -> None:
    whole = forecast_job(job)
    parts = [forecast_job(shard(job, index, 3)) for index in (1, 2, 3)]
    for name in ("units", "missing", "copies", "pairs", "edited", "generations", "evaluations"):
        assert sum(getattr(part, name) for part in parts) == getattr(whole, name)
    assert [part.pairs for part in parts] == [2, 1, 1]
    assert sum(part.seconds for part in parts) == pytest.approx(whole.seconds)
    assert sum(part.disk for part in parts) == pytest.approx(whole.disk, abs=3)
    assert parts[1].memory.traces == parts[0].memory.traces / 2 == whole.memory.traces / 2
    tasks, settings = job.plan()
    run_benchmark(
        tasks, settings, tiny_model(2, 3.0), results_root=job.results, batch_size=4, progress=False, shard=(2, 3)
    )
    assert [forecast_job(shard(job, index, 3)).missing for index in (1, 2, 3)] == [24, 0, 12]
    assert forecast_job(job).missing == 36


def shard(job: RunRequest, index: int, count: int) -> RunRequest:
    """One of several processes that share a job."""
    return replace(job, engine=EngineOptions(shard=(index, count)))


def test_the_shard_is_shown(job: RunRequest) -> None:
    line = ["run", *job.settings, "--suite", job.suite, "--model", str(job.model), "--sae", str(job.sae), "--dry-run"]
    more = ["--steps", "2", "--guidance", "3", "--results", str(job.results), "--device", "cpu"]
    outputs = [CliRunner().invoke(app, [*line, *more, *last]).stdout for last in ((), ("--shard", "1/3"))]
    assert "shard" not in outputs[0] and "48: 0 done, 48 to make" in outputs[0]
    assert "1 of 3; all that follows is this part's alone" in outputs[1] and "24: 0 done, 24 to make" in outputs[1]


def test_settings_that_name_the_same_saes_share_them() -> None:
    one, other = (Setting(name=name, method="sae", blocks=("mid.0", "up.0.1")) for name in ("one", "other"))
    alone = sae_bytes([one], SDXL)
    assert alone == 2 * SAE_BYTES_PER_BLOCK
    assert sae_bytes([one, other, Setting(name="none", method="no_edit")], SDXL) == alone
    assert sae_bytes([one, other.model_copy(update={"sae": "mine"})], SDXL) == 2 * alone


def test_the_batch_is_the_one_that_a_run_would_take(job: RunRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = replace(job, batch_size=None)
    assert forecast_job(asked).batch_size == automatic_batch_size(tiny_model(2, 3.0)) == 32
    monkeypatch.setattr(machine, "free_ram", lambda: 0)
    assert forecast_job(asked).batch_size == automatic_batch_size(tiny_model(2, 3.0)) == 1
    # What a device that is not here has free, nobody knows; of one that is, the weights are taken off.
    monkeypatch.setattr(machine, "find_gpu", lambda device: None)
    assert large(settings=("no_edit",)).batch_size == 4
    for free, size in ((80, 32), (14, 4), (3, 1)):
        card = machine.Gpu("one", 80 * 10**9, free * 10**9, "", bfloat16=True)
        monkeypatch.setattr(machine, "find_gpu", lambda device, card=card: card)
        assert large(settings=("no_edit",), dtype="float16").batch_size == size
