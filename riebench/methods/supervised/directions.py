"""Directions learned from block updates: difference of means and linear probe.

Both give one vector a block and step, which is added in the regions of the scored example.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from riebench.generation.edits import Branch, Edit, SiteEdit, StaticEdit, Term
from riebench.methods.activations import scale_to_updates
from riebench.methods.base import EditContext, method
from riebench.methods.supervised.concepts import (
    Contrast,
    Learned,
    TrainingPair,
    check_folds,
    describe_training,
    edited_positions,
    find_contrasts,
    timed,
    training_pairs,
)
from riebench.methods.supervised.logistic import fit_logistic

Fit = Callable[[Sequence[TrainingPair], Contrast, str], Tensor]
"""Training pairs, contrast and block -> a vector for each step, float32 [T, C], on the CPU."""


@method("mean_direction", access="PMT", needs=("updates", "others"))
def mean_direction(ctx: EditContext, *, examples: int = 16, folds: int = 3, branch: Branch = "both") -> Edit:
    """Add a concept's difference of means in both regions.

    A concept's vector is the mean, over the training runs that show it, of their mean update minus that of the same
    example's other run. The edit adds the vector of what it puts in and takes away that of what it takes out, both at
    length 1. At strength 1 their sum is as long as the root mean square of the source run's update vectors at that
    block and step. `concept_steering` is the same of a whole category, which has no direction where its edits go
    different ways.

    Args:
        ctx: the example.
        examples: how many to learn from, at most.
        folds: number of folds; examples of the scored example's own one are left out.
        branch: what happens to the guidance halves.

    Raises:
        RiebenchError: if there is nothing to learn from.
    """
    return _steer(ctx, "mean_direction", difference_of_means, examples, folds, branch)


@method("probe_direction", access="PMT", needs=("updates", "others"))
def probe_direction(ctx: EditContext, *, examples: int = 16, folds: int = 3, branch: Branch = "both") -> Edit:
    """Add the direction of a linear probe in both regions.

    The probe is a logistic regression that tells updates of the training runs that show a concept from updates of
    those that show nothing of it, at the same step; of each run `SAMPLES` positions of its regions are read. Otherwise
    this is `mean_direction`.

    Args:
        ctx: the example.
        examples: how many to learn from, at most.
        folds: number of folds; examples of the scored example's own one are left out.
        branch: what happens to the guidance halves.

    Raises:
        RiebenchError: if there is nothing to learn from.
    """
    return _steer(ctx, "probe_direction", probe, examples, folds, branch)


def difference_of_means(pairs: Sequence[TrainingPair], contrast: Contrast, block: str) -> Tensor:
    """Compute a concept's difference of means: float32 [T, C].

    Args:
        pairs: the training examples' runs.
        contrast: which of them show the concept.
        block: short name.
    """
    places = zip(contrast.present, contrast.partners, strict=True)
    differences = [
        pairs[index].means[role][block] - pairs[index].means[other][block] for (index, role), (_, other) in places
    ]
    return torch.stack(differences).mean(0)


def probe(pairs: Sequence[TrainingPair], contrast: Contrast, block: str) -> Tensor:
    """Fit a concept's linear probe at each step: float32 [T, C].

    Args:
        pairs: the training examples' runs.
        contrast: which of them show the concept, and which nothing of it.
        block: short name.
    """
    present, absent = (
        torch.cat([pairs[index].samples[role][block] for index, role in places], dim=1).double().numpy()
        for places in (contrast.present, contrast.absent or contrast.partners)
    )
    fitted = [fit_logistic(there, lacking) for there, lacking in zip(present, absent, strict=True)]
    return torch.stack([torch.from_numpy(one) for one in fitted]).float()


def unit_length(vectors: Tensor) -> Tensor:
    """Scale vectors [..., C] to length 1; zero vectors stay."""
    length = vectors.norm(dim=-1, keepdim=True)
    return vectors / torch.where(length > 0, length, torch.ones_like(length))


def _steer(ctx: EditContext, name: str, fit: Fit, examples: int, folds: int, branch: Branch) -> Edit:
    """Add the learned vectors of an example's concepts, scaled to its updates."""
    check_folds(name, examples, folds)
    training, pairs = training_pairs(ctx.runs.others, examples, folds)
    sites: dict[str, SiteEdit] = {}
    learned: list[Learned[Tensor]] = []
    for block in ctx.blocks:
        parts = []
        for contrast in find_contrasts(ctx.runs.example, pairs):
            found = training.learn((name, block, contrast.key), partial(timed, partial(fit, pairs, contrast, block)))
            learned.append(found)
            parts.append(contrast.sign * unit_length(found.value))
        positions = edited_positions(ctx.runs, block)
        kept = ctx.runs.trace.step_row(block, ctx.runs.rows["source"], 0)
        vector = scale_to_updates(torch.stack(parts).sum(0).to(kept.device), ctx.runs, block)
        sites[block] = StaticEdit((Term(positions, vector[:, None]),))
    return Edit(sites, branch=branch, training=describe_training(training, pairs, learned))
