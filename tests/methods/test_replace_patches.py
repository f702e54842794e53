"""Whole updates replaced where SAE features detect: which positions, by what, and in which order."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch
from edit_contexts import BLOCKS, GRID, POSITIONS, STEPS, context, edit_of
from tiny import tiny_model
from unet_calls import unet_input

from riebench.errors import RiebenchError
from riebench.generation.edits import Edit
from riebench.generation.trace import Trace, capture, intervene
from riebench.generation.transfers import PatchReplacement
from riebench.methods.base import Role, get_method

REGIONS = {place for place in range(POSITIONS) if place // GRID < GRID // 2 or place % GRID < GRID // 2}
"""Left half (source) and upper half (target), as the contexts have them."""


def replacement(edit: Edit, block: str) -> PatchReplacement:
    """The edit of a block."""
    placed = edit.sites[block]
    assert isinstance(placed, PatchReplacement)
    return placed


def test_positions_come_in_the_order_of_what_the_features_detect() -> None:
    ctx = context()
    edit, switched = edit_of("replace_patches", ctx, n_features=6), edit_of("sae", ctx, n_features=6)
    assert edit.features == switched.features
    for block in BLOCKS:
        add, remove = edit.features[block]
        activity = {place: 0.0 for place in REGIONS}
        looks: tuple[tuple[Role, tuple[int, ...]], ...] = (("target", add), ("source", remove))
        for role, features in looks:
            for place in REGIONS:
                inside = place // GRID < GRID // 2 if role == "target" else place % GRID < GRID // 2
                if inside and features:
                    codes = ctx.sae(block).encode(ctx.runs.updates(role, block)[:, place])
                    activity[place] += float(codes[:, list(features)].sum(-1).mean())
        found = replacement(edit, block).positions.tolist()
        assert set(found) == REGIONS
        values = [activity[place] for place in found]
        assert values == pytest.approx(sorted(values, reverse=True), abs=1e-5) and max(values) > 0


def test_the_strength_is_the_share_of_positions_that_become_the_target_runs() -> None:
    ctx = context()
    placed, live = replacement(edit_of("replace_patches", ctx, n_features=6), "mid.0"), torch.randn(POSITIONS, 8)
    for strength, count in ((0.01, 1), (0.25, 3), (0.5, 6), (1.0, 12)):
        for step in range(STEPS):
            delta = placed.replace(step, live, strength)
            assert delta is not None
            changed = live + delta
            inside = placed.positions[:count]
            torch.testing.assert_close(changed[inside], ctx.runs.updates("target", "mid.0")[step][inside])
            rest = torch.ones(POSITIONS, dtype=torch.bool)
            rest[inside] = False
            assert not delta[rest].any()
    assert placed.replace(0, live, 0.0) is None
    with pytest.raises(RiebenchError, match="made from 2 steps, but step 3 is run"):
        placed.replace(2, live, 1.0)
    with pytest.raises(RiebenchError, match=r"strengths: 1.5 is not in 0 to 1"):
        get_method("replace_patches").check_strengths((1.5,))


def test_erasing_takes_updates_of_the_same_map_from_outside_the_regions() -> None:
    edit = edit_of("replace_patches", context(), n_features=6, patches="same_map")
    placed, live = replacement(edit, "mid.0"), torch.randn(POSITIONS, 8)
    delta = placed.delta(0, live)
    assert delta is not None and placed.donors is not None
    outside = [place for place in range(POSITIONS) if place not in REGIONS]
    assert set(placed.donors.tolist()) <= set(outside) and len(set(placed.donors.tolist())) > 1
    for place, donor in zip(placed.positions.tolist(), placed.donors.tolist(), strict=True):
        torch.testing.assert_close((live + delta)[place], live[donor])
    again, other = (
        replacement(edit_of("replace_patches", context(), n_features=6, patches="same_map", draw=draw), "mid.0")
        for draw in (0, 1)
    )
    assert again.donors is not None and torch.equal(again.donors, placed.donors)
    assert other.donors is not None and not torch.equal(other.donors, placed.donors)


def test_downstream_blocks_get_the_target_runs_updates_whatever_was_changed_before() -> None:
    """Adding differences would not: later blocks of the edited run no longer give what the source run's gave."""
    unet, given = tiny_model().denoiser, unet_input(2)
    blocks = ("mid.0", "up.0.0")

    def run(edits: list[Edit | None]) -> Trace:
        with ExitStack() as stack:
            stack.enter_context(intervene(unet, edits, steps=1))
            trace = stack.enter_context(capture(unet, blocks, steps=1))
            with torch.inference_mode():
                unet(**given)
        return trace

    plain = run([None, None])
    places = torch.tensor([5, 0, 9, 2])
    target = {block: plain.row(block, 1)[:, places] for block in blocks}
    edit = Edit({block: PatchReplacement(places, target[block]) for block in blocks}, branch="conditional")
    half = run([edit.scaled(0.5), None])
    for block in blocks:
        found = half.row(block, 0)[0]
        torch.testing.assert_close(found[places[:2]], target[block][0, :2], atol=1e-5, rtol=1e-4)
        assert not torch.allclose(found[places[2:]], target[block][0, 2:], atol=1e-3)
        assert torch.equal(half.row(block, 1), plain.row(block, 1))
    # The second block was changed by the first block's edit, which replacing does not mind.
    untouched = [place for place in range(16) if place not in places[:2].tolist()]
    assert not torch.allclose(half.row("up.0.0", 0)[0][untouched], plain.row("up.0.0", 0)[0][untouched])
