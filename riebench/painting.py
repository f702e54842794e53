"""Units of editors (`riebench.methods.editors`): one example's strengths made together, failures kept apart."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from riebench.generation.generator import Generator
from riebench.generation.memory import BatchSize
from riebench.methods.base import Role
from riebench.methods.editors import Editor, EditorContext
from riebench.planning import Unit, Work

Pixels = NDArray[np.uint8]


class Painter:
    """Makes the units of editors.

    What editors need of memory is their own affair, so each setting has a batch size of its own: an editor that is
    short of memory makes nobody else's batches smaller.

    Args:
        generator: the loaded model.
        batches: the run's batch size, which no editor exceeds; a source run may go along with each batch.
    """

    def __init__(self, generator: Generator, batches: BatchSize) -> None:
        self.generator = generator
        self.batches = batches
        self._sizes: dict[str, BatchSize] = {}

    def paint(
        self, editor: Editor, units: Sequence[Unit], work: Work, pictures: Mapping[Role, Pixels],
        save: Callable[[Unit, Pixels, float, int], None], fail: Callable[[Unit, str], None],
    ) -> None:  # fmt: skip
        """Makes some units of one example and one setting.

        Args:
            editor: the setting's method.
            units: differ in strength alone.
            work: their example.
            pictures: the source and the target picture as stored.
            save: gets a unit with its picture, its share of the wall time, and how many were made in the same call.
            fail: gets a unit that cannot be made, and why.
        """
        setting = units[0].setting
        most = max(1, self.batches.size - 1)
        sizes = self._sizes.setdefault(setting.name, BatchSize(most, f"pictures of {setting.name}", proven=True))
        sizes.size = min(sizes.size, most)

        def make(some: Sequence[Unit]) -> tuple[NDArray[np.uint8], float]:
            strengths = tuple(unit.key.strength for unit in some)
            start = time.perf_counter()
            made = editor.paint(
                EditorContext(self.generator, work.plain, work.noise, pictures, strengths), setting.params
            )
            return made, (time.perf_counter() - start) / len(some)

        def keep(some: Sequence[Unit], made: tuple[NDArray[np.uint8], float]) -> None:
            for unit, picture in zip(some, made[0], strict=True):
                save(unit, picture, made[1], len(some))

        sizes.each(units, 1, make, keep, fail)
