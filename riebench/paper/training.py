"""The toy world's sweep: SAEs of several k and widths, trained here on one-step updates and kept beside the work."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from riebench.paper.generating import watch
from riebench.paper.job import Noise, PaperJob
from riebench.saes.formats import folder_name, load_sae
from riebench.store.records import noise_seed
from riebench.training.batches import DataPass, InMemory
from riebench.training.many import train_many
from riebench.training.topk import SaeTraining
from riebench.utils.files import content_digest

if TYPE_CHECKING:
    from riebench.models.loading import LoadedModel
    from riebench.saes.sae import SparseAutoencoder

SPARSITIES = (4, 8, 16, 32)
WIDTHS = (128, 384, 768)
CAPTIONS = 1200
SEED = 73
PLAN = DataPass(batch_size=512, epochs=3, buffer=131_072, held_out=4096, seed=SEED)
RATE = 3e-3
AUXK, DEAD_AFTER = 64, 50_000
_CHECKPOINT = "training.pt"


def configuration(k: int, width: int) -> SaeTraining:
    """How one of them is trained; the steps follow from the data."""
    return SaeTraining(
        features=width, k=k, auxk=min(AUXK, width), batch_size=PLAN.batch_size, learning_rate=RATE,
        dead_after=DEAD_AFTER, seed=SEED,
    )  # fmt: skip


def sizes() -> list[tuple[int, int]]:
    """Width and k of each SAE of a block."""
    return [(width, k) for width in WIDTHS for k in SPARSITIES if k <= width]


class Sweep:
    """SAEs that are trained when first asked for, and read from the disk after that.

    Args:
        job: says where they are kept.
        model: generates in one step.
        blocks: attention blocks.
    """

    def __init__(self, job: PaperJob, model: LoadedModel, blocks: Sequence[str]) -> None:
        self._job, self._model, self._blocks = job, model, tuple(blocks)
        self._updates: dict[str, Tensor] = {}

    @property
    def stated(self) -> dict[str, Any]:
        """What all of them have in common, as a key."""
        return {"model": self._model.spec.identity, "captions": CAPTIONS, "plan": asdict(PLAN), "seed": SEED}

    def key(self, block: str, width: int, k: int) -> dict[str, Any]:
        """Everything that moves one SAE's numbers."""
        return {**self.stated, "block": block, "config": asdict(configuration(k, width))}

    @property
    def words(self) -> str:
        """The recipe in a line."""
        return (
            f"trained here on 1-step updates of {CAPTIONS} captions of training scenes: batch {PLAN.batch_size}, "
            f"{PLAN.epochs} epochs, Adam at {RATE:g} falling over the last fifth, auxiliary loss with {AUXK} features "
            f"idle for {DEAD_AFTER} positions, seed {SEED}"
        )

    @cached_property
    def folder(self) -> Path:
        """Where they are kept."""
        widest = asdict(configuration(SPARSITIES[0], WIDTHS[-1]))
        return self._job.work / "saes" / content_digest({**self.stated, "config": widest})[:16]

    def get(self, block: str, width: int, k: int) -> SparseAutoencoder:
        """One of them; trains all of its block if it is not there."""
        place = self._place(block, width, k)
        if not place.exists():
            self._train(block)
        return load_sae(place).eval().to(self._model.device)

    def _place(self, block: str, width: int, k: int) -> Path:
        name = folder_name(block, k, width, auxk=min(AUXK, width), batch=PLAN.batch_size, rate=RATE)
        return self.folder / name / "final"

    def _train(self, block: str) -> None:
        data = self._data(block)
        state = self.folder / block / _CHECKPOINT
        trained = train_many(
            data, [configuration(k, width) for width, k in sizes()], PLAN, device=self._model.device,
            name=f"{len(sizes())} SAEs for {block}", checkpoint=state,
        )  # fmt: skip
        for (width, k), sae in zip(sizes(), trained, strict=True):
            sae.save(self._place(block, width, k), block)
        state.unlink(missing_ok=True)

    def _data(self, block: str) -> InMemory:
        """Positions of one-step pictures of training scenes; all blocks are collected at once."""
        if not self._updates:
            wanted = [b for b in self._blocks if not all(self._place(b, w, k).exists() for w, k in sizes())]
            parts: dict[str, list[Tensor]] = {b: [] for b in wanted}

            def take(site: str, _step: int, _half: str, _first: int, values: Tensor) -> None:
                parts[site].append(values.half().cpu())

            watch(self._job, self._model, training_runs(), wanted, take, "collecting updates")
            self._updates = {b: torch.cat(some) for b, some in parts.items()}
        updates = self._updates[block]
        return InMemory(updates.flatten(0, 1), together=updates.shape[1])


def training_runs() -> list[Noise]:
    """Captions of scenes that may be trained on; never those that are measured on."""
    from riebench.toyworld.captions import caption
    from riebench.toyworld.scenes import random_scene

    rng = random.Random(SEED)
    texts = [caption(random_scene(rng, held_out=False), rng) for _ in range(CAPTIONS)]
    return [Noise(f"training-{i}", text, 0, noise_seed(f"paper-training-{i}", 0)) for i, text in enumerate(texts)]
