"""Small damage done to renders in training, so that judge and CLIP also read pictures that a model made."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shifts, blurs, tints and adds noise, each picture by its own amount.

    Args:
        images: uint8 [B, 64, 64, 3].
        generator: CPU generator; decides everything.

    Returns:
        float [B, 3, 64, 64], about [-1, 1], channels last in memory.
    """
    x = images.permute(0, 3, 1, 2).float() / 127.5 - 1
    batch = len(x)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(batch, *shape, generator=generator)

    dx, dy = (torch.randint(-2, 3, (batch,), generator=generator) for _ in range(2))
    padded = F.pad(x, (2, 2, 2, 2), mode="replicate")
    x = torch.stack(
        [p[:, 2 + b : 66 + b, 2 + a : 66 + a] for p, a, b in zip(padded, dx.tolist(), dy.tolist(), strict=True)]
    )
    sigma = uniform(0.05, 1.0, 1)
    offsets = torch.arange(-2, 3).float()
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(3, dim=0)
    blurred = F.conv2d(x.reshape(1, -1, 64, 64), kernel.view(-1, 1, 5, 1), padding=(2, 0), groups=3 * batch)
    blurred = F.conv2d(blurred, kernel.view(-1, 1, 1, 5), padding=(0, 2), groups=3 * batch).view(batch, 3, 64, 64)
    x = torch.where((torch.rand(batch, generator=generator) < 0.5).view(-1, 1, 1, 1), blurred, x)
    x = x * uniform(0.88, 1.08, 1, 1, 1) + uniform(-0.08, 0.08, 3, 1, 1)
    x = x + uniform(0, 0.12, 1, 1, 1) * torch.randn(x.shape, generator=generator)
    return x.contiguous(memory_format=torch.channels_last)
