"""The top-k autoencoder while it is trained: what it keeps, its loss, and the constraint on its decoder.

Loss: mean squared error over the data's variance, plus 1/32 of an auxiliary loss in which the strongest dead features
predict what the living ones left over. Decoder columns stay at length one. The source is arXiv 2410.22366, section 3,
with the details of its published training code.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from riebench.saes.sae import SparseAutoencoder

if TYPE_CHECKING:
    from riebench.saes.train import SaeTraining

ALIVE = 1e-3
"""A feature counts as active where its value is above this."""

MEDIAN_OF = 32_768
"""Positions whose geometric median the biases start from."""


@dataclass(frozen=True)
class StepTerms:
    """What one batch gives.

    Attributes:
        loss: what is minimised.
        unexplained: squared error over the data's variance.
        active: features above 0 at a position, mean over the batch.
    """

    loss: Tensor
    unexplained: Tensor
    active: Tensor


class TopKTrainer(nn.Module):
    """The autoencoder while it is trained: x^ = relu(topk((x - pre_bias) W^T + latent_bias)) D^T + pre_bias."""

    def __init__(self, data: Tensor, config: SaeTraining, center: Tensor | None = None) -> None:
        """Starts from unit directions, the decoder the transpose of the encoder, and the data's geometric median.

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
        """Loss of one batch; also keeps count of idle features.

        Args:
            x: [B, d].
            variance: mean variance of the data, a scalar.
        """
        return self.terms(x, variance).loss

    def terms(self, x: Tensor, variance: Tensor) -> StepTerms:
        """As `loss`, with what a log wants to know beside it."""
        p = nn.functional.linear(x - self.pre_bias, self.encoder, self.latent_bias)
        codes = self._kept(p)
        with torch.no_grad():
            self.idle.copy_(torch.where((codes > ALIVE).any(dim=0), 0, self.idle + 1))
            active = (codes > 0).sum() / len(codes)
        reconstruction = nn.functional.linear(codes, self.decoder) + self.pre_bias
        main = (x - reconstruction).square().mean() / variance
        loss = main + self._auxiliary(p, (x - reconstruction).detach()) / 32
        return StepTerms(loss, main.detach(), active)

    def _kept(self, p: Tensor) -> Tensor:
        """The values that count while training, [B, n] like `p`."""
        if self.config.kind == "topk":
            values, indices = p.topk(self.config.k, dim=1)
            return torch.zeros_like(p).scatter(1, indices, values.relu())
        flat = p.flatten()
        values, indices = flat.topk(self.config.k * len(p), sorted=False)
        return torch.zeros_like(flat).scatter(0, indices, values.relu()).view_as(p)

    def _auxiliary(self, p: Tensor, left_over: Tensor) -> Tensor:
        dead = self.idle > self.dead_steps
        count = min(self.config.auxk, int(dead.sum()))
        if count == 0:
            return p.new_zeros(())
        values, indices = p.masked_fill(~dead, -torch.inf).topk(count, dim=1)
        codes = torch.zeros_like(p).scatter(1, indices, values.relu())
        predicted = nn.functional.linear(codes, self.decoder)
        scale = (left_over - left_over.mean(0)).square().mean()
        # A batch of one position leaves over nothing to compare with: no loss, where 0 / 0 would make every weight NaN.
        return (predicted - left_over).square().mean() / scale.where(scale > 0, torch.inf)

    @torch.no_grad()
    def constrain(self) -> None:
        """Unit decoder columns, and no gradient along them; between the backward pass and the step."""
        self.decoder.div_(self.decoder.norm(dim=0, keepdim=True))
        gradient = self.decoder.grad
        if gradient is not None:
            gradient -= (gradient * self.decoder).sum(0, keepdim=True) * self.decoder

    @torch.no_grad()
    def codes(self, x: Tensor) -> Tensor:
        """Feature values [B, n] of positions [B, d], as the stored SAE gives them."""
        p = nn.functional.linear(x - self.pre_bias, self.encoder, self.latent_bias)
        if self.config.kind == "batchtopk":
            return p.relu() * (p > self.threshold)
        return self._kept(p)

    @torch.no_grad()
    def set_threshold(self, samples: Iterable[Tensor]) -> None:
        """Sets a batch top-k SAE's threshold: the smallest value a batch keeps, at least 0; mean over some batches.

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
        """What was trained, in the form that methods use.

        Args:
            block: the block it was trained on.
        """
        parts = (self.encoder, self.decoder.T, self.pre_bias, self.pre_bias, self.latent_bias)
        options: dict[str, Any] = {"k": self.config.k, "block": block}
        if self.config.kind == "batchtopk":
            options |= {"activation": "jump", "threshold": self.threshold.expand(self.config.features)}
        return SparseAutoencoder(*(part.detach() for part in parts), **options)


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
