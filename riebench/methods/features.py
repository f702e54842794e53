"""Edits that switch SAE features on and off."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from riebench.generation.edits import AdaptiveEdit, Branch, Edit, SiteEdit, StaticEdit, select_columns
from riebench.generation.transfers import Basis, transfer
from riebench.methods.base import AddOnly, EditContext, method
from riebench.methods.ranking import Choice, choose
from riebench.saes.sae import SparseAutoencoder


@method("sae", access="PAM", needs=("updates", "saes"))
def sae(
    ctx: EditContext,
    *,
    n_features: int = 20,
    rank: Literal["first", "mean"] = "first",
    ranking: Literal["joint", "separate"] = "joint",
    shares: Literal["pooled", "per_block"] = "pooled",
    values: Literal["position", "mean"] = "position",
    add_at: Literal["target", "source"] = "target",
    add_only: AddOnly = False,
    adaptive: bool | Literal["published"] = False,
    delete_uses_target: bool = True,
    branch: Branch = "both",
) -> Edit:
    """Switch features on and off by the difference between target and source run.

    Switches on the features that the target run has more of, and off those that the source run has more of. A
    difference that may be rounding alone (`riebench.methods.ranking.noise_floor`) is none.

    Args:
        ctx: the example.
        n_features: how many are switched on, and how many off, at most.
        rank: ranks on the first step, or on the mean over steps.
        ranking: all blocks compete for `n_features`, or each block switches that many.
        shares: what competes: a feature's share of all blocks' activations together, or of its own block's, which
            leaves out that some blocks add larger updates than others.
        values: each position keeps its own value, or gets the mean over the region.
        add_at: adds at the target region, or (the mean) at the source region.
        add_only: true switches nothing off, as the published scripts did before October 2025; "published" does so
            except where an object is deleted, as their `only_add` does since.
        adaptive: true takes away what the features to remove contribute in the edited run itself, instead of in the
            source run; "published" takes that times the number of features added in the block over the number removed
            there, as the mode `sae_adaptive` of the published scripts does. Nothing where `add_only` holds.
        delete_uses_target: false reads the source run in place of the target run where an object is deleted, as the
            published scripts did before October 2025.
        branch: what happens to the guidance halves.
    """
    ctx = ctx.with_deletion_rule(delete_uses_target)
    adds_alone = ctx.only_adds(add_only)
    choice = choose_features(ctx, n_features, rank, ranking, shares)
    sites: dict[str, SiteEdit] = {}
    lists = choice.lists()
    for block in ctx.blocks:
        add, remove = choice.add[block], choice.remove[block]
        static = feature_transfer(ctx, block, add, remove, values, add_at, adds_alone)
        sites[block], takes_away = static, not adds_alone
        if adaptive and not adds_alone:
            published = adaptive == "published"
            scale = published_removal_scale(ctx.sae(block), add, remove) if published else 1.0
            sites[block] = AdaptiveEdit(
                StaticEdit(static.terms[:1]), ctx.runs.positions("source", block), remove, ctx.sae(block),
                scale=scale, mean=published and values == "mean",
            )  # fmt: skip
            takes_away = scale != 0
        if not takes_away:
            lists[block] = (lists[block][0], ())
    return Edit(sites, branch=branch, features=lists)


def published_removal_scale(sae: SparseAutoencoder, add: Tensor, remove: Tensor) -> float:
    """Return the factor of the removed part in the published mode `sae_adaptive`.

    It is the sum of the stored decoder columns' lengths over the features added, divided by that over the features
    removed: their numbers' ratio, since the columns of those SAEs have length 1.

    Args:
        sae: the block's SAE.
        add: int64 [a], features added in the block.
        remove: int64 [r], features removed there.

    Returns:
        The factor; 0 if nothing is removed.
    """
    lengths = sae.row_scale
    added, removed = (float(lengths[some.to(lengths.device)].double().sum()) for some in (add, remove))
    return added / removed if removed else 0.0


def choose_features(ctx: EditContext, count: int, rank: str, ranking: str, shares: str = "pooled") -> Choice:
    """Choose the features to switch in each of the context's blocks.

    Args:
        ctx: the example.
        count: how many each way, at most.
        rank: "first" or "mean".
        ranking: "joint" or "separate".
        shares: "pooled" or "per_block"; the same where blocks are ranked separately.
    """
    target, source = (
        {block: ctx.runs.feature_means(role, block, ctx.sae(block), rank) for block in ctx.blocks}
        for role in ("target", "source")
    )
    precision = ctx.runs.precision
    if ranking == "joint":
        return choose(target, source, count, precision=precision, apart=shares == "per_block")
    single = [
        choose({block: target[block]}, {block: source[block]}, count, precision=precision) for block in ctx.blocks
    ]
    return Choice(
        {block: one.add[block] for block, one in zip(ctx.blocks, single, strict=True)},
        {block: one.remove[block] for block, one in zip(ctx.blocks, single, strict=True)},
    )


def feature_transfer(
    ctx: EditContext, block: str, add: Tensor, remove: Tensor, values: str, add_at: str, add_only: bool
) -> StaticEdit:
    """Build the static change of one block.

    Its added features' target values minus its removed ones' source values.

    Args:
        ctx: the example.
        block: short name.
        add: int64 [a], features to add.
        remove: int64 [r], features to remove.
        values: see `riebench.generation.transfers.transfer`.
        add_at: likewise.
        add_only: likewise.
    """
    autoencoder, runs = ctx.sae(block), ctx.runs
    times = runs.times(autoencoder)
    return transfer(
        select_columns(runs.features("target", block, autoencoder), add),
        select_columns(runs.features("source", block, autoencoder), remove),
        runs.positions("target", block),
        runs.positions("source", block),
        target_basis=Basis(directions=autoencoder.feature_directions(add, times)),
        source_basis=Basis(directions=autoencoder.feature_directions(remove, times)),
        values=values,
        add_at=add_at,
        add_only=add_only,
    )
