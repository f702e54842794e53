"""Values of a run at some positions: a tensor, or, for long runs, a view that is read step by step.

A long run's values at every step, each edit with its own copy, would need gigabytes. A view keeps nothing but where to
read, so that all edits of an example together need no more than the trace they read from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Reader = Callable[[int, Tensor | None], Tensor]
"""Step, and which columns (None: all) -> float32 [P, k]."""


@dataclass(frozen=True)
class Stepwise:
    """Values that are read when a step needs them.

    Attributes:
        read: gives one step.
        shape: (steps, positions, width).
        columns: int64 [k], which of the reader's columns; None for all.
        factors: float32 [T], multiplies each step.
    """

    read: Reader
    shape: tuple[int, int, int]
    columns: Tensor | None = None
    factors: Tensor | None = None

    def __getitem__(self, step: int) -> Tensor:
        """One step, float32 [P, k]."""
        values = self.read(step, self.columns)
        return values if self.factors is None else values * self.factors[step].to(values.device)


Values = Tensor | Stepwise
"""float32 [T, P, k], or [T, 1, k] for the same values everywhere."""


def pick(values: Values, columns: Tensor) -> Values:
    """Some columns of values nothing was picked from before."""
    if isinstance(values, Tensor):
        return values[..., columns]
    return replace(values, columns=columns, shape=(*values.shape[:2], len(columns)))


def scaled(values: Values, factors: Tensor) -> Values:
    """Each step multiplied by its own factor, float32 [T]."""
    if isinstance(values, Tensor):
        return values * factors[:, None, None]
    return replace(values, factors=factors if values.factors is None else values.factors * factors)


def position_mean(values: Values) -> Tensor:
    """The mean over positions, step by step: float32 [T, 1, k]; without positions, values that stand nowhere."""
    if isinstance(values, Tensor):
        return values.mean(1, keepdim=True) if values.shape[1] else values
    if not values.shape[1]:
        return torch.zeros(values.shape)
    return torch.stack([values[step].mean(0, keepdim=True) for step in range(values.shape[0])])


def own_bytes(values: Values) -> int:
    """Bytes that these values alone keep; what a view reads from belongs to the trace."""
    tensors = (values,) if isinstance(values, Tensor) else (values.columns, values.factors)
    return tensor_bytes(*tensors)


def tensor_bytes(*tensors: Tensor | None) -> int:
    """Bytes of some tensors' numbers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)
