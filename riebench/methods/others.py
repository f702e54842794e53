"""Methods that look at other examples of the category: what an edit owes to the example itself."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from riebench.errors import RiebenchError
from riebench.generation.edits import Branch, Edit, Placed, SiteEdit, Term, position_mean
from riebench.methods.activations import sized
from riebench.methods.base import EditContext, method
from riebench.methods.features import choose_features, feature_transfer
from riebench.methods.runs import ExampleRuns, Others
from riebench.selection import Choice


@method("wrong_example", access="PAM", needs=("updates", "saes", "others"))
def wrong_example(
    ctx: EditContext,
    *,
    n_features: int = 20,
    rank: Literal["first", "mean"] = "first",
    ranking: Literal["joint", "separate"] = "joint",
    values: Literal["position", "mean"] = "position",
    branch: Branch = "both",
) -> Edit:
    """As `sae`, with the features that `sae` chooses for another example of the category.

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
    choice = _others(ctx).next(("choice", saes, n_features, rank, ranking), chosen)
    sites: dict[str, SiteEdit] = {
        block: feature_transfer(ctx, block, choice.add[block], choice.remove[block], values, "target", False)
        for block in ctx.blocks
    }
    return Edit(sites, branch=branch, features=choice.lists())


@method("concept_steering", access="PAT", needs=("updates", "others"))
def concept_steering(ctx: EditContext, *, examples: int = 16, branch: Branch = "both") -> Edit:
    """Adds one vector per block and step everywhere: what the category's edits have in common.

    The vector is the mean, over other examples of the category, of the difference that `mean_steering` takes: target
    run minus source run, each meaned over its region. The scored example has no part in it, nor has its region. At
    strength 1 it is as long as the root mean square of the source run's update vectors at that block and step.

    Args:
        ctx: the example.
        examples: how many others, at most.
        branch: what happens to the guidance halves.

    Raises:
        RiebenchError: if `examples` is 0, or there are no others.
    """
    if not examples:
        raise RiebenchError("concept_steering: examples: 0 give no vector; take at least 1")
    found = _others(ctx).first(examples, "differences", _differences)
    sites: dict[str, SiteEdit] = {}
    for block in ctx.blocks:
        kept = ctx.runs.trace.step_row(block, ctx.runs.rows["source"], 0)
        vector = torch.stack([differences[block] for differences in found]).mean(0).to(kept.device)
        everywhere = torch.arange(kept.shape[0])
        sites[block] = Placed((Term(everywhere, sized(vector, ctx.runs, block)[:, None]),))
    return Edit(sites, branch=branch)


def _differences(runs: ExampleRuns) -> dict[str, Tensor]:
    """Block -> target mean minus source mean, float32 [T, C], on the CPU."""
    return {
        block: (position_mean(runs.values("target", block)) - position_mean(runs.values("source", block)))[:, 0].cpu()
        for block in runs.trace.sites
    }


def _others(ctx: EditContext) -> Others:
    if ctx.runs.others is None:
        raise RiebenchError("the other examples of the category were not made ready")
    return ctx.runs.others
