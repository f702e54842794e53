"""Other examples of a category, for methods that look at them.

The choice is fixed, and memory holds one example at a time, or as many as are small.

The order is that of the task file's examples by the SHA-256 of "riebench-reference-v1:" + id. `first` goes through it
from the beginning, `next` from the scored example on and round to the beginning. Left out are the scored example
itself, examples of its cluster, and those whose region is not found. So the choice depends on the task file alone, not
on the other units of the run, their order, or the number of parts.

`training` gives a supervised method the examples that it may learn from. The examples of a task, in the order of
reference, are divided into folds in turn, those of a cluster together; an example's edit is learned from the first ones
of the other folds. What is learned is kept while the task lasts: it depends on fold, seed and method alone.

Each reference is generated on its own with the noise that it has when it is scored itself. What methods find in it is
kept while the task lasts. Of the runs the last reference's are kept, and its activations as long as those of the task
fit into `KEPT_BYTES`: several SAEs look at the same references, one after the other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar, cast

from riebench.errors import RiebenchError
from riebench.generation.generator import Generator
from riebench.generation.trace import Trace
from riebench.methods.base import ExampleRuns
from riebench.runs.capture import CapturePlan
from riebench.runs.masks import MaskMaker
from riebench.runs.plan import ExampleWork, reference_work
from riebench.tasks.masks import RegionMasks
from riebench.tasks.schema import EditExample, EditTask

T = TypeVar("T")

Place = tuple[str, int]
"""Example id and seed."""

KEPT_BYTES = 2**28
"""Bytes of activations of a task's references that are kept; those of one example of SDXL are as large."""


def reference_order(examples: Iterable[EditExample]) -> list[EditExample]:
    """Sort examples into the order of reference, whatever their order in the file."""
    return sorted(
        examples, key=lambda example: hashlib.sha256(f"riebench-reference-v1:{example.id}".encode()).hexdigest()
    )


def folds_of(order: Sequence[EditExample], folds: int) -> dict[str, int]:
    """Divide examples into folds: id -> fold, from 0.

    Args:
        order: a task's examples in the order of reference.
        folds: number of folds.
    """
    groups: dict[tuple[bool, str], int] = {}
    for one in order:
        groups.setdefault((one.cluster is None, one.cluster or one.id), len(groups))
    return {one.id: groups[one.cluster is None, one.cluster or one.id] % folds for one in order}


class References:
    """Runs of other examples.

    Args:
        pool: whole tasks, whose examples may serve as references.
        generator: generator of pictures.
        masks: maker of the examples' masks.
        captures: plan of the captured activations.
    """

    def __init__(self, pool: Sequence[EditTask], generator: Generator, masks: MaskMaker, captures: CapturePlan) -> None:
        self._orders = {task.name: reference_order(task.examples) for task in pool}
        self._generator = generator
        self._masks = masks
        self._captures = captures
        self._task = ""
        self._found: dict[tuple[Place, Hashable], Any] = {}
        self._learned: dict[Hashable, Any] = {}
        self._missing: set[Place] = set()
        self._last: tuple[Place, ExampleRuns] | None = None
        self._kept: dict[Place, tuple[Trace, RegionMasks]] = {}

    @property
    def is_needed(self) -> bool:
        """True if any method looks at other examples."""
        return any("others" in one.method.needs for one in self._captures.prepared.values())

    def others(self, work: ExampleWork) -> OtherExamples | None:
        """Return the other examples as methods see them; None if no method looks."""
        return OtherExamples(self, work) if self.is_needed else None

    def works(self, works: Sequence[ExampleWork]) -> list[ExampleWork]:
        """List all examples that may serve as references of some others.

        The list is empty if no method looks at other examples.
        """
        if not self.is_needed:
            return []
        places = {(work.task.name, work.seed): work for work in works}
        return [reference_work(work, example) for work in places.values() for example in self.order(work)]

    def order(self, work: ExampleWork) -> list[EditExample]:
        """Return the examples of the work's whole task, in the order of reference."""
        return self._orders.get(work.task.name) or reference_order(work.task.examples)

    def look(self, work: ExampleWork, key: Hashable, look: Callable[[ExampleRuns], T]) -> list[T]:
        """Look at an example's runs; return what is found, alone in a list.

        The list is empty if the example's region is not found. What is found is kept while the task lasts.
        """
        self._enter_task(work)
        place = (work.example.id, work.seed)
        if place not in self._missing and (place, key) not in self._found:
            runs = self._runs(work, place)
            if runs is None:
                self._missing.add(place)
            else:
                self._found[place, key] = look(runs)
        return [] if place in self._missing else [self._found[place, key]]

    def learn(self, work: ExampleWork, key: Hashable, fit: Callable[[], T]) -> T:
        """Return what is learned under a key; it is kept while the task lasts."""
        self._enter_task(work)
        if (work.seed, key) not in self._learned:
            self._learned[work.seed, key] = fit()
        return cast(T, self._learned[work.seed, key])

    @property
    def generator(self) -> Generator:
        """The loaded model."""
        return self._generator

    def _enter_task(self, work: ExampleWork) -> None:
        """Let go of what belongs to another task."""
        if work.task.name != self._task:
            self._task, self._last = work.task.name, None
            self._found.clear()
            self._learned.clear()
            self._missing.clear()
            self._kept.clear()

    def _runs(self, work: ExampleWork, place: Place) -> ExampleRuns | None:
        if self._last is not None and self._last[0] == place:
            return self._last[1]
        self._last = None
        found = self._kept.get(place) or self._generate(work, place)
        if found is None:
            return None
        trace, masks = found
        # Its own codes of SAEs are not kept: they may be many.
        runs = ExampleRuns(
            work.plain, work.seed, trace, {"source": 0, "target": 1}, masks, rule=work.task.region_rule,
            noise=work.noise,
        )  # fmt: skip
        self._last = (place, runs)
        return runs

    def _generate(self, work: ExampleWork, place: Place) -> tuple[Trace, RegionMasks] | None:
        """Generate an example's runs; None if its region is not found."""
        pair = self._generator.generate(
            [work.plain.source, work.plain.target], [work.noise] * 2, capture=self._captures.reference_captures(work)
        )
        try:
            masks = self._masks.masks(work, pair, 0, 1)
        except RiebenchError:
            return None
        if masks.empty:
            return None
        trace = pair.traces[0]
        if sum(kept.nbytes for kept, _ in self._kept.values()) + trace.nbytes <= KEPT_BYTES:
            self._kept[place] = (trace, masks)
        return trace, masks


@dataclass(frozen=True)
class OtherExamples:
    """The references of one example (see `riebench.methods.base.OtherExamples`).

    Attributes:
        references: the runs of the other examples.
        work: the scored example.
    """

    references: References
    work: ExampleWork

    def first(self, count: int, key: Hashable, look: Callable[[ExampleRuns], T]) -> list[T]:
        """Look at the first references; see `riebench.methods.base.OtherExamples.first`."""
        return self._found(self.references.order(self.work), count, key, look)

    def next(self, key: Hashable, look: Callable[[ExampleRuns], T]) -> T:
        """Look at the next reference; see `riebench.methods.base.OtherExamples.next`."""
        order = self.references.order(self.work)
        at = next((index for index, one in enumerate(order) if one.id == self.work.example.id), 0)
        return self._found(order[at:] + order[:at], 1, key, look)[0]

    def training(self, count: int, folds: int) -> TrainingExamples:
        """Return the examples to learn from; see `methods.base.OtherExamples`."""
        if count < 1 or folds < 2:
            raise RiebenchError(f"examples: {count}, folds: {folds}; learn from at least 1 example and of 2 folds")
        order = self.references.order(self.work)
        fold_of = folds_of(order, folds)
        own = fold_of[self.work.example.id]
        others = tuple(one for one in order if fold_of[one.id] != own)
        return TrainingExamples(self.references, self.work, others, count, own, folds)

    def _found(
        self, order: Sequence[EditExample], count: int, key: Hashable, look: Callable[[ExampleRuns], T]
    ) -> list[T]:
        found = list(islice(self._through(order, key, look), count))
        if not found:
            raise RiebenchError(
                f"{self.work.task.name} has no other example with a region to look at; this method needs some"
            )
        return found

    def _through(self, order: Sequence[EditExample], key: Hashable, look: Callable[[ExampleRuns], T]) -> Iterator[T]:
        for example in order:
            if self._is_other(example):
                yield from self.references.look(reference_work(self.work, example), key, look)

    def _is_other(self, example: EditExample) -> bool:
        own = self.work.example
        return example.id != own.id and (own.cluster is None or example.cluster != own.cluster)


@dataclass(frozen=True)
class TrainingExamples:
    """The examples of other folds (see `riebench.methods.base.TrainingExamples`).

    Attributes:
        references: the runs of the task's examples.
        work: the scored example.
        order: the examples of the other folds, in the order of reference.
        count: how many of them are learned from, at most.
        fold: fold of the scored example.
        folds: number of folds.
    """

    references: References
    work: ExampleWork
    order: tuple[EditExample, ...]
    count: int
    fold: int
    folds: int

    @property
    def generator(self) -> Generator:
        """The loaded model."""
        return self.references.generator

    @property
    def run_evaluations(self) -> int:
        """Evaluations of the denoiser that one run takes, two a step under guidance."""
        model = self.references.generator.model
        return model.spec.steps * (2 if model.guided else 1)

    def each(self, key: Hashable, look: Callable[[ExampleRuns], T]) -> list[T]:
        """Look at each example's runs; see `riebench.methods.base.TrainingExamples.each`."""
        looked = (self.references.look(reference_work(self.work, one), key, look) for one in self.order)
        found = list(islice((one for some in looked for one in some), self.count))
        if not found:
            raise RiebenchError(f"{self.work.task.name} has no example outside fold {self.fold} to learn from")
        return found

    def learn(self, key: Hashable, fit: Callable[[], T]) -> T:
        """Learn from these examples; see `riebench.methods.base.TrainingExamples.learn`."""
        return self.references.learn(self.work, (self.fold, self.folds, self.count, key), fit)
