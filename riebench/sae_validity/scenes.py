"""Block updates of toy-world scenes whose attributes are known.

`pair_updates` generates scenes that differ in one attribute value and in nothing else, `scene_updates` random scenes
that nothing was trained on.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from riebench.models.loading import LoadedModel
from riebench.scoring.metrics.judge_network import ATTRIBUTES
from riebench.toyworld.captions import caption
from riebench.toyworld.scenes import random_scene
from riebench.toyworld.tasks import without_attribute
from riebench.training.collect import updates_of

NOISE_STRIDE = 1_000_003


@dataclass(frozen=True)
class PairUpdates:
    """Updates of scenes that take all values of one attribute in turn.

    Attributes:
        values: block -> attribute -> float16 [scenes, values, positions, d]. All pictures of a scene have the same
            noise and, but for the attribute, the same words.
    """

    values: dict[str, dict[str, Tensor]]

    def differences(self, block: str, attribute: str) -> Tensor:
        """Compute what each value adds against the attribute's other values.

        Returns:
            float32 [scenes, values, positions, d].
        """
        found = self.values[block][attribute].float()
        count = found.shape[1]
        return (found - found.mean(dim=1, keepdim=True)) * (count / (count - 1))

    def positions(self, block: str) -> Tensor:
        """Return all positions of a block: float16 [N, d]."""
        return torch.cat([found.flatten(0, 2) for found in self.values[block].values()])


@dataclass(frozen=True)
class SceneUpdates:
    """Updates of random scenes.

    Attributes:
        updates: block -> float16 [scenes, positions, d].
        labels: int64 [scenes, attributes], index of each attribute's value in the order of `ATTRIBUTES`.
    """

    updates: dict[str, Tensor]
    labels: Tensor

    def has(self, attribute: str, value: str) -> Tensor:
        """Return which scenes have an attribute's value: bool [scenes]."""
        return self.labels[:, list(ATTRIBUTES).index(attribute)] == ATTRIBUTES[attribute].index(value)


def pair_updates(model: LoadedModel, blocks: Sequence[str], scenes: int, *, seed: int, held_out: bool) -> PairUpdates:
    """Generate scenes in all values of each attribute.

    Args:
        model: a one-step toy model.
        blocks: whose updates are kept.
        scenes: random scenes for each attribute.
        seed: of scenes, words and noise.
        held_out: takes scenes that no training saw, instead of training scenes.
    """
    rng = random.Random(seed)
    captions: list[str] = []
    noise: list[int] = []
    for number, (attribute, values) in enumerate(ATTRIBUTES.items()):
        for index in range(scenes):
            captions += alike_captions(attribute, rng, held_out)
            noise += [seed * NOISE_STRIDE + number * scenes + index] * len(values)
    found = updates_of(model, captions, noise, blocks, title="scenes in all values")
    sizes = [scenes * len(values) for values in ATTRIBUTES.values()]
    return PairUpdates({
        block: {
            attribute: part.unflatten(0, (scenes, len(ATTRIBUTES[attribute])))
            for attribute, part in zip(ATTRIBUTES, rows.split(sizes), strict=True)
        }
        for block, rows in found.items()
    })  # fmt: skip


def scene_updates(model: LoadedModel, blocks: Sequence[str], scenes: int, *, seed: int) -> SceneUpdates:
    """Generate random scenes that no training saw.

    Args:
        model: a one-step toy model.
        blocks: whose updates are kept.
        scenes: how many.
        seed: of scenes, words and noise.
    """
    rng = random.Random(seed)
    drawn = [random_scene(rng, held_out=True) for _ in range(scenes)]
    captions = [caption(scene, rng) for scene in drawn]
    noise = [seed * NOISE_STRIDE + i for i in range(scenes)]
    found = updates_of(model, captions, noise, blocks, title="random scenes")
    return SceneUpdates(found, torch.tensor([scene.labels() for scene in drawn]))


def alike_captions(attribute: str, rng: random.Random, held_out: bool) -> list[str]:
    """Return captions of a random scene in all values of one attribute.

    Their other words are the same.

    Args:
        attribute: a key of `ATTRIBUTES`.
        rng: draws scene and words.
        held_out: as in `riebench.toyworld.scenes.random_scene`, of the scene as it is drawn.
    """
    scene = random_scene(rng, held_out=held_out)
    while True:
        words = rng.random()
        found = [caption(scene.with_value(attribute, value), random.Random(words)) for value in ATTRIBUTES[attribute]]
        # A style named before one sentence and after the other would move every word.
        trailing = {"," in sentence for sentence in found}
        if len({without_attribute(sentence, attribute) for sentence in found}) == len(trailing) == 1:
            return found
