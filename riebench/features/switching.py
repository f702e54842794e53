"""Features switched by hand: added at a chosen strength, or taken away as they are in this very run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from riebench.generation.edits import Branch, Edit, positions_of
from riebench.generation.regions.masks import to_grid
from riebench.saes.sae import SparseAutoencoder
from riebench.tasks.masks import Mask

Feature = tuple[str, int]
"""Block and index."""


@dataclass(frozen=True)
class Switched:
    """Features of one block, switched at the same positions.

    What is added is the same at every step and position. What is taken away is what the features contribute where and
    when they do, in the edited run itself; it is exact for whatever the update has become.

    Attributes:
        sae: its features.
        on: int64 [a], features to add.
        values: float32 [a], how far each moves the update.
        off: int64 [r], features to take away.
        shares: float32 [r], how much of each; 1 takes it away entirely.
        mask: bool [H, W] of the (square) picture; None for everywhere.
    """

    sae: SparseAutoencoder
    on: Tensor
    values: Tensor
    off: Tensor
    shares: Tensor
    mask: Mask | None = None

    def delta(self, step: int, live: Tensor) -> Tensor | None:
        """See `riebench.generation.edits.SiteEdit.delta`."""
        positions = self._positions(len(live)).to(live.device)
        directions = self.sae.directions.to(live.dtype)
        out = torch.zeros_like(live)
        if len(self.on):
            out[positions] += self.values.to(live) @ directions[self.on.to(live.device)]
        if len(self.off):
            off = self.off.to(live.device)
            codes = self.sae.contributions(live[positions])[:, off] * self.shares.to(live)
            out[positions] -= codes.to(live.dtype) @ directions[off]
        return out

    @property
    def nbytes(self) -> int:
        """See `riebench.generation.edits.SiteEdit.nbytes`."""
        own = (self.on, self.values, self.off, self.shares)
        return sum(one.numel() * one.element_size() for one in own) + (0 if self.mask is None else self.mask.nbytes)

    def _positions(self, count: int) -> Tensor:
        if self.mask is None:
            return torch.arange(count)
        side = math.isqrt(count)
        return positions_of(to_grid(self.mask, (side, count // side)))


def switch(
    saes: Mapping[str, SparseAutoencoder],
    on: Mapping[Feature, float],
    off: Mapping[Feature, float],
    mask: Mask | None = None,
    branch: Branch = "both",
) -> Edit:
    """The edit that switches features.

    Args:
        saes: block -> SAE, for every block named.
        on: feature -> how far it moves the update.
        off: feature -> the share of it that is taken away.
        mask: where, bool [H, W]; None for everywhere.
        branch: see `riebench.generation.edits.Branch`.
    """
    sites = {}
    for block in dict.fromkeys(block for block, _ in (*on, *off)):
        added = {index: value for (name, index), value in on.items() if name == block}
        taken = {index: share for (name, index), share in off.items() if name == block}
        sites[block] = Switched(saes[block], *_columns(added), *_columns(taken), mask)
    return Edit(sites, branch=branch)


def _columns(values: Mapping[int, float]) -> tuple[Tensor, Tensor]:
    return torch.tensor(list(values), dtype=torch.long), torch.tensor(list(values.values()), dtype=torch.float32)
