"""The main job on every family: plans of every preset, and names of blocks edited together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tiny import tiny_folder, tiny_saes
from tiny_flux import tiny_flux_folder
from tiny_jobs import last_line
from typer.testing import CliRunner

from riebench import blocks
from riebench.analysis.configurations import block_places
from riebench.cli.main import app
from riebench.errors import RiebenchError
from riebench.jobs.dry_run import prepare_forecast
from riebench.jobs.forecast import forecast
from riebench.jobs.request import RunRequest
from riebench.models.lookup import blocks_of, look_up, usual_blocks_of
from riebench.models.presets import PRESETS
from riebench.paper.job import PaperJob
from riebench.paper.recipes.steps import measure_steps
from riebench.tasks.schema import Setting
from riebench.tasks.settings import load_settings


@pytest.mark.parametrize("settings_set", ["main", "sweep"])
def test_the_main_job_of_every_preset_is_planned(
    tmp_path: Path, settings_set: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    whole = {one.name: one.method for one in load_settings("photos", settings_set=settings_set)}
    for name in PRESETS:
        job = RunRequest(
            suite="photos", model=name, settings_set=settings_set, categories=("change_color",), limit=1,
            device="cuda", results=tmp_path,
        )  # fmt: skip
        planned = prepare_forecast(job)
        refused = planned.known.family.refused_methods
        assert {whole[one] for one in job.left_out} == {*refused} & {*whole.values()}, name
        assert {one.name for one in planned.settings} == {*whole} - {*job.left_out}, name
        found = forecast(planned.planned)
        assert found.missing == found.units > 0 and found.evaluations > 0 and found.memory.weights > 0, name
        together = {unit.key.block_set for unit in planned.planned.units if len(unit.blocks) > 1}
        assert together == ({"all"} if len(usual_blocks_of(name)) > 1 else set()), name


def test_what_is_left_out_is_said_and_what_is_named_is_refused(tmp_path: Path) -> None:
    line = ("--suite", "photos", "--model", "flux-schnell", "--settings-set", "sweep", "--limit", "1", "--dry-run")
    shown = CliRunner().invoke(app, ["run", *line, "--results", str(tmp_path)])
    assert shown.exit_code == 0 and "p2p_sweep, which cannot run on this model (p2p: prompt-to-prompt" in shown.stdout
    named = CliRunner().invoke(app, ["run", "p2p_sweep", *line, "--results", str(tmp_path)])
    assert named.exit_code == 2 and "p2p cannot be used on FLUX.1" in last_line(named)


def test_usual_blocks_together_are_all_on_a_model_of_any_size() -> None:
    folder = str(tiny_flux_folder())
    usual = usual_blocks_of(folder)
    assert blocks.block_set_name(usual) == "+".join(usual)
    assert blocks.block_set_name(usual, usual) == blocks.block_set_name(usual[::-1], usual) == "all"
    assert blocks.block_set_name(usual[:2], usual) == "+".join(usual[:2])
    assert blocks.block_set_name(usual[:1], usual[:1]) == usual[0]
    setting = Setting(name="s", method="activation_patch", access="PAM", block_mode="both")
    job = RunRequest(model=folder, given=(setting,), limit=1, categories=("change_color",))
    assert {unit.key.block_set for unit in job.units(*job.plan())} == {*usual, "all"}


def test_blocks_are_listed_in_the_order_of_the_pass() -> None:
    for name in PRESETS:
        known = look_up(name)
        order = known.family.names.pass_order(blocks_of(name))
        assert blocks.pass_order(sorted(order)) == order, name
    mixed = ["all", "single.2", "double.10", "double.2", "none", "mid.0", "mid.0+up.0.0", "down.2.1"]
    places = block_places(mixed)
    assert sorted(mixed, key=places.__getitem__) == [
        "none", "down.2.1", "mid.0", "double.2", "double.10", "single.2", "mid.0+up.0.0", "all",
    ]  # fmt: skip


def test_paper_recipes_take_the_blocks_of_the_model(tmp_path: Path) -> None:
    job = PaperJob(
        out=tmp_path, work=tmp_path, suite="photos", model=str(tiny_folder()), base=str(tiny_flux_folder()),
        sae=str(tiny_saes()), limit=1, steps=(1,),
    )  # fmt: skip
    with pytest.raises(RiebenchError, match=r"has no block down\.2\.1; give a --base with the same blocks, or none"):
        measure_steps(job)
    alone = measure_steps(replace(job, base="none"))
    assert {row["block"] for row in alone.rows_of("variance")} == {*usual_blocks_of(str(tiny_folder()))}
