"""Methods that look at other examples, and random directions: which examples, what is taken of them, and no company."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from edit_contexts import BLOCKS, CHANNELS, POSITIONS, STEPS, context, dense, edit_of
from tiny import tiny_model, tiny_saes

from riebench.errors import RiebenchError
from riebench.generation.generator import GenerationResult, Generator
from riebench.methods.base import EditContext, ExampleRuns, Role, TrainingExamples, get_method
from riebench.methods.features import choose_features
from riebench.runs import engines
from riebench.runs.references import reference_order
from riebench.store.folder import RunFolder
from riebench.tasks.schema import EditExample, EditTask, Setting

T = TypeVar("T")


class Fixed:
    """Others whose runs are given."""

    def __init__(self, *runs: ExampleRuns) -> None:
        self.runs = runs
        self.keys: list[Hashable] = []

    def first(self, count: int, key: Hashable, look: Callable[[ExampleRuns], T]) -> list[T]:
        return [look(runs) for runs in self.runs[:count]]

    def next(self, key: Hashable, look: Callable[[ExampleRuns], T]) -> T:
        self.keys.append(key)
        return look(self.runs[0])

    def training(self, count: int, folds: int) -> TrainingExamples:
        raise AssertionError("nothing here is learned")


def with_others(*seeds: int) -> EditContext:
    """The usual context, with others whose runs have other numbers."""
    ctx = context()
    ctx.runs.others = Fixed(*(context(seed).runs for seed in seeds))
    return ctx


def test_wrong_example_takes_the_choice_of_another_and_the_values_of_its_own() -> None:
    ctx, other = with_others(5), context(5)
    edit = edit_of("wrong_example", ctx, n_features=6)
    chosen = choose_features(EditContext(other.runs, BLOCKS, ctx.saes), 6, "first", "joint").lists()
    own = edit_of("sae", ctx, n_features=6)
    assert edit.features == chosen != own.features
    for block in BLOCKS:
        add, remove = (list(features) for features in chosen[block])
        sae = ctx.sae(block)
        expected = torch.zeros(STEPS, POSITIONS, CHANNELS)
        roles: tuple[tuple[Role, list[int], int], ...] = (("target", add, 1), ("source", remove, -1))
        for role, features, sign in roles:
            change = ctx.runs.codes(role, block, sae)[..., features] @ sae.directions[features]
            expected[:, ctx.runs.positions(role, block)] += sign * change
        torch.testing.assert_close(dense(edit, block), expected)
    # Had another SAE chosen, its choice would be another: the answer is kept under what it hangs on.
    edit_of("wrong_example", ctx, n_features=7)
    assert isinstance(ctx.runs.others, Fixed) and len(set(ctx.runs.others.keys)) == 2


def test_concept_steering_is_the_others_mean_difference_everywhere_and_as_long_as_the_source_updates() -> None:
    ctx = with_others(5, 6, 7)
    for count in (2, 16):
        edit = edit_of("concept_steering", ctx, examples=count)
        for block in BLOCKS:
            vectors = [
                other.runs.masked("target", block).mean(1) - other.runs.masked("source", block).mean(1)
                for other in (context(seed) for seed in (5, 6, 7)[:count])
            ]
            vector = torch.stack(vectors).mean(0)
            size = ctx.runs.updates("source", block).square().sum(-1).mean(-1).sqrt()
            expected = vector / vector.norm(dim=-1, keepdim=True) * size[:, None]
            torch.testing.assert_close(dense(edit, block), expected[:, None].expand(-1, POSITIONS, -1))
    # What the scored example's target run and regions are like has no part in it.
    blind = context(target_mask=np.eye(4, dtype=bool))
    blind.runs.others = ctx.runs.others
    blind.runs.rows = {"source": 0, "target": 0}
    torch.testing.assert_close(dense(edit_of("concept_steering", blind), "mid.0"), dense(edit, "mid.0"))


def test_random_directions_push_each_position_as_far_as_the_features_do() -> None:
    ctx = context()
    wanted, edit = (edit_of(name, ctx, n_features=6) for name in ("sae", "random_directions"))
    directions = {}
    for block in BLOCKS:
        change = dense(edit, block)
        torch.testing.assert_close(change.norm(dim=-1), dense(wanted, block).norm(dim=-1))
        moved = change[change.norm(dim=-1) > 0]
        directions[block] = moved[0] / moved[0].norm()
        assert 0 < len(moved) < STEPS * POSITIONS
        torch.testing.assert_close(moved / moved.norm(dim=-1, keepdim=True), directions[block].expand(len(moved), -1))
    assert abs(float(directions["mid.0"] @ directions["up.0.1"])) < 0.99
    # A block's direction is its own, whatever is edited beside it; another draw or example is another direction.
    alone = dense(edit_of("random_directions", context(blocks=("up.0.1",)), n_features=6), "up.0.1")
    first = alone[alone.norm(dim=-1) > 0][0]
    torch.testing.assert_close(first / first.norm(), directions["up.0.1"])
    redrawn = edit_of("random_directions", ctx, n_features=6, draw=1)
    ctx.runs.example = ctx.runs.example.model_copy(update={"id": "another"})
    for changed in (redrawn, edit_of("random_directions", ctx, n_features=6)):
        assert not torch.allclose(dense(changed, "mid.0"), dense(edit, "mid.0"), atol=1e-3)


@pytest.mark.parametrize(
    ("method", "params", "message"),
    [("concept_steering", {"examples": 0}, "0 give no vector"), ("concept_steering", {"examples": -1}, "is negative"),
     ("concept_steering", {"n_features": 3}, "has no parameter 'n_features'"),
     ("wrong_example", {"n_features": 2.5}, "not of type int"),
     ("wrong_example", {"adaptive": True}, "has no parameter 'adaptive'"),
     ("random_directions", {"rank": "frist"}, r"unknown value 'frist' \(did you mean 'first'")],
)  # fmt: skip
def test_wrong_parameters_are_refused(method: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(RiebenchError, match=message):
        get_method(method).edit(with_others(5), params)


def test_methods_say_so_when_nobody_made_others_ready() -> None:
    for name in ("concept_steering", "wrong_example"):
        with pytest.raises(RiebenchError, match="were not made ready"):
            edit_of(name, context())


def task(count: int = 4, **changes: Any) -> EditTask:
    """Examples whose prompts differ."""
    examples = tuple(
        EditExample(id=f"e{i}", source=f"a red house {i}", target=f"a blue boat {'ab'[i % 2]}", **changes)
        for i in range(count)
    )
    return EditTask(name="t", version=1, category="change_object", suite="tiny", examples=examples)


CONCEPT = Setting(name="concept", method="concept_steering", params={"examples": 2}, blocks=("mid.0", "up.0.1"),
                  block_mode="both", strengths=(0.0, 0.5))  # fmt: skip
WRONG = Setting(name="wrong", method="wrong_example", params={"n_features": 5}, blocks=("mid.0", "up.0.1"),
                strengths=(2.0, 4.0))  # fmt: skip
RANDOM = Setting(name="random", method="random_directions", params={"n_features": 5}, blocks=("mid.0",))


PROBE = Setting(name="probe", method="probe_direction", params={"examples": 2, "folds": 2}, blocks=("mid.0",))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The prompts of each generation without edits."""
    found: list[tuple[str, ...]] = []
    original = Generator.generate

    def generate(self: Generator, prompts: Sequence[str], *args: Any, **options: Any) -> GenerationResult:
        if not options.get("edits"):
            found.append(tuple(prompts))
        return original(self, prompts, *args, **options)

    monkeypatch.setattr(Generator, "generate", generate)
    return found


def run(root: Path, tasks: EditTask, *settings: Setting, **options: Any) -> list[RunFolder]:
    """Runs settings on the tiny model."""
    options = {"saes_source": str(tiny_saes()), "progress": False, "batch_size": 4, **options}
    return engines.run("local", [tasks], settings, options.pop("model", tiny_model()), results_root=root, **options)


def pictures(folders: Sequence[RunFolder]) -> dict[tuple[str, str], Any]:
    """Setting and unit -> picture; all of them made."""
    return {
        (folder.path.name, record.key.digest): folder.read_image(str(record.image)).astype(int)
        for folder in folders
        for record in folder.records()
        if record.status == "ok" or pytest.fail(str(record.reason))
    }


def test_others_are_the_same_whatever_is_run_beside_in_whichever_order_and_parts(tmp_path: Path) -> None:
    whole = task()
    full = pictures(run(tmp_path / "full", whole, CONCEPT, WRONG, RANDOM, PROBE))
    assert len(full) == 4 * (3 * 2 + 2 + 1 + 1)
    turned = whole.model_copy(update={"examples": whole.examples[::-1]})
    cut = whole.model_copy(update={"examples": whole.examples[:2]})
    run(tmp_path / "parts", whole, WRONG, CONCEPT, RANDOM, PROBE, shard=(2, 2))
    parts = {
        "turned": run(tmp_path / "turned", turned, CONCEPT, WRONG, RANDOM, PROBE, batch_size=1),
        "cut": run(tmp_path / "cut", cut, CONCEPT, WRONG, RANDOM, PROBE, pool=[whole]),
        "limit": run(tmp_path / "limit", whole, WRONG, limit=1),
        "parts": run(tmp_path / "parts", whole, WRONG, CONCEPT, RANDOM, PROBE, shard=(1, 2)),
    }
    counts = {"turned": len(full), "cut": 2 * 10, "limit": 2, "parts": len(full)}
    for name, folders in parts.items():
        found = pictures(folders)
        assert len(found) == counts[name], name
        for unit, picture in found.items():
            assert np.abs(picture - full[unit]).max() <= 1, (name, unit)


def test_others_are_looked_at_once_and_never_the_scored_example(tmp_path: Path, seen: list[tuple[str, ...]]) -> None:
    whole = task()
    order = [example.id for example in reference_order(whole.examples)]
    assert order == [example.id for example in reference_order(whole.examples[::-1])] != sorted(order)
    (concept,) = run(tmp_path / "concept", whole, CONCEPT, batch_size=2)
    pairs = [prompts for prompts in seen if len(prompts) == 2]
    prompts = {example.id: (example.source, example.target) for example in whole.examples}
    # Each example's own pair, and once more those of the first three: two others of everybody.
    assert sorted(pairs) == sorted([*prompts.values(), *(prompts[name] for name in order[:3])])
    seen.clear()
    (wrong,) = run(tmp_path / "wrong", whole, WRONG, batch_size=2)
    # The SAEs are measured first.
    assert [len(prompts) for prompts in seen] == [4] + 8 * [2]
    del seen[0]
    assert all(seen.count(pair) == 2 for pair in prompts.values())
    assert all(scored != other for scored, other in zip(seen[::2], seen[1::2], strict=True))
    assert all(record.status == "ok" for record in (*concept.records(), *wrong.records()))
    # In a ring: everybody's features serve exactly one other.
    lists = {record.key.example_id: record.features for record in wrong.records()}
    sae = Setting(name="sae", method="sae", params=WRONG.params, blocks=WRONG.blocks)
    (own,) = run(tmp_path / "sae", whole, sae)
    for record in own.records():
        user = order[order.index(record.key.example_id) - 1]
        assert lists[user] == record.features


def test_examples_of_the_same_cluster_or_without_a_region_are_no_others(tmp_path: Path) -> None:
    (folder,) = run(tmp_path / "cluster", task(3, cluster="one"), CONCEPT)
    assert {(record.status, record.reason) for record in folder.records()} == {
        ("error", "t has no other example with a region to look at; this method needs some")
    }
    whole = task()
    order = reference_order(whole.examples)
    # Words that the prompt lacks: "seen:" regions are nowhere for text attention.
    blind = {one.id: one.model_copy(update={"target_region": "seen: moon"}) for one in order[1:3]}
    partly = whole.model_copy(update={"examples": tuple(blind.get(one.id, one) for one in whole.examples)})
    (folder,) = run(tmp_path / "blind", partly, WRONG)
    status = {record.key.example_id: record.status for record in folder.records()}
    assert {name for name, found in status.items() if found == "skipped"} == set(blind)
    lists = {record.key.example_id: record.features for record in folder.records() if record.status == "ok"}
    sae = Setting(name="sae", method="sae", params=WRONG.params, blocks=WRONG.blocks)
    (own,) = run(tmp_path / "sae", whole, sae)
    features = {record.key.example_id: record.features for record in own.records()}
    assert lists[order[0].id] == features[order[3].id]
