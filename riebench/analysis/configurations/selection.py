"""Selections among configurations, and what is said of several of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from riebench.analysis.configurations.cells import Configuration
from riebench.analysis.configurations.origins import majority_model, majority_origins, model_gap, origin_gap
from riebench.blocks import ALL_BLOCKS, NO_BLOCKS, pass_order
from riebench.scoring.profiles import PROFILES
from riebench.store.invocations import mixed_versions
from riebench.tasks.schema import ALL_CATEGORIES

MANY_BLOCKS = 10_000
"""Counts for the blocks of "all", which are as many as the model's family says: more than any set that is named."""


def mixed_in_words(found: Iterable[Configuration]) -> str:
    """Return the packages that a row was made with in several versions.

    It is about its pictures, or about its scores: that these two differ is no mixture.

    Args:
        found: the configurations of the row.

    Returns:
        For example "pictures by torch 2.14.1 and 2.15.0"; "" if there is nothing to say.
    """
    configs = list(found)
    parts = {
        "pictures": mixed_versions(one for c in configs for one in c.makers.values()),
        "scores": mixed_versions(one for c in configs for one in c.measurers.values()),
    }
    return ", ".join(f"{what} by {packages}" for what, packages in parts.items() if packages)


def block_places(block_sets: Iterable[str]) -> dict[str, int]:
    """Return the places of block sets in a table.

    No blocks come first, then single blocks in the order in which a picture passes them, the others, and all.
    """
    order = {block: place for place, block in enumerate(pass_order(block_sets))}
    return {name: -1 if name == NO_BLOCKS else len(order) if name == ALL_BLOCKS else order[name] for name in order}


def present_metrics(found: Iterable[Configuration]) -> list[str]:
    """Return the metrics of the profile that any configuration has values for.

    Metrics without one are among them if all units that should have a value failed.
    """
    configs = list(found)
    table = PROFILES[configs[0].profile].table if configs else {}
    return [metric for metric in table if any(metric in c.values for c in configs)]


def present_categories(found: Iterable[Configuration]) -> list[str]:
    """Return the planned categories in their fixed order."""
    planned = {category for configuration in found for category in configuration.expected}
    return [category for category in ALL_CATEGORIES if category in planned]


def whole_configurations(found: Iterable[Configuration]) -> list[Configuration]:
    """Select configurations that edit all blocks of their setting together, or none.

    Blocks edited singly are left to the per-block table.
    """
    configs = list(found)
    sets: dict[tuple[str, str], set[str]] = {}
    for c in configs:
        sets.setdefault((c.model, c.setting), set()).add(c.block_set)

    def is_whole(c: Configuration) -> bool:
        others = sets[c.model, c.setting]
        count = _block_count(c.block_set)
        return len(others) == 1 or (count > 1 and count == max(map(_block_count, others)))

    return [c for c in configs if is_whole(c)]


def comparison_gaps(found: Sequence[Configuration]) -> list[str | None]:
    """Return for each row the reason why it may not be compared, or None.

    The reason is another version of an example or another model than the other rows have.
    """
    origins = [{name: frozenset(its) for name, its in c.origins.items()} for c in found]
    example, model = majority_origins(origins), majority_model([c.model_identity] for c in found)
    return [
        model_gap([c.model_identity], model) or origin_gap(mine, example)
        for c, mine in zip(found, origins, strict=True)
    ]


def _block_count(block_set: str) -> int:
    """Return the number of blocks in a block set."""
    if block_set == NO_BLOCKS:
        return 0
    return MANY_BLOCKS if block_set == ALL_BLOCKS else block_set.count("+") + 1
