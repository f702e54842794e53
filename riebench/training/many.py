"""The training of several autoencoders in one pass over the data.

Curves are logged, checkpoints are written, and an interrupted training resumes exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from riebench.errors import RiebenchError
from riebench.saes.figures import FeatureStatistics, Meter, SaeFigures, StatisticsSum
from riebench.saes.files import load_tensors, save_tensors
from riebench.saes.sae import Signal, SparseAutoencoder
from riebench.training.batches import Batches, DataPass, InMemoryPositions, Positions
from riebench.training.model import (
    MEDIAN_OF,
    SaeTrainer,
    StepTerms,
    geometric_median,
    make_optimizer,
    save,
    take_step,
)
from riebench.training.settings import SaeTraining
from riebench.utils.files import content_digest, temporary_path
from riebench.utils.terminal import ProgressBar

SAMPLE = 100_000
"""Positions that variance, initial biases and threshold are computed from, at most."""
STATISTICS = 1_000_000
"""Training positions that feature statistics are computed over, at most."""
_CHUNK = 8192
"""Positions that are encoded at a time when figures are computed."""


@dataclass(frozen=True)
class CurvePoint:
    """One point of a training curve, taken on the batch of its step.

    Attributes:
        step: optimiser steps done.
        positions: positions seen.
        loss: the minimised loss.
        ev: explained variance.
        l0: features above 0 at a position.
        dead_share: share of features idle for longer than `SaeTraining.dead_positions`.
        rate: learning rate.
    """

    step: int
    positions: int
    loss: float
    ev: float
    l0: float
    dead_share: float
    rate: float


@dataclass(frozen=True)
class TrainedSae:
    """One trained autoencoder.

    Attributes:
        config: its settings, with the steps that were done.
        model: the trained module.
        statistics: of its features, over training positions.
        figures: explained variance, L0 and dead share on the positions held out.
        curve: the logged curve.
    """

    config: SaeTraining
    model: SaeTrainer
    statistics: FeatureStatistics
    figures: SaeFigures
    curve: tuple[CurvePoint, ...]

    def autoencoder(self, block: str | None = None) -> SparseAutoencoder:
        """Return the autoencoder in the form that methods use.

        Args:
            block: the block it was trained on.
        """
        return self.model.autoencoder(block)

    def save(self, folder: Path, block: str | None = None, signal: Signal = "update") -> None:
        """Write a checkpoint folder; see `riebench.training.model.save`."""
        save(self.model, self.statistics, folder, block, signal)


def train_many(
    data: Tensor | Positions,
    configs: Sequence[SaeTraining],
    plan: DataPass | None = None,
    *,
    device: torch.device | None = None,
    name: str = "saes",
    progress: bool = True,
    log_every: int = 50,
    log: Callable[[int, CurvePoint], None] | None = None,
    checkpoint: Path | None = None,
    checkpoint_every: int = 1000,
) -> list[TrainedSae]:
    """Train autoencoders of one block, reading each batch once for all of them.

    Equal data, settings and machine give equal weights, whether or not the training was interrupted.

    Args:
        data: [N, d] in memory, or anything that reads rows: `riebench.training.collection.Collection.data` of a block.
        configs: settings, one autoencoder each; batch size and steps are the plan's.
        plan: batch size, epochs, buffer, held-out positions and order; None for the defaults.
        device: where to train.
        name: for the progress bar.
        progress: shows it.
        log_every: steps between two points of the curves.
        log: gets the number of the configuration and the point, when it is measured.
        checkpoint: file that the state is kept in; if it exists, training resumes from it. The caller deletes it.
        checkpoint_every: steps between two checkpoints.

    Returns:
        One result for each configuration, in order.

    Raises:
        RiebenchError: if the data do not suffice, the loss is not finite, or the checkpoint is of another training.
    """
    plan = plan or DataPass()
    rows = InMemoryPositions(data) if isinstance(data, Tensor) else data
    training, held_out = plan.split(rows)
    batches = Batches(training, plan)
    device = device or torch.device("cpu")
    runs = _start(batches, plan, configs, device)
    identity = "" if checkpoint is None else content_digest(
        {"data": rows.digest, "plan": asdict(plan), "configs": [run.config.stated for run in runs]}
    )  # fmt: skip
    first = 0 if checkpoint is None or not checkpoint.exists() else _resume(checkpoint, identity, runs, log)
    with ProgressBar[None](title=f"train {name}", total=batches.steps, first=first, shown=progress) as bar:
        for step, batch in enumerate(batches.batches(first), start=first + 1):
            logged = step % log_every == 0 or step == batches.steps
            _advance(runs, step, batch.to(device).float(), logged, log)
            if logged:
                bar.note(ev=f"{runs[0].curve[-1].ev:.4f}")
            if checkpoint is not None and step % checkpoint_every == 0:
                _write_checkpoint(
                    checkpoint, {"identity": identity, "step": step, "runs": [run.state() for run in runs]}
                )
            bar.update()
    return _finish(runs, batches.sample(SAMPLE), plan, training, held_out)


class Training:
    """One autoencoder in training: module, optimiser and curve.

    Args:
        config: settings.
        sample: [N, d], positions that the scale of the loss is taken from.
        center: [d], initial value of the biases.
        device: where to train.
    """

    def __init__(self, config: SaeTraining, sample: Tensor, center: Tensor, device: torch.device) -> None:
        self.config = config
        self.model = SaeTrainer(sample, config, center).to(device)
        self.variance = sample.var(dim=0, correction=0).mean().to(device)
        self.optimizer = make_optimizer(self.model, self.variance)
        self.curve: list[CurvePoint] = []

    def step(self, step: int, x: Tensor) -> StepTerms:
        """Take one optimiser step.

        Args:
            step: its number, counted from 0.
            x: positions [B, d].
        """
        return take_step(self.model, self.optimizer, step, x, self.variance)

    def record_point(self, step: int, terms: StepTerms) -> None:
        """Add a point to the curve.

        Args:
            step: steps done.
            terms: of the last step.

        Raises:
            RiebenchError: if the loss is not finite.
        """
        loss = float(terms.loss.detach())
        if loss != loss or abs(loss) == float("inf"):
            raise RiebenchError(
                f"the loss of k = {self.config.k}, {self.config.features} features is no number at step {step}: the "
                f"learning rate {self.config.peak_rate:g} is too high, or the data are damaged"
            )
        dead = (self.model.idle > self.model.dead_steps).float().mean()
        self.curve.append(
            CurvePoint(
                step, step * self.config.batch_size, round(loss, 6), round(1 - float(terms.unexplained), 6),
                round(float(terms.active), 4), round(float(dead), 6), self.config.rate(step - 1),
            )
        )  # fmt: skip

    def state(self) -> dict[str, Any]:
        """Return the curve and all state that later steps depend on."""
        return {
            "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
            "curve": [asdict(point) for point in self.curve],
        }  # fmt: skip

    def load(self, state: dict[str, Any]) -> None:
        """Restore a state."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.curve = [CurvePoint(**point) for point in state["curve"]]


def _start(batches: Batches, plan: DataPass, configs: Sequence[SaeTraining], device: torch.device) -> list[Training]:
    if not configs:
        raise RiebenchError("no SAE is to be trained; give at least one k and one width")
    sample = batches.sample(SAMPLE).float()
    center = geometric_median(sample[:MEDIAN_OF])
    return [
        Training(replace(config, batch_size=plan.batch_size, steps=batches.steps), sample, center, device)
        for config in configs
    ]


def _advance(
    runs: Sequence[Training], step: int, x: Tensor, logged: bool, log: Callable[[int, CurvePoint], None] | None
) -> None:
    for index, run in enumerate(runs):
        terms = run.step(step - 1, x)
        if logged:
            run.record_point(step, terms)
            if log is not None:
                log(index, run.curve[-1])


def _resume(
    checkpoint: Path, identity: str, runs: Sequence[Training], log: Callable[[int, CurvePoint], None] | None
) -> int:  # fmt: skip
    try:
        stored = load_tensors(checkpoint)
    except RiebenchError as error:
        raise RiebenchError(f"{checkpoint} is damaged; delete it to begin anew") from error
    if not isinstance(stored, dict) or stored.get("identity") != identity:
        raise RiebenchError(
            f"{checkpoint} belongs to another training (other data, settings or order); delete it to begin anew"
        )
    for index, (run, state) in enumerate(zip(runs, stored["runs"], strict=True)):
        run.load(state)
        for point in run.curve if log is not None else ():
            assert log is not None
            log(index, point)
    step: int = stored["step"]
    return step


def _write_checkpoint(checkpoint: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint, whole or not at all.

    It is streamed, since it may be as large as memory allows.
    """
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(checkpoint)
    try:
        save_tensors(state, temporary)
        temporary.replace(checkpoint)
    finally:
        temporary.unlink(missing_ok=True)


@torch.no_grad()
def _finish(
    runs: Sequence[Training], sample: Tensor, plan: DataPass, training: Positions, held_out: Positions
) -> list[TrainedSae]:
    models = [run.model.eval().requires_grad_(False) for run in runs]
    for model in models:
        model.constrain()
        device = model.pre_bias.device
        model.set_threshold(part.float().to(device) for part in sample.split(plan.batch_size))
    sums = [StatisticsSum() for _ in models]
    for start in range(0, min(len(training), STATISTICS), _CHUNK):
        part = training.read(start, min(start + _CHUNK, len(training), STATISTICS)).float()
        for model, found in zip(models, sums, strict=True):
            found.add(model.codes(part.to(model.pre_bias.device)))
    meters = [Meter(model.autoencoder()) for model in models]
    for start in range(0, len(held_out), _CHUNK):
        part = held_out.read(start, min(start + _CHUNK, len(held_out))).float()
        for model, meter in zip(models, meters, strict=True):
            meter.add(part.to(model.pre_bias.device))
    return [
        TrainedSae(run.config, model, found.result(), meter.figures(), tuple(run.curve))
        for run, model, found, meter in zip(runs, models, sums, meters, strict=True)
    ]
