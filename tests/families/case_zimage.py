"""Z-Image's cases for the contract suite."""

from __future__ import annotations

from functools import partial
from typing import Any

from tiny_zimage import FILLED, GRID, tiny_zimage


def zimage_cases(case: Any) -> tuple[Any, ...]:
    """A tiny Z-Image without and with guidance.

    Its prompts are texts of different lengths, of which one is filled up to more tokens than the others.

    Args:
        case: the suite's class of cases.
    """
    return tuple(
        case(
            name,
            partial(tiny_zimage, 2, guidance),
            ("layers.1", "layers.1"),
            hidden=lambda args, kwargs: args[0][:, : GRID**2],
            given=lambda output: output[:, : GRID**2],
            text=lambda output: output[:, FILLED:],
            together=True,
            arguments={"guidance_scale": guidance},
            first="conditional",
            blind=("refiner.0",),
        )
        for name, guidance in (("zimage", 0.0), ("zimage guided", 2.0))
    )
