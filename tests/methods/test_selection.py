"""Ranking features by what distinguishes two runs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from riebench.errors import RiebenchError
from riebench.methods.ranking import choose, means, normalise_units, scores, shares


def test_share_of_the_first_step_or_of_all() -> None:
    values = torch.tensor([[[1.0, 0.0], [3.0, 0.0]], [[0.0, 4.0], [0.0, 4.0]]])
    assert means(values, "first").tolist() == [2.0, 0.0]
    assert means(values, "mean").tolist() == [1.0, 2.0]
    assert means(values[:, :0]).tolist() == [0.0, 0.0]


def test_score_is_share_in_target_minus_share_in_source() -> None:
    target, source = {"a": torch.tensor([2.0, 1.0]), "b": torch.tensor([1.0])}, {
        "a": torch.tensor([0.0, 5.0]), "b": torch.tensor([5.0]),
    }  # fmt: skip
    assert scores(target, source).tolist() == [0.5, 0.25 - 0.5, 0.25 - 0.5]
    choice = choose(target, source, 2)
    # Only one feature gains, so that only one is switched on, though two may be.
    assert choice.lists() == {"a": ((0,), (1,)), "b": ((), (0,))}


def test_shares_of_each_block_apart_leave_out_how_large_its_values_are() -> None:
    # Block a's values are a hundred times those of block b; in b half of what is there moves, in a a tenth.
    target, source = (
        {"a": torch.tensor([500.0, 500.0]), "b": torch.tensor([9.0, 1.0])},
        {"a": torch.tensor([450.0, 550.0]), "b": torch.tensor([4.0, 6.0])},
    )
    assert choose(target, source, 1).lists() == {"a": ((0,), (1,)), "b": ((), ())}
    assert choose(target, source, 1, apart=True).lists() == {"a": ((), ()), "b": ((0,), (1,))}
    torch.testing.assert_close(shares(target, apart=True), torch.tensor([0.5, 0.5, 0.9, 0.1]))
    assert shares({"a": torch.zeros(2), "b": torch.tensor([2.0])}, apart=True).tolist() == [0.0, 0.0, 1.0]


def test_what_does_not_differ_is_not_switched() -> None:
    flat = {"a": torch.ones(4)}
    assert choose(flat, flat, 2).lists() == {"a": ((), ())}
    silent = {"a": torch.zeros(4)}
    assert choose(silent, silent, 2).lists() == {"a": ((), ())}


def test_equal_scores_at_the_cut_are_taken_in_order() -> None:
    target, source = {"a": torch.tensor([2.0, 3.0, 2.0, 2.0, 1.0])}, {"a": torch.tensor([1.0, 1.0, 1.0, 1.0, 6.0])}
    assert choose(target, source, 2).lists() == {"a": ((1, 0), (4,))}
    nearly = {"a": target["a"] * torch.tensor([1, 1, 1 + 2e-7, 1 + 2e-7, 1])}
    assert choose(nearly, source, 2).lists() == {"a": ((1, 0), (4,))}


@given(st.integers(0, 10**6), st.sampled_from([torch.float32, torch.float16, torch.bfloat16]), st.booleans())
def test_runs_that_differ_by_rounding_alone_switch_nothing(seed: int, dtype: torch.dtype, signed: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(40, generator=generator) - (0.3 if signed else 0.0)
    eps = torch.finfo(dtype).eps
    moved = [values * (1 + eps * (torch.rand(40, generator=generator) - 0.5)) for _ in range(2)]
    runs = [{"a": part[:30], "b": part[30:]} for part in moved]
    for apart in (False, True):
        choice = choose(runs[0], runs[1], 10, precision=eps, apart=apart)
        assert choice.lists() == {"a": ((), ()), "b": ((), ())}


@given(st.integers(0, 10**6), st.sampled_from([torch.float32, torch.bfloat16]))
def test_rounding_moves_no_choice_that_is_clear(seed: int, dtype: torch.dtype) -> None:
    """Three features gain by far more than rounding, three lose, and the others stay."""
    generator, eps = torch.Generator().manual_seed(seed), torch.finfo(dtype).eps
    source = torch.rand(40, generator=generator) + 1
    target = source.clone()
    target[[3, 20, 37]] += torch.tensor([2.0, 3.0, 4.0])
    target[[5, 10, 30]] *= 0.2
    chosen = set()
    for _ in range(4):
        runs = [part * (1 + eps * (torch.rand(40, generator=generator) - 0.5)) for part in (target, source)]
        choice = choose({"a": runs[0]}, {"a": runs[1]}, 3, precision=eps).lists()["a"]
        chosen.add((choice[0], tuple(sorted(choice[1]))))
    assert chosen == {((37, 20, 3), (5, 10, 30))}


def test_a_negative_sum_turns_the_order_only_as_published() -> None:
    units = {"a": torch.tensor([1.0, -3.0])}
    assert shares(units).tolist() == [0.5, -1.5]
    assert shares(units, signed=True).tolist() == [-0.5, 1.5]


def test_silent_runs_have_no_shares_and_silent_units_no_norm() -> None:
    assert shares({"a": torch.zeros(3)}).tolist() == [0.0, 0.0, 0.0]
    values = normalise_units(torch.tensor([[[3.0, 0.0], [4.0, 0.0]]]))
    torch.testing.assert_close(values, torch.tensor([[[0.6, 0.0], [0.8, 0.0]]]))


@settings(max_examples=25)
@given(st.integers(1, 3), st.integers(1, 6), st.integers(0, 10**6))
def test_indices_are_inside_their_site_and_never_repeated(sites: int, size: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    runs = [{f"s{i}": torch.rand(size, generator=generator) for i in range(sites)} for _ in range(2)]
    count = sites * size // 2
    choice = choose(runs[0], runs[1], count)
    for chosen in (choice.add, choice.remove):
        assert sum(len(indices) for indices in chosen.values()) <= count
        for indices in chosen.values():
            assert len(set(indices.tolist())) == len(indices)
            assert all(0 <= index < size for index in indices.tolist())
    assert not any(set(choice.add[s].tolist()) & set(choice.remove[s].tolist()) for s in runs[0])


def test_too_many_features_and_unknown_words_are_refused() -> None:
    with pytest.raises(RiebenchError, match="cannot choose 4 of 3"):
        choose({"a": torch.ones(3)}, {"a": torch.ones(3)}, 4)
    with pytest.raises(RiebenchError, match="unknown aggregate 'last'"):
        means(torch.ones(1, 1, 1), "last")
    with pytest.raises(ValueError, match="sites differ"):
        scores({"a": torch.ones(1)}, {"b": torch.ones(1)})
