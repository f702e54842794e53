"""Controls: doing nothing, doing everything, and changing something at random."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from riebench.generation.edits import Branch, Edit, SiteEdit, StaticEdit, Term, scale_steps
from riebench.methods.activations import other_examples, seeded_generator
from riebench.methods.base import EditContext, ExampleRuns, Reuse, Role, method
from riebench.methods.features import choose_features, feature_transfer
from riebench.methods.ranking import Choice

NEAREST = 8
"""A random feature is drawn from this many live ones of most similar firing rate."""


@method("no_edit", access="")
def no_edit(ctx: EditContext) -> Reuse:
    """Return the source picture as it is: every gain and every distance is 0."""
    return Reuse("source")


@method("target_prompt", access="P")
def target_prompt(ctx: EditContext) -> Reuse:
    """Return the target picture: what the model gives when it is simply asked."""
    return Reuse("target")


@method("random_features", access="PAM", needs=("updates", "saes"))
def random_features(
    ctx: EditContext,
    *,
    n_features: int = 20,
    rank: Literal["first", "mean"] = "first",
    ranking: Literal["joint", "separate"] = "joint",
    values: Literal["position", "mean"] = "position",
    draw: int = 0,
    branch: Branch = "both",
) -> Edit:
    """Switch random live features instead of chosen ones.

    They are as many, as often active and change the run as strongly.

    For each feature that `sae` would switch, another one is drawn among the live ones of that run whose firing rate
    is nearest; its own values are used, and at each block and step the change is scaled to the norm of that of `sae`.

    Args:
        ctx: the example.
        n_features: as in `sae`.
        rank: as in `sae`.
        ranking: as in `sae`.
        values: as in `sae`.
        draw: another number gives another draw.
        branch: what happens to the guidance halves.
    """
    choice = choose_features(ctx, n_features, rank, ranking)
    generator = seeded_generator(ctx, draw)
    sites: dict[str, SiteEdit] = {}
    features: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    for block in ctx.blocks:
        add, remove = choice.add[block], choice.remove[block]
        other_add = _draw_similar(ctx, block, "target", add, torch.cat([add, remove]), generator)
        other_remove = _draw_similar(ctx, block, "source", remove, torch.cat([add, remove, other_add]), generator)
        wanted = feature_transfer(ctx, block, add, remove, values, "target", False)
        drawn = feature_transfer(ctx, block, other_add, other_remove, values, "target", False)
        sites[block] = _match_norms(ctx, block, drawn, wanted)
        features[block] = (tuple(other_add.tolist()), tuple(other_remove.tolist()))
    return Edit(sites, branch=branch, features=features)


@method("random_directions", access="PAM", needs=("updates", "saes"))
def random_directions(
    ctx: EditContext,
    *,
    n_features: int = 20,
    rank: Literal["first", "mean"] = "first",
    ranking: Literal["joint", "separate"] = "joint",
    values: Literal["position", "mean"] = "position",
    draw: int = 0,
    branch: Branch = "both",
) -> Edit:
    """Push each block in a random direction, as far as `sae` pushes it.

    The distance is that of `sae` at every position and step.

    The direction is Gaussian, one per block, drawn anew for every example and seed, whatever other blocks are edited.

    Args:
        ctx: the example.
        n_features: as in `sae`.
        rank: as in `sae`.
        ranking: as in `sae`.
        values: as in `sae`.
        draw: another number gives another draw.
        branch: what happens to the guidance halves.
    """
    choice = choose_features(ctx, n_features, rank, ranking)
    sites: dict[str, SiteEdit] = {}
    for block in ctx.blocks:
        wanted = feature_transfer(ctx, block, choice.add[block], choice.remove[block], values, "target", False)
        blank, steps = _zero_update(ctx, block), ctx.runs.trace.steps_of(block)
        deltas = (wanted.delta(step, blank) for step in range(steps))
        sizes = torch.stack([blank.new_zeros(len(blank)) if one is None else one.norm(dim=-1) for one in deltas])
        positions = sizes.any(0).nonzero().flatten()
        direction = torch.randn(1, blank.shape[1], generator=seeded_generator(ctx, draw, block)).to(blank.device)
        direction = direction / direction.norm()
        sites[block] = StaticEdit((Term(positions, sizes[:, positions, None], directions=direction),))
    return Edit(sites, branch=branch)


@method("wrong_example", access="PAMT", needs=("updates", "saes", "others"))
def wrong_example(
    ctx: EditContext,
    *,
    n_features: int = 20,
    rank: Literal["first", "mean"] = "first",
    ranking: Literal["joint", "separate"] = "joint",
    values: Literal["position", "mean"] = "position",
    branch: Branch = "both",
) -> Edit:
    """Switch the features that `sae` chooses for another example of the category.

    Otherwise this is `sae`.

    Values and regions are this example's own; only the choice of features is the other's.

    Args:
        ctx: the example.
        n_features: as in `sae`.
        rank: as in `sae`.
        ranking: as in `sae`.
        values: as in `sae`.
        branch: what happens to the guidance halves.
    """

    def chosen(runs: ExampleRuns) -> Choice:
        return choose_features(EditContext(runs, ctx.blocks, ctx.saes), n_features, rank, ranking)

    saes = tuple((block, ctx.sae(block).sha256) for block in ctx.blocks)
    choice = other_examples(ctx).next(("choice", saes, n_features, rank, ranking), chosen)
    sites: dict[str, SiteEdit] = {
        block: feature_transfer(ctx, block, choice.add[block], choice.remove[block], values, "target", False)
        for block in ctx.blocks
    }
    return Edit(sites, branch=branch, features=choice.lists())


def _draw_similar(
    ctx: EditContext, block: str, role: Role, features: Tensor, taken: Tensor, generator: torch.Generator
) -> Tensor:
    """Draw one live feature of similar firing rate for each given one.

    None is drawn twice: int64 [at most as many].
    """
    rate = ctx.runs.firing_rates(role, block, ctx.sae(block)).cpu()
    free = rate > 0
    free[taken.cpu()] = False
    drawn = []
    for feature in features.tolist():
        candidates = free.nonzero().flatten()
        if not len(candidates):
            break
        order = (rate[candidates] - rate[feature]).abs().argsort(stable=True)[:NEAREST]
        pick = int(candidates[order[torch.randint(len(order), (1,), generator=generator)]])
        free[pick] = False
        drawn.append(pick)
    return torch.tensor(drawn, dtype=torch.long, device=features.device)


def _match_norms(ctx: EditContext, block: str, drawn: StaticEdit, wanted: StaticEdit) -> StaticEdit:
    """Scale `drawn` step by step to the norm of `wanted`.

    Where only one of them is silent, to the whole norm.
    """
    blank = _zero_update(ctx, block)
    size, goal = (_norms(placed, blank, ctx.runs.trace.steps_of(block)) for placed in (drawn, wanted))
    live = size > 0
    factors = torch.where(live, goal / size.where(live, torch.ones_like(size)), torch.zeros_like(size))
    # Steps at which the drawn features are silent cannot carry their share: the others carry it for them.
    carried = (factors * size).norm()
    if carried > 0:
        factors = factors * goal.norm() / carried
    return StaticEdit(tuple(_scale_term(term, factors) for term in drawn.terms))


def _zero_update(ctx: EditContext, block: str) -> Tensor:
    kept = ctx.runs.trace.step_row(block, ctx.runs.rows["source"], 0)
    return torch.zeros(kept.shape, device=kept.device)


def _norms(placed: StaticEdit, blank: Tensor, steps: int) -> Tensor:
    deltas = (placed.delta(step, blank) for step in range(steps))
    return torch.stack([blank.new_zeros(()) if delta is None else delta.norm() for delta in deltas])


def _scale_term(term: Term, factors: Tensor) -> Term:
    return replace(term, values=scale_steps(term.values, factors))
