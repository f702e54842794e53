"""The main job on a tiny random SDXL with scoring networks that need no weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import tiny_folder, tiny_saes
from typer.testing import CliRunner

import riebench.scoring.score
from riebench.cli.main import app
from riebench.jobs.request import RunRequest
from riebench.jobs.run import run_job
from riebench.scoring.metrics.clip import ClipScorer
from riebench.scoring.metrics.networks import Networks
from riebench.store.folder import find_run_folders
from riebench.store.records import EditRecord

TASK = """\
category: change_color
version: 1
examples:
  - id: one
    source: a red cat
    target: a blue cat
    source_region: whole
    target_region: whole
  - id: two
    source: a red dog
    target: a grey dog
    source_region: dog
    target_region: dog
"""
SETTING = "method: sae\nparams: {n_features: 3}\nblock_mode: both\nstrengths: [40]\naccess: PAM\n"
UNITS = 2 + 2 * 5


class FakeLpips:
    """A stand-in for LPIPS that needs no weights."""

    def distance(self, first: Any, second: Any) -> Any:
        """Return the mean absolute difference of uint8 [N, H, W, 3], as [N]."""
        return np.abs(first.astype(float) - second).mean((1, 2, 3)) / 255


def fake_networks(scorer: str, *, device: str, **options: Any) -> Networks:
    """Return scoring networks that need no weights.

    CLIP embeds a picture as its mean colors, and a prompt as how often it has each vowel.
    """

    def pictures(batch: list[Any]) -> Any:
        return np.stack([[*picture.mean((0, 1)), 50.0, 20.0] for picture in batch])

    def texts(batch: list[str]) -> Any:
        return np.stack([[1.0 + text.count(vowel) for vowel in "aeiou"] for text in batch])

    distance: Any = FakeLpips()
    return Networks(
        scorer, device=device, ready={"clip": ClipScorer(pictures, texts, backbone="fake-clip"), "lpips": distance}
    )


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunRequest:
    """A job of two examples and two settings, one of them on each block and on all together."""
    suite = tmp_path / "mine"
    suite.mkdir()
    (suite / "change_color.yaml").write_text(TASK)
    setting = tmp_path / "features.yaml"
    setting.write_text(SETTING + f"sae: {tiny_saes()}\n")
    monkeypatch.setattr(riebench.scoring.score, "Networks", fake_networks)
    return RunRequest(
        suite=str(suite),
        settings=("no_edit", str(setting)),
        model=str(tiny_folder()),
        steps=2,
        guidance=0.0,
        batch_size=2,
        device="cpu",
        scorers=("toy-clip",),
        results=tmp_path / "out",
        leaderboard=tmp_path / "out" / "leaderboard.md",
    )


def run_command(job: RunRequest, *more: str) -> Any:
    """Run a job through the command line and return the result."""
    line = ["run", *job.settings, "--suite", job.suite, "--model", str(job.model), "--steps", "2", "--guidance", "0"]
    line += ["--scorer", "toy-clip"]
    return CliRunner().invoke(app, [*line, "--batch-size", "2", "--results", str(job.results), *more])


def last_line(result: Any) -> str:
    """Return the last error line of a failed command, which must show no traceback."""
    assert "Traceback" not in result.stderr
    line: str = result.stderr.strip().splitlines()[-1]
    return line


def records_by_setting(job: RunRequest) -> dict[str, list[EditRecord]]:
    """Return the records of a job by the name of their setting."""
    return {folder.spec.setting.name: folder.records() for folder in find_run_folders(job.results)}


def job_lines(job: RunRequest, **changes: Any) -> list[str]:
    """Run a job, with changed options, and return the lines it prints."""
    lines: list[str] = []
    run_job(replace(job, **changes), lines.append)
    return lines
