"""Trains top-k autoencoders on block updates by the recipe of the sdxl-unbox SAEs: settings, training, stored form.

Batch top-k (arXiv 2412.06410) keeps the k x B largest values of a batch of B positions while it trains; afterwards one
threshold for all features keeps as many on average, so that a position's values do not depend on its neighbours.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from tqdm import tqdm

from riebench.errors import RiebenchError, near_match
from riebench.saes.figures import FeatureStatistics, feature_statistics
from riebench.saes.formats import save_sdxl_unbox
from riebench.saes.readers.dictionary_learning import save_batch_topk
from riebench.saes.topk import TopKTrainer

__all__ = ["KINDS", "Kind", "SaeTraining", "feature_statistics", "save", "train_topk"]

Kind = Literal["topk", "batchtopk"]
"""k features of every position, or k on average over a batch."""
KINDS: tuple[Kind, ...] = get_args(Kind)

LARGEST_SEED = 2**63
"""Seeds are below it: PyTorch takes none that is much larger."""


@dataclass(frozen=True)
class SaeTraining:
    """Settings of one training run.

    Attributes:
        features: n, how many the dictionary holds.
        k: features kept per position.
        auxk: dead features that take part in the auxiliary loss.
        batch_size: positions a step.
        learning_rate: Adam's; constant, then falling linearly (see `decay`).
        steps: optimiser steps.
        dead_after: positions without activity after which a feature counts as dead.
        seed: of initialisation and order, below 2**63.
        kind: "topk", or "batchtopk" (see the module's text).
        decay: share of the run, at its end, over which the learning rate falls to nothing; 0 for never, as published.

    Raises:
        RiebenchError: if k is not in 1..n, the kind is unknown, or another number is out of its range.
    """

    features: int
    k: int
    auxk: int = 256
    batch_size: int = 4096
    learning_rate: float = 1e-4
    steps: int = 10_000
    dead_after: int = 10_000_000
    seed: int = 0
    kind: Kind = "topk"
    decay: float = 0.2

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise RiebenchError(
                f"an SAE is trained as topk or batchtopk, not as {self.kind!r}{near_match(self.kind, KINDS)}"
            )
        if not 1 <= self.k <= self.features:
            raise RiebenchError(
                f"an SAE of {self.features} features cannot keep k = {self.k}; k must be 1 to {self.features}"
            )
        if min(self.batch_size, self.steps, self.dead_after) < 1 or self.auxk < 0:
            raise RiebenchError("batch size, steps and dead-after must be 1 or more, and auxk 0 or more")
        if not 0 <= self.seed < LARGEST_SEED:
            raise RiebenchError(f"the seed must be 0 or more, and below 2**63, not {self.seed}")
        if not 0 < self.learning_rate < float("inf") or not 0 <= self.decay <= 1:
            stated = f"{self.learning_rate:g} and {self.decay:g}"
            raise RiebenchError(f"the learning rate must be above 0 and decay from 0 to 1, not {stated}")

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        if not self.decay:
            return self.learning_rate
        # A fifth of the steps is a whole number of them, which the product may miss by a rounding error.
        falling = max(1, int(self.steps * self.decay + 1e-9))
        return self.learning_rate * min(1.0, (self.steps - step) / falling)

    @property
    def stated(self) -> dict[str, Any]:
        """The settings as stored beside the weights; what was added later is left out where it is as it was then."""
        later = {field.name: field.default for field in fields(self) if field.name in ("kind", "decay")}
        return {name: value for name, value in asdict(self).items() if name not in later or value != later[name]}


def train_topk(
    data: Tensor, config: SaeTraining, *, device: torch.device | None = None, name: str = "sae", progress: bool = True
) -> TopKTrainer:
    """Trains one autoencoder on positions held in memory.

    Args:
        data: [N, d], any float type; sampled with replacement, one seeded order a run.
        config: settings.
        device: where to train.
        name: for the progress bar.
        progress: shows it.

    Returns:
        The trained module, its decoder columns at length one.
    """
    device = device or torch.device("cpu")
    model = TopKTrainer(data, config).to(device)
    generator = torch.Generator().manual_seed(config.seed + 1)
    sample = data[torch.randint(len(data), (min(100_000, len(data)),), generator=generator)].float()
    variance = sample.var(dim=0, correction=0).mean().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate, eps=6.25e-10, fused=True)
    bar = tqdm(range(config.steps), desc=f"train {name}", disable=not progress, mininterval=2)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = config.rate(step)
        batch = data[torch.randint(len(data), (config.batch_size,), generator=generator)].float().to(device)
        loss = model.loss(batch, variance)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        model.constrain()
        optimizer.step()
        if step % 20 == 0:
            bar.set_postfix(loss=f"{loss.item():.4f}")
    model.constrain()
    return model.eval().requires_grad_(False)


def save(model: TopKTrainer, statistics: FeatureStatistics, folder: Path, block: str | None = None) -> None:
    """Writes a trained autoencoder and its statistics as a checkpoint folder.

    A top-k SAE is written in the sdxl-unbox layout. That has no threshold, so a batch top-k SAE is written as the
    dictionary_learning library writes its own.

    Args:
        model: what was trained.
        statistics: of its features.
        folder: gets the files.
        block: the block it was trained on, for the layout that names it.
    """
    config = model.config
    weights = {
        "encoder": model.encoder, "decoder": model.decoder, "pre_bias": model.pre_bias,
        "latent_bias": model.latent_bias,
    }  # fmt: skip
    extra = {"training": config.stated}
    if config.kind == "batchtopk":
        save_batch_topk(
            folder, **weights, k=config.k, threshold=float(model.threshold), block=block, mean=statistics.mean,
            std=statistics.std, extra=extra,
        )  # fmt: skip
        return
    save_sdxl_unbox(
        folder,
        **weights,
        k=config.k,
        auxk=config.auxk,
        dead_steps_threshold=model.dead_steps,
        mean=statistics.mean,
        std=statistics.std,
        extra=extra,
    )
