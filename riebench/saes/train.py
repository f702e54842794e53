"""Trains top-k autoencoders on block updates, by the recipe of the sdxl-unbox SAEs.

Loss: mean squared error over the data's variance, plus 1/32 of an auxiliary loss in which the strongest dead features
predict what the living ones left over. Decoder columns stay at length one. The source is arXiv 2410.22366, section 3,
with the details of its published training code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from riebench.saes.formats import save_sdxl_unbox

ALIVE = 1e-3
"""A feature counts as active where its value is above this."""


@dataclass(frozen=True)
class SaeTraining:
    """Settings of one training run.

    Attributes:
        features: n, how many the dictionary holds.
        k: features kept per position.
        auxk: dead features that take part in the auxiliary loss.
        batch_size: positions a step.
        learning_rate: Adam's; constant, then falling linearly over the last fifth of the run.
        steps: optimiser steps.
        dead_after: positions without activity after which a feature counts as dead.
        seed: of initialisation and order.
    """

    features: int
    k: int
    auxk: int = 256
    batch_size: int = 4096
    learning_rate: float = 1e-4
    steps: int = 10_000
    dead_after: int = 10_000_000
    seed: int = 0


class TopKTrainer(nn.Module):
    """The autoencoder while it is trained: x^ = relu(topk((x - pre_bias) W^T + latent_bias)) D^T + pre_bias."""

    def __init__(self, data: Tensor, config: SaeTraining) -> None:
        """Starts from unit directions, the decoder the transpose of the encoder, and the data's geometric median."""
        super().__init__()
        self.config = config
        generator = torch.Generator().manual_seed(config.seed)
        directions = torch.randn(config.features, data.shape[1], generator=generator)
        directions /= directions.norm(dim=1, keepdim=True)
        self.encoder = nn.Parameter(directions.clone())
        self.decoder = nn.Parameter(directions.T.contiguous())
        some = torch.randint(len(data), (min(32_768, len(data)),), generator=generator)
        self.pre_bias = nn.Parameter(geometric_median(data[some].float()))
        self.latent_bias = nn.Parameter(torch.zeros(config.features))
        self.idle: Tensor
        self.register_buffer("idle", torch.zeros(config.features, dtype=torch.long))

    @property
    def dead_steps(self) -> int:
        """Steps without activity after which a feature counts as dead."""
        return max(1, self.config.dead_after // self.config.batch_size)

    def loss(self, x: Tensor, variance: Tensor) -> Tensor:
        """Loss of one batch; also keeps count of idle features.

        Args:
            x: [B, d].
            variance: mean variance of the data, a scalar.
        """
        p = nn.functional.linear(x - self.pre_bias, self.encoder, self.latent_bias)
        values, indices = p.topk(self.config.k, dim=1)
        codes = torch.zeros_like(p).scatter(1, indices, values.relu())
        with torch.no_grad():
            self.idle += 1
            self.idle[(codes > ALIVE).any(dim=0)] = 0
        reconstruction = nn.functional.linear(codes, self.decoder) + self.pre_bias
        main = (x - reconstruction).square().mean() / variance
        return main + self._auxiliary(p, (x - reconstruction).detach()) / 32

    def _auxiliary(self, p: Tensor, left_over: Tensor) -> Tensor:
        dead = self.idle > self.dead_steps
        count = min(self.config.auxk, int(dead.sum()))
        if count == 0:
            return p.new_zeros(())
        values, indices = p.masked_fill(~dead, -torch.inf).topk(count, dim=1)
        codes = torch.zeros_like(p).scatter(1, indices, values.relu())
        predicted = nn.functional.linear(codes, self.decoder)
        scale = (left_over - left_over.mean(0)).square().mean()
        return ((predicted - left_over).square().mean() / scale).nan_to_num(0.0)

    @torch.no_grad()
    def constrain(self) -> None:
        """Unit decoder columns, and no gradient along them; between the backward pass and the step."""
        self.decoder.div_(self.decoder.norm(dim=0, keepdim=True))
        gradient = self.decoder.grad
        if gradient is not None:
            gradient -= (gradient * self.decoder).sum(0, keepdim=True) * self.decoder

    @torch.no_grad()
    def codes(self, x: Tensor) -> Tensor:
        """Feature values [B, n] of positions [B, d]."""
        values, indices = nn.functional.linear(x - self.pre_bias, self.encoder, self.latent_bias).topk(
            self.config.k, dim=1
        )
        return x.new_zeros(len(x), self.config.features).scatter_(1, indices, values.relu())


def geometric_median(points: Tensor, iterations: int = 100) -> Tensor:
    """The point with the least summed distance to all points, by Weiszfeld's iteration. [N, d] -> [d]."""
    median = points.mean(0)
    for _ in range(iterations):
        weights = 1 / (points - median).norm(dim=1, keepdim=True).clamp(min=1e-8)
        moved = (points * weights).sum(0) / weights.sum()
        if bool((moved - median).norm() < 1e-6 * median.norm().clamp(min=1e-6)):
            break
        median = moved
    return median


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
        remaining = (config.steps - step) / max(1, config.steps // 5)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * min(1.0, remaining)
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


@dataclass(frozen=True)
class FeatureStatistics:
    """What each feature does on some data.

    Attributes:
        mean: [n], mean value where active (0 for a feature that never is).
        std: [n], standard deviation there.
        rate: [n], share of positions at which it is active.
    """

    mean: Tensor
    std: Tensor
    rate: Tensor


def feature_statistics(encode: Callable[[Tensor], Tensor], data: Tensor, batch_size: int = 16_384) -> FeatureStatistics:
    """Per-feature statistics over positions [N, d]."""
    count = total = squares = torch.zeros(())
    for part in data.split(batch_size):
        codes = encode(part.float()).double()
        count = count + (codes > 0).sum(0)
        total = total + codes.sum(0)
        squares = squares + codes.square().sum(0)
    safe = count.clamp(min=1)
    mean = total / safe
    std = (squares / safe - mean.square()).clamp(min=0).sqrt()
    return FeatureStatistics(mean.float(), std.float(), (count / len(data)).float())


def save(model: TopKTrainer, statistics: FeatureStatistics, folder: Path) -> None:
    """Writes a trained autoencoder and its statistics as an sdxl-unbox checkpoint folder."""
    config = model.config
    save_sdxl_unbox(
        folder,
        encoder=model.encoder.detach().cpu(),
        decoder=model.decoder.detach().cpu(),
        pre_bias=model.pre_bias.detach().cpu(),
        latent_bias=model.latent_bias.detach().cpu(),
        k=config.k,
        auxk=config.auxk,
        dead_steps_threshold=model.dead_steps,
        mean=statistics.mean,
        std=statistics.std,
        extra={"training": asdict(config)},
    )
