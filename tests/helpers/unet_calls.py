"""Calls of the tiny U-Net with fixed inputs, and a constant change of its activations."""

from __future__ import annotations

from typing import Any

import torch
from tiny import CHANNELS, GRID, tiny_model
from torch import Tensor

from riebench.generation.edits import StaticEdit, Term

POSITIONS = GRID * GRID


def unet_input(batch: int, guided: bool = False) -> dict[str, Any]:
    """Return the arguments of one U-Net call, the same for every call."""
    generator = torch.Generator().manual_seed(3)
    rows = batch * (2 if guided else 1)
    return {
        "sample": torch.randn(rows, 4, 16, 16, generator=generator),
        "timestep": 500,
        "encoder_hidden_states": torch.randn(rows, 7, 32, generator=generator),
        "added_cond_kwargs": {
            "text_embeds": torch.randn(rows, 16, generator=generator),
            "time_ids": torch.tensor([[32.0, 32, 0, 0, 32, 32]] * rows),
        },
    }


def call_unet(batch: int = 2, guided: bool = False) -> Tensor:
    """Call the tiny U-Net once and return its output."""
    with torch.inference_mode():
        output: Tensor = tiny_model().pipe.unet(**unet_input(batch, guided)).sample
    return output


def push(width: int = CHANNELS, steps: int = 1, size: float = 5.0) -> StaticEdit:
    """Return an edit that adds the same vector at every position."""
    return StaticEdit((Term(torch.arange(POSITIONS), torch.full((steps, 1, width), size)),))
