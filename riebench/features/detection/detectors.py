"""Detectors: what each method would read a concept off, at one block.

A detector learns from the same training examples as the method that steers by it, and gives one number at each step
and position of a run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from riebench.errors import RiebenchError, near_match
from riebench.generation.edits import position_mean
from riebench.methods.base import ROLES, ExampleRuns, Role, TrainingExamples
from riebench.methods.features import choose_by_means
from riebench.methods.supervised.concepts import Contrast, TrainingPair
from riebench.methods.supervised.directions import difference_of_means, probe, unit_length
from riebench.methods.supervised.gradient import seed_of
from riebench.methods.supervised.reft import TOP, TRAINING_STEPS, train_directions
from riebench.saes.sae import SparseAutoencoder

Reader = Callable[[ExampleRuns, Role], Tensor]
"""A run -> the detector's number at each step and position, float32 [T, P]."""


@dataclass(frozen=True)
class Material:
    """Material that detectors of one fold learn from.

    Attributes:
        training: the training examples.
        pairs: what was read of their runs.
        saes: block -> SAE; empty if no detector reads features.
        seed: index of the seed of all runs.
    """

    training: TrainingExamples
    pairs: Sequence[TrainingPair]
    saes: Mapping[str, SparseAutoencoder]
    seed: int


Fit = Callable[[Material, Contrast, Sequence[str]], Mapping[str, Reader]]
"""Material, concept and blocks -> block -> reader; blocks where nothing was found are left out."""


@dataclass(frozen=True)
class Detector:
    """One kind of detector.

    Attributes:
        fit: learns a concept.
        method: registered method that steers by the same direction or feature; "" for a control.
        configuration: official configuration of that method.
        needs_saes: whether it reads features of SAEs.
    """

    fit: Fit
    method: str
    configuration: str
    needs_saes: bool = False


def _along(block: str, directions: Tensor) -> Reader:
    """Return a reader of a block's update along one direction a step, float32 [T, C]."""

    def read(runs: ExampleRuns, role: Role) -> Tensor:
        row, found = runs.rows[role], []
        for step, direction in enumerate(directions):
            values = runs.trace.step_row(block, row, step).float()
            found.append(values @ direction.to(values.device))
        return torch.stack(found).cpu()

    return read


def _scaled(material: Material, block: str, directions: Tensor) -> Tensor:
    """Return directions over the training updates' size at each step, [T, C]."""
    samples = torch.cat([pair.samples[role][block] for pair in material.pairs for role in ROLES], dim=1)
    size = samples.square().sum(-1).mean(1).sqrt()
    return unit_length(directions) / size.clamp(min=torch.finfo(size.dtype).tiny)[:, None]


def _from_updates(
    fit: Callable[[Sequence[TrainingPair], Contrast, str], Tensor], material: Material, contrast: Contrast,
    blocks: Sequence[str],
) -> dict[str, Reader]:  # fmt: skip
    return {block: _along(block, _scaled(material, block, fit(material.pairs, contrast, block))) for block in blocks}


def _from_training(material: Material, contrast: Contrast, blocks: Sequence[str]) -> dict[str, Reader]:
    seed = seed_of("reft_r1", material.training.fold, material.seed, *contrast.key)
    directions, _ = train_directions(
        material.training.generator, material.pairs, contrast.present, tuple(blocks), (TRAINING_STEPS, TOP), seed
    )
    steps = {block: len(material.pairs[0].means["source"][block]) for block in blocks}
    return {
        block: _along(block, _scaled(material, block, direction.expand(steps[block], -1)))
        for block, direction in directions.items()
    }


def _at_random(material: Material, contrast: Contrast, blocks: Sequence[str]) -> dict[str, Reader]:
    found = {}
    for block in blocks:
        draws = torch.Generator().manual_seed(seed_of("random", block, *contrast.key))
        shape = material.pairs[0].means["source"][block].shape
        found[block] = _along(block, _scaled(material, block, torch.randn(shape[1], generator=draws).expand(shape)))
    return found


def _feature(block: str, sae: SparseAutoencoder, feature: int) -> Reader:
    """Return a reader of one feature's value."""

    def read(runs: ExampleRuns, role: Role) -> Tensor:
        row, times, found = runs.rows[role], runs.times(sae), []
        for step in range(runs.trace.steps_of(block)):
            values = runs.trace.step_row(block, row, step, sae.reads).float()
            codes = sae.contributions(values, None if times is None else times[step])
            found.append(codes[:, feature])
        return torch.stack(found).cpu()

    return read


def _from_features(material: Material, contrast: Contrast, blocks: Sequence[str]) -> dict[str, Reader]:
    """Find each block's feature that the runs with the concept have most more of."""
    saes = {block: material.saes[block] for block in blocks}

    def look(runs: ExampleRuns) -> tuple[float, dict[Role, dict[str, Tensor]]]:
        means = {
            role: {name: position_mean(runs.features(role, name, sae)).mean((0, 1)).cpu() for name, sae in saes.items()}
            for role in ROLES
        }  # fmt: skip
        return runs.precision, means

    key = ("feature means", tuple((block, sae.sha256) for block, sae in saes.items()))
    looked = material.training.each(key, look)
    there, lacking = (
        {block: torch.stack([looked[index][1][role][block] for index, role in places]).mean(0) for block in blocks}
        for places in (contrast.present, contrast.partners)
    )
    chosen = choose_by_means(there, lacking, 1, max(one[0] for one in looked), "separate").add
    return {block: _feature(block, saes[block], int(chosen[block][0])) for block in blocks if len(chosen[block])}


DETECTORS: Mapping[str, Detector] = {
    "difference of means": Detector(partial(_from_updates, difference_of_means), "mean_direction", "mean_direction"),
    "linear probe": Detector(partial(_from_updates, probe), "probe_direction", "probe_direction"),
    "ReFT-r1 direction": Detector(_from_training, "reft_r1", "reft_r1"),
    "SAE feature": Detector(_from_features, "sae_fixed", "sae_fixed_folds", needs_saes=True),
    "random direction": Detector(_at_random, "", ""),
}
"""Name -> detector."""

SHORT_NAMES = {"mean": "difference of means", "probe": "linear probe", "reft": "ReFT-r1 direction",
               "sae": "SAE feature", "random": "random direction"}  # fmt: skip
"""Word of the command line -> detector."""


def named_detectors(words: Sequence[str]) -> dict[str, Detector]:
    """Return detectors by their words; all for none.

    Raises:
        RiebenchError: for an unknown word; names the nearest.
    """
    for word in words:
        if word not in SHORT_NAMES:
            raise RiebenchError(f"unknown detector {word!r}{near_match(word, SHORT_NAMES)}")
    wanted = [SHORT_NAMES[word] for word in words or SHORT_NAMES]
    return {name: DETECTORS[name] for name in DETECTORS if name in wanted}
