"""Cases of Stable Diffusion 3 for the contract suite."""

from __future__ import annotations

from functools import partial
from typing import Any

from tiny_sd3 import tiny_sd3


def sd3_cases(case: Any) -> tuple[Any, ...]:
    """A tiny model at a block that gives text, without and with guidance, and at the last one, which gives none.

    Args:
        case: the suite's class of cases.
    """
    return tuple(
        case(
            name,
            partial(tiny_sd3, 2, guidance),
            (f"double.{index}", f"transformer_blocks.{index}"),
            hidden=lambda args, kwargs: kwargs["hidden_states"],
            given=lambda output: output[1],
            text=(lambda output: output[0]) if index == 1 else None,
            together=True,
            arguments={"guidance_scale": guidance},
        )
        for name, guidance, index in (("sd3", 0.0, 1), ("sd3 guided", 3.0, 1), ("sd3 guided, last block", 3.0, 2))
    )
