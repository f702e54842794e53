"""Edit contexts with random activations, and the edits that methods make of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from riebench.generation.edits import Edit, StaticEdit
from riebench.generation.trace import Trace
from riebench.methods.base import EditContext, ExampleRuns, get_method
from riebench.saes.sae import SparseAutoencoder
from riebench.tasks.masks import RegionMasks
from riebench.tasks.schema import EditExample

STEPS, CHANNELS, GRID, FEATURES, UNITS = 2, 8, 4, 40, 16
POSITIONS = GRID * GRID
BLOCKS = ("mid.0", "up.0.1")
PAIR = EditExample(id="pair", source="a", target="b")


def context(seed: int = 0, blocks: tuple[str, ...] = BLOCKS, target_mask: Any = None) -> EditContext:
    """Return a context of two random runs.

    The source region is the left half, the target region the upper half.
    """
    generator = torch.Generator().manual_seed(seed)
    trace = Trace()
    for block in BLOCKS:
        trace.grids[block] = (GRID, GRID)
    for _ in range(STEPS):
        for block in BLOCKS:
            picture = torch.randn(2, CHANNELS, GRID, GRID, generator=generator)
            trace.add(block, "update", {"conditional": picture}, unconditional=False)
            units = torch.randn(2, POSITIONS, UNITS, generator=generator)
            trace.add(f"{block}.ff.0", "update", {"conditional": units}, unconditional=False)
    left, upper = np.zeros((2, GRID, GRID), dtype=bool)
    left[:, : GRID // 2], upper[: GRID // 2] = True, True
    masks = RegionMasks(left, upper if target_mask is None else target_mask)
    saes = {
        block: SparseAutoencoder(
            torch.randn(FEATURES, CHANNELS, generator=generator), torch.randn(FEATURES, CHANNELS, generator=generator),
            torch.zeros(CHANNELS), torch.zeros(CHANNELS), torch.zeros(FEATURES), k=6,
        )
        for block in BLOCKS
    }  # fmt: skip
    runs = ExampleRuns(PAIR, 0, trace, {"source": 0, "target": 1}, masks, dict.fromkeys(BLOCKS, 1))
    return EditContext(runs, blocks, saes)


def edit_of(name: str, ctx: EditContext, **params: Any) -> Edit:
    """Return the edit that a method makes in a context."""
    edit = get_method(name).edit(ctx, params)
    assert isinstance(edit, Edit)
    return edit


def dense(edit: Edit, site: str, width: int = CHANNELS) -> torch.Tensor:
    """Return the change that an edit makes at a site, [T, positions, width]."""
    placed = edit.sites[site]
    assert isinstance(placed, StaticEdit)
    return placed.dense(STEPS, POSITIONS, width)
