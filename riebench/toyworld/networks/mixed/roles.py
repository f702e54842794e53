"""The planted roles of the mixed toy world: the share of each block in each attribute.

All four blocks read all words. Where one of them reads another value of an attribute than the rest, the picture moves
towards that value by the block's share of the attribute.
"""

from __future__ import annotations

from collections.abc import Iterable

from riebench.scoring.metrics.judge_network import ATTRIBUTES

SHARES = (0.55, 0.30, 0.15, 0.0)
"""Shares of an attribute's first, second, third and last block."""

_D, _M, _U, _S = "down.2.1", "mid.0", "up.0.0", "up.0.1"

ORDER: dict[str, tuple[str, str, str, str]] = {
    "object": (_D, _M, _U, _S),
    "color": (_S, _U, _M, _D),
    "material": (_S, _M, _D, _U),
    "emblem": (_U, _S, _D, _M),
    "accessory": (_U, _D, _S, _M),
    "pose": (_M, _D, _U, _S),
    "background": (_M, _U, _S, _D),
    "style": (_D, _S, _M, _U),
}
"""Attribute -> the four blocks by falling share. Every block is first, second, third and last for two attributes."""

PLANTED: dict[str, dict[str, float]] = {
    attribute: dict(zip(ORDER[attribute], SHARES, strict=True)) for attribute in ATTRIBUTES
}
"""Attribute -> block -> its share; an attribute's shares add up to 1."""


def planted_share(attribute: str, blocks: Iterable[str]) -> float:
    """Return the share that several blocks have in an attribute together, from 0 to 1."""
    return sum(PLANTED[attribute][block] for block in blocks)
