"""The planted roles of the mixed toy world: blocks' shares in attributes.

All four blocks read all words. Where one of them reads another value of an attribute than the rest, the picture moves
towards that value by the block's share of the attribute.
"""

from __future__ import annotations

from collections.abc import Iterable

_D, _M, _U, _S = "down.2.1", "mid.0", "up.0.0", "up.0.1"

PLANTED: dict[str, dict[str, float]] = {
    "object": {_D: 0.65, _M: 0.35, _U: 0.0, _S: 0.0},
    "color": {_S: 0.55, _U: 0.30, _D: 0.15, _M: 0.0},
    "material": {_S: 0.65, _M: 0.35, _D: 0.0, _U: 0.0},
    "emblem": {_U: 0.65, _S: 0.35, _D: 0.0, _M: 0.0},
    "accessory": {_U: 0.65, _S: 0.35, _D: 0.0, _M: 0.0},
    "pose": {_M: 0.55, _D: 0.30, _U: 0.15, _S: 0.0},
    "background": {_M: 0.55, _U: 0.30, _S: 0.15, _D: 0.0},
    "style": {_D: 0.55, _S: 0.30, _M: 0.15, _U: 0.0},
}
"""Attribute -> block -> its share; an attribute's shares add up to 1.

Every block is first for two attributes, second for one to three and third for one.
"""


def later_blocks(attribute: str) -> list[str]:
    """Return the blocks that have a share in an attribute, but for the first."""
    shares = PLANTED[attribute]
    return [block for block, share in shares.items() if 0 < share < max(shares.values())]


def planted_share(attribute: str, blocks: Iterable[str]) -> float:
    """Return the share that several blocks have in an attribute together, from 0 to 1."""
    return sum((PLANTED[attribute][block] for block in blocks), 0.0)
