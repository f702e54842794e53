"""Cases of Stable Diffusion 1 and 2 for the contract suite."""

from __future__ import annotations

from functools import partial
from typing import Any

from tiny_sd import tiny_sd
from torch import Tensor


def sd_cases(case: Any) -> tuple[Any, ...]:
    """Tiny models with convolutions and with linear layers at the end of blocks, with and without guidance.

    Args:
        case: the suite's class of cases.
    """
    return tuple(
        case(
            name,
            partial(tiny_sd, 2, guidance, kind),
            ("up.1.1", "up_blocks.1.attentions.1"),
            hidden=lambda args, kwargs: args[0],
            given=lambda output: output if isinstance(output, Tensor) else output[0],
            text=None,
            together=True,
            arguments={"guidance_scale": guidance},
        )
        for name, guidance, kind in (("sd 1.5 guided", 3.0, "1.5"), ("sd 2.1", 0.0, "2.1"))
    )
