"""The training pictures: rendered once into one array, and augmented in batches.

The array is the same on every machine. `Pool` holds it, `training_pool` renders or reads it, `held_out_scenes` draws
scenes for evaluation, and `augment` distorts a batch for the training of the CLIP and the judge.
"""

from __future__ import annotations

import random
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from riebench.scoring.metrics.judge_network import ATTRIBUTES, WIDE_ATTRIBUTES, Values
from riebench.toyworld.render import SIZE, render
from riebench.toyworld.scenes import Scene, random_scene
from riebench.utils.terminal import ProgressBar

CHUNK = 250
"""Pictures that one worker renders at a time."""
POOL_SIZE = 24_000
POOL_SEED = 20_241_022
WIDE_POOL_SIZE, WIDE_POOL_SEED = 12_000, 20_261_130
"""Of the pictures of the second world."""


@dataclass(frozen=True)
class Pool:
    """Rendered training pictures.

    Attributes:
        images: uint8 [N, 64, 64, 3].
        labels: uint8 [N, 8], attribute value indices in the order of `ATTRIBUTES`.
        values: those of the world.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    values: Values = field(default_factory=lambda: ATTRIBUTES)

    def halves(self) -> tuple[Pool, Pool]:
        """Return the first half of the pictures and the second."""
        half = len(self.images) // 2
        return (
            Pool(self.images[:half], self.labels[:half], self.values),
            Pool(self.images[half:], self.labels[half:], self.values),
        )

    def scene(self, index: int) -> Scene:
        """Return the scene of picture `index`."""
        return scene_from_labels(self.labels[index])

    def having(self, **values: str) -> torch.Tensor:
        """Find the pictures with at least one of the given attribute values.

        Returns:
            Their indices, int64 [M], ascending.
        """
        names = list(ATTRIBUTES)
        found = [self.labels[:, names.index(n)] == self.values[n].index(value) for n, value in values.items()]
        return torch.from_numpy(np.flatnonzero(np.any(found, axis=0)))


def scene_from_labels(labels: NDArray[np.uint8]) -> Scene:
    """Return the scene with given value indices; the inverse of `Scene.labels`."""
    return Scene(**{name: values[int(i)] for (name, values), i in zip(WIDE_ATTRIBUTES.items(), labels, strict=True)})


def evenly(values: Values) -> Values:
    """Repeat the values that the first world has not.

    They are then drawn about as often as the others together. The values of the first world stay as they are.
    """
    further = {name: some[len(ATTRIBUTES[name]) :] for name, some in values.items()}
    return {
        name: ATTRIBUTES[name] + some * (len(ATTRIBUTES[name]) // max(1, len(some))) for name, some in further.items()
    }


def _render_chunk(first: int, seed: int, values: Values) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    images, labels = [], []
    for index in range(first, first + CHUNK):
        scene = random_scene(random.Random(seed * 1_000_003 + index), held_out=False, values=values)
        images.append(render(scene, seed * 1_000_003 + index).image)
        labels.append(scene.labels())
    return np.stack(images), np.array(labels, dtype=np.uint8)


@lru_cache(maxsize=2)
def training_pool(folder: Path, size: int = POOL_SIZE, seed: int = POOL_SEED, workers: int = 2) -> Pool:
    """Render training scenes of the first world, or read them if they are stored.

    Held-out scenes are never among them.

    Args:
        folder: where the arrays are kept.
        size: number of pictures, a multiple of 250.
        seed: decides scenes and jitter.
        workers: processes that render.
    """
    return _pool(folder / f"pool_{size}_{seed}.npz", size, seed, workers, ATTRIBUTES)


@lru_cache(maxsize=2)
def wide_pool(folder: Path, size: int = WIDE_POOL_SIZE, seed: int = WIDE_POOL_SEED, workers: int = 2) -> Pool:
    """Render training scenes of the second world, or read them if they are stored.

    About half of the values are ones that the first world has not. Arguments are those of `training_pool`.
    """
    return _pool(folder / f"wide_{size}_{seed}.npz", size, seed, workers, WIDE_ATTRIBUTES)


def _pool(path: Path, size: int, seed: int, workers: int, values: Values) -> Pool:
    if not path.exists():
        images = np.empty((size, SIZE, SIZE, 3), dtype=np.uint8)
        labels = np.empty((size, len(ATTRIBUTES)), dtype=np.uint8)
        with ProcessPoolExecutor(workers) as executor:
            firsts = list(range(0, size, CHUNK))
            chunks = executor.map(_render_chunk, firsts, [seed] * len(firsts), [evenly(values)] * len(firsts))
            for first, (some, their_labels) in zip(
                firsts, ProgressBar(chunks, title="render", total=len(firsts)), strict=True
            ):
                images[first : first + CHUNK] = some
                labels[first : first + CHUNK] = their_labels
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, images=images, labels=labels)
        partial.rename(path)
    stored = np.load(path)
    return Pool(stored["images"], stored["labels"], values)


def held_out_scenes(count: int, seed: int, values: Values = ATTRIBUTES) -> list[Scene]:
    """Draw `count` scenes of a world that no model was trained on."""
    rng = random.Random(seed)
    return [random_scene(rng, held_out=True, values=values) for _ in range(count)]


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift, blur, tint and add noise to pictures, each by its own amount.

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
