"""The toy world's SAEs, trained on block updates of one-step pictures.

The pictures are those of toy-turbo or of toy-mixed. The paper's SAEs are trained on those of SDXL Turbo in the same
way. Other models can have SAEs by the same settings, of other blocks and of pictures in more steps.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from riebench.generation.generator import Capture, Generator
from riebench.models.families.sdxl.names import BLOCKS
from riebench.models.loading import load_model
from riebench.saes.figures import feature_statistics
from riebench.saes.formats import folder_name
from riebench.scoring.metrics.judge_network import ATTRIBUTES, Values
from riebench.toyworld.captions import caption
from riebench.toyworld.networks.loop import check_folder, write_atomically
from riebench.toyworld.scenes import random_scene
from riebench.training.model import save, train_in_memory
from riebench.training.settings import SaeTraining, recipe_settings
from riebench.utils.terminal import ProgressBar

FEATURES = 384
K = 16
EXTRA = (("up.0.1", 8), ("up.0.1", 32))
"""Two more values of k for one block, so that sweeps over k have several SAEs."""
CAPTIONS = 4000
STEPS = 900
SEED = 61
RATE = 1e-3
"""Learning rate, which falls over the last fifth of the steps."""
BATCH = 50


def configuration(block: str, k: int, blocks: Sequence[str] = BLOCKS, steps: int = STEPS) -> SaeTraining:
    """Return the settings of one SAE.

    They are the published recipe with a higher learning rate and a lower `dead_after`, since there is less data.

    Args:
        block: one of `blocks`.
        k: features that are active at a position.
        blocks: those that have SAEs; the place among them decides the seed.
        steps: training steps.
    """
    return recipe_settings(
        "published", features=FEATURES, k=k, auxk=64, batch_size=4096, learning_rate=RATE, steps=steps,
        dead_after=400_000, seed=SEED + blocks.index(block), decay=0.2,
    )  # fmt: skip


def train(
    model: Path, stage: Path, folder: Path, device: torch.device, *, extra: Sequence[tuple[str, int]] = EXTRA,
    blocks: Sequence[str] = BLOCKS, captions: int = CAPTIONS, steps: int = STEPS, denoising_steps: int = 1,
    values: Values = ATTRIBUTES,
) -> None:  # fmt: skip
    """Collect the updates and train every SAE that is not finished yet.

    Args:
        model: the folder of the pipeline whose updates are collected.
        stage: the folder for the collected updates and finished SAEs.
        folder: where the SAEs go.
        device: where to train.
        extra: blocks with further values of k.
        blocks: those that get SAEs.
        captions: number of pictures, at one denoising step.
        steps: training steps of each SAE.
        denoising_steps: steps of the pictures; the number of captions is divided by it, so that there are as many
            updates.
        values: those of the model's world.
    """
    settings = {"features": FEATURES, "k": K, "extra": [list(e) for e in extra], "captions": captions, "seed": SEED}
    if (tuple(blocks), denoising_steps) != (BLOCKS, 1):
        settings |= {"blocks": list(blocks), "denoising_steps": denoising_steps}
    if values != ATTRIBUTES:
        settings |= {"values": sum(map(len, values.values()))}
    check_folder(stage, settings | ({} if steps == STEPS else {"steps": steps}))
    updates = _updates(model, stage, blocks, captions // denoising_steps, denoising_steps, values)
    for block, k in (*((block, K) for block in blocks), *extra):
        config = configuration(block, k, blocks, steps)
        name = folder_name(block, k, FEATURES, auxk=config.auxk, batch=config.batch_size, rate=RATE)
        finished = stage / name / "final"
        if not (finished / "std.pt").exists():
            trained = train_in_memory(updates[block], config, device=device, name=f"sae {block} k={k}").cpu()
            save(trained, feature_statistics(trained.codes, updates[block]), finished)
        target = folder / name / "final"
        target.mkdir(parents=True, exist_ok=True)
        for path in finished.iterdir():
            (target / path.name).write_bytes(path.read_bytes())


def _updates(
    folder: Path, stage: Path, blocks: Sequence[str], count: int, denoising_steps: int, values: Values
) -> dict[str, Tensor]:
    """Collect the updates of pictures of training scenes.

    Returns:
        Block -> float16 [count * denoising_steps * positions, channels].
    """
    path = stage / "updates.pt"
    if not path.exists():
        model = load_model(str(folder), steps=denoising_steps)
        generator, rng = Generator(model, cached_prompts=BATCH), random.Random(SEED)
        parts: dict[str, list[Tensor]] = {block: [] for block in blocks}
        for first in ProgressBar(range(0, count, BATCH), title="collect updates"):
            captions = [caption(random_scene(rng, held_out=False, values=values), rng) for _ in range(BATCH)]
            seeds = [SEED * 1_000_003 + first + i for i in range(BATCH)]
            trace = generator.generate(captions, seeds, capture=Capture(tuple(blocks))).trace
            for block in blocks:
                parts[block].append(trace.get(block).movedim(2, -1).flatten(0, 3).half())
        write_atomically(path, lambda to: torch.save({block: torch.cat(some) for block, some in parts.items()}, to))
    updates: dict[str, Tensor] = torch.load(path, weights_only=True)
    return updates
