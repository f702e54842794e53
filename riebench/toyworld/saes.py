"""The toy world's SAEs: trained on the block updates of toy-turbo in one step, as the paper's are on SDXL Turbo's."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from riebench.generation.generator import Capture, Generator
from riebench.models.families.sdxl.names import BLOCKS
from riebench.models.loading import load_model
from riebench.saes.formats import folder_name
from riebench.toyworld.captions import caption
from riebench.toyworld.networks.loop import check_folder, write_atomically
from riebench.toyworld.scenes import random_scene
from riebench.training.topk import SaeTraining, feature_statistics, save, train_topk

FEATURES = 384
K = 16
EXTRA = (("up.0.1", 8), ("up.0.1", 32))
"""Two more sizes of k for one block, so that sweeps have something to sweep."""
CAPTIONS = 4000
SEED = 61
BATCH = 50


def configuration(block: str, k: int) -> SaeTraining:
    """How one SAE is trained: the published recipe, with a higher rate and earlier "dead" for a smaller job."""
    return SaeTraining(
        features=FEATURES, k=k, auxk=64, batch_size=4096, learning_rate=1e-3, steps=900, dead_after=400_000,
        seed=SEED + BLOCKS.index(block),
    )  # fmt: skip


def train(assets: Path, work: Path, folder: Path, device: torch.device) -> None:
    """Collects the updates and trains all SAEs; an SAE that is there already is not trained again.

    Args:
        assets: the folder that holds toy-turbo.
        work: the folder for the collected updates and finished SAEs.
        folder: where the SAEs go.
        device: where to train.
    """
    stage = work / "saes"
    check_folder(
        stage, {"features": FEATURES, "k": K, "extra": [list(e) for e in EXTRA], "captions": CAPTIONS, "seed": SEED}
    )
    updates = _updates(assets, stage)
    for block, k in (*((block, K) for block in BLOCKS), *EXTRA):
        config = configuration(block, k)
        name = folder_name(block, k, FEATURES, auxk=config.auxk, batch=config.batch_size, rate=config.learning_rate)
        finished = stage / name / "final"
        if not (finished / "std.pt").exists():
            model = train_topk(updates[block], config, device=device, name=f"sae {block} k={k}").cpu()
            save(model, feature_statistics(model.codes, updates[block]), finished)
        target = folder / name / "final"
        target.mkdir(parents=True, exist_ok=True)
        for path in finished.iterdir():
            (target / path.name).write_bytes(path.read_bytes())


def _updates(assets: Path, stage: Path) -> dict[str, Tensor]:
    """Block -> half-precision updates [captions * 64, 128] of one-step pictures of training scenes."""
    path = stage / "updates.pt"
    if not path.exists():
        model = load_model(str(assets / "toy-turbo"), steps=1)
        generator, rng = Generator(model, cached_prompts=BATCH), random.Random(SEED)
        parts: dict[str, list[Tensor]] = {block: [] for block in BLOCKS}
        for first in tqdm(range(0, CAPTIONS, BATCH), desc="collect updates"):
            captions = [caption(random_scene(rng, held_out=False), rng) for _ in range(BATCH)]
            seeds = [SEED * 1_000_003 + first + i for i in range(BATCH)]
            trace = generator.generate(captions, seeds, capture=Capture(BLOCKS)).trace
            for block in BLOCKS:
                parts[block].append(trace.get(block).movedim(2, -1).flatten(0, 3).half())
        write_atomically(path, lambda to: torch.save({block: torch.cat(some) for block, some in parts.items()}, to))
    updates: dict[str, Tensor] = torch.load(path, weights_only=True)
    return updates
