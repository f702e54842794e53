"""Edits that replace whole updates at positions which SAE features detect."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from riebench.generation.edits import Branch, Edit, SiteEdit, StepValues, Values
from riebench.generation.transfers import PatchReplacement
from riebench.methods.activations import seeded_generator
from riebench.methods.base import EditContext, ExampleRuns, Role, method
from riebench.methods.features import choose_features
from riebench.methods.ranking import Choice


@method("replace_patches", access="PAM", needs=("updates", "saes"), strengths=(0, 1))
def replace_patches(
    ctx: EditContext,
    *,
    patches: Literal["target", "same_map"] = "target",
    n_features: int = 20,
    rank: Literal["first", "mean"] = "first",
    ranking: Literal["joint", "separate"] = "joint",
    draw: int = 0,
    branch: Branch = "conditional",
) -> Edit:
    """Replace whole updates at the positions that SAE features detect.

    The features that `sae` would switch are only looked at (after "Look but don't touch", arXiv 2606.31699). Positions
    of both regions are ordered by how active those features are there: the removed ones in the source run and the added
    ones in the target run, summed, as means over steps. The strength is the share of these positions, the most active
    ones, at which the block's whole update is replaced; no direction is added.

    Args:
        ctx: the example.
        patches: by what: the target run's update of the same position and step; or, as in the paper, the update of a
            position that is drawn from those outside the regions of the same map, which can only erase.
        n_features: as in `sae`.
        rank: as in `sae`.
        ranking: as in `sae`.
        draw: another number draws other positions.
        branch: what happens to the guidance halves.
    """
    choice = choose_features(ctx, n_features, rank, ranking)
    sites: dict[str, SiteEdit] = {}
    for block in ctx.blocks:
        places = _detected(ctx, block, choice)
        if patches == "target":
            sites[block] = PatchReplacement(places, _updates_at(ctx.runs, "target", block, places))
        else:
            sites[block] = _erased(ctx, block, places, draw)
    return Edit(sites, branch=branch, features=choice.lists())


def _detected(ctx: EditContext, block: str, choice: Choice) -> Tensor:
    """Return the positions of both regions, int64 [P].

    Those come first where the chosen features are most active.
    """
    runs, sae = ctx.runs, ctx.sae(block)
    rows, columns = runs.trace.grids[block]
    activity = torch.full((rows * columns,), -1.0)
    looks: tuple[tuple[Role, Tensor], ...] = (("source", choice.remove[block]), ("target", choice.add[block]))
    for role, features in looks:
        places, values = runs.positions(role, block).cpu(), runs.features(role, block, sae)
        found = torch.stack([values[step][:, features].sum(-1).cpu() for step in range(values.shape[0])]).mean(0)
        activity[places] = activity[places].clamp(min=0) + found
    places = (activity >= 0).nonzero().flatten()
    return places[activity[places].argsort(descending=True, stable=True)]


def _updates_at(runs: ExampleRuns, role: Role, block: str, places: Tensor) -> Values:
    """Return a run's updates at some positions, [T, P, C].

    Those of a long run are read step by step.
    """
    if not runs.trace.long:
        values = runs.updates(role, block)
        return values[:, places.to(values.device)]
    trace, row = runs.trace, runs.rows[role]

    def read(step: int, columns: Tensor | None) -> Tensor:
        kept = trace.step_row(block, row, step)
        values = kept[places.to(kept.device)].float()
        return values if columns is None else values[:, columns.to(values.device)]

    return StepValues(read, (trace.steps_of(block), len(places), trace.width_of(block)))


def _erased(ctx: EditContext, block: str, places: Tensor, draw: int) -> PatchReplacement:
    """Return the replacement by updates from outside the regions.

    It is empty if nothing is outside.
    """
    rows, columns = ctx.runs.trace.grids[block]
    outside = torch.ones(rows * columns, dtype=torch.bool)
    outside[places] = False
    free = outside.nonzero().flatten()
    if not len(free):
        return PatchReplacement(places[:0], donors=places[:0])
    picks = torch.randint(len(free), (len(places),), generator=seeded_generator(ctx, draw, block))
    return PatchReplacement(places, donors=free[picks])
