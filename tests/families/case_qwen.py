"""Qwen-Image's cases for the contract suite."""

from __future__ import annotations

from functools import partial
from typing import Any

from tiny_qwen import tiny_qwen


def qwen_cases(case: Any) -> tuple[Any, ...]:
    """A tiny Qwen-Image without and with true guidance, on prompts of different lengths.

    Args:
        case: the suite's class of cases.
    """
    return tuple(
        case(
            name,
            partial(tiny_qwen, 2, guidance),
            ("double.1", "transformer_blocks.1"),
            hidden=lambda args, kwargs: kwargs["hidden_states"],
            given=lambda output: output[1],
            text=lambda output: output[0],
            together=False,
            arguments={
                "true_cfg_scale": guidance, "max_sequence_length": 256,
                **({"negative_prompt": " "} if guidance > 1 else {}),
            },
        )
        for name, guidance in (("qwen", 0.0), ("qwen guided", 3.0))
    )  # fmt: skip
