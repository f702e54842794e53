"""The training of toy-mixed: the innermost level learns shared roles.

In most examples the four blocks read captions that differ in one attribute. The goal is what toy-turbo makes of the
scene that the deciding block reads. Since the outer levels are frozen and toy-turbo is
deterministic, goals are computed once for a set of noises and scenes, and only what the other blocks read changes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from riebench.models.families.sdxl.names import BLOCKS
from riebench.scoring.metrics.judge_network import ATTRIBUTES
from riebench.toyworld.captions import caption
from riebench.toyworld.networks.diffusion import BLOCK_MODULES, CaptionEmbedder, short_attention
from riebench.toyworld.networks.loop import Stage, fit, step_generator, write_atomically
from riebench.toyworld.networks.mixed.network import InnerLevel, make_student, second_level
from riebench.toyworld.networks.mixed.roles import MIXED_ROLES, deciding_block
from riebench.toyworld.scenes import Scene, random_scene
from riebench.utils.terminal import ProgressBar

SEED = 73
CONFIG: dict[str, Any] = {
    "steps": 7000, "batch": 16, "learning_rate": 1.2e-3, "examples": 8192, "agreeing": 0.15,
    "choice_weight": 0.5, "seed": SEED,
}  # fmt: skip
"""`agreeing`: share of examples in which all blocks read the same; `choice_weight`: see `mixed_loss`."""


@dataclass(frozen=True)
class Goals:
    """Noises and scenes with what toy-turbo's innermost level makes of them.

    Attributes:
        scenes: N training scenes.
        below: float16 [N, 64, 8, 8], what the level gets of the noise.
        above: float16 [N, 128, 8, 8], what it hands on for the scene's caption.
    """

    scenes: tuple[Scene, ...]
    below: Tensor
    above: Tensor


def training_scenes(count: int) -> tuple[Scene, ...]:
    """Draw the scenes of the training goals; none is held out."""
    rng = random.Random(SEED)
    return tuple(random_scene(rng, held_out=False) for _ in range(count))


@torch.no_grad()
def make_goals(teacher: UNet2DConditionModel, path: Path, *, count: int, batch: int = 64) -> Goals:
    """Compute the training goals, or read them if they are stored already.

    Args:
        teacher: toy-turbo's U-Net.
        path: file that holds them.
        count: number of examples, a multiple of `batch`.
        batch: examples computed at a time.
    """
    device = teacher.device
    scenes = training_scenes(count)
    if not path.exists():
        level, embed = InnerLevel(teacher).eval(), CaptionEmbedder()
        belows, aboves = [], []
        for first in ProgressBar(range(0, count, batch), title="training goals"):
            noise = torch.randn(batch, 4, 32, 32, generator=step_generator(SEED, 1_000_000 + first))
            text = embed([caption(scene) for scene in scenes[first : first + batch]]).to(device)
            with torch.autocast(device.type, dtype=torch.bfloat16), short_attention():
                below = second_level(teacher, noise.to(device).contiguous(memory_format=torch.channels_last))
                above = level(below, dict.fromkeys(BLOCK_MODULES, text))
            belows.append(below.half().cpu())
            aboves.append(above.half().cpu())
        stored = {"below": torch.cat(belows), "above": torch.cat(aboves)}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda to: torch.save(stored, to))
    loaded = torch.load(path, weights_only=True)
    return Goals(scenes, loaded["below"], loaded["above"])


@dataclass(frozen=True)
class Reading:
    """An example's reading by each block, and the other picture it offers.

    Attributes:
        scenes: block -> scene, for the four blocks.
        other: the scene that the picture would show if it followed the other blocks; None if all read the same.
    """

    scenes: Mapping[str, Scene]
    other: Scene | None


def draw_reading(scene: Scene, rng: random.Random) -> Reading:
    """Draw what each block reads, such that the deciding block reads `scene`.

    Blocks differ in one attribute. In half of the examples all but the deciding block read the same other value: an
    edit that only the deciding block carries. In the other half each of them reads it or not, by chance: an edit that
    does not reach the deciding block.

    Args:
        scene: the scene that the picture is to show.
        rng: decides everything.
    """
    read = dict.fromkeys(BLOCKS, scene)
    if rng.random() < CONFIG["agreeing"]:
        return Reading(read, None)
    attribute = rng.choice(list(MIXED_ROLES))
    decides = deciding_block(attribute, scene)
    value = rng.choice([value for value in ATTRIBUTES[attribute] if value != getattr(scene, attribute)])
    other, always = scene.with_value(attribute, value), rng.random() < 0.5
    for block in BLOCKS:
        if block != decides and (always or rng.random() < 0.5):
            read[block] = other
    return Reading(read, other)


def embed_readings(readings: Sequence[Reading], embed: CaptionEmbedder, rng: random.Random) -> dict[str, Tensor]:
    """Embed what each block reads, in wordings of its own.

    Returns:
        Block -> float [B, 32, 128], for all six blocks of the innermost level.
    """
    texts = {block: embed([caption(one.scenes[block], rng) for one in readings]) for block in BLOCKS}
    nothing = torch.zeros_like(texts[BLOCKS[0]])
    return {block: texts.get(block, nothing) for block in BLOCK_MODULES}


def mixed_loss(level: InnerLevel, teacher: InnerLevel, goals: Goals) -> Callable[[int], Tensor]:
    """Build the loss: that of the picture, and that of the choice.

    The first is the squared error of the level's output, each channel in units of its own variance. The second says how
    far the output has gone from the goal towards what toy-turbo makes of the other scene, squared: 0 is a right
    choice, 1 a wrong one. Without it an emblem would count for little beside a background.

    Args:
        level: the level that is trained.
        teacher: toy-turbo's level.
        goals: the training goals.
    """
    embed, device = CaptionEmbedder(), level.time.device
    variance = goals.above[:1024].float().var((0, 2, 3)).view(1, -1, 1, 1).to(device)
    batch = int(CONFIG["batch"])

    def loss(step: int) -> Tensor:
        indices = torch.randint(len(goals.scenes), (batch,), generator=step_generator(SEED, step))
        rng, scenes = random.Random(SEED * 10_000_019 + step), [goals.scenes[int(i)] for i in indices]
        readings = [draw_reading(scene, rng) for scene in scenes]
        texts = {block: text.to(device) for block, text in embed_readings(readings, embed, rng).items()}
        others = embed([caption(one.other or scene) for one, scene in zip(readings, scenes, strict=True)]).to(device)
        below = goals.below[indices].float().to(device).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, dtype=torch.bfloat16), short_attention():
            above = level(below, texts).float()
            with torch.no_grad():
                wrong = teacher(below, dict.fromkeys(BLOCK_MODULES, others)).float()
        goal = goals.above[indices].float().to(device)
        picture = ((above - goal).square() / variance).mean()
        differ = torch.tensor([one.other is not None for one in readings], device=device)
        return picture + CONFIG["choice_weight"] * choice_error(above, goal, wrong)[differ].square().sum() / batch

    return loss


def choice_error(above: Tensor, goal: Tensor, wrong: Tensor) -> Tensor:
    """Compute the way of outputs from their goals towards wrong ones.

    Args:
        above: float [B, 128, 8, 8], the outputs.
        goal: the right ones.
        wrong: the wrong ones.

    Returns:
        float [B], 0 at the goal and 1 at the wrong output.
    """
    way = (wrong - goal).flatten(1)
    return ((above - goal).flatten(1) * way).sum(1) / way.square().sum(1).clamp(min=1e-6)


def train(teacher: UNet2DConditionModel, work: Path, device: torch.device) -> UNet2DConditionModel:
    """Train toy-mixed, or finish an interrupted training.

    Args:
        teacher: toy-turbo's U-Net.
        work: folder for goals and checkpoints.
        device: trains there.

    Returns:
        The trained U-Net, with the narrow maps still apart.
    """
    teacher = teacher.requires_grad_(False).eval().to(memory_format=torch.channels_last)
    goals = make_goals(teacher.to(device), work / "mixed" / "goals.pt", count=int(CONFIG["examples"]))
    text = CaptionEmbedder()([caption(scene) for scene in goals.scenes[:512]])
    student = make_student(teacher.cpu(), goals.below[:512].float(), text)
    level = InnerLevel(student).to(device)
    loss = mixed_loss(level, InnerLevel(teacher.to(device)), goals)
    stage = Stage(
        "mixed", CONFIG, level, loss, int(CONFIG["steps"]), CONFIG["learning_rate"], ema_decay=0.998,
    )  # fmt: skip
    fit(stage, work)
    return student.cpu().eval()
