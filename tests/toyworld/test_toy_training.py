"""The training loop: an interrupted run is the same run, and another configuration is refused."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from riebench.toyworld.data import Pool
from riebench.toyworld.networks.diffusion import BASE_CONFIG, base_indices
from riebench.toyworld.networks.loop import CHECKPOINT, Stage, TrainingFolderError, fit, step_generator
from riebench.toyworld.scenes import random_scene

pytestmark = pytest.mark.training


class _Interrupted(Exception):
    pass


def _stage(steps: int = 12, rate: float = 0.05, stop_at: int | None = None, muon: str = "") -> Stage:
    torch.manual_seed(3)
    module = nn.Linear(4, 1)

    def loss(step: int) -> Tensor:
        if step == stop_at:
            raise _Interrupted
        x = torch.randn(8, 4, generator=step_generator(1, step))
        return (module(x) - x.sum(1, keepdim=True)).square().mean()

    return Stage(
        "line", {"steps": steps, "rate": rate}, module, loss, steps, rate, warmup=2, checkpoint_seconds=0.0,
        by_muon=muon.__eq__,
    )  # fmt: skip


@pytest.mark.parametrize("muon", ["", "weight"])
def test_an_interrupted_run_ends_with_the_same_weights(tmp_path: Path, muon: str) -> None:
    whole = fit(_stage(muon=muon), tmp_path / "whole")
    with pytest.raises(_Interrupted):
        fit(_stage(stop_at=7, muon=muon), tmp_path / "parts")
    resumed = fit(_stage(muon=muon), tmp_path / "parts")
    for name, value in whole.items():
        assert torch.equal(value, resumed[name])
    assert len((tmp_path / "parts" / "line" / "loss.csv").read_text().splitlines()) >= 1


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first = fit(_stage(), tmp_path)
    again = fit(_stage(stop_at=0), tmp_path)
    assert all(torch.equal(value, again[name]) for name, value in first.items())


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    stage = _stage(steps=200)
    before = float(stage.loss(10_000))
    fit(stage, tmp_path)
    assert float(stage.loss(10_000)) < before / 10


def test_muon_moves_its_matrices_by_orthogonal_steps_as_long_as_those_of_adamw(tmp_path: Path) -> None:
    torch.manual_seed(4)
    goal, module = torch.randn(16, 16), nn.Linear(16, 16)
    before = module.weight.detach().clone()

    def loss(step: int) -> Tensor:
        return (module.weight - goal).square().sum() + module.bias.square().sum()

    fit(Stage("muon", {}, module, loss, 1, 0.01, warmup=1, weight_decay=0.0, by_muon="weight".__eq__), tmp_path)
    lengths = torch.linalg.svdvals(module.weight.detach() - before) / (0.01 * 0.2 * 16**0.5)
    assert lengths.min() > 0.3 and lengths.max() < 1.6  # one Newton-Schulz run brings them near 1


def test_another_configuration_is_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    fit(_stage(), tmp_path)
    kept = (tmp_path / "line" / CHECKPOINT).read_bytes()
    with pytest.raises(TrainingFolderError, match=r"rate: folder 0\.05, asked 0\.1"):
        fit(_stage(rate=0.1), tmp_path)
    assert (tmp_path / "line" / CHECKPOINT).read_bytes() == kept


def test_a_diverged_run_stops(tmp_path: Path) -> None:
    stage = _stage()
    weight = next(stage.module.parameters())
    stage.loss = lambda step: weight.sum() * float("nan")
    with pytest.raises(RuntimeError, match="loss is nan at step 0"):
        fit(stage, tmp_path)


def test_batches_favour_tilted_and_pixelated_scenes_but_leave_none_out() -> None:
    labels = np.array([random_scene(random.Random(i)).labels() for i in range(400)], dtype=np.uint8)
    pool = Pool(np.zeros((400, 1, 1, 3), np.uint8), labels)
    hard = pool.having(pose="tilted", style="pixel")
    expected = [i for i in range(400) if pool.scene(i).pose == "tilted" or pool.scene(i).style == "pixel"]
    assert hard.tolist() == expected
    drawn = torch.cat([base_indices(hard, 400, step_generator(5, step)) for step in range(400)])
    share = torch.isin(drawn, hard).float().mean().item()
    wanted = BASE_CONFIG["hard_share"]
    assert share == pytest.approx(wanted + (1 - wanted) * len(expected) / 400, abs=0.02)
    assert set(drawn.tolist()) == set(range(400))
