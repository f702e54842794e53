"""Cases of the contract suite for PixArt-Sigma."""

from __future__ import annotations

from typing import Any

from tiny_pixart import tiny_pixart


def pixart_cases(case: Any, steps: int) -> tuple[Any, ...]:
    """Cases without guidance and with it.

    Args:
        case: makes one.
        steps: of all runs.
    """

    def make(name: str, guidance: float) -> Any:
        return case(
            name,
            lambda: tiny_pixart(steps, guidance),
            ("block.1", "transformer_blocks.1"),
            hidden=lambda args, kwargs: args[0],
            given=lambda output: output,
            text=None,
            together=True,
            arguments={"guidance_scale": guidance, "use_resolution_binning": False, "clean_caption": False},
        )

    return make("pixart-sigma", 0.0), make("pixart-sigma guided", 3.0)
