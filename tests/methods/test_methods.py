"""Methods: what they choose and what they add, on runs made by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from edit_contexts import BLOCKS, CHANNELS, FEATURES, GRID, PAIR, POSITIONS, STEPS, UNITS, context, dense, edit_of
from hypothesis import event, given, settings
from hypothesis import strategies as st

from riebench.errors import RiebenchError
from riebench.generation.edits import AdaptiveEdit, Edit, StaticEdit
from riebench.generation.trace import Trace
from riebench.generation.transfers import PairedEdit
from riebench.methods.activations import UNIT_BUDGET
from riebench.methods.base import EditContext, ExampleRuns, Method, Reuse, get_method
from riebench.methods.features import published_removal_scale
from riebench.registry import METHODS
from riebench.tasks.masks import RegionMasks


def test_every_method_is_registered_and_says_what_it_sees() -> None:
    assert set(METHODS.names()) >= {
        "no_edit", "target_prompt", "sae", "activation_patch", "mean_steering", "neurons", "random_features",
    }  # fmt: skip
    assert {name: get_method(name).access for name in METHODS.names()}["sae"] == "PAM"
    assert get_method("no_edit").edit(context(), {}) == Reuse("source")
    assert get_method("target_prompt").edit(context(), {}) == Reuse("target")


def test_sae_edit_is_target_codes_minus_source_codes_in_their_regions() -> None:
    ctx = context()
    edit = edit_of("sae", ctx, n_features=6)
    for block in BLOCKS:
        sae, (add, remove) = ctx.sae(block), edit.features[block]
        target, source = (ctx.runs.updates(role, block) for role in ("target", "source"))
        expected = torch.zeros(STEPS, POSITIONS, CHANNELS)
        for position in range(POSITIONS):
            row, column = divmod(position, GRID)
            if row < GRID // 2:
                for feature in add:
                    code = sae.encode(target[:, position])[:, feature, None]
                    expected[:, position] += code * sae.directions[feature]
            if column < GRID // 2:
                for feature in remove:
                    code = sae.encode(source[:, position])[:, feature, None]
                    expected[:, position] -= code * sae.directions[feature]
        torch.testing.assert_close(dense(edit, block), expected, atol=1e-5, rtol=1e-5)
    assert sum(len(add) for add, _ in edit.features.values()) == 6


def test_ranking_jointly_or_block_by_block() -> None:
    joint = edit_of("sae", context(), n_features=8).features
    separate = edit_of("sae", context(), n_features=8, ranking="separate").features
    assert sum(len(add) for add, _ in joint.values()) == 8
    assert [len(add) for add, _ in separate.values()] == [8, 8]
    alone = edit_of("sae", context(blocks=("mid.0",)), n_features=8).features
    assert alone["mid.0"] == separate["mid.0"]


def test_add_only_removes_nothing() -> None:
    edit = edit_of("sae", context(), n_features=6, add_only=True)
    outside = dense(edit, "mid.0")[:, POSITIONS // 2 :]
    assert not outside.any() and all(not remove for _, remove in edit.features.values())
    assert not dense(edit_of("activation_patch", context(), add_only=True), "mid.0")[:, POSITIONS // 2 :].any()


def test_deletions_may_be_made_as_they_once_were_published() -> None:
    ctx = context()
    deleting = EditContext(replace(ctx.runs, rule="delete", _codes={}), ctx.blocks, ctx.saes)
    for name, params in (("sae", {"n_features": 6}), ("activation_patch", {})):
        usual, elsewhere = edit_of(name, deleting, **params), edit_of(name, ctx, delete_uses_target=False, **params)
        torch.testing.assert_close(dense(usual, "mid.0"), dense(elsewhere, "mid.0"))
        once = edit_of(name, deleting, delete_uses_target=False, add_only=True, **params)
        # Only the source run is looked at: what is added is its own.
        assert dense(once, "mid.0").any() and not torch.allclose(dense(once, "mid.0"), dense(usual, "mid.0"))
        target = replace(deleting.runs, rows={"source": 0, "target": 0}, _codes={})
        same = edit_of(name, EditContext(target, ctx.blocks, ctx.saes), add_only=True, **params)
        assert torch.equal(dense(once, "mid.0"), dense(same, "mid.0"))


def test_mean_values_are_the_same_everywhere_in_the_region() -> None:
    ctx = context()
    values = dense(edit_of("activation_patch", ctx, values="mean", add_only=True), "mid.0")[:, : POSITIONS // 2]
    expected = ctx.runs.updates("target", "mid.0")[:, : POSITIONS // 2].mean(1, keepdim=True)
    torch.testing.assert_close(values, expected.expand_as(values))


def test_adaptive_edit_equals_the_static_one_when_nothing_else_changed() -> None:
    ctx = context()
    static, adaptive = (edit_of("sae", ctx, n_features=6, adaptive=flag) for flag in (False, True))
    for block in BLOCKS:
        live = ctx.runs.updates("source", block)
        assert isinstance(adaptive.sites[block], AdaptiveEdit)
        for step in range(STEPS):
            delta = adaptive.sites[block].delta(step, live[step])
            assert delta is not None
            torch.testing.assert_close(delta, dense(static, block)[step], atol=1e-5, rtol=1e-5)
        # Where the run has nothing of the features any more, nothing is taken away.
        silent = adaptive.sites[block].delta(0, torch.zeros(POSITIONS, CHANNELS))
        placed = static.sites[block]
        assert silent is not None and isinstance(placed, StaticEdit)
        torch.testing.assert_close(silent, StaticEdit(placed.terms[:1]).dense(STEPS, POSITIONS, CHANNELS)[0])


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10**6), count=st.integers(1, 30), values=st.sampled_from(["position", "mean"]),
    add_at=st.sampled_from(["target", "source"]),
)  # fmt: skip
def test_published_adaptive_edit_is_the_formula_of_the_published_mode(
    seed: int, count: int, values: str, add_at: str
) -> None:
    ctx = context(seed)
    edit = edit_of("sae", ctx, n_features=count, adaptive="published", values=values, add_at=add_at)
    torch.manual_seed(seed)
    ratios = set()
    for block in BLOCKS:
        live = torch.randn(STEPS, POSITIONS, CHANNELS)
        changes = [edit.sites[block].delta(step, live[step]) for step in range(STEPS)]
        found = torch.stack([torch.zeros(POSITIONS, CHANNELS) if one is None else one for one in changes])
        expected, ratio = published_adaptive(ctx, block, edit.features[block], live, values, add_at)
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-4, rtol=1e-4)
        ratios.add(ratio)
    event(f"all ratios are 1: {ratios <= {0.0, 1.0}}")


def published_adaptive(
    ctx: EditContext, block: str, features: tuple[tuple[int, ...], tuple[int, ...]], live: torch.Tensor, values: str,
    add_at: str,
) -> tuple[np.ndarray[Any, Any], float]:  # fmt: skip
    """Return the change that the published mode `sae_adaptive` makes, and its factor of the removed part.

    Written out in numpy: feature maps at every position, one matrix product with the decoder.
    """
    sae, (on, off) = ctx.sae(block), features
    decoder = (sae.directions * sae.row_scale[:, None]).numpy().astype(np.float64)
    length = np.linalg.norm(decoder, axis=1)
    inside, outside = (
        np.isin(np.arange(POSITIONS), ctx.runs.positions(role, block)) for role in ("target", "source")
    )  # fmt: skip
    # Values of the stored decoder's columns: ours are those of columns of length 1.
    wanted, now = ((sae.encode(x) / sae.row_scale).numpy() for x in (ctx.runs.updates("target", block), live))
    maps = np.zeros((STEPS, POSITIONS, FEATURES))
    for feature in off:
        ratio = sum(length[one] for one in on) / sum(length[one] for one in off)
        update = ratio * now[:, :, feature]
        update[:, ~outside] = 0
        if values == "mean":
            update[:, outside] = update[:, outside].mean(axis=1, keepdims=True)
        maps[:, :, feature] -= update
    for feature in on:
        own = wanted[:, inside, feature]
        if values == "mean" or add_at == "source":
            own = own.mean(axis=1, keepdims=True)
        maps[:, inside if add_at == "target" else outside, feature] += own
    return maps @ decoder, ratio if off else 0.0


def test_published_adaptive_edit_weighs_by_features_on_and_off() -> None:
    ctx = context(3)
    for block, sae in ctx.saes.items():
        # Published decoders have columns of length 1.
        sae.row_scale = torch.ones(FEATURES)
        add, remove = torch.arange(6), torch.arange(10, 14)
        assert published_removal_scale(sae, add, remove) == 1.5, block
        assert published_removal_scale(sae, add, remove[:0]) == 0 == published_removal_scale(sae, add[:0], remove)
    plain = edit_of("sae", ctx, n_features=7, adaptive=True)
    theirs = edit_of("sae", ctx, n_features=7, adaptive="published")
    assert plain.features == theirs.features
    for block, (on, off) in plain.features.items():
        live = ctx.runs.updates("source", block)[0]
        mine, other = (removed_part(edit, block, live) for edit in (plain, theirs))
        torch.testing.assert_close(other, mine * len(on) / len(off), atol=1e-5, rtol=1e-5)
        assert len(on) != len(off), "the case tells nothing apart"


def removed_part(edit: Edit, block: str, live: torch.Tensor) -> torch.Tensor:
    """Return what an adaptive edit takes away at the first step."""
    placed = edit.sites[block]
    assert isinstance(placed, AdaptiveEdit)
    whole, added = placed.delta(0, live), placed.added.delta(0, live)
    assert whole is not None and added is not None
    return added - whole


@pytest.mark.parametrize(
    ("name", "params", "site", "width"),
    [
        ("sae", {"n_features": 6}, "mid.0", CHANNELS),
        ("activation_patch", {}, "mid.0", CHANNELS),
        ("neurons", {"n_units": 12}, "mid.0.ff.0", UNITS),
    ],
)
def test_published_add_only_still_subtracts_in_deletions(
    name: str, params: dict[str, Any], site: str, width: int
) -> None:
    ctx = context()
    deleting, adding = (
        EditContext(replace(ctx.runs, rule=rule, _codes={}, _means={}), ctx.blocks, ctx.saes)
        for rule in ("delete", "add")
    )
    changes = {
        (place, flag): dense(edit_of(name, one, **params, add_only=flag), site, width)
        for place, one in (("delete", deleting), ("add", adding), ("edit", ctx))
        for flag in (False, True, "published")
    }
    for place in ("add", "edit"):
        assert torch.equal(changes[place, "published"], changes[place, True])
        assert not torch.equal(changes[place, "published"], changes[place, False])
    assert torch.equal(changes["delete", "published"], changes["delete", False])
    assert not torch.equal(changes["delete", "published"], changes["delete", True])
    if name == "sae":
        kept = edit_of(name, deleting, **params, add_only="published").features
        assert kept == edit_of(name, deleting, **params).features
        adaptive = edit_of(name, deleting, **params, add_only="published", adaptive="published")
        assert all(isinstance(change, AdaptiveEdit) for change in adaptive.sites.values())


def test_patching_whole_pictures_turns_one_run_into_the_other() -> None:
    ctx = context()
    whole = np.ones((GRID, GRID), dtype=bool)
    ctx = EditContext(ExampleRuns(PAIR, 0, ctx.runs.trace, ctx.runs.rows, RegionMasks(whole, whole)), BLOCKS)
    edit = edit_of("activation_patch", ctx)
    for block in BLOCKS:
        moved = ctx.runs.updates("source", block) + dense(edit, block)
        torch.testing.assert_close(moved, ctx.runs.updates("target", block))


def test_steering_vector_has_the_blocks_own_size() -> None:
    ctx = context()
    edit = edit_of("mean_steering", ctx)
    delta = dense(edit, "mid.0")
    touched = delta.norm(dim=-1)
    size = ctx.runs.updates("source", "mid.0").square().sum(-1).mean(-1).sqrt()
    # Union of the left and the upper half: all but the lower right quarter.
    assert int((touched[0] > 0).sum()) == POSITIONS * 3 // 4
    torch.testing.assert_close(touched[:, 0], size)
    difference = ctx.runs.masked("target", "mid.0").mean(1) - ctx.runs.masked("source", "mid.0").mean(1)
    cosine = torch.nn.functional.cosine_similarity(delta[:, 0], difference, dim=-1)
    torch.testing.assert_close(cosine, torch.ones(STEPS))


def test_steering_between_equal_runs_adds_nothing() -> None:
    ctx = context(target_mask=np.tile(np.arange(GRID) < GRID // 2, (GRID, 1)))
    same = ExampleRuns(PAIR, 0, ctx.runs.trace, {"source": 0, "target": 0}, ctx.runs.masks)
    assert not dense(edit_of("mean_steering", EditContext(same, BLOCKS)), "mid.0").any()


def test_neurons_change_chosen_units_in_their_regions_only() -> None:
    ctx = context()
    edit = edit_of("neurons", ctx, n_units=5)
    changed = sum(int((dense(edit, site, UNITS).abs().sum((0, 1)) > 0).sum()) for site in edit.sites)
    assert changed == 10
    for site, placed in edit.sites.items():
        assert isinstance(placed, StaticEdit) and placed.terms[0].columns is not None
        delta, target = dense(edit, site, UNITS), ctx.runs.trace.row(site, 1)
        for unit in placed.terms[0].columns.tolist():
            torch.testing.assert_close(delta[:, 3, unit], target[:, 3, unit])
        assert not delta[:, -1].any()


def test_units_read_beside_are_the_units_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    ctx = context()
    stored = edit_of("neurons", ctx, n_units=5)
    monkeypatch.setattr("riebench.methods.activations.UNIT_BUDGET", 0)
    beside = edit_of("neurons", ctx, n_units=5)
    assert list(stored.sites) == list(beside.sites)
    for site, paired in beside.sites.items():
        assert isinstance(paired, PairedEdit)
        for step in range(STEPS):
            target, source = (ctx.runs.trace.row(site, row)[step] for row in (1, 0))
            found = paired.between(target, source)
            assert found is not None
            torch.testing.assert_close(found, dense(stored, site, UNITS)[step])
        with pytest.raises(RiebenchError, match="generate them in the same batch"):
            paired.delta(0, torch.zeros(POSITIONS, UNITS))


def test_an_sdxl_sized_neuron_edit_stays_within_twenty_mebibytes() -> None:
    steps, grid, units, layers = 4, 16, 256, 40
    trace = Trace()
    trace.grids["mid.0"] = (grid, grid)
    generator = torch.Generator().manual_seed(0)
    for layer in range(layers):
        values = torch.randn(2, grid * grid, units, generator=generator)
        for _ in range(steps):
            trace.add(f"mid.0.ff.{layer}", "update", {"conditional": values}, unconditional=False)
    whole = np.ones((grid, grid), dtype=bool)
    runs = ExampleRuns(PAIR, 0, trace, {"source": 0, "target": 1}, RegionMasks(whole, whole), {"mid.0": layers})
    ctx = EditContext(runs, ("mid.0",))
    few, many = (edit_of("neurons", ctx, n_units=number) for number in (1000, 5000))
    # 10 000 units at 256 positions and 4 steps are 41 MB of values.
    assert few.pair is None and few.nbytes <= UNIT_BUDGET
    assert many.pair == ("a", "b") and many.nbytes <= UNIT_BUDGET / 50
    mean = edit_of("neurons", ctx, n_units=5000, values="mean")
    assert mean.pair is None and mean.nbytes <= UNIT_BUDGET / 10


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12))
def test_random_features_match_in_number_and_norm_and_are_others(seed: int, count: int) -> None:
    ctx = context(seed)
    chosen, random = edit_of("sae", ctx, n_features=count), edit_of("random_features", ctx, n_features=count)
    for block in BLOCKS:
        for mine, theirs in zip(random.features[block], chosen.features[block], strict=True):
            assert len(mine) == len(theirs) and not set(mine) & set(theirs)
        goal, found = (dense(edit, block).flatten(1).norm(dim=1) for edit in (chosen, random))
        torch.testing.assert_close(found.norm(), goal.norm(), rtol=1e-4, atol=1e-5)
        if bool((found > 0).all()):
            torch.testing.assert_close(found, goal, rtol=1e-4, atol=1e-5)


def test_random_features_fire_about_as_often() -> None:
    ctx = context(5)
    chosen, random = edit_of("sae", ctx, n_features=6), edit_of("random_features", ctx, n_features=6)
    for block in BLOCKS:
        rate = (ctx.runs.codes("target", block, ctx.sae(block)) > 0).float().mean((0, 1))
        for mine, theirs in zip(random.features[block][0], chosen.features[block][0], strict=True):
            assert rate[mine] > 0
            distances = (rate - rate[theirs]).abs()
            assert int((distances < distances[mine]).sum()) < FEATURES - 10


def test_random_features_are_drawn_again_the_same_way() -> None:
    first, again, other = (
        edit_of("random_features", context(), n_features=6, draw=draw).features for draw in (0, 0, 1)
    )
    assert first == again != other


@pytest.mark.parametrize(
    ("method", "params", "message"),
    [
        ("sae", {"n_feature": 3}, "no parameter 'n_feature' .did you mean 'n_features'"),
        ("sae", {"n_features": "3"}, "is not of type int"),
        ("sae", {"n_features": True}, "is not of type int"),
        ("sae", {"n_features": -1}, "is negative"),
        ("sae", {"rank": "frist"}, "unknown value 'frist' .did you mean 'first'"),
        ("sae", {"adaptive": 1}, "1 is not of type bool or the word 'published'"),
        ("sae", {"adaptive": "publishd"}, "adaptive: unknown value 'publishd' .did you mean 'published'"),
        ("neurons", {"add_only": "true"}, "add_only: unknown value 'true'"),
        ("activation_patch", {"add_only": None}, "add_only: None is not of type bool or the word 'published'"),
        ("no_edit", {"strength": 1}, "no parameter 'strength'"),
    ],
)
def test_wrong_parameters_are_refused(method: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(RiebenchError, match=message):
        get_method(method).check(params)


def test_what_no_method_can_be_is_refused_in_a_line() -> None:
    def made(ctx: EditContext, *, bare: int = 1, many: tuple[int, ...] = (), some: float | None = None) -> Edit:
        return Edit()

    del made.__annotations__["bare"]
    method = Method("mine", made, frozenset(), "P")
    for good in (1, 0.5, None):
        method.check({"some": good})
    with pytest.raises(RiebenchError, match="mine: some: True is not of type float or None"):
        method.check({"some": True})
    for name, value in (("bare", 1), ("many", [1])):
        with pytest.raises(RiebenchError, match=f"mine: {name}: the method must give it one of the types int, float"):
            method.check({name: value})
    nothing = Method("mine", lambda ctx: None, frozenset(), "P")
    with pytest.raises(RiebenchError, match="method 'mine' gave NoneType; it must give an Edit or a Reuse"):
        nothing.edit(context(), {})


def test_missing_saes_and_units_are_reported() -> None:
    ctx = context()
    with pytest.raises(RiebenchError, match=r"no SAE for block mid.0"):
        edit_of("sae", EditContext(ctx.runs, BLOCKS))
    bare = ExampleRuns(PAIR, 0, ctx.runs.trace, ctx.runs.rows, ctx.runs.masks)
    with pytest.raises(RiebenchError, match=r"units of mid.0, up.0.1 were not captured"):
        edit_of("neurons", EditContext(bare, BLOCKS), n_units=1)
    with pytest.raises(RiebenchError, match="unknown method 'sea'"):
        get_method("sea")
