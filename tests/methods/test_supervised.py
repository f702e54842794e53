"""Supervised baselines: which examples they learn from, and what they learn."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from edit_contexts import BLOCKS, STEPS, context, dense, edit_of

from riebench.errors import RiebenchError
from riebench.methods.base import EditContext, ExampleRuns, Role
from riebench.methods.supervised.concepts import CATEGORY, find_contrasts, training_pair
from riebench.methods.supervised.logistic import PENALTY, fit_logistic
from riebench.runs.references import folds_of, reference_order
from riebench.tasks.schema import EditExample

T = TypeVar("T")


class Given:
    """Other examples whose runs are given; all are learned from."""

    fold, folds, run_evaluations, generator = 1, 3, STEPS, None

    def __init__(self, *runs: ExampleRuns) -> None:
        self.runs = runs
        self.learned: dict[Hashable, Any] = {}

    def first(self, count: int, key: Hashable, look: Callable[[ExampleRuns], T]) -> list[T]:
        return [look(runs) for runs in self.runs[:count]]

    def next(self, key: Hashable, look: Callable[[ExampleRuns], T]) -> T:
        return look(self.runs[0])

    def training(self, count: int, folds: int) -> Given:
        return self

    def each(self, key: Hashable, look: Callable[[ExampleRuns], T]) -> list[T]:
        return [look(runs) for runs in self.runs]

    def learn(self, key: Hashable, fit: Callable[[], T]) -> T:
        return self.learned.setdefault(key, fit())


def house(name: str, before: str, after: str) -> EditExample:
    return EditExample(id=name, source=f"a {before} house", target=f"a {after} house")


def scored(before: str, after: str, *others: tuple[int, str, str]) -> EditContext:
    """An example from one color to another; others have the random runs of a seed and colors of their own."""
    ctx, found = context(), []
    for seed, first, last in others:
        runs = context(seed).runs
        runs.example = house(f"other-{seed}", first, last)
        found.append(runs)
    given: Any = Given(*found)
    ctx.runs.example, ctx.runs.others = house("scored", before, after), given
    return ctx


def union_mean(seed: int, role: Role, block: str) -> torch.Tensor:
    """Mean update over both regions: the upper half and the left half."""
    kept = context(seed).runs.updates(role, block).unflatten(1, (4, 4))
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[:2], mask[:, :2] = True, True
    return kept[:, mask].mean(1)


def unit(vectors: torch.Tensor) -> torch.Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True)


def test_the_difference_of_means_is_that_of_the_wished_concept_less_the_other_one() -> None:
    ctx = scored("red", "blue", (5, "green", "blue"), (6, "blue", "pink"), (7, "red", "grey"))
    edit = edit_of("mean_direction", ctx)
    for block in BLOCKS:
        wished = (
            union_mean(5, "target", block) - union_mean(5, "source", block)
            + union_mean(6, "source", block) - union_mean(6, "target", block)
        )  # fmt: skip
        unwished = union_mean(7, "source", block) - union_mean(7, "target", block)
        vector = unit(wished) - unit(unwished)
        size = ctx.runs.updates("source", block).square().sum(-1).mean(-1).sqrt()
        change = dense(edit, block).unflatten(1, (4, 4))
        torch.testing.assert_close(change[:, 0, 0], unit(vector) * size[:, None])
        torch.testing.assert_close(change[:, 3, 0], change[:, 0, 3])
        assert not change[:, 2:, 2:].any()
    assert edit.training is not None
    assert edit.training.model_dump(exclude={"seconds"}) == {
        "examples": 3, "fold": 1, "folds": 3, "evaluations": 2 * 3 * STEPS, "gradients": 0,
    }  # fmt: skip


def test_a_concept_that_nobody_shows_falls_back_to_the_categorys_change() -> None:
    pairs = [training_pair(context(seed).runs) for seed in (5, 6)]
    contrasts = find_contrasts(house("scored", "red", "blue"), pairs)
    assert [one.key for one in contrasts] == [(CATEGORY,)]
    assert contrasts[0].present == ((0, "target"), (1, "target")) and contrasts[0].partners[0] == (0, "source")
    # One known concept of two is enough: the other part is left out.
    some = replace(pairs[0], values={"target": frozenset({"blue"}), "source": frozenset({"pink"})})
    (only,) = find_contrasts(house("scored", "red", "blue"), [some, pairs[1]])
    assert (only.sign, only.key, only.present) == (1.0, ("blue",), ((0, "target"),))


def test_the_probe_is_the_minimum_of_its_loss_and_points_to_the_concept() -> None:
    generator = np.random.default_rng(0)
    absent = generator.normal(size=(40, 6))
    present = generator.normal(size=(12, 6)) + 4 * np.eye(6)[0]
    found = fit_logistic(present, absent)
    assert found[0] / np.linalg.norm(found) > 0.95
    samples = np.concatenate([present, absent])
    samples = (samples - samples.mean(0)) / np.sqrt(np.square(samples - samples.mean(0)).mean())
    signs = np.where(np.arange(52) < 12, 1, -1)
    weights = np.where(signs > 0, 52 / 24, 52 / 80)

    def loss(direction: np.ndarray[Any, Any]) -> float:
        offsets = np.linspace(-5, 5, 2001)
        margins = signs[:, None] * (samples @ direction[:, None] + offsets)
        return float((weights @ np.log1p(np.exp(-margins))).min() + PENALTY / 2 * direction @ direction)

    for axis in range(6):
        for step in (-0.05, 0.05):
            assert loss(found + step * np.eye(6)[axis]) > loss(found) - 1e-4
    assert not fit_logistic(np.ones((3, 2)), np.ones((2, 2))).any()


def test_the_probe_separates_training_runs_and_not_the_scored_one() -> None:
    ctx = scored("red", "blue", (5, "green", "blue"), (6, "blue", "pink"))
    edit = edit_of("probe_direction", ctx)
    others: Any = ctx.runs.others
    pairs = [training_pair(one) for one in others.runs]
    for block in BLOCKS:
        direction = unit(dense(edit, block)[:, 0])
        scores = {
            (index, role): torch.einsum("tsc,tc->t", pair.samples[role][block], direction)
            for index, pair in enumerate(pairs) for role in ("source", "target")
        }  # fmt: skip
        for place in ((0, "target"), (1, "source")):
            assert (scores[place] > scores[0, "source"]).all() and (scores[place] > scores[1, "target"]).all()
    # Nothing of the scored example's own target run is read.
    blind = scored("red", "blue", (5, "green", "blue"), (6, "blue", "pink"))
    blind.runs.rows = {"source": 0, "target": 0}
    torch.testing.assert_close(dense(edit_of("probe_direction", blind), "mid.0"), dense(edit, "mid.0"))


def test_folds_keep_clusters_together_and_depend_on_the_task_alone() -> None:
    examples = [
        EditExample(id=f"e{i}", source="a", target="b", cluster=f"c{i // 4}" if i < 8 else None) for i in range(20)
    ]
    order = reference_order(examples)
    found = folds_of(order, 3)
    assert found == folds_of(reference_order(examples[::-1]), 3) and set(found.values()) == {0, 1, 2}
    for start in (0, 4):
        assert len({found[f"e{i}"] for i in range(start, start + 4)}) == 1
    alone = [example for example in order if example.cluster is None]
    assert max(sum(found[one.id] == fold for one in alone) for fold in range(3)) <= 5


@pytest.mark.parametrize("name", ["mean_direction", "probe_direction"])
def test_a_training_without_examples_or_split_is_refused(name: str) -> None:
    ctx = scored("red", "blue", (5, "green", "blue"))
    for params, message in (({"examples": 0}, "nothing to learn from"), ({"folds": 1}, "take at least 2")):
        with pytest.raises(RiebenchError, match=f"{name}: .*{message}"):
            edit_of(name, ctx, **params)
