"""Sparsity in training: one function for each kind of SAE.

All take pre-activations [B, n] and return feature values of the same shape, 0 where a feature is not active.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


def keep_largest(p: Tensor, k: int) -> Tensor:
    """Keep the k largest values of every position that are above 0."""
    values, indices = p.topk(k, dim=1, sorted=False)
    return torch.zeros_like(p).scatter(1, indices, values.relu())


def keep_largest_of_batch(p: Tensor, k: int) -> Tensor:
    """Keep the largest values of the batch that are above 0, k a position on average."""
    flat = p.flatten()
    values, indices = flat.topk(k * len(p), sorted=False)
    return torch.zeros_like(flat).scatter(0, indices, values.relu()).view_as(p)


def keep_above(p: Tensor, threshold: Tensor, bandwidth: Tensor) -> tuple[Tensor, Tensor]:
    """Keep values above 0 and above their feature's threshold, which is learned.

    A step has no gradient that could be learned from. Values within half a bandwidth of the threshold stand in for it,
    as in arXiv 2407.14435.

    Args:
        p: [B, n].
        threshold: [n].
        bandwidth: a scalar in the units of `p`.

    Returns:
        The values [B, n], and the number of active features of a position, as a mean over the batch.
    """
    values, counted = _JumpRelu.apply(p, threshold, bandwidth)
    return values, counted


def nested_groups(features: int) -> tuple[int, ...]:
    """Return the sizes of the groups of a Matryoshka SAE, smallest first.

    Each is twice as large as the one before, and the last takes what is left: about a sixteenth, a sixteenth, an
    eighth, a quarter, and a half of the features.
    """
    ends = sorted({features // share for share in (16, 8, 4, 2, 1)} - {0})
    return tuple(end - start for start, end in zip([0, *ends], ends, strict=False))


def nested_errors(codes: Tensor, decoder: Tensor, left_over: Tensor, groups: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Compute what each prefix of the groups leaves unexplained.

    Args:
        codes: [B, n].
        decoder: [d, n].
        left_over: [B, d], the positions without the decoder's bias.
        groups: sizes, which sum up to n.

    Returns:
        [groups], mean squared error with the first group, the first two, and so on; and [B, d], what all of them leave.
    """
    errors = []
    for part, columns in zip(codes.split(list(groups), dim=1), decoder.split(list(groups), dim=1), strict=True):
        left_over = left_over - part @ columns.T
        errors.append(left_over.square().mean())
    return torch.stack(errors), left_over


class _JumpRelu(Function):
    """Jump ReLU and the count of active values.

    The threshold has straight-through gradients.
    """

    @staticmethod
    def forward(context: Any, p: Tensor, threshold: Tensor, bandwidth: Tensor) -> tuple[Tensor, Tensor]:
        active = (p > threshold) & (p > 0)
        context.save_for_backward(p, threshold, bandwidth, active)
        return p * active, active.sum() / len(p)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        p, threshold, bandwidth, active = context.saved_tensors
        of_values, of_count = gradients
        near = (p - threshold).abs() < bandwidth / 2
        moved = (of_values * threshold + of_count / len(p)) * near
        return of_values * active, -moved.sum(0) / bandwidth, None
