"""Edits of plain activations: patching, steering, feed-forward units."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from riebench.blocks import unit_site
from riebench.errors import RiebenchError
from riebench.generation.edits import Branch, Edit, SiteEdit, StaticEdit, Term, position_mean
from riebench.generation.transfers import Basis, PairedEdit, transfer
from riebench.methods.base import AddOnly, EditContext, ExampleRuns, OtherExamples, Role, method
from riebench.methods.ranking import choose

UNIT_BUDGET = 20 * 2**20
"""Bytes of one example's neuron edit above which its values are not stored with it: they are read from the source and
target run, whose units are kept on the host or which are generated beside the edited picture."""

ROLES: tuple[Role, Role] = ("target", "source")


@method("activation_patch", access="PAM", needs=("updates",))
def activation_patch(
    ctx: EditContext,
    *,
    values: Literal["position", "mean"] = "position",
    add_at: Literal["target", "source"] = "target",
    add_only: AddOnly = False,
    delete_uses_target: bool = True,
    branch: Branch = "both",
) -> Edit:
    """Replace the source run's updates by the target run's inside the regions.

    Adds the target run's updates in the target region and takes away the source run's in the source region.

    Args:
        ctx: the example.
        values: each position keeps its own update, or gets the mean over the region.
        add_at: adds at the target region, or (the mean) at the source region.
        add_only: true takes nothing away; "published" does so except where an object is deleted.
        delete_uses_target: false reads the source run in place of the target run where an object is deleted, as the
            published scripts did before October 2025.
        branch: what happens to the guidance halves.
    """
    runs = ctx.with_deletion_rule(delete_uses_target).runs
    sites: dict[str, SiteEdit] = {
        block: transfer(
            runs.values("target", block), runs.values("source", block),
            runs.positions("target", block), runs.positions("source", block),
            values=values, add_at=add_at, add_only=ctx.only_adds(add_only),
        )
        for block in ctx.blocks
    }  # fmt: skip
    return Edit(sites, branch=branch)


@method("mean_steering", access="PAM", needs=("updates",))
def mean_steering(ctx: EditContext, *, branch: Branch = "both") -> Edit:
    """Add one vector per block and step inside both regions.

    The vector is the difference of the two runs' means.

    At strength 1 the vector is as long as the root mean square of the source run's update vectors at that block and
    step, so that the strength is a fraction of what the block itself adds.

    Args:
        ctx: the example.
        branch: what happens to the guidance halves.
    """
    runs = ctx.runs
    sites: dict[str, SiteEdit] = {}
    for block in ctx.blocks:
        positions = torch.cat([runs.positions("source", block), runs.positions("target", block)]).unique()
        target, source = (position_mean(runs.values(role, block))[:, 0] for role in ROLES)
        sites[block] = StaticEdit((Term(positions, scale_to_updates(target - source, runs, block)[:, None]),))
    return Edit(sites, branch=branch)


def scale_to_updates(vector: Tensor, runs: ExampleRuns, block: str) -> Tensor:
    """Scale a vector per step to the length of a block's update vectors.

    The result is as long as the root mean square of the source run's: float32 [T, C].

    Args:
        vector: [T, C].
        runs: the example that is edited.
        block: short name.
    """
    length = vector.norm(dim=-1)
    # Equal means have no direction: nothing is added there.
    factor = torch.where(length > 0, _update_size(runs, block) / length, torch.zeros_like(length))
    return vector * factor[:, None]


def _update_size(runs: ExampleRuns, block: str) -> Tensor:
    """Compute the root mean square of the source run's update vectors.

    Over all positions: float32 [T].
    """
    if not runs.trace.long:
        return runs.updates("source", block).square().sum(-1).mean(-1).sqrt()
    steps = (runs.trace.step_row(block, runs.rows["source"], step) for step in range(runs.trace.steps_of(block)))
    norms = (torch.linalg.vector_norm(step, dim=-1, dtype=torch.float32) for step in steps)
    return torch.stack([lengths.square().mean().sqrt() for lengths in norms])


@method("neurons", access="PAM", needs=("updates", "units"))
def neurons(
    ctx: EditContext,
    *,
    n_units: int = 1000,
    rank: Literal["first", "mean"] = "first",
    shares: Literal["magnitude", "published"] = "magnitude",
    values: Literal["position", "mean"] = "position",
    add_only: AddOnly = False,
    delete_uses_target: bool = True,
    branch: Branch = "both",
) -> Edit:
    """Switch feed-forward units of the blocks, chosen like features, on and off.

    Values of up to `UNIT_BUDGET` bytes are stored with the edit; for larger choices only the units' numbers are. Their
    values are then read from what the host keeps of the two runs, or from the runs generated once more.

    Args:
        ctx: the example.
        n_units: how many are switched on, and how many off, at most, over all blocks and layers.
        rank: ranks on the first step, or on the mean over steps.
        shares: divides by the magnitude of the units' sum, or by the signed sum as published (which turns the order
            round where the sum is negative).
        values: each position keeps its own value, or gets the mean over the region.
        add_only: true switches nothing off; "published" does so except where an object is deleted.
        delete_uses_target: false reads the source run in place of the target run where an object is deleted, as the
            published scripts did before October 2025.
        branch: what happens to the guidance halves.

    Raises:
        RiebenchError: if a block has no feed-forward units.
    """
    runs = ctx.with_deletion_rule(delete_uses_target).runs
    missing = [block for block in ctx.blocks if block not in runs.unit_layers]
    if missing:
        raise RiebenchError(f"the feed-forward units of {', '.join(missing)} were not captured")
    layers = [unit_site(block, layer) for block in ctx.blocks for layer in range(runs.unit_layers[block])]
    target, source = ({site: runs.unit_means(role, site, rank) for site in layers} for role in ROLES)
    choice = choose(target, source, n_units, precision=runs.unit_precision, signed=shares == "published")
    chosen = {site: (choice.add[site], choice.remove[site]) for site in layers}
    chosen = {site: (add, remove) for site, (add, remove) in chosen.items() if len(add) + len(remove)}
    adds_alone = ctx.only_adds(add_only)
    kept = runs.measure is None and _stored_size(runs, chosen, values, adds_alone) <= UNIT_BUDGET
    make = _stored_edit if kept else _viewed_edit if runs.units else _paired_edit
    sites: dict[str, SiteEdit] = {
        site: make(runs, site, add, remove, values, adds_alone) for site, (add, remove) in chosen.items()
    }
    pair = (runs.example.source, runs.example.target) if make is _paired_edit else None
    switched = sum(len(add) + (0 if add_only else len(remove)) for add, remove in chosen.values())
    return Edit(sites, branch=branch, pair=pair, neurons=switched)


def _stored_size(runs: ExampleRuns, chosen: Mapping[str, tuple[Tensor, Tensor]], values: str, add_only: bool) -> int:
    """Compute the bytes of the values that a stored edit would keep."""
    numbers = 0
    for site, (add, remove) in chosen.items():
        at, away = (1 if values == "mean" else len(runs.positions(role, site)) for role in ROLES)
        numbers += len(add) * at + (0 if add_only else len(remove) * away)
    return numbers * runs.trace.steps_of(next(iter(chosen))) * 4 if chosen else 0


def _stored_edit(runs: ExampleRuns, site: str, add: Tensor, remove: Tensor, values: str, add_only: bool) -> SiteEdit:
    return transfer(
        runs.masked("target", site)[..., add], runs.masked("source", site)[..., remove],
        runs.positions("target", site), runs.positions("source", site),
        target_basis=Basis(columns=add), source_basis=Basis(columns=remove), values=values, add_only=add_only,
    )  # fmt: skip


def _viewed_edit(runs: ExampleRuns, site: str, add: Tensor, remove: Tensor, values: str, add_only: bool) -> SiteEdit:
    return transfer(
        runs.units["target"].view(site, add), runs.units["source"].view(site, remove),
        runs.positions("target", site), runs.positions("source", site),
        target_basis=Basis(columns=add), source_basis=Basis(columns=remove), values=values, add_only=add_only,
    )  # fmt: skip


def _paired_edit(runs: ExampleRuns, site: str, add: Tensor, remove: Tensor, values: str, add_only: bool) -> SiteEdit:
    return PairedEdit(runs.positions("target", site), runs.positions("source", site), add, remove, values, add_only)


@method("concept_steering", access="T", needs=("updates", "others"))
def concept_steering(ctx: EditContext, *, examples: int = 16, branch: Branch = "both") -> Edit:
    """Add one vector per block and step everywhere: the category's common change.

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
    found = other_examples(ctx).first(examples, "differences", _differences)
    sites: dict[str, SiteEdit] = {}
    for block in ctx.blocks:
        kept = ctx.runs.trace.step_row(block, ctx.runs.rows["source"], 0)
        vector = torch.stack([differences[block] for differences in found]).mean(0).to(kept.device)
        everywhere = torch.arange(kept.shape[0])
        sites[block] = StaticEdit((Term(everywhere, scale_to_updates(vector, ctx.runs, block)[:, None]),))
    return Edit(sites, branch=branch)


def _differences(runs: ExampleRuns) -> dict[str, Tensor]:
    """Compute target mean minus source mean of each block.

    float32 [T, C], on the CPU.
    """
    return {
        block: (position_mean(runs.values("target", block)) - position_mean(runs.values("source", block)))[:, 0].cpu()
        for block in runs.trace.sites
    }


def other_examples(ctx: EditContext) -> OtherExamples:
    """Return the other examples of the category.

    Raises:
        RiebenchError: if they were not made ready.
    """
    if ctx.runs.others is None:
        raise RiebenchError("the other examples of the category were not made ready")
    return ctx.runs.others


def seeded_generator(ctx: EditContext, draw: int, block: str = "") -> torch.Generator:
    """Return a generator whose numbers follow from example, seed and draw.

    They do not depend on what else is run.

    Args:
        ctx: the example.
        draw: another number gives other numbers.
        block: short name; the generators of two blocks are unlike.
    """
    text = f"riebench-random-v1:{ctx.runs.example.id}:{ctx.runs.seed}:{draw}{block and ':' + block}"
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big"))
