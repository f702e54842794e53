"""Explained variance with an interval over prompts: kept are sums per prompt, not activations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from riebench.analysis.stats import BOOTSTRAP_SEED, REPLICATES, cluster_counts, interval
from riebench.paper.artefact import HIGH, LOW, Row
from riebench.saes.sae import SparseAutoencoder

FLOOR = 1e-8
"""Added to the variance of a dimension, so that one that never moves counts as explained by nothing."""
NAMES = ("ev_dim", "ev_pooled")
_POSITIONS = 8192
_REPLICATES = 500

Floats = NDArray[np.float64]


class VarianceMeter:
    """Running sums of activations and of what a reconstruction leaves over, one row per prompt.

    Args:
        prompts: how many there are.
        width: of the activations.
    """

    def __init__(self, prompts: int, width: int) -> None:
        self.tokens = torch.zeros(prompts, dtype=torch.float64)
        # Sums and sums of squares: of the activations, then of the errors.
        self._sums = torch.zeros(4, prompts, width, dtype=torch.float64)

    def add(self, prompt: int, x: Tensor, left_over: Tensor) -> None:
        """Takes positions of one prompt in: the activations [P, width] and what the reconstruction leaves over."""
        self.tokens[prompt] += len(x)
        for place, values in ((0, x), (2, left_over)):
            exact = values.double()
            self._sums[place, prompt] += exact.sum(0).cpu()
            self._sums[place + 1, prompt] += exact.square().sum(0).cpu()

    def encode(self, prompt: int, x: Tensor, sae: SparseAutoencoder) -> None:
        """Takes positions [P, width] of one prompt in, reconstructed by an SAE."""
        for part in x.float().split(_POSITIONS):
            self.add(prompt, part, part - sae.decode(sae.encode(part), part))

    def figures(self, names: Sequence[str]) -> Row:
        """Tokens and both explained variances with their intervals.

        `ev_dim` is the mean over dimensions of 1 - Var(x - x^) / (Var(x) + 1e-8), `ev_pooled` is
        1 - sum of Var(x - x^) / sum of Var(x); population variances over all positions of all prompts.

        Args:
            names: of the prompts, which are resampled.
        """
        observed = self._explained(np.ones((1, len(names))))
        counts = cluster_counts("prompts", tuple(names), REPLICATES, BOOTSTRAP_SEED)
        draws = np.concatenate(
            [self._explained(counts[first : first + _REPLICATES]) for first in range(0, len(counts), _REPLICATES)]
        )
        row: Row = {"tokens": int(self.tokens.sum())}
        for column, name in enumerate(NAMES):
            ends = interval(draws[:, column]) or (None, None)
            row |= {name: _finite(observed[0, column]), name + LOW: ends[0], name + HIGH: ends[1]}
        return row

    def _explained(self, weights: Floats) -> Floats:
        """Both explained variances under weights of the prompts: [R, prompts] -> [R, 2]."""
        tokens = weights @ self.tokens.numpy()[:, None]
        sums, squares, error_sums, error_squares = (weights @ part for part in self._sums.numpy())
        variance = np.maximum(squares / tokens - (sums / tokens) ** 2, 0)
        left = np.maximum(error_squares / tokens - (error_sums / tokens) ** 2, 0)
        total = variance.sum(1)
        with np.errstate(invalid="ignore", divide="ignore"):
            pooled = np.where(total > 0, 1 - left.sum(1) / total, np.nan)
        return np.stack([(1 - left / (variance + FLOOR)).mean(1), pooled], axis=1)


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
