"""What each feature of an SAE does on some data, counted part by part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


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


class StatisticsSum:
    """Feature statistics of positions that come in parts."""

    def __init__(self) -> None:
        self._positions = 0
        self._count = self._total = self._squares = torch.zeros(())

    def add(self, codes: Tensor) -> None:
        """Takes feature values [B, n] in."""
        wide = codes.double()
        self._positions += len(wide)
        self._count = self._count + (wide > 0).sum(0).cpu()
        self._total = self._total + wide.sum(0).cpu()
        self._squares = self._squares + wide.square().sum(0).cpu()

    def result(self) -> FeatureStatistics:
        """The statistics of everything taken in so far."""
        safe = self._count.clamp(min=1)
        mean = self._total / safe
        std = (self._squares / safe - mean.square()).clamp(min=0).sqrt()
        return FeatureStatistics(mean.float(), std.float(), (self._count / max(1, self._positions)).float())


def feature_statistics(encode: Callable[[Tensor], Tensor], data: Tensor, batch_size: int = 16_384) -> FeatureStatistics:
    """Per-feature statistics over positions [N, d]."""
    found = StatisticsSum()
    for part in data.split(batch_size):
        found.add(encode(part.float()))
    return found.result()
