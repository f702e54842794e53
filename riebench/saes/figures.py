"""Figures of an autoencoder on activations that a model really computes.

`Meter` measures active features, explained variance and dead features of an SAE, and how far its input is from what it
was made for; `StatisticsSum` and `feature_statistics` give mean, spread and firing rate of each feature.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from riebench.models.sae_quality import SaeFigures
from riebench.saes.sae import SparseAutoencoder, Time

__all__ = ["FeatureStatistics", "Meter", "SaeFigures", "StatisticsSum", "feature_statistics"]

_CHUNK_VALUES = 2**25
"""Feature values that are computed at a time: 128 MiB of them, whatever the number of features."""


class _Moments:
    """Sums of values [P, d] and of their squares, by channel."""

    def __init__(self) -> None:
        self._count = 0
        self._sum = self._squares = torch.zeros((), dtype=torch.float64)

    def add(self, values: Tensor) -> None:
        wide = values.double()
        self._count += len(wide)
        self._sum = self._sum + wide.sum(0).cpu()
        self._squares = self._squares + wide.square().sum(0).cpu()

    @property
    def mean(self) -> Tensor:
        """Mean of each channel."""
        return self._sum / max(1, self._count)

    @property
    def scatter(self) -> float:
        """Summed squared distance to the mean, over all channels together."""
        return float((self._squares - self._sum.square() / max(1, self._count)).sum())

    @property
    def spread(self) -> float:
        """Root of the mean squared distance to the mean."""
        return math.sqrt(max(0.0, self.scatter) / max(1, self._count))


class Meter:
    """Running figures of one SAE; keeps sums, not activations.

    Args:
        sae: what is measured.
    """

    def __init__(self, sae: SparseAutoencoder) -> None:
        self._sae = sae
        self._positions = 0
        self._active = torch.zeros(sae.n, dtype=torch.long)
        self._error = 0.0
        self._inputs, self._targets, self._made = _Moments(), _Moments(), _Moments()

    def add(self, x: Tensor, target: Tensor | None = None, time: Time | None = None) -> None:
        """Add positions to the sums.

        Args:
            x: what the SAE reads, [P, d].
            target: what it is to reconstruct, [P, width of its decoder]; None for what it reads.
            time: the denoiser's time, for SAEs that need it.
        """
        chunk = max(1, _CHUNK_VALUES // self._sae.n)
        goals = (x if target is None else target).float().split(chunk)
        for part, goal in zip(x.float().split(chunk), goals, strict=True):
            codes = self._sae.encode(part, time)
            made = self._sae.decode(codes, part, time)
            self._positions += len(part)
            self._active += (codes != 0).sum(0).cpu()
            self._error += float((goal - made).double().square().sum())
            self._inputs.add(part)
            self._targets.add(goal)
            self._made.add(made)

    @property
    def densities(self) -> Tensor:
        """Share of positions at which each feature is not zero, float32 [n]."""
        return self._active.float() / max(1, self._positions)

    def figures(self) -> SaeFigures:
        """Return the figures of all positions added so far."""
        count = max(1, self._positions)
        variance = self._targets.scatter
        explained = 1 - self._error / variance if variance > 0 else 0.0
        return SaeFigures(
            l0=round(float(self._active.sum()) / count, 3),
            explained_variance=round(explained, 4)
            if math.isfinite(explained) and math.isfinite(variance)
            else -math.inf,
            dead_share=round(float((self._active == 0).float().mean()), 4),
            positions=self._positions,
            mean_distance=self._mean_distance(),
            size_ratio=_rounded(self._made.spread, self._targets.spread),
        )

    def _mean_distance(self) -> float | None:
        sae = self._sae
        if sae.normalise != "none" or not bool(sae.pre_bias.any()):
            return None
        distance = float((self._inputs.mean - sae.pre_bias.double().cpu()).norm())
        return _rounded(distance, self._inputs.spread)


def _rounded(above: float, below: float) -> float | None:
    """Return a ratio to four decimals; None where it is not finite."""
    ratio = above / below if below > 0 else math.inf
    return round(ratio, 4) if math.isfinite(ratio) else None


@dataclass(frozen=True)
class FeatureStatistics:
    """Statistics of each feature on some data.

    Attributes:
        mean: [n], mean value where active (0 for a feature that never is).
        std: [n], standard deviation there.
        rate: [n], share of positions at which it is active.
    """

    mean: Tensor
    std: Tensor
    rate: Tensor


class StatisticsSum:
    """Feature statistics of positions that come in parts."""

    def __init__(self) -> None:
        self._positions = 0
        self._count = self._total = self._squares = torch.zeros(())

    def add(self, codes: Tensor) -> None:
        """Add feature values [B, n] to the sums."""
        wide = codes.double()
        self._positions += len(wide)
        self._count = self._count + (wide > 0).sum(0).cpu()
        self._total = self._total + wide.sum(0).cpu()
        self._squares = self._squares + wide.square().sum(0).cpu()

    def result(self) -> FeatureStatistics:
        """Return the statistics of all positions added so far."""
        safe = self._count.clamp(min=1)
        mean = self._total / safe
        std = (self._squares / safe - mean.square()).clamp(min=0).sqrt()
        return FeatureStatistics(mean.float(), std.float(), (self._count / max(1, self._positions)).float())


def feature_statistics(encode: Callable[[Tensor], Tensor], data: Tensor, batch_size: int = 16_384) -> FeatureStatistics:
    """Compute per-feature statistics over positions [N, d]."""
    found = StatisticsSum()
    for part in data.split(batch_size):
        found.add(encode(part.float()))
    return found.result()
