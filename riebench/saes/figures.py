"""Figures of an autoencoder on activations that a model really computes.

`Meter` measures active features, explained variance and dead features of an SAE; `StatisticsSum` and
`feature_statistics` give mean, spread and firing rate of each feature.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from riebench.saes.sae import SparseAutoencoder
from riebench.tasks.schema import Count, StoredModel

_CHUNK = 8192


class SaeFigures(StoredModel):
    """Measured figures of one SAE on one signal of its block."""

    l0: float
    """Features that are not zero, mean over positions."""
    explained_variance: float
    """1 - summed squared error / summed squared distance to the mean, over all positions and channels together."""
    dead_share: float
    """Share of features that are zero at every measured position."""
    positions: Count
    """Number of measured positions."""


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
        self._sum = torch.zeros(sae.d, dtype=torch.float64)
        self._squares = torch.zeros(sae.d, dtype=torch.float64)

    def add(self, x: Tensor) -> None:
        """Add positions [P, d] to the sums."""
        for part in x.float().split(_CHUNK):
            codes = self._sae.encode(part)
            left_over = part - self._sae.decode(codes, part)
            self._positions += len(part)
            self._active += (codes != 0).sum(0).cpu()
            self._error += float(left_over.double().square().sum())
            self._sum += part.double().sum(0).cpu()
            self._squares += part.double().square().sum(0).cpu()

    @property
    def densities(self) -> Tensor:
        """Share of positions at which each feature is not zero, float32 [n]."""
        return self._active.float() / max(1, self._positions)

    def figures(self) -> SaeFigures:
        """Return the figures of all positions added so far."""
        count = max(1, self._positions)
        variance = float((self._squares - self._sum.square() / count).sum())
        return SaeFigures(
            l0=round(float(self._active.sum()) / count, 3),
            explained_variance=round(1 - self._error / variance, 4) if variance > 0 else 0.0,
            dead_share=round(float((self._active == 0).float().mean()), 4),
            positions=self._positions,
        )


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
