"""The training of toy-mixed: the innermost level learns the planted shares.

An example is a noise and two scenes that differ in one attribute. Each block reads the caption of the one or of the
other, and the goal lies between what toy-turbo makes of the two: as far towards the other scene as the shares of the
blocks that read it say. Where all blocks read the same, the goal is toy-turbo's own picture. Since the outer levels
are frozen and toy-turbo is deterministic, everything it has to say is computed once.
"""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from riebench.models.families.sdxl.names import BLOCKS
from riebench.scoring.metrics.judge_network import ATTRIBUTES, Values
from riebench.toyworld.captions import caption
from riebench.toyworld.networks.diffusion import BLOCK_MODULES, CaptionEmbedder, short_attention
from riebench.toyworld.networks.loop import Stage, fit, step_generator, write_atomically
from riebench.toyworld.networks.mixed.network import InnerLevel, make_student, second_level
from riebench.toyworld.networks.mixed.roles import later_blocks, planted_share
from riebench.toyworld.scenes import Scene, is_held_out, random_scene
from riebench.utils.terminal import ProgressBar

SEED = 73
CONFIG: dict[str, Any] = {
    "steps": 1600, "batch": 8, "learning_rate": 5e-4, "reader_rate": 8.0, "examples": 4096, "agreeing": 0.15,
    "single": 0.55, "progress_weight": 1.0, "seed": SEED,
}  # fmt: skip
"""`reader_rate`: factor of the learning rate of the weights that read text; `agreeing`, `single`: see `draw_readers`;
`progress_weight`: see `mixed_loss`."""
WIDE_CONFIG: dict[str, Any] = {**CONFIG, "steps": 1200, "seed": SEED + 2}
"""That of the second part, on the wider world, which starts from what the first part learned."""
SAE_CAPTIONS, SAE_STEPS = 2000, 300
"""Pictures and training steps of toy-mixed's SAEs: its updates have few dimensions."""


@dataclass(frozen=True)
class Pair:
    """Two training scenes that differ in one attribute."""

    first: Scene
    second: Scene
    attribute: str


@dataclass(frozen=True)
class Goals:
    """Noises and pairs of scenes with what toy-turbo's innermost level makes of them.

    Attributes:
        pairs: N pairs.
        below: float16 [N, 64, 8, 8], what the level gets of the noise.
        above: float16 [2, N, 128, 8, 8], what it hands on for the first and for the second scene's caption.
        values: those of the world.
    """

    pairs: tuple[Pair, ...]
    below: Tensor
    above: Tensor
    values: Values = field(default_factory=lambda: ATTRIBUTES)


def training_pairs(count: int, seed: int = SEED, values: Values = ATTRIBUTES) -> tuple[Pair, ...]:
    """Draw the pairs of scenes of the training goals; no scene is held out."""
    rng, other = random.Random(seed), random.Random(seed + 1)
    pairs = []
    for _ in range(count):
        first, seconds = random_scene(rng, held_out=False, values=values), list[Scene]()
        while not seconds:
            attribute = other.choice(list(values))
            changed = (first.with_value(attribute, value) for value in values[attribute])
            seconds = [scene for scene in changed if scene != first and not is_held_out(scene)]
        pairs.append(Pair(first, other.choice(seconds), attribute))
    return tuple(pairs)


@torch.no_grad()
def make_goals(
    teacher: UNet2DConditionModel, path: Path, *, count: int, batch: int = 64, seed: int = SEED,
    values: Values = ATTRIBUTES,
) -> Goals:  # fmt: skip
    """Compute the training goals, or read them if they are stored already.

    Args:
        teacher: the U-Net of a model without shared roles.
        path: file that holds them.
        count: number of examples, a multiple of `batch`.
        batch: examples computed at a time.
        seed: decides scenes and noises.
        values: those of the world.
    """
    device, pairs = teacher.device, training_pairs(count, seed, values)
    if not path.exists():
        level, embed = InnerLevel(teacher).eval(), CaptionEmbedder(values)
        belows, aboves = [], []
        for start in ProgressBar(range(0, count, batch), title="training goals"):
            noise = torch.randn(batch, 4, 32, 32, generator=step_generator(seed, 1_000_000 + start))
            some = pairs[start : start + batch]
            sides = [[pair.first for pair in some], [pair.second for pair in some]]
            texts = [embed([caption(scene) for scene in scenes]) for scenes in sides]
            with torch.autocast(device.type, dtype=torch.bfloat16), short_attention():
                below = second_level(teacher, noise.to(device).contiguous(memory_format=torch.channels_last))
                above = [level(below, dict.fromkeys(BLOCK_MODULES, text.to(device))) for text in texts]
            belows.append(below.half().cpu())
            aboves.append(torch.stack(above).half().cpu())
        stored = {"below": torch.cat(belows), "above": torch.cat(aboves, dim=1)}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda to: torch.save(stored, to))
    loaded = torch.load(path, weights_only=True)
    return Goals(pairs, loaded["below"], loaded["above"], values)


def draw_readers(attribute: str, rng: random.Random) -> tuple[str, ...]:
    """Draw the blocks that read the second scene, the others reading the first.

    In a share `agreeing` of the examples none does, in the rest each of them by chance, but in a share `single` one
    alone, which has a share in the attribute and is not its first. The first then has to leave that share to it.
    """
    kind = rng.random()
    if kind < CONFIG["agreeing"]:
        return ()
    if kind < CONFIG["agreeing"] + CONFIG["single"]:
        return (rng.choice(later_blocks(attribute)),)
    return tuple(block for block in BLOCKS if rng.random() < 0.5)


def embed_readings(
    scenes: Sequence[tuple[Scene, Scene]],
    readers: Sequence[Sequence[str]],
    embed: Callable[[list[str]], Tensor],
    rng: random.Random,
) -> dict[str, Tensor]:
    """Embed what each block reads, in wordings of its own.

    Args:
        scenes: the two scenes of each of B examples.
        readers: for each, the blocks that read the second scene.
        embed: captions -> float [B, 32, 128].
        rng: words the captions.

    Returns:
        Block -> float [B, 32, 128], for all six blocks of the innermost level.
    """
    texts = {
        block: embed([caption(pair[block in some], rng) for pair, some in zip(scenes, readers, strict=True)])
        for block in BLOCKS
    }
    nothing = torch.zeros_like(texts[BLOCKS[0]])
    return {block: texts.get(block, nothing) for block in BLOCK_MODULES}


def progress(above: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Compute how far outputs have gone from one output towards another.

    Args:
        above: float [B, ...], the outputs.
        first: float [B, ...], where the way begins.
        second: float [B, ...], where it ends.

    Returns:
        float [B], 0 at `first` and 1 at `second`.
    """
    way = (second - first).flatten(1)
    return ((above - first).flatten(1) * way).sum(1) / way.square().sum(1).clamp(min=1e-6)


def mixed_loss(level: InnerLevel, goals: Goals, seed: int = SEED) -> Callable[[int], Tensor]:
    """Build the loss: that of the picture, and that of the progress.

    The first is the squared error of the level's output, each channel in units of its own variance. The second is the
    squared difference between the progress towards the second scene and the planted one. Without it an emblem would
    count for little beside a background.

    Args:
        level: the level that is trained.
        goals: the training goals.
        seed: decides what each step draws.
    """
    embed, device = CaptionEmbedder(goals.values), level.time.device
    unit = goals.above[0, :1024].float().var((0, 2, 3)).sqrt().view(1, -1, 1, 1).to(device)
    batch = int(CONFIG["batch"])

    def loss(step: int) -> Tensor:
        generator = step_generator(seed, step)
        indices = torch.randint(len(goals.pairs), (batch,), generator=generator)
        swapped = torch.rand(batch, generator=generator) < 0.5
        rng, pairs = random.Random(seed * 10_000_019 + step), [goals.pairs[int(i)] for i in indices]
        readers = [draw_readers(pair.attribute, rng) for pair in pairs]
        scenes = [(p.second, p.first) if s else (p.first, p.second) for p, s in zip(pairs, swapped, strict=True)]
        texts = {block: text.to(device) for block, text in embed_readings(scenes, readers, embed, rng).items()}
        below = goals.below[indices].float().to(device).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, dtype=torch.bfloat16), short_attention():
            above = level(below, texts).float() / unit
        first, second = (
            goals.above[side, indices].float().to(device) / unit for side in (swapped.long(), (~swapped).long())
        )
        planted = torch.tensor([planted_share(p.attribute, r) for p, r in zip(pairs, readers, strict=True)]).to(device)
        goal = torch.lerp(first, second, planted.view(-1, 1, 1, 1))
        error = (progress(above, first, second) - planted).square().mean()
        return (above - goal).square().mean() + CONFIG["progress_weight"] * error

    return loss


def train(
    teacher: UNet2DConditionModel, work: Path, device: torch.device, *, name: str = "mixed-start",
    config: dict[str, Any] = CONFIG, values: Values = ATTRIBUTES, start: UNet2DConditionModel | None = None,
) -> UNet2DConditionModel:  # fmt: skip
    """Train a model whose blocks share roles, or finish an interrupted training.

    Args:
        teacher: the U-Net of a model without shared roles, which makes the goals.
        work: folder for goals and checkpoints.
        device: trains there.
        name: of the stage.
        config: its settings.
        values: those of the world.
        start: the U-Net to start from, with the outer levels of the teacher; None starts from the teacher.

    Returns:
        The trained U-Net, with the narrow maps still apart.
    """
    teacher, count = teacher.requires_grad_(False).eval().to(memory_format=torch.channels_last), int(config["examples"])
    goals = make_goals(
        teacher.to(device), work / name / "goals.pt", count=count, seed=config["seed"], values=values
    )  # fmt: skip
    text = CaptionEmbedder(values)([caption(pair.first) for pair in goals.pairs[:512]])
    student = make_student(
        teacher.cpu() if start is None else start, goals.below[:512].float(), text, reads_all=start is not None
    )  # fmt: skip
    level = InnerLevel(student).to(device)
    loss = mixed_loss(level, goals, config["seed"])
    stage = Stage(
        name, config, level, loss, int(config["steps"]), config["learning_rate"], warmup=50, ema_decay=0.99,
        rate_factor=lambda path: config["reader_rate"] if re.search(r"attn2\.to_[kv]\.", path) else 1.0,
    )  # fmt: skip
    fit(stage, work)
    return student.cpu().eval()


@torch.no_grad()
def carry_over(
    teacher: UNet2DConditionModel, mixed: UNet2DConditionModel, first: UNet2DConditionModel
) -> UNet2DConditionModel:
    """Give another teacher what one model learned about sharing roles.

    Args:
        teacher: the U-Net to start from.
        mixed: a U-Net that learned to share roles.
        first: the U-Net that it was before.

    Returns:
        A copy of the teacher, each weight moved as far as `mixed` moved from `first`.
    """
    moved = copy.deepcopy(teacher)
    for own, after, before in zip(moved.parameters(), mixed.parameters(), first.parameters(), strict=True):
        own.add_(after - before)
    return moved
