"""Edits of the mixed world, with known shares of the blocks that decide them.

The null world has the same model. In its edits every block decides equally often, so that no block has a role.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from riebench.toyworld.networks.mixed.roles import MIXED_ROLES, deciding_block
from riebench.toyworld.scenes import CATEGORY_ATTRIBUTE, Scene, random_edit
from riebench.toyworld.tasks import SuiteRecipe

MIXED_COUNTS = (6, 3, 2, 1)
"""Edits in twelve that a category's first, second, third and last block decide."""
NULL_COUNTS = (3, 3, 3, 3)
"""The same in the null world."""


@cache
def _order(suite: str, counts: tuple[int, ...], category: str) -> tuple[str, ...]:
    """Return the deciding block of each of a task file's examples."""
    blocks = MIXED_ROLES[CATEGORY_ATTRIBUTE[category]].blocks
    order = [block for block, count in zip(blocks, counts, strict=True) for _ in range(count)]
    random.Random(f"{suite}:{category}:blocks").shuffle(order)
    return tuple(order)


def _recipe(name: str, counts: tuple[int, int, int, int]) -> SuiteRecipe:
    def accepts(category: str, number: int, scene: Scene) -> bool:
        return deciding_block(CATEGORY_ATTRIBUTE[category], scene) == _order(name, counts, category)[number]

    return SuiteRecipe(name, "riebench/toyworld/networks/mixed/edits.py", name, accepts)


SUITES: tuple[SuiteRecipe, ...] = (_recipe("toy-mixed", MIXED_COUNTS), _recipe("toy-mixed-null", NULL_COUNTS))
"""The suites of the mixed world and of the null world."""


@dataclass(frozen=True)
class MixedEdit:
    """One edit whose deciding block is known.

    Attributes:
        category: the edit category.
        source: the scene before.
        target: the scene wished for; it differs in the category's attribute alone.
        block: the block that decides the attribute.
        seed: seeds the noise.
    """

    category: str
    source: Scene
    target: Scene
    block: str
    seed: int

    @property
    def attribute(self) -> str:
        """The attribute that the edit changes."""
        return CATEGORY_ATTRIBUTE[self.category]


def planted_shares(category: str, counts: Sequence[int]) -> dict[str, float]:
    """Return block -> share of a category's edits that it decides.

    Args:
        category: the edit category.
        counts: edits that its first, second, third and last block decide.
    """
    blocks = MIXED_ROLES[CATEGORY_ATTRIBUTE[category]].blocks
    return {block: count / sum(counts) for block, count in zip(blocks, counts, strict=True)}


def draw_edits(category: str, counts: Sequence[int], rng: random.Random) -> list[MixedEdit]:
    """Draw held-out edits of a category.

    Args:
        category: the edit category.
        counts: edits that its first, second, third and last block are to decide.
        rng: decides everything.

    Returns:
        `sum(counts)` edits, in mixed order.
    """
    attribute = CATEGORY_ATTRIBUTE[category]
    edits = []
    for block, count in zip(MIXED_ROLES[attribute].blocks, counts, strict=True):
        for _ in range(count):
            source, target = random_edit(category, rng)
            while deciding_block(attribute, source) != block:
                source, target = random_edit(category, rng)
            edits.append(MixedEdit(category, source, target, block, rng.randrange(2**31)))
    rng.shuffle(edits)
    return edits
