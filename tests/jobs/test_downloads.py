"""One list of what has to be fetched, in the documents, in `riebench doctor` and in the run itself; and its size."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT
from sdxl_files import fake_hub, unreachable
from tiny import tiny_folder, tiny_saes
from typer.testing import CliRunner

from riebench.cli.main import app
from riebench.errors import RiebenchError
from riebench.generation.memory import UNITS_SHARE
from riebench.jobs.doctor import examine
from riebench.jobs.downloads import check_files, download_lines
from riebench.jobs.dry_run import prepare_forecast
from riebench.jobs.forecast import Forecast, forecast
from riebench.jobs.request import RunRequest
from riebench.utils.hub import offline_mode

DOCUMENT = (ROOT / "docs" / "sdxl.md").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def empty_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub's cache with nothing in it, and nobody who answers."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)


def request(**changes: Any) -> RunRequest:
    """The published suite on SDXL, with some options."""
    return RunRequest(**{"suite": "sdxl", "device": "cuda", **changes})


def documented_lines() -> list[str]:
    """The commands that the document gives for machines without a network."""
    joined = DOCUMENT.replace("\\\n", " ")
    return [" ".join(line.split()) for line in joined.splitlines() if line.startswith("hf download ")]


def lines_of_run(job: RunRequest) -> list[str]:
    """What the run prints before it fetches."""
    said: list[str] = []
    check_files(job, *job.plan(), said.append)
    return [line.strip() for line in said if line.strip().startswith("hf download ")]


def test_document_doctor_and_run_name_the_same_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_hub(monkeypatch, unreachable) as asked:
        ran = lines_of_run(request())
        examined = download_lines(examine(request()))
        assert not asked
    assert len(ran) == 3 and ran == examined == documented_lines()


def test_the_list_is_what_this_run_needs() -> None:
    model, clip = lines_of_run(request(settings=("no_edit",)))
    assert "sdxl-turbo" in model and "vit_large_patch14" in clip
    (saes,) = (line for line in lines_of_run(request(settings=("sae_k160",), blocks="mid.0")) if "turbo-saes" in line)
    assert saes.count("--include") == 1 and "'*unet.mid_block.attentions.0_k160_*'" in saes
    assert len(lines_of_run(request(settings=("sae_k160",), sae=str(tiny_saes())))) == 2
    assert lines_of_run(RunRequest()) == []


def test_offline_the_run_names_everything_at_once_and_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**changes: Any) -> str:
        job = request(**changes)
        with pytest.raises(RiebenchError) as caught, offline_mode(job.offline):
            check_files(job, *job.plan(), print)
        return str(caught.value)

    text = refuse(offline=True)
    assert text.startswith(
        "not on this machine: model sdxl-turbo (6.9 GB), SAEs hf://wendlerc/sdxl-turbo-saes (0.2 GB), "
    )
    assert "; leave --offline out, or fetch it first with `hf download stab" in text
    assert all(f"`{line}`" in text for line in documented_lines())
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "; HF_HUB_OFFLINE=1 keeps riebench off the network; unset HF_HUB_OFFLINE, or fetch" in refuse()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks": "mid.9"}, "has no block mid.9"),
        ({"sae": "hf://someone/saes", "offline": True}, "SAEs hf://someone/saes"),
        ({"sae": f"mid.0={tiny_saes()}"}, "no SAE for down.2.1, up.0.0, up.0.1 is named"),
        ({"scorers": ("ViT-L-14-quickgelo/openai",)}, "open_clip has no model 'ViT-L-14-quickgelo' (did you mean"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_model_is_loaded(
    changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the names stand in a setting's file, or the model is a folder."""
    from riebench.jobs.run import run_job
    from riebench.models.lookup import ModelRecipe

    def load(_: ModelRecipe) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(ModelRecipe, "load", load)
    values = {"settings": ("sae",), "model": str(tiny_folder()), "sae": str(tiny_saes()), "device": "cpu",
              "scorers": ("toy-clip",), "limit": 1, **changes}  # fmt: skip
    with pytest.raises(RiebenchError, match=re.escape(message)):
        run_job(RunRequest(**values), lambda _: None)


def test_the_document_counts_evaluations_as_the_dry_run_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """With memory for feed-forward units and without, where neuron edits repeat runs beside each batch."""
    runs: dict[str, dict[str, Any]] = {
        "SDXL Turbo, 4 steps": {},
        "SDXL Turbo, 1 step": {"steps": 1},
        "SDXL Base, 20 steps, guidance 5": {"model": "sdxl-base"},
    }
    kept = {}
    for name, changes in runs.items():
        planned = prepare_forecast(request(**changes)).planned
        assert planned.batch_size == 4
        counted: dict[int, list[Forecast]] = {}
        for free in (10**13, 0):
            monkeypatch.setattr("riebench.utils.machine.free_ram", lambda free=free: free)
            counted[free] = [forecast(replace(planned, batch_size=size)) for size in (1, 4, 16)]
        (most,) = {one.evaluations for one in counted[10**13]}
        short = " / ".join(f"{one.evaluations:,}" for one in counted[0])
        (line,) = (line for line in DOCUMENT.splitlines() if line.startswith(f"| {name} |") and "PFLOP" in line)
        assert line.startswith(f"| {name} | {counted[0][1].generations:,} | {most:,} | {short} | ")
        kept[planned.model.name] = counted[10**13][1].memory.units
    turbo, base = (f"{kept[name] / 1e9:.1f} GB" for name in ("sdxl-turbo", "sdxl-base"))
    assert f"SDXL Turbo keeps {turbo} and SDXL Base {base} at `--batch-size 4`" in " ".join(DOCUMENT.split())
    assert UNITS_SHARE == 0.25, "a quarter, as the document says"


def test_single_examples_are_chosen_and_counted(tmp_path: Path) -> None:
    tasks, _ = RunRequest(settings=("no_edit",)).plan()
    ids = [tasks[0].examples[3].id, tasks[1].examples[0].id]
    line = ["run", "sae", "no_edit", "--examples", ",".join(ids), "--results", str(tmp_path / "none")]
    done = CliRunner().invoke(app, [*line, "--dry-run", "--device", "cpu"])
    assert done.exit_code == 0, done.output
    assert re.search(r"units +12: 0 done, 12 to make, of which 2 are copies", done.stdout), done.stdout
    chosen, _ = RunRequest(settings=("no_edit",), examples=tuple(ids)).plan()
    assert [example.id for task in chosen for example in task.examples] == ids
    refused = CliRunner().invoke(app, ["run", "sae", "--examples", f"{ids[0]},{ids[1]}x", "--dry-run"])
    assert (
        refused.exit_code == 2 and f"has no example '{ids[1]}x' among those asked for (did you mean" in refused.stderr
    )


def test_a_chosen_example_is_the_same_unit_as_in_a_whole_run() -> None:
    """Choosing is no part of a run's identity: a later run of everything does only the rest."""
    from riebench.runs.plan import plan

    everything = RunRequest(settings=("sae",))
    some = RunRequest(settings=("sae",), examples=(everything.plan()[0][0].examples[2].id,))
    whole, part = ({unit.key.digest for unit in plan(*one.plan(), (0,))} for one in (everything, some))
    assert part and part < whole
