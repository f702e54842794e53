"""Small collections of activations that are sparse sums of a known dictionary."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from riebench.models.spec import ModelSpec
from riebench.training.batches import DataPass
from riebench.training.collection import BlockLayout, Collection, CollectionIndex
from riebench.training.settings import SaeTraining, recipe_settings

WIDTH, ROWS = 8, 16
PLAN = DataPass(batch_size=64, epochs=2, buffer=384, seed=3)
CONFIGS = (
    SaeTraining(features=24, k=3, auxk=4, learning_rate=1e-2, dead_after=256),
    recipe_settings("published", features=16, k=2, auxk=4, learning_rate=1e-2, dead_after=256, kind="batchtopk"),
)


def sparse(count: int, atoms: int = 32, width: int = 16, active: float = 3) -> tuple[Tensor, Tensor]:
    """Return a dictionary [atoms, width] of unit rows and sparse sums of them, [count, width]."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(atoms, width, generator=generator), dim=1)
    chosen = torch.rand(count, atoms, generator=generator) < active / atoms
    return directions, (0.5 + torch.rand(count, atoms, generator=generator)) * chosen @ directions


def stored(
    folder: Path, shards: int = 6, pictures: int = 10, blocks: tuple[str, ...] = ("mid.0", "up.0.1")
) -> Collection:
    """Store a collection of sparse sums, made without a model."""
    spec = ModelSpec(name="m", source="m", revision="r", steps=1, guidance=0, size=64, dtype="float32")
    layouts = {block: BlockLayout(width=WIDTH, rows=ROWS) for block in blocks}
    index = CollectionIndex(model=spec, blocks=layouts, seed=0, pictures_per_shard=pictures, batch_size=2)
    there = Collection.begin(folder, index)
    data = sparse(shards * pictures * ROWS, 12, WIDTH, 2)[1].half().chunk(shards)
    for number, rows in enumerate(data):
        there.add(number, [f"{number} {i}" for i in range(pictures)], dict.fromkeys(blocks, rows))
    return there
