"""The top-k autoencoder in training: settings, loss, decoder constraint and files.

`SaeTraining` holds the settings, `TopKTrainer` is the module with its loss, `train_topk` trains one on positions in
memory, and `save` writes it. Either k features of every position are kept ("topk"), or k on average over the positions
of a batch ("batchtopk"); the latter gets a threshold for use outside training.

Loss: mean squared error over the data's variance, plus 1/32 of an auxiliary loss in which the strongest dead features
predict the residual of the living ones. Decoder columns stay at length one. The source is arXiv 2410.22366, section 3,
with the details of its published training code.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from riebench.errors import RiebenchError, near_match
from riebench.saes.figures import FeatureStatistics
from riebench.saes.formats import save_sdxl_unbox
from riebench.saes.readers.dictionary_learning import save_batch_topk
from riebench.saes.sae import Signal, SparseAutoencoder
from riebench.utils.terminal import ProgressBar

Kind = Literal["topk", "batchtopk"]
"""k features of every position, or k on average over a batch."""
KINDS: tuple[Kind, ...] = get_args(Kind)

LARGEST_SEED = 2**63
"""Seeds are below it: PyTorch takes none that is much larger."""

ALIVE = 1e-3
"""A feature counts as active where its value is above this."""

MEDIAN_OF = 32_768
"""Positions whose geometric median the biases start from."""


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
        """Return the learning rate of a step, counted from 0."""
        if not self.decay:
            return self.learning_rate
        # A fifth of the steps is a whole number of them, which the product may miss by a rounding error.
        falling = max(1, int(self.steps * self.decay + 1e-9))
        return self.learning_rate * min(1.0, (self.steps - step) / falling)

    @property
    def stored_settings(self) -> dict[str, Any]:
        """The settings as stored beside the weights.

        Settings that were added later are left out where they have their default, which was the behaviour before.
        """
        later = {field.name: field.default for field in fields(self) if field.name in ("kind", "decay")}
        return {name: value for name, value in asdict(self).items() if name not in later or value != later[name]}


@dataclass(frozen=True)
class StepTerms:
    """The loss of one batch, with figures for the log.

    Attributes:
        loss: the minimised loss.
        unexplained: squared error over the data's variance.
        active: features above 0 at a position, mean over the batch.
    """

    loss: Tensor
    unexplained: Tensor
    active: Tensor


class TopKTrainer(nn.Module):
    """The autoencoder in training.

    It computes x^ = relu(topk((x - pre_bias) W^T + latent_bias)) D^T + pre_bias.
    """

    def __init__(self, data: Tensor, config: SaeTraining, center: Tensor | None = None) -> None:
        """Initialise the weights.

        The encoder starts from random unit directions, the decoder from its transpose, and the biases from the data's
        geometric median and from zero.

        Args:
            data: [N, d], some positions.
            config: settings.
            center: the geometric median, if it is known.
        """
        super().__init__()
        self.config = config
        generator = torch.Generator().manual_seed(config.seed)
        directions = torch.randn(config.features, data.shape[1], generator=generator)
        directions /= directions.norm(dim=1, keepdim=True)
        self.encoder = nn.Parameter(directions.clone())
        self.decoder = nn.Parameter(directions.T.contiguous())
        if center is None:
            some = torch.randint(len(data), (min(MEDIAN_OF, len(data)),), generator=generator)
            center = geometric_median(data[some].float())
        self.pre_bias = nn.Parameter(center.clone())
        self.latent_bias = nn.Parameter(torch.zeros(config.features))
        self.idle: Tensor
        self.register_buffer("idle", torch.zeros(config.features, dtype=torch.long))
        self.threshold: Tensor
        self.register_buffer("threshold", torch.zeros(()))

    @property
    def dead_steps(self) -> int:
        """Steps without activity after which a feature counts as dead."""
        return max(1, self.config.dead_after // self.config.batch_size)

    def loss(self, x: Tensor, variance: Tensor) -> Tensor:
        """Compute the loss of one batch, and count idle features.

        Args:
            x: [B, d].
            variance: mean variance of the data, a scalar.
        """
        return self.terms(x, variance).loss

    def terms(self, x: Tensor, variance: Tensor) -> StepTerms:
        """Compute the loss of one batch, with the figures that are logged.

        Args:
            x: [B, d].
            variance: mean variance of the data, a scalar.
        """
        p = nn.functional.linear(x - self.pre_bias, self.encoder, self.latent_bias)
        codes = self._sparsify(p)
        with torch.no_grad():
            self.idle.copy_(torch.where((codes > ALIVE).any(dim=0), 0, self.idle + 1))
            active = (codes > 0).sum() / len(codes)
        reconstruction = nn.functional.linear(codes, self.decoder) + self.pre_bias
        main = (x - reconstruction).square().mean() / variance
        loss = main + self._auxiliary(p, (x - reconstruction).detach()) / 32
        return StepTerms(loss, main.detach(), active)

    def _sparsify(self, p: Tensor) -> Tensor:
        """Keep the largest values, as in training; [B, n] like `p`, 0 elsewhere."""
        if self.config.kind == "topk":
            values, indices = p.topk(self.config.k, dim=1)
            return torch.zeros_like(p).scatter(1, indices, values.relu())
        flat = p.flatten()
        values, indices = flat.topk(self.config.k * len(p), sorted=False)
        return torch.zeros_like(flat).scatter(0, indices, values.relu()).view_as(p)

    def _auxiliary(self, p: Tensor, residual: Tensor) -> Tensor:
        """Compute the loss of dead features that predict the residual [B, d]."""
        dead = self.idle > self.dead_steps
        count = min(self.config.auxk, int(dead.sum()))
        if count == 0:
            return p.new_zeros(())
        values, indices = p.masked_fill(~dead, -torch.inf).topk(count, dim=1)
        codes = torch.zeros_like(p).scatter(1, indices, values.relu())
        predicted = nn.functional.linear(codes, self.decoder)
        scale = (residual - residual.mean(0)).square().mean()
        # The residual of a single position has no variance: the loss is then 0, since 0 / 0 would make weights NaN.
        return (predicted - residual).square().mean() / scale.where(scale > 0, torch.inf)

    @torch.no_grad()
    def constrain(self) -> None:
        """Scale decoder columns to length one and remove the gradient along them.

        Call it between the backward pass and the optimiser step.
        """
        self.decoder.div_(self.decoder.norm(dim=0, keepdim=True))
        gradient = self.decoder.grad
        if gradient is not None:
            gradient -= (gradient * self.decoder).sum(0, keepdim=True) * self.decoder

    @torch.no_grad()
    def codes(self, x: Tensor) -> Tensor:
        """Compute feature values [B, n] of positions [B, d], like the stored SAE."""
        p = nn.functional.linear(x - self.pre_bias, self.encoder, self.latent_bias)
        if self.config.kind == "batchtopk":
            return p.relu() * (p > self.threshold)
        return self._sparsify(p)

    @torch.no_grad()
    def set_threshold(self, samples: Iterable[Tensor]) -> None:
        """Set the threshold of a batch top-k SAE.

        It is the smallest value that a batch keeps, at least 0, as a mean over some batches.

        Args:
            samples: batches [B, d], as large as those of the training but perhaps for the last.
        """
        smallest = []
        for x in samples:
            p = nn.functional.linear(x - self.pre_bias, self.encoder, self.latent_bias).flatten()
            kept = p.topk(self.config.k * len(x), sorted=False).values
            smallest.append(kept.clamp(min=0).min())
        if smallest:
            self.threshold.copy_(torch.stack(smallest).mean())

    def autoencoder(self, block: str | None = None) -> SparseAutoencoder:
        """Return the trained SAE in the form that methods use.

        Args:
            block: the block it was trained on.
        """
        parts = (self.encoder, self.decoder.T, self.pre_bias, self.pre_bias, self.latent_bias)
        options: dict[str, Any] = {"k": self.config.k, "block": block}
        if self.config.kind == "batchtopk":
            options |= {"activation": "jump", "threshold": self.threshold.expand(self.config.features)}
        return SparseAutoencoder(*(part.detach() for part in parts), **options)


def train_topk(
    data: Tensor, config: SaeTraining, *, device: torch.device | None = None, name: str = "sae", progress: bool = True
) -> TopKTrainer:
    """Train one autoencoder on positions held in memory.

    Args:
        data: [N, d], any float type; sampled with replacement, one seeded order a run.
        config: settings.
        device: where to train.
        name: for the progress bar.
        progress: shows the bar.

    Returns:
        The trained module, its decoder columns at length one.
    """
    device = device or torch.device("cpu")
    model = TopKTrainer(data, config).to(device)
    generator = torch.Generator().manual_seed(config.seed + 1)
    sample = data[torch.randint(len(data), (min(100_000, len(data)),), generator=generator)].float()
    variance = sample.var(dim=0, correction=0).mean().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate, eps=6.25e-10, fused=True)
    bar = ProgressBar(range(config.steps), title=f"train {name}", shown=progress)
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
            bar.note(loss=f"{loss.item():.4f}")
    model.constrain()
    return model.eval().requires_grad_(False)


def geometric_median(points: Tensor, iterations: int = 100) -> Tensor:
    """Compute the point with the least summed distance to all points.

    Args:
        points: [N, d].
        iterations: of Weiszfeld's algorithm, at most.

    Returns:
        [d].
    """
    median = points.mean(0)
    for _ in range(iterations):
        weights = 1 / (points - median).norm(dim=1, keepdim=True).clamp(min=1e-8)
        moved = (points * weights).sum(0) / weights.sum()
        if bool((moved - median).norm() < 1e-6 * median.norm().clamp(min=1e-6)):
            break
        median = moved
    return median


def save(
    model: TopKTrainer, statistics: FeatureStatistics, folder: Path, block: str | None = None, signal: Signal = "update"
) -> None:
    """Write a trained autoencoder and its statistics as a checkpoint folder.

    A top-k SAE is written in the sdxl-unbox layout. This has no threshold, so a batch top-k SAE is written as the
    dictionary_learning library writes its own.

    Args:
        model: the trained module.
        statistics: of its features.
        folder: gets the files.
        block: the block it was trained on, for the layout that names it.
        signal: what it was trained on; stated where it is not the block's update.
    """
    config = model.config
    weights = {
        "encoder": model.encoder, "decoder": model.decoder, "pre_bias": model.pre_bias,
        "latent_bias": model.latent_bias,
    }  # fmt: skip
    extra = {"training": config.stored_settings, **({} if signal == "update" else {"signal": signal})}
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
