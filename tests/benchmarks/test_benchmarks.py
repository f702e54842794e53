"""The speed measurements run and compare like with like; what they measure is no test."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from tiny import tiny_model, tiny_saes
from tiny_runs import task

from benchmarks.sdxl.architecture import UNET, VAE, random_sdxl
from benchmarks.speed import device, memory, tables
from benchmarks.speed.bare import BareCalls, Beside
from benchmarks.speed.onebyone import OneByOne
from benchmarks.speed.workload import clocked
from riebench.errors import RiebenchError
from riebench.models.loading import DTYPES, LoadedModel
from riebench.runs.plan import plan
from riebench.runs.runner import run_benchmark
from riebench.tasks.schema import Setting

SETTINGS = [
    Setting(name="target_prompt", method="target_prompt", blocks=()),
    Setting(name="sae", method="sae", params={"n_features": 10}, strengths=(3.0,), sae=str(tiny_saes())),
    Setting(name="neurons", method="neurons", params={"n_units": 200}, strengths=(3.0,)),
    Setting(name="lerp", method="embed_lerp", blocks=(), strengths=(0.5,)),
    Setting(name="masked", method="masked_target", blocks=(), strengths=(0.5,)),
]


def test_one_by_one_makes_the_same_pictures_with_three_times_the_generations(tmp_path: Path) -> None:
    model, tasks = tiny_model(2), [task(1, region="house")]
    folders = run_benchmark(tasks, SETTINGS, model, results_root=tmp_path / "run", progress=False)
    (tmp_path / "plain").mkdir()
    plain = OneByOne(model, tmp_path / "plain", saes=str(tiny_saes()))
    units = plan(tasks, SETTINGS)
    with clocked(model) as clock:
        pictures = [plain.make(unit) for unit in units]
    for folder, picture in zip(folders, pictures, strict=True):
        (record,) = folder.records()
        assert np.abs(folder.read_image(str(record.image)).astype(int) - picture).max() <= 1
    assert clock.rows["unet"] == 3 * 2 * len(units) and set(clock.batches) == {1}
    assert 0 < clock.unet < clock.model and clock.hooks > 0
    assert len(list((tmp_path / "plain").iterdir())) == len(units)
    with clocked(model) as again:
        BareCalls(model).make([("unet", 1), ("unet", 3), ("decoder", 2), ("decoder", 2)])
    assert (again.batches, again.rows["decoder"], again.calls["decoder"]) == ([1, 3], 4, 2)
    assert not any("forward" in part.__dict__ for part in model.denoiser.modules())


def test_bare_calls_beside_a_run_are_as_many_and_change_nothing_in_it(tmp_path: Path) -> None:
    model, tasks = tiny_model(2), [task(2, region="house")]
    (alone,) = run_benchmark(tasks, SETTINGS[1:2], model, results_root=tmp_path / "alone", progress=False)
    other = copy.deepcopy(model)
    ticks = iter(range(10**6))
    beside = Beside(BareCalls(other), lambda: next(ticks), every=3)
    with clocked(other) as bare, clocked(model, lambda: next(ticks), beside.note) as clock:
        (held_up,) = run_benchmark(tasks, SETTINGS[1:2], model, results_root=tmp_path / "held", progress=False)
        assert bare.rows["unet"] > 0
        beside.finish()
    assert bare.batches == clock.batches and beside.rows == bare.rows == clock.rows
    # Each time the run is held up takes one tick of this timer.
    assert beside.seconds > 1
    assert [one.image_sha256 for one in held_up.records()] == [one.image_sha256 for one in alone.records()]


def test_the_documented_speed_is_the_measured_one() -> None:
    tables.fill(check=True)


def test_a_changed_figure_in_the_document_is_seen(tmp_path: Path) -> None:
    text = tables.DOCUMENT.read_text(encoding="utf-8")
    found = json.loads(tables.RESULTS.read_text(encoding="utf-8"))
    figure = f"{found['sweep']['images_a_second']:.1f}"
    changed = tmp_path / "performance.md"
    changed.write_text(text.replace(f"one by one | {figure} /", "one by one | 9.9 /"), encoding="utf-8")
    with pytest.raises(RiebenchError, match="out of date"):
        tables.fill(check=True, document=changed)


ONE = device.SWEEP.model_copy(update={"strengths": (1.0,)})


def build(dtype: str) -> LoadedModel:
    """SDXL's blocks with few channels."""
    torch.manual_seed(0)
    small = {"block_out_channels": (32, 32, 64), "transformer_layers_per_block": 1, "attention_head_dim": (1, 1, 2)}
    unet = UNet2DConditionModel(**{**UNET, **small}).to(DTYPES[dtype]).eval()
    vae = AutoencoderKL(**{**VAE, "block_out_channels": (32,) * 4, "layers_per_block": 1}).eval()
    return random_sdxl("cpu", dtype, steps=1, guidance=0.0, size=64, parts=(unet, vae))


def test_the_measurement_of_full_size_runs_at_any_size() -> None:
    rate = device.matrix_rate("cpu", (64,), seconds=0.01)
    lines: list[str] = []
    found = device.measure(build, (2, 4), modes=(False,), rate=rate, single=1, setting=ONE, say=lines.append)
    assert [(one.way, one.dtype, one.batch) for one in found] == [
        ("one by one", "float32", 1), ("sweep", "bfloat16", 2), ("sweep", "bfloat16", 4),
    ]  # fmt: skip
    assert [one.pictures for one in found] == [1, 4, 4]
    assert all(0 < one.unet_seconds < one.seconds and one.unet_rate > 0 for one in found)
    assert len(lines) == 4 and "times one by one in float32" in lines[-1]


def test_where_memory_ends_the_measurement_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    original = device.whole_rate

    def short(model: LoadedModel, batch: int, operations: int) -> float:
        if batch > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(model, batch, operations)

    monkeypatch.setattr(device, "whole_rate", short)
    lines: list[str] = []
    found = device.measure(build, (2, 8, 16), modes=(False,), rate=1e9, single=1, setting=ONE, say=lines.append)
    assert [one.batch for one in found] == [1, 2] and lines[-2] == "batch 8: CUDA out of memory"


def test_every_way_whose_memory_is_measured_makes_its_pictures(tmp_path: Path) -> None:
    model, tasks = tiny_model(2), [task(3, region="house")]
    units = len(plan(tasks, SETTINGS[1:2]))
    rows = {}
    for way in memory.WAYS:
        with clocked(model) as clock:
            memory.work(way, model, tasks, SETTINGS[1:2], tmp_path / way, str(tiny_saes()))
        rows[way] = clock.rows["unet"]
        assert (clock.rows["decoder"] >= units) and (max(clock.batches) > 1) == (way != "one by one")
    assert rows["bare"] == 2 * units and rows["one by one"] == 3 * 2 * units
    # Before its first edit a run measures its SAEs on the three source pictures.
    assert rows["bare"] < rows["ours"] - 2 * 3 <= rows["one by one"]


def test_where_no_sweep_fits_one_by_one_is_reported_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def short(model: LoadedModel, batch: int, operations: int) -> float:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(device, "whole_rate", short)
    lines: list[str] = []
    found = device.measure(build, (2, 8), modes=(False,), rate=1e9, single=1, setting=ONE, say=lines.append)
    assert [one.way for one in found] == ["one by one"] and lines[-1].startswith("batch 2: ")
