"""Other examples of a category, for methods that look at them.

The choice is fixed, and memory holds one example at a time, or as many as are small.

The order is that of the task file's examples by the SHA-256 of "riebench-reference-v1:" + id. `first` goes through it
from the beginning, `next` from the scored example on and round to the beginning. Left out are the scored example
itself, examples of its cluster, and those whose region is not found. So the choice depends on the task file alone, not
on the other units of the run, their order, or the number of parts.

Each reference is generated on its own with the noise that it has when it is scored itself. What methods find in it is
kept while the task lasts. Of the runs the last reference's are kept, and its activations as long as those of the task
fit into `KEPT_BYTES`: several SAEs look at the same references, one after the other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

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
        if work.task.name != self._task:
            self._task, self._last = work.task.name, None
            self._found.clear()
            self._missing.clear()
            self._kept.clear()
        place = (work.example.id, work.seed)
        if place not in self._missing and (place, key) not in self._found:
            runs = self._runs(work, place)
            if runs is None:
                self._missing.add(place)
            else:
                self._found[place, key] = look(runs)
        return [] if place in self._missing else [self._found[place, key]]

    def _runs(self, work: ExampleWork, place: Place) -> ExampleRuns | None:
        if self._last is not None and self._last[0] == place:
            return self._last[1]
        self._last = None
        found = self._kept.get(place) or self._generate(work, place)
        if found is None:
            return None
        trace, masks = found
        # Its own codes of SAEs are not kept: they may be many.
        runs = ExampleRuns(work.plain, work.seed, trace, {"source": 0, "target": 1}, masks, rule=work.task.region_rule)
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
