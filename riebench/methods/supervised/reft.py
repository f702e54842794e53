"""Rank-1 representation finetuning: a direction a block, trained by gradient.

The intervention is that of ReFT-r1 in AxBench (Wu et al. 2025, arXiv 2501.17148): a position's latent is the positive
part of its update's product with the direction, and the mean of the largest latents times the direction is added at
every position. There a language model's loss is minimised; here the denoiser is led from the prompt without the concept
to the prediction for the prompt with it (`riebench.methods.supervised.gradient`). As there, latents that are not among
the largest are penalised, and the direction has length 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from riebench.generation.edits import Branch, Edit, SiteEdit, tensor_bytes
from riebench.generation.generator import Generator
from riebench.generation.hooks import Hooks, hooked
from riebench.methods.base import ROLES, EditContext, method
from riebench.methods.supervised.concepts import (
    Learned,
    Place,
    TrainingPair,
    check_folds,
    describe_training,
    edited_positions,
    timed,
    training_pairs,
    wished_runs,
)
from riebench.methods.supervised.directions import unit_length
from riebench.methods.supervised.gradient import (
    Progress,
    TrainingCall,
    check_trainable,
    record_calls,
    seed_of,
    train,
    trainable,
)

TRAINING_STEPS, TOP = 32, 8
"""Usual steps of the optimiser, and usual number of the largest latents that are averaged."""
RATE = 0.1
"""First learning rate of a direction of length 1."""
PENALTY = 0.005
"""Weight of the mean latent outside the largest, in units of the root mean square of the update's length."""


@dataclass(frozen=True)
class RankOneEdit:
    """The intervention on one block.

    Attributes:
        positions: int64 [P], where it acts.
        direction: float32 [C], of length 1.
        top: how many of the largest latents are averaged.
    """

    positions: Tensor
    direction: Tensor
    top: int

    def delta(self, step: int, live: Tensor) -> Tensor | None:
        """Return the change at one step; see `riebench.generation.edits.SiteEdit.delta`."""
        if not len(self.positions):
            return None
        out = torch.zeros_like(live)
        out[self.positions.to(live.device)] = intervention(
            live[self.positions.to(live.device)], self.direction.to(live), self.top
        )[0]
        return out

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors kept."""
        return tensor_bytes(self.positions, self.direction)


def intervention(updates: Tensor, direction: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Compute what is added to some positions, and the latents outside the largest.

    Args:
        updates: float32 [P, C].
        direction: float32 [C].
        top: how many of the largest latents are averaged.

    Returns:
        float32 [C], and the other latents' mean, float32 [].
    """
    latents = torch.relu(updates @ direction)
    count = min(top, len(latents))
    largest = latents.topk(count).values
    rest = (latents.sum() - largest.sum()) / max(1, len(latents) - count)
    return largest.mean() * direction, rest


@method("reft_r1", access="PMT", needs=("updates", "others"))
def reft_r1(
    ctx: EditContext, *, examples: int = 16, folds: int = 3, training_steps: int = TRAINING_STEPS, top: int = TOP,
    branch: Branch = "both",
) -> Edit:  # fmt: skip
    """Add a trained direction in both regions, as strong as its own latents.

    The directions of all blocks are trained together, through the denoiser, on the training runs that show what the
    edit puts in; if none does, on those without what it takes out; else on all target runs. Strength 1 is the
    intervention that was trained.

    Args:
        ctx: the example.
        examples: how many to learn from, at most.
        folds: number of folds; examples of the scored example's own one are left out.
        training_steps: steps of the optimiser.
        top: how many of the largest latents are averaged.
        branch: what happens to the guidance halves.

    Raises:
        RiebenchError: if there is nothing to learn from, or no gradient can go through the model.
    """
    check_folds("reft_r1", examples, folds)
    training, pairs = training_pairs(ctx.runs.others, examples, folds)
    concept, places = wished_runs(ctx.runs.example, pairs)

    def fit() -> Learned[Mapping[str, Tensor]]:
        seed = seed_of("reft_r1", training.fold, ctx.runs.seed, *concept)
        found = timed(
            lambda: train_directions(training.generator, pairs, places, ctx.blocks, (training_steps, top), seed)
        )
        directions, progress = found.value
        return Learned(directions, found.seconds, progress.evaluations)

    learned = training.learn(("reft_r1", ctx.blocks, concept, training_steps, top), fit)
    sites: dict[str, SiteEdit] = {
        block: RankOneEdit(edited_positions(ctx.runs, block), learned.value[block], top) for block in ctx.blocks
    }
    return Edit(sites, branch=branch, training=describe_training(training, pairs, [learned]))


def train_directions(
    generator: Generator, pairs: Sequence[TrainingPair], places: Sequence[Place], blocks: tuple[str, ...],
    counts: tuple[int, int], seed: int,
) -> tuple[dict[str, Tensor], Progress]:  # fmt: skip
    """Train a direction for each block, all together.

    Args:
        generator: the loaded model.
        pairs: the training examples' runs.
        places: runs that are the goal.
        blocks: short names.
        counts: steps of the optimiser, and how many of the largest latents are averaged.
        seed: of the draws.

    Returns:
        Block -> direction, float32 [C], on the CPU; and the course of the training.

    Raises:
        RiebenchError: if no gradient can go through the model.
    """
    check_trainable("reft_r1", generator)
    calls = record_calls(generator, pairs, places)
    steps, top = counts
    model = generator.model
    draws = torch.Generator().manual_seed(seed)
    with trainable(generator):
        directions = {}
        for block in blocks:
            # Turned to where the updates lie: latents that are all negative would never learn anything.
            average = torch.stack([pair.means[role][block].mean(0) for pair in pairs for role in ROLES]).mean(0)
            start = unit_length(torch.randn(len(average), generator=draws))
            start = start if float(start @ average) >= 0 else -start
            directions[block] = start.to(model.device).requires_grad_()
        batch: list[TrainingCall] = []
        rest: dict[str, Tensor] = {}

        def select(some: Sequence[TrainingCall]) -> None:
            batch[:] = some

        def penalty() -> Tensor:
            return PENALTY * torch.stack([*rest.values()]).mean()

        def constrain() -> None:
            with torch.no_grad():
                for direction in directions.values():
                    direction.copy_(unit_length(direction))

        with hooked(model.denoiser, blocks, None) as hooks:
            for block, direction in directions.items():
                # Read in inference mode: only a copy made outside it can be read by a gradient.
                positions = {index: pair.positions[block].clone().to(model.device) for index, pair in enumerate(pairs)}
                _watch(hooks, block, direction, batch, positions, top, rest)
            progress = train(
                model.denoiser, calls, list(directions.values()), steps=steps, rate=RATE, seed=seed, select=select,
                penalty=penalty, constrain=constrain,
            )  # fmt: skip
    return {block: direction.detach().cpu() for block, direction in directions.items()}, progress


def _watch(
    hooks: Hooks, block: str, direction: Tensor, batch: Sequence[TrainingCall], positions: Mapping[int, Tensor],
    top: int, rest: dict[str, Tensor],
) -> None:  # fmt: skip
    """Let the intervention act on one block for as long as the hooks are there."""
    site = hooks.find(block)

    def change(args: Any, kwargs: Any, output: Any) -> Any:
        if not batch:
            return None
        stream, update = site.stream(output), site.update(args, kwargs, output).float()
        flat = update.flatten(2).transpose(1, 2) if update.dim() == 4 else update
        delta, others = torch.zeros_like(flat), []
        for row, call in enumerate(batch):
            places = positions[call.index]
            added, other = intervention(flat[row, places], direction, top)
            delta[row, places] = added
            others.append(other / flat[row].detach().square().sum(-1).mean().sqrt())
        rest[block] = torch.stack(others).mean()
        shaped = delta.transpose(1, 2).reshape(stream.shape) if update.dim() == 4 else delta
        return site.with_stream(output, (stream.float() + shaped).to(stream.dtype))

    changed: Callable[[Any, Any, Any], Any] = change
    hooks.after(site.point, changed)
