"""`sae_fixed`: features and values of other examples with the same wish, and no look at the target run."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import TypeVar

import pytest
import torch
from edit_contexts import BLOCKS, POSITIONS, STEPS, context, dense, edit_of
from paths import ROOT

from riebench.errors import RiebenchError
from riebench.methods.base import EditContext, ExampleRuns, Role, TrainingExamples
from riebench.methods.features import changed_values, choose_by_means, choose_features
from riebench.tasks.prompts import changed_words
from riebench.tasks.schema import Attributes, EditExample
from riebench.tasks.suites import load_suite

T = TypeVar("T")


class Given:
    """Others whose runs are given."""

    def __init__(self, *runs: ExampleRuns) -> None:
        self.runs = runs

    def first(self, count: int, key: Hashable, look: Callable[[ExampleRuns], T]) -> list[T]:
        return [look(runs) for runs in self.runs[:count]]

    def next(self, key: Hashable, look: Callable[[ExampleRuns], T]) -> T:
        return look(self.runs[0])

    def training(self, count: int, folds: int) -> TrainingExamples:
        raise AssertionError("nothing here is learned")


def example(name: str, source: str, target: str) -> EditExample:
    return EditExample(id=name, source=f"a {source} house", target=f"a {target} house")


def scored(source: str, target: str, *others: tuple[int, str, str]) -> EditContext:
    """An example from one color to another; others have the random runs of a seed and colors of their own."""
    ctx = context()
    found = []
    for seed, before, after in others:
        runs = context(seed).runs
        runs.example = example(f"other-{seed}", before, after)
        found.append(runs)
    ctx.runs.example, ctx.runs.others = example("scored", source, target), Given(*found)
    return ctx


def lists(ctx: EditContext, runs: ExampleRuns, count: int) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    return choose_features(EditContext(runs, BLOCKS, ctx.saes), count, "first", "joint").lists()


def test_features_and_values_come_from_the_one_other_example_of_the_same_edit() -> None:
    ctx = scored("red", "blue", (5, "red", "blue"), (6, "green", "pink"))
    assert isinstance(ctx.runs.others, Given)
    other = ctx.runs.others.runs[0]
    edit = edit_of("sae_fixed", ctx, n_features=6)
    assert edit.features == lists(ctx, other, 6) != lists(ctx, ctx.runs, 6)
    for block in BLOCKS:
        add, remove = (list(features) for features in edit.features[block])
        sae = ctx.sae(block)
        expected = torch.zeros(STEPS, POSITIONS, sae.directions.shape[1])
        roles: tuple[tuple[Role, list[int], int], ...] = (("target", add, 1), ("source", remove, -1))
        for role, features, sign in roles:
            values = other.codes(role, block, sae)[..., features].mean(1)
            expected[:, ctx.runs.positions(role, block)] += sign * (values @ sae.directions[features])[:, None]
        torch.testing.assert_close(dense(edit, block), expected)


def test_a_value_is_found_whichever_way_round_others_are_edited() -> None:
    """Blue stands in the source run of the only example that has it: what that run has more of stands for blue."""
    ctx = scored("red", "blue", (5, "blue", "green"), (6, "red", "pink"))
    assert isinstance(ctx.runs.others, Given)
    blue, red = ctx.runs.others.runs
    edit = edit_of("sae_fixed", ctx, n_features=4)
    turned, straight = lists(ctx, blue, 4), lists(ctx, red, 4)
    for block in BLOCKS:
        assert edit.features[block] == (turned[block][1], straight[block][1])


def test_several_examples_of_a_value_are_meaned_and_without_any_all_of_the_category_are() -> None:
    alike = [(5, "red", "blue"), (6, "red", "blue"), (7, "pink", "green")]
    ctx = scored("red", "blue", *alike)
    assert isinstance(ctx.runs.others, Given)
    for count, wished in ((2, "blue"), (3, "gold")):
        ctx.runs.example = example("scored", "red" if count == 2 else "grey", wished)
        runs = ctx.runs.others.runs[:count]
        target, source = (
            {b: torch.stack([one.feature_means(role, b, ctx.sae(b), "first") for one in runs]).mean(0) for b in BLOCKS}
            for role in ("target", "source")
        )
        expected = choose_by_means(target, source, 5, ctx.runs.precision, "joint").lists()
        assert edit_of("sae_fixed", ctx, n_features=5).features == expected


def test_the_target_run_is_not_looked_at() -> None:
    ctx = scored("red", "blue", (5, "red", "blue"))
    edit = edit_of("sae_fixed", ctx, n_features=6)
    blind = replace(ctx, runs=replace(ctx.runs, rows={"source": 0, "target": 0}, _codes={}, _means={}))
    torch.testing.assert_close(dense(edit_of("sae_fixed", blind, n_features=6), "mid.0"), dense(edit, "mid.0"))
    with pytest.raises(RiebenchError, match="were not made ready"):
        edit_of("sae_fixed", context())


def test_the_documentation_says_how_many_examples_have_a_counterpart() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    shared, total = dict[str, int](), dict[str, int]()
    for suite in ("toy", "sdxl"):
        for task in load_suite(suite):
            values = [changed_values(one) for one in task.examples]
            found = sum(
                any(new & (other | gone) for at, (other, gone) in enumerate(values) if at != own)
                for own, (new, _) in enumerate(values)
            )
            for name in (suite, f"{suite} {task.category}"):
                shared[name], total[name] = shared.get(name, 0) + found, total.get(name, 0) + len(values)
    assert shared["toy"] == total["toy"]
    assert f"In the suite `toy` all {total['toy']} examples have a" in text
    colors, objects = (shared[f"sdxl change_{kind}"] for kind in ("color", "object"))
    assert f"in `sdxl` {shared['sdxl']} of {total['sdxl']} ({colors} of 40 colors, {objects} of 40 objects)" in text


def test_changed_values_are_attributes_where_they_are_known_and_words_elsewhere() -> None:
    plain = example("e", "crimson", "azure")
    assert [*map(set, changed_values(plain))] == [{"azure"}, {"crimson"}]
    known = {"source": {"color": "red", "pose": "upright"}, "target": {"color": "blue", "pose": "upright"}}
    known_values = changed_values(plain.model_copy(update={"attributes": Attributes(**known)}))
    assert [*map(set, known_values)] == [{"color=blue"}, {"color=red"}]
    words = changed_words("A [cat] on a bench, close-up", "a dog sitting on the bench, close-up")
    assert [*map(set, words)] == [{"dog", "sitting"}, {"cat"}]
