"""Concepts: which training runs show what an edit puts in, or what it takes out.

A concept is a set of values, such as `color=red`, that an edit changes: values of attributes where these are known,
else words of the prompts (`riebench.methods.features.changed_values`). The source run of a training example shows what
its edit takes out, the target run what it puts in.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from riebench.errors import RiebenchError
from riebench.methods.base import ROLES, ExampleRuns, OtherExamples, Role, TrainingExamples
from riebench.methods.features import changed_values
from riebench.store.records import Training
from riebench.tasks.schema import EditExample

T = TypeVar("T")

SAMPLES = 16
"""Positions of a run's regions whose updates a probe is fitted to, evenly spaced."""
CATEGORY = "category"
"""Key of the contrast between all target and all source runs."""

Place = tuple[int, Role]
"""Index of a training example, and which of its runs."""


@dataclass(frozen=True)
class TrainingPair:
    """Source and target run of one training example.

    Attributes:
        example: the example.
        noise: seed of the noise of both runs.
        values: run -> what it shows and the other one does not.
        positions: block -> positions of both regions, int64 [P], on the CPU.
        samples: run -> block -> updates at some positions of both regions, float32 [T, S, C], on the CPU.
        means: run -> block -> mean update over both regions, float32 [T, C], on the CPU.
    """

    example: EditExample
    noise: int
    values: Mapping[Role, frozenset[str]]
    positions: Mapping[str, Tensor]
    samples: Mapping[Role, Mapping[str, Tensor]]
    means: Mapping[Role, Mapping[str, Tensor]]


@dataclass(frozen=True)
class Contrast:
    """Training runs with and without a concept.

    Attributes:
        key: names the concept.
        sign: 1 for what the edit puts in, -1 for what it takes out.
        present: runs that show it.
        absent: runs that show nothing of it.
    """

    key: tuple[str, ...]
    sign: float
    present: tuple[Place, ...]
    absent: tuple[Place, ...]

    @property
    def partners(self) -> tuple[Place, ...]:
        """The other run of the example of each run that shows the concept."""
        return tuple((index, other_role(role)) for index, role in self.present)


@dataclass(frozen=True)
class Learned(Generic[T]):
    """A learned value, and the cost of learning it.

    Attributes:
        value: what was learned.
        seconds: wall time.
        gradients: evaluations of the denoiser while fitting.
    """

    value: T
    seconds: float
    gradients: int = 0


def other_role(role: Role) -> Role:
    """Return the other run of an example."""
    return "source" if role == "target" else "target"


def edited_positions(runs: ExampleRuns, block: str) -> Tensor:
    """Return the positions of both regions on a block's grid, int64 [P]."""
    return torch.cat([runs.positions(role, block) for role in ROLES]).unique()


def training_pairs(
    others: OtherExamples | None, examples: int, folds: int
) -> tuple[TrainingExamples, list[TrainingPair]]:
    """Return the examples to learn from, with what is read of their runs.

    Args:
        others: the other examples of the scored example's category.
        examples: how many to learn from, at most.
        folds: number of folds; examples of the scored example's own one are left out.

    Raises:
        RiebenchError: if there are none.
    """
    if others is None:
        raise RiebenchError("the other examples of the category were not made ready")
    training = others.training(examples, folds)
    return training, training.each("training pair", training_pair)


def training_pair(runs: ExampleRuns) -> TrainingPair:
    """Read what supervised methods learn from off an example's runs."""
    new, old = changed_values(runs.example)
    samples: dict[Role, dict[str, Tensor]] = {role: {} for role in ROLES}
    averages: dict[Role, dict[str, Tensor]] = {role: {} for role in ROLES}
    regions: dict[str, Tensor] = {}
    for block in runs.trace.sites:
        positions = edited_positions(runs, block)
        regions[block] = positions.cpu()
        spaced = torch.linspace(0, max(0, len(positions) - 1), min(SAMPLES, len(positions))).long()
        for role in ROLES:
            steps = [
                runs.trace.step_row(block, runs.rows[role], step)[positions].float().cpu()
                for step in range(runs.trace.steps_of(block))
            ]
            samples[role][block] = torch.stack([step[spaced] for step in steps])
            averages[role][block] = torch.stack([step.mean(0) for step in steps])
    values: dict[Role, frozenset[str]] = {"target": new, "source": old}
    return TrainingPair(runs.example, runs.noise, values, regions, samples, averages)


def find_contrasts(example: EditExample, pairs: Sequence[TrainingPair]) -> list[Contrast]:
    """Find the training runs that show what an edit puts in, and what it takes out.

    Of each concept the runs count that share most of its values, whichever way round their example is edited. Without
    any run that shows either concept, the contrast is that of the category: all target runs against all source runs.

    Args:
        example: the scored example.
        pairs: the training examples' runs.
    """
    new, old = changed_values(example)
    found = [contrast_of(values, sign, pairs) for values, sign in ((new, 1.0), (old, -1.0))]
    contrasts = [one for one in found if one is not None]
    return contrasts or [category_contrast(pairs)]


def wished_runs(example: EditExample, pairs: Sequence[TrainingPair]) -> tuple[tuple[str, ...], tuple[Place, ...]]:
    """Return the runs that a training leads to from the other run of their example.

    They are those that show what the edit puts in; if none does, the other runs of those that show what it takes out;
    else all target runs.

    Args:
        example: the scored example.
        pairs: the training examples' runs.

    Returns:
        A name of the concept, and the runs.
    """
    first = find_contrasts(example, pairs)[0]
    if first.sign > 0:
        return first.key, first.present
    return ("without", *first.key), first.partners


def category_contrast(pairs: Sequence[TrainingPair]) -> Contrast:
    """Return the contrast between all target runs and all source runs."""
    places: dict[Role, tuple[Place, ...]] = {
        role: tuple((index, role) for index in range(len(pairs))) for role in ROLES
    }
    return Contrast((CATEGORY,), 1.0, places["target"], places["source"])


def overlap(one: frozenset[str], other: frozenset[str]) -> float:
    """Return the share of two sets' members that both have, 0 to 1."""
    return len(one & other) / len(one | other) if one & other else 0.0


def contrast_of(values: frozenset[str], sign: float, pairs: Sequence[TrainingPair]) -> Contrast | None:
    """Find the training runs that show a concept; None if none does.

    Args:
        values: the concept.
        sign: see `Contrast`.
        pairs: the training examples' runs.
    """
    shares = {(index, role): overlap(values, pair.values[role]) for index, pair in enumerate(pairs) for role in ROLES}
    most = max(shares.values(), default=0.0)
    if not most:
        return None
    present = tuple(place for place, share in shares.items() if share == most)
    absent = tuple(place for place, share in shares.items() if not share)
    return Contrast(tuple(sorted(values)), sign, present, absent)


def timed(fit: Callable[[], T]) -> Learned[T]:
    """Call a function and measure its wall time."""
    start = time.perf_counter()
    value = fit()
    return Learned(value, time.perf_counter() - start)


def describe_training(
    training: TrainingExamples, pairs: Sequence[TrainingPair], learned: Sequence[Learned[T]], *, runs: bool = True
) -> Training:
    """Return the training of an edit, for its record.

    Args:
        training: the examples that were learned from.
        pairs: what was read of them.
        learned: all that the edit is made of.
        runs: whether the training examples' runs were read.
    """
    return Training(
        examples=len(pairs), fold=training.fold, folds=training.folds,
        evaluations=2 * len(pairs) * training.run_evaluations if runs else 0,
        gradients=sum(one.gradients for one in learned), seconds=sum(one.seconds for one in learned),
    )  # fmt: skip


def check_folds(name: str, examples: int, folds: int) -> None:
    """Refuse a training without examples or without a split.

    Raises:
        RiebenchError: naming the method and the parameter.
    """
    if examples < 1:
        raise RiebenchError(f"{name}: examples: {examples} give nothing to learn from; take at least 1")
    if folds < 2:
        raise RiebenchError(f"{name}: folds: {folds} leave no example to learn from; take at least 2")
