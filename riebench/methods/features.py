"""Edits that switch SAE features on and off.

`sae` chooses the features of each edit from its own two runs. `sae_fixed` chooses them in other examples of the same
edit, and takes their values from there, too.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from riebench.generation.edits import (
    AdaptiveEdit,
    Branch,
    Edit,
    SiteEdit,
    StaticEdit,
    Term,
    position_mean,
    select_columns,
)
from riebench.generation.transfers import Basis, transfer
from riebench.methods.activations import other_examples
from riebench.methods.base import AddOnly, EditContext, ExampleRuns, Role, method
from riebench.methods.ranking import Choice, choose
from riebench.saes.sae import SparseAutoencoder
from riebench.tasks.prompts import changed_words
from riebench.tasks.schema import EditExample

ALL_OTHERS = sys.maxsize
"""A number of other examples that no task reaches."""

SiteMeans = Mapping[str, Tensor]
"""Block -> one number a feature, float32 [n]."""


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
    return choose_by_means(target, source, count, ctx.runs.precision, ranking, shares)


def choose_by_means(
    target: SiteMeans, source: SiteMeans, count: int, precision: float, ranking: str, shares: str = "pooled"
) -> Choice:
    """Choose the features that gain and lose most between two runs.

    Args:
        target: block -> means of its features in the target run.
        source: the same of the source run.
        count: how many each way, at most.
        precision: see `riebench.methods.ranking.noise_floor`.
        ranking: see `choose_features`.
        shares: likewise.
    """
    if ranking == "joint":
        return choose(target, source, count, precision=precision, apart=shares == "per_block")
    single = {
        block: choose({block: target[block]}, {block: source[block]}, count, precision=precision) for block in target
    }
    return Choice(
        {block: one.add[block] for block, one in single.items()},
        {block: one.remove[block] for block, one in single.items()},
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


@dataclass(frozen=True)
class FeatureProfile:
    """Mean feature values of another example, and what its edit changes.

    Attributes:
        new: what the target has and the source has not, see `changed_values`.
        old: what the source has and the target has not.
        means: run -> block -> means over the run's region, float32 [T, n], on the CPU.
    """

    new: frozenset[str]
    old: frozenset[str]
    means: Mapping[Role, SiteMeans]


@method("sae_fixed", access="PMT", needs=("updates", "saes", "others"))
def sae_fixed(
    ctx: EditContext,
    *,
    n_features: int = 20,
    rank: Literal["first", "mean"] = "first",
    ranking: Literal["joint", "separate"] = "joint",
    examples: int | None = None,
    folds: int | None = None,
    branch: Branch = "both",
) -> Edit:
    """Switch the features that stand for the edit's values in other examples.

    The target run is not looked at. The features to switch on are those that other examples of the category have more
    of where the wished value (a color, an object) is there than where it is not, whichever way round they are edited;
    the features to switch off are chosen likewise by the value that is to go. Each feature has, at each step, its mean
    value in the regions of those examples, at every position of this example's region.

    Args:
        ctx: the example.
        n_features: how many are switched on, and how many off, at most.
        rank: as in `sae`.
        ranking: as in `sae`.
        examples: how many others to look at, at most; None for all.
        folds: looks at the examples outside the scored example's fold alone, as supervised methods do; None looks at
            all others.
        branch: what happens to the guidance halves.

    Raises:
        RiebenchError: if there are no others.
    """
    saes = {block: ctx.sae(block) for block in ctx.blocks}

    def profile(runs: ExampleRuns) -> FeatureProfile:
        roles: tuple[Role, Role] = ("target", "source")
        means = {
            role: {block: position_mean(runs.features(role, block, sae))[:, 0].cpu() for block, sae in saes.items()}
            for role in roles
        }
        return FeatureProfile(*changed_values(runs.example), means)

    key = ("feature profile", tuple((block, sae.sha256) for block, sae in saes.items()))
    count = ALL_OTHERS if examples is None else examples
    found = other_examples(ctx)
    others = found.first(count, key, profile) if folds is None else found.training(count, folds).each(key, profile)
    new, old = changed_values(ctx.runs.example)
    wished, unwished = _runs_with(new, others, "target"), _runs_with(old, others, "source")
    add, remove = (
        _chosen_by_others(found, n_features, ctx.runs.precision, rank, ranking) for found in (wished, unwished)
    )
    sites: dict[str, SiteEdit] = {}
    for block, sae in saes.items():
        sites[block] = StaticEdit(
            (
                _fixed_term(ctx, block, sae, "target", add[block], wished),
                _fixed_term(ctx, block, sae, "source", remove[block], unwished),
            )
        )
    features = {block: (tuple(add[block].tolist()), tuple(remove[block].tolist())) for block in saes}
    return Edit(sites, branch=branch, features=features)


def changed_values(example: EditExample) -> tuple[frozenset[str], frozenset[str]]:
    """Return what an edit puts in and what it takes out.

    They are values of attributes where these are known, else words of the prompts.

    Returns:
        What only the target has, and what only the source has.
    """
    if example.attributes is None:
        return changed_words(example.source, example.target)
    source, target = example.attributes.source, example.attributes.target
    edited = [name for name in source if source[name] != target[name]]
    return frozenset(f"{n}={target[n]}" for n in edited), frozenset(f"{n}={source[n]}" for n in edited)


def _runs_with(
    values: frozenset[str], others: Sequence[FeatureProfile], fallback: Role
) -> list[tuple[SiteMeans, SiteMeans]]:
    """Return other examples' runs that show some values, each with one that does not.

    The examples are those that share most of the values. If none shares any, they are all, in the role `fallback`:
    what the category's edits have in common.
    """
    found: list[tuple[float, SiteMeans, SiteMeans]] = []
    for other in others:
        target, source = other.means["target"], other.means["source"]
        found += [(_overlap(values, other.new), target, source), (_overlap(values, other.old), source, target)]
    most = max(share for share, _, _ in found)
    if most:
        return [(there, lacking) for share, there, lacking in found if share == most]
    return [(o.means[fallback], o.means["source" if fallback == "target" else "target"]) for o in others]


def _overlap(one: frozenset[str], other: frozenset[str]) -> float:
    """Return the share of two sets' members that both have, 0 to 1."""
    return len(one & other) / len(one | other) if one & other else 0.0


def _chosen_by_others(
    found: Sequence[tuple[SiteMeans, SiteMeans]], count: int, precision: float, rank: str, ranking: str
) -> Mapping[str, Tensor]:
    """Choose the features that the first run of each pair has more of.

    Block -> int64 indices, at most `count`.
    """

    def over_steps(means: Tensor) -> Tensor:
        return means[0] if rank == "first" else means.mean(0)

    there, lacking = (
        {block: torch.stack([over_steps(pair[side][block]) for pair in found]).mean(0) for block in found[0][side]}
        for side in (0, 1)
    )
    return choose_by_means(there, lacking, count, precision, ranking).add


def _fixed_term(
    ctx: EditContext, block: str, sae: SparseAutoencoder, role: Role, features: Tensor,
    found: Sequence[tuple[SiteMeans, SiteMeans]],
) -> Term:  # fmt: skip
    """Return features at their mean values in other runs, all over a region.

    Those of the source region are taken away.
    """
    values = torch.stack([there[block][:, features] for there, _ in found]).mean(0)
    return Term(
        ctx.runs.positions(role, block), values[:, None],
        directions=sae.feature_directions(features, ctx.runs.times(sae)), sign=1.0 if role == "target" else -1.0,
    )  # fmt: skip
