"""The planted roles of the mixed toy world.

All four blocks read all words. Where they read different values of an attribute, one of them decides what the picture
shows, and which one depends on the scene: on the value of another attribute, the attribute's *gate*.
"""

from __future__ import annotations

from dataclasses import dataclass

from riebench.scoring.metrics.judge_network import ATTRIBUTES
from riebench.toyworld.scenes import Scene

PATTERN = (0, 0, 1, 1, 2, 3)
"""Position in `MixedRole.blocks` for six gate values in turn: in scenes drawn evenly, shares of 2, 2, 1 and 1 in 6."""


@dataclass(frozen=True)
class MixedRole:
    """The planted role of all four blocks in one attribute.

    Attributes:
        attribute: the attribute.
        gate: the attribute whose value says which block decides: object or color, which every caption names.
        blocks: the four blocks, by falling share.
        offset: position of the gate value with which `PATTERN` begins.
    """

    attribute: str
    gate: str
    blocks: tuple[str, str, str, str]
    offset: int

    def deciding_block(self, gate_value: str) -> str:
        """Return the block that decides the attribute where the gate has a given value."""
        values = ATTRIBUTES[self.gate]
        return self.blocks[PATTERN[(values.index(gate_value) + self.offset) % len(PATTERN)]]

    def gate_values(self, block: str) -> tuple[str, ...]:
        """Return the gate values with which a block decides, in the order of `ATTRIBUTES`."""
        return tuple(value for value in ATTRIBUTES[self.gate] if self.deciding_block(value) == block)


_D, _M, _U, _S = "down.2.1", "mid.0", "up.0.0", "up.0.1"

MIXED_ROLES: dict[str, MixedRole] = {
    role.attribute: role
    for role in (
        MixedRole("object", "color", (_D, _M, _U, _S), 1),
        MixedRole("color", "object", (_S, _U, _M, _D), 0),
        MixedRole("material", "object", (_S, _M, _D, _U), 5),
        MixedRole("emblem", "object", (_U, _S, _D, _M), 2),
        MixedRole("accessory", "color", (_U, _D, _S, _M), 4),
        MixedRole("pose", "color", (_M, _D, _U, _S), 3),
        MixedRole("background", "color", (_M, _U, _S, _D), 0),
        MixedRole("style", "object", (_D, _S, _M, _U), 4),
    )
}
"""Attribute -> its role. Every block is first, second, third and last for two attributes each."""


def deciding_block(attribute: str, scene: Scene) -> str:
    """Return the block that decides an attribute of a scene."""
    role = MIXED_ROLES[attribute]
    return role.deciding_block(getattr(scene, role.gate))
