"""Units of editors (`riebench.methods.foreign`): one example's strengths made together, failures kept apart."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from riebench.errors import reason
from riebench.generate import Generator
from riebench.methods.base import Role
from riebench.methods.foreign import Editor, EditorContext
from riebench.planning import Unit, Work


@dataclass(frozen=True)
class Painted:
    """What became of one unit.

    Attributes:
        unit: which.
        made: its picture, uint8 [H, W, 3], or why there is none.
        seconds: its share of the wall time.
        together: units made in the same call.
    """

    unit: Unit
    made: NDArray[np.uint8] | str
    seconds: float
    together: int


def paint(
    generator: Generator, editor: Editor, units: Sequence[Unit], work: Work,
    pictures: Mapping[Role, NDArray[np.uint8]], batch_size: int,
) -> Iterator[Painted]:  # fmt: skip
    """Makes some units of one example and one setting.

    Args:
        generator: the loaded model.
        editor: the setting's method.
        units: differ in strength alone.
        work: their example.
        pictures: the source and the target picture as stored.
        batch_size: pictures generated at once; a source run may go along with each batch.
    """
    size = max(1, batch_size - 1)
    for start in range(0, len(units), size):
        yield from _together(generator, editor, units[start : start + size], work, pictures)


def _together(
    generator: Generator, editor: Editor, units: Sequence[Unit], work: Work, pictures: Mapping[Role, NDArray[np.uint8]]
) -> Iterator[Painted]:
    """Makes units in one call; if it fails, one by one."""
    strengths = tuple(unit.key.strength for unit in units)
    start = time.perf_counter()
    try:
        made = editor.paint(
            EditorContext(generator, work.plain, work.noise, pictures, strengths), units[0].setting.params
        )
    except Exception as error:
        if len(units) > 1:
            for unit in units:
                yield from _together(generator, editor, [unit], work, pictures)
        else:
            yield Painted(units[0], reason(error), 0.0, 1)
        return
    seconds = (time.perf_counter() - start) / len(units)
    for unit, picture in zip(units, made, strict=True):
        yield Painted(unit, picture, seconds, len(units))
