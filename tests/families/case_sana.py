"""Cases of the contract suite for SANA and SANA-Sprint."""

from __future__ import annotations

from typing import Any

from tiny_sana import tiny_sana


def sana_cases(case: Any, steps: int) -> tuple[Any, ...]:
    """Cases of SANA under guidance, and of SANA-Sprint, which is told the scale.

    Args:
        case: makes one.
        steps: of all runs.
    """

    def make(name: str, guidance: float, *, sprint: bool = False) -> Any:
        return case(
            name,
            lambda: tiny_sana(steps, guidance, sprint=sprint),
            ("block.1", "transformer_blocks.1"),
            hidden=lambda args, kwargs: args[0],
            given=lambda output: output,
            text=None,
            together=True,
            arguments={"guidance_scale": guidance, "use_resolution_binning": False},
        )

    return make("sana guided", 3.0), make("sana-sprint", 4.5, sprint=True)
