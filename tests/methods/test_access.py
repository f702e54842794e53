"""Methods look at what they declare and at nothing else: each runs with its letters, and without any of them it fails.

Editors are run in `test_editors.py`, where a tiny model is at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any

import pytest
import torch
from edit_contexts import BLOCKS, CHANNELS, context

from riebench.analysis.configurations import EARLIER_ACCESS
from riebench.analysis.standings import BEST_STRENGTH, CONTROLLED, KNOB_ENDS
from riebench.errors import RiebenchError
from riebench.generation.edits import Edit
from riebench.methods.base import EditContext, ExampleRuns, Method, Reuse, Role, get_method
from riebench.methods.editors import Editor
from riebench.methods.supervised.concepts import Learned
from riebench.registry import METHODS

SMALL = {"n_features": 3, "n_units": 3, "examples": 1}
SHIPPED = tuple(name for name in METHODS.names() if get_method(name).function.__module__.startswith("riebench.methods"))
PLAIN = tuple(name for name in SHIPPED if not isinstance(get_method(name), Editor))


class OneOther:
    """Another example that is always the same."""

    def first(self, count: int, key: Hashable, look: Callable[[ExampleRuns], Any]) -> list[Any]:
        return [self.next(key, look)][:count]

    def next(self, key: Hashable, look: Callable[[ExampleRuns], Any]) -> Any:
        return look(context(seed=1).runs)

    def training(self, count: int, folds: int) -> Any:
        return LearnedFrom()


class LearnedFrom:
    """Training examples, of which there is one."""

    fold, folds, run_evaluations = 0, 2, 2
    generator: Any = None

    def each(self, key: Hashable, look: Callable[[ExampleRuns], Any]) -> list[Any]:
        return OneOther().first(1, key, look)

    def learn(self, key: tuple[Any, ...], fit: Callable[[], Any]) -> Any:
        # What is trained through a denoiser is given.
        return Learned(dict.fromkeys(BLOCKS, torch.ones(CHANNELS)), 0.0) if key[0] == "reft_r1" else fit()


def whole_context() -> EditContext:
    """Everything that any method may ask for."""
    ctx = context()
    latents: dict[Role, torch.Tensor] = {"source": torch.zeros(2, 4, 4, 4), "target": torch.ones(2, 4, 4, 4)}
    return replace(ctx, runs=replace(ctx.runs, latents=latents, others=OneOther()))


def edit(method: Method, access: str, ctx: EditContext | None = None) -> Edit | Reuse:
    """Run a method as if it declared other letters."""
    params = {name: value for name, value in SMALL.items() if name in method.function.__code__.co_varnames}
    return replace(method, access=access).edit(ctx or whole_context(), params)


@pytest.mark.parametrize("name", PLAIN)
def test_methods_look_at_what_they_declare_and_need_all_of_it(name: str) -> None:
    method = get_method(name)
    edit(method, method.access)
    for letter in method.access:
        with pytest.raises(RiebenchError, match=rf"method '{name}' looks at .* does not declare; add "):
            edit(method, method.access.replace(letter, ""))


def test_kept_values_are_refused_like_new_ones() -> None:
    ctx = whole_context()
    edit(get_method("sae"), "PAM", ctx)
    with pytest.raises(RiebenchError, match=r"activations of the target run, .* add A"):
        edit(get_method("sae"), "PM", ctx)
    with pytest.raises(RiebenchError, match=r"the regions, .* add M"):
        edit(get_method("sae"), "PA", ctx)


@pytest.mark.parametrize(
    ("look", "letters"),
    [
        (lambda ctx: ctx.runs.trace.row(BLOCKS[0], 1), "PA"),
        (lambda ctx: ctx.runs.trace.step_row(BLOCKS[0], 1, 0), "PA"),
        (lambda ctx: ctx.runs.updates("target", BLOCKS[0]), "PA"),
        (lambda ctx: ctx.runs.unit_means("target", f"{BLOCKS[0]}.ff.0", "first"), "PAM"),
        (lambda ctx: ctx.runs.masked("source", BLOCKS[0]), "M"),
        (lambda ctx: ctx.runs.masks.source, "M"),
        (lambda ctx: ctx.runs.latents["target"], "P"),
        (lambda ctx: ctx.runs.example.target, "P"),
        (lambda ctx: ctx.runs.others.next("k", len), "T"),
    ],
)
def test_every_way_to_look_is_guarded(look: Callable[[EditContext], Any], letters: str) -> None:
    def spy(ctx: EditContext) -> Reuse:
        look(ctx)
        return Reuse("source")

    method = Method("spy", spy, frozenset(), "PAM")
    if "T" not in letters:
        edit(method, letters)
    for letter in letters:
        with pytest.raises(RiebenchError, match="'spy' looks at"):
            edit(method, "PAMT".replace(letter, ""))


def test_what_needs_no_letter_is_open_to_all() -> None:
    def spy(ctx: EditContext) -> Reuse:
        assert ctx.runs.example.id == "pair" and ctx.runs.example.source == "a"
        assert ctx.runs.updates("source", BLOCKS[0]).shape[0] == ctx.runs.trace.steps_of(BLOCKS[0])
        assert ctx.runs.latents["source"].shape[0] == 2 and len(ctx.runs.latents) == len(ctx.runs.rows) == 2
        return Reuse("source")

    edit(Method("spy", spy, frozenset(), ""), "")


def test_the_tables_of_the_leaderboard_are_those_of_the_methods() -> None:
    assert all(set(EARLIER_ACCESS[name, old]) == set(get_method(name).access) for name, old in EARLIER_ACCESS)
    # The best strength of each example is no method: it is made of stored sweeps.
    assert {*CONTROLLED, *CONTROLLED.values()} - {BEST_STRENGTH} <= set(SHIPPED)
    bounded = {name for name in SHIPPED if get_method(name).strengths[1] == 1}
    assert set(KNOB_ENDS) == bounded
