"""The training loop of every model of the toy world.

It is seeded, logged, checkpointed and exactly resumable.
"""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from riebench.utils.terminal import ProgressBar

CHECKPOINT = "checkpoint.pt"


class TrainingFolderError(RuntimeError):
    """A folder that holds a training run of another configuration."""


@dataclass
class Stage:
    """The settings of one training run.

    Attributes:
        name: of the stage, and of its folder.
        config: everything that decides the outcome; compared on resume.
        module: the module to train (its parameters that require a gradient).
        loss: step -> scalar loss; must draw all randomness from the step, so that a resumed run is the same run.
        steps: number of optimiser steps.
        learning_rate: its peak; warm-up, then linear decay to zero.
        warmup: steps over which the learning rate rises to its peak.
        weight_decay: AdamW's.
        betas: AdamW's.
        ema_decay: decay of the exponential moving average of the weights; lower in the first steps.
        checkpoint_seconds: seconds between two checkpoints.
        on_step: called after each optimiser step, for constraints on the weights.
        rate_factor: name of a parameter -> factor of its learning rate.
        by_muon: name of a matrix -> whether Muon moves it (orthogonalised momentum, steps as long as AdamW's); all
            other parameters are AdamW's.
    """

    name: str
    config: dict[str, Any]
    module: nn.Module
    loss: Callable[[int], Tensor]
    steps: int
    learning_rate: float
    warmup: int = 100
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    ema_decay: float = 0.999
    checkpoint_seconds: float = 120.0
    on_step: Callable[[], None] = field(default=lambda: None)
    rate_factor: Callable[[str], float] = field(default=lambda _name: 1.0)
    by_muon: Callable[[str], bool] = field(default=lambda _name: False)


def step_generator(seed: int, step: int) -> torch.Generator:
    """Return a CPU generator that depends on nothing but its arguments."""
    return torch.Generator().manual_seed(seed * 10_000_019 + step)


def check_folder(folder: Path, config: dict[str, Any]) -> None:
    """Claim a folder for a configuration, or refuse one that belongs to another.

    Raises:
        TrainingFolderError: if it does; names the fields that differ and the remedy.
    """
    path = folder / "config.json"
    if path.exists():
        stored = json.loads(path.read_text())
        wanted = json.loads(json.dumps(config))
        different = sorted(k for k in stored.keys() | wanted.keys() if stored.get(k) != wanted.get(k))
        if different:
            details = "; ".join(f"{k}: folder {stored.get(k)!r}, asked {wanted.get(k)!r}" for k in different)
            raise TrainingFolderError(
                f"{folder} holds a run of another configuration ({details}); name another folder or delete this one"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(config, indent=2) + "\n")


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file whole or not at all.

    Args:
        path: the file; a crash leaves the old one.
        write: fills a temporary file, which then replaces it.
    """
    temporary = path.with_name(path.name + ".partial")
    write(temporary)
    os.replace(temporary, path)


def _learning_rate(stage: Stage, step: int) -> float:
    if step < stage.warmup:
        return stage.learning_rate * (step + 1) / stage.warmup
    return stage.learning_rate * max(0.0, (stage.steps - step) / max(1, stage.steps - stage.warmup))


def fit(stage: Stage, work: Path) -> dict[str, Tensor]:
    """Run a stage to its end, from its last checkpoint if there is one.

    Args:
        stage: the settings.
        work: the folder that holds one sub-folder a stage.

    Returns:
        The exponential moving average of the trained module's state; also loaded into the module.

    Raises:
        TrainingFolderError: if the folder belongs to another configuration.
        RuntimeError: if the loss is not finite.
    """
    folder = work / stage.name
    check_folder(folder, stage.config)
    trained = {n: p for n, p in stage.module.named_parameters() if p.requires_grad}
    optimizers = _optimizers(stage, trained)
    ema = {n: p.detach().clone() for n, p in trained.items()}
    first = 0
    checkpoint = folder / CHECKPOINT
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        stage.module.load_state_dict(state["module"])
        for name, optimizer in optimizers.items():
            optimizer.load_state_dict(state[name])
        for n, value in state["ema"].items():
            ema[n].copy_(value)
        first = state["step"]

    def save(step: int) -> None:
        state = {"step": step, "module": stage.module.state_dict(), "ema": ema}
        state |= {name: optimizer.state_dict() for name, optimizer in optimizers.items()}
        write_atomically(checkpoint, lambda path: torch.save(state, path))

    if first < stage.steps:
        _loop(stage, folder, tuple(optimizers.values()), trained, ema, first, save)
    with torch.no_grad():
        for n, p in trained.items():
            p.copy_(ema[n])
    return stage.module.state_dict()


def _optimizers(stage: Stage, trained: dict[str, nn.Parameter]) -> dict[str, torch.optim.Optimizer]:
    """Build the optimisers of a stage.

    Returns:
        Name in the checkpoint -> optimiser; that of AdamW is "optimizer".
    """

    def groups(muon: bool) -> list[dict[str, Any]]:
        by_factor: dict[float, list[nn.Parameter]] = {}
        for name, parameter in trained.items():
            if stage.by_muon(name) == muon:
                by_factor.setdefault(stage.rate_factor(name), []).append(parameter)
        return [{"params": some, "factor": factor} for factor, some in sorted(by_factor.items())]

    built: dict[str, torch.optim.Optimizer] = {
        "optimizer": torch.optim.AdamW(
            groups(False), lr=stage.learning_rate, betas=stage.betas, weight_decay=stage.weight_decay, fused=True
        )
    }
    matrices = groups(True)
    if matrices:
        built["muon"] = torch.optim.Muon(
            matrices, lr=stage.learning_rate, weight_decay=stage.weight_decay, adjust_lr_fn="match_rms_adamw"
        )
    return built


def _loop(
    stage: Stage,
    folder: Path,
    optimizers: Sequence[torch.optim.Optimizer],
    trained: dict[str, nn.Parameter],
    ema: dict[str, Tensor],
    first: int,
    save: Callable[[int], None],
) -> None:
    saved, average = time.monotonic(), None
    with (folder / "loss.csv").open("a", newline="") as log:
        writer = csv.writer(log)
        bar = ProgressBar(range(first, stage.steps), title=f"train {stage.name}", total=stage.steps, first=first)
        for step in bar:
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = group["factor"] * _learning_rate(stage, step)
                optimizer.zero_grad(set_to_none=True)
            loss = stage.loss(step)
            loss.backward()
            nn.utils.clip_grad_norm_(trained.values(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
            stage.on_step()
            decay = min(stage.ema_decay, (1 + step) / (10 + step))
            with torch.no_grad():
                torch._foreach_lerp_(list(ema.values()), [p.detach() for p in trained.values()], 1 - decay)
            value = loss.item()
            if not value < float("inf"):
                raise RuntimeError(f"{stage.name}: the loss is {value} at step {step}")
            average = value if average is None else 0.98 * average + 0.02 * value
            if step % 20 == 0:
                bar.note(loss=f"{average:.4f}")
                writer.writerow([step, f"{average:.6f}"])
                log.flush()
            if time.monotonic() - saved > stage.checkpoint_seconds:
                save(step + 1)
                saved = time.monotonic()
    save(stage.steps)
