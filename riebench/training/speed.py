"""The time of a training step compared with that of its matrix products."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from statistics import median

import torch
from torch import Tensor

from riebench.training.many import Training
from riebench.training.settings import SaeTraining

PRODUCTS = 6
"""Matrix products of a step: encoder and decoder forward, and two gradients of each."""


@dataclass(frozen=True)
class StepSpeed:
    """The measured times of a training step.

    Attributes:
        step: seconds of one whole optimiser step, median; on a CPU processor time, summed over its threads.
        products: seconds of its matrix products alone, likewise.
        flops: floating-point operations of the products.
    """

    step: float
    products: float
    flops: int

    @property
    def share(self) -> float:
        """Share of the step that the products alone would take."""
        return self.products / self.step


def measure_step(
    width: int, config: SaeTraining, *, device: torch.device | None = None, repeats: int = 10
) -> StepSpeed:  # fmt: skip
    """Time optimiser steps and their matrix products alone, on random positions.

    The two are timed in turns, with the same shapes.

    Args:
        width: channels d.
        config: features, k, kind and batch size.
        device: runs them; None for the CPU.
        repeats: of each; the first of each is not counted.
    """
    where = device or torch.device("cpu")
    x = torch.randn(config.batch_size, width, generator=torch.Generator().manual_seed(0))
    run = Training(replace(config, steps=repeats + 1), x, x.mean(0), where)
    x = x.to(where)
    codes = torch.randn(config.batch_size, config.features, device=where)
    encoder, decoder = run.model.encoder.detach(), run.model.decoder.detach()
    steps, products = [], []
    for number in range(repeats + 1):
        steps.append(_seconds(partial(run.step, number, x), where))
        products.append(_seconds(partial(_products, x, codes, encoder, decoder), where))
    flops = PRODUCTS * 2 * config.batch_size * config.features * width
    return StepSpeed(median(steps[1:]), median(products[1:]), flops)


def _products(x: Tensor, codes: Tensor, encoder: Tensor, decoder: Tensor) -> None:
    """Compute the matrix products of a step.

    Their operands are [B, d] positions and errors, and [B, n] values and their gradients.
    """
    torch.nn.functional.linear(x, encoder)
    torch.nn.functional.linear(codes, decoder)
    # Decoder: gradients of its weights and of the values. Encoder: of its weights, and of its input for the bias.
    _ = x.T @ codes
    _ = x @ decoder
    _ = codes.T @ x
    _ = codes @ encoder


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    # On a CPU, processor time is measured, so that other programs do not count.
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    begin = clock()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - begin
