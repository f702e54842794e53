"""Cases of the contract suite for PixArt-Sigma."""

from __future__ import annotations

from typing import Any

from tiny_pixart import tiny_pixart


def pixart_cases(case: Any, steps: int) -> tuple[Any, ...]:
    """The case under guidance.

    Args:
        case: makes one.
        steps: of all runs.
    """
    guided = case(
        "pixart guided",
        lambda: tiny_pixart(steps, 3.0),
        ("block.1", "transformer_blocks.1"),
        hidden=lambda args, kwargs: args[0],
        given=lambda output: output,
        text=None,
        together=True,
        arguments={"guidance_scale": 3.0, "use_resolution_binning": False, "clean_caption": False},
    )
    return (guided,)
