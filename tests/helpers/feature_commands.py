"""Runs of `riebench sae feature` on a tiny random SDXL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny import tiny_folder, tiny_model, tiny_saes
from typer.testing import CliRunner

from riebench.cli.main import app
from riebench.features.painter import Painter
from riebench.generation.generator import Capture

RUNNER = CliRunner()
BLOCK = "up.0.1"


def strongest_features(painter: Painter) -> list[int]:
    """Return the features of one picture, the largest sum first."""
    trace = painter.generator.generate(["a red cat"], [0], capture=Capture((BLOCK,))).trace
    order: list[int] = (
        painter.sae(BLOCK).contributions(trace.row(BLOCK, 0)).sum((0, 1)).argsort(descending=True).tolist()
    )
    return order


def run_feature(*arguments: str, out: Path, code: int = 0, prompts: Path | None = None) -> Any:
    """Run `riebench sae feature`, check its exit code and return the result."""
    command = ["sae", "feature", *arguments, "--model", str(tiny_folder()), "--sae", str(tiny_saes())]
    command += ["--out", str(out)]
    extra = ["--scorer", "none", "--strengths", "-1,2", "--top", "2", "--steps", "1", "--device", "cpu"]
    result = RUNNER.invoke(app, [*command, *extra, *(["--prompts", str(prompts)] if prompts else [])])
    assert result.exit_code == code, result.output
    return result


def active_features() -> list[int]:
    """Return the two strongest features of one picture."""
    return strongest_features(Painter(tiny_model(1), str(tiny_saes())))[:2]
