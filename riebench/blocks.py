"""Names of blocks and of sets of blocks, whichever model family they belong to.

A block is a part of the denoiser by its short name. What names there are, and which module each stands for, says the
model's family (`riebench.models.families`); here the families are asked in turn, so that task files, configurations and
tables can be read without a model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

from riebench.errors import RiebenchError, near_match
from riebench.registry import DEFAULT_FAMILY, MODEL_FAMILIES, families_left_out, usable_families

ATTENTION = "attention"
RESIDUAL = "residual"
UNITS = "units"
TEXT = "text"
KINDS = (ATTENTION, RESIDUAL, UNITS, TEXT)
"""A block with attention; one without; the feed-forward units inside a block; the text stream of a block."""

SHOWN_BLOCKS = 12
"""Blocks inside a larger part that a message names one by one."""
ALL_BLOCKS = "all"
"""Name of the block set that is all blocks which experiments on a model usually edit."""

NO_BLOCKS = "none"
"""Name of the block set of methods that touch no block."""

_TEXT_ENCODER = re.compile(r"(?:^|\.)text[_-]?(?:encoders?|model)(?:[_-]?\d)?(?:\.|$)")
"""What the paths of modules inside a text encoder hold."""


def default_blocks(family: str = DEFAULT_FAMILY) -> tuple[str, ...]:
    """Return the blocks of the published experiments on a model family.

    Raises:
        RiebenchError: if there is no such family.
    """
    blocks: tuple[str, ...] = MODEL_FAMILIES.get(family).names.default
    return blocks


def unknown_block(name: str) -> RiebenchError:
    """Return the error for a name that stands for no block of any family.

    Its message says so of several blocks together and of the text encoder. Otherwise it names the blocks inside it, if
    it is a larger part of the denoiser, or else the nearest block.
    """
    why = foreign_site(name)
    if why is not None:
        return RiebenchError(why)
    known = known_blocks()
    inside = [one for one in known if name and one.startswith(f"{name.removesuffix('.')}.")]
    inside = [one for one in inside if kind(one) == ATTENTION] or inside
    if inside:
        many = len(inside) > SHOWN_BLOCKS
        shown = f"one of {inside[0]!r} to {inside[-1]!r}" if many else " or ".join(map(repr, inside))
        return RiebenchError(f"unknown block {name!r} (did you mean {shown}?)")
    return RiebenchError(f"unknown block {name!r}{near_match(name, known)}{families_left_out()}")


def foreign_site(name: str) -> str | None:
    """Return why a name that SAEs are trained at stands for no single block.

    It is None for other names, blocks or not: only blocks joined by "+" and modules of a text encoder are known here.
    """
    parts = [part.strip() for part in name.split("+")]
    if len(parts) > 1 and any(one.short_name(part) is not None for one in _families() for part in parts):
        return (
            f"{name!r} stands for several blocks joined; an SAE of joined activations is not read, since its features "
            "belong to no one block: give an SAE for each block, and name blocks with commas between them"
        )
    if _TEXT_ENCODER.search(name):
        return (
            f"{name!r} lies in the text encoder, which is not edited; give SAEs of the denoiser's blocks "
            f"({', '.join(default_blocks())})"
        )
    return None


def _families() -> Iterator[Any]:
    return (one.names for one in usable_families())


@lru_cache(maxsize=4096)
def _find(name: str) -> tuple[Any, str]:
    for names in _families():
        short = names.short_name(name)
        if short is not None:
            return names, short
    raise unknown_block(name)


def short_name(name: str) -> str:
    """Return the short name of a block in any of its forms.

    Short names pass unchanged.

    Raises:
        RiebenchError: if no family has such a block; names the nearest match.
    """
    return _find(name)[1]


def module_path(name: str) -> str:
    """Return the path of a block's module inside the denoiser.

    Args:
        name: in any of its forms.

    Raises:
        RiebenchError: if no family has such a block; names the nearest match.
    """
    names, short = _find(name)
    path: str = names.module_path(short)
    return path


def long_name(name: str) -> str:
    """Return the path that SAE folders are named by.

    Raises:
        RiebenchError: as `module_path`.
    """
    names, short = _find(name)
    path: str = names.long_name(short)
    return path


def update_path(name: str) -> str:
    """Return the path of the module that gives what a block adds.

    Raises:
        RiebenchError: as `module_path`.
    """
    names, short = _find(name)
    path: str = names.update_path(short)
    return path


def update_block(path: str) -> str | None:
    """Return the block whose update the module at a path gives, or None."""
    found = (names.update_block(path) for names in _families())
    return next((block for block in found if block is not None), None)


def kind(name: str) -> str:
    """Return what a site is: a word of `KINDS`.

    Raises:
        RiebenchError: as `short_name`.
    """
    names, short = _find(name)
    found: str = names.kind(short)
    return found


def unit_site(block: str, layer: int) -> str:
    """Return the short name of the feed-forward units of one layer of a block.

    Raises:
        RiebenchError: as `short_name`.
    """
    names, short = _find(block)
    site: str = names.unit_site(short, layer)
    return site


def block_of(site: str) -> str:
    """Return the block that a site of units or of the text stream lies in.

    Any other site is its own block.

    Raises:
        RiebenchError: as `short_name`.
    """
    names, short = _find(site)
    block: str = names.block_of(short)
    return block


def same_block(one: str, other: str) -> bool:
    """Return whether two names stand for a module at the same place.

    Families may call the blocks at one path differently: `double.3` and `block.3` are both `transformer_blocks.3`, and
    a path alone does not say of which family's model it is. A block's text stream has its path, and is another site.

    Raises:
        RiebenchError: as `short_name`.
    """
    same_path = kind(one) == kind(other) and module_path(one) == module_path(other)
    return short_name(one) == short_name(other) or same_path


def as_named(name: str, names: Iterable[str]) -> str:
    """Return the one of some names that stands for the same place as a name.

    It is the name itself if none does.

    Args:
        name: of a block.
        names: of the blocks of one model.

    Raises:
        RiebenchError: as `short_name`.
    """
    return next((one for one in names if same_block(one, name)), name)


def known_blocks() -> tuple[str, ...]:
    """Return the short names of all blocks of all families, each once."""
    return tuple(dict.fromkeys(one for names in _families() for one in names.known))


def block_prefixes() -> tuple[str, ...]:
    """Return the words that the name of a block may begin with."""
    return tuple(dict.fromkeys(one for names in _families() for one in names.prefixes))


def usual_blocks(sites: Sequence[str], family: str = DEFAULT_FAMILY) -> tuple[str, ...]:
    """Return the blocks that a model's experiments use where none are named.

    They are its family's default blocks, or all with attention where the model lacks those.

    Args:
        sites: short names of the model's blocks.
        family: of the model.
    """
    usual = tuple(block for block in default_blocks(family) if block in sites)
    return usual or tuple(site for site in sites if kind(site) == ATTENTION)


def pass_order(blocks: Iterable[str]) -> tuple[str, ...]:
    """Return blocks in the order in which a picture passes them.

    Those of the default family come first; names that are no block come last, sorted.
    """
    left = dict.fromkeys(blocks)
    found: list[str] = []
    for names in _families():
        own = [block for block in left if names.short_name(block) == block]
        found += names.pass_order(own)
        left = {block: None for block in left if block not in own}
    return (*found, *sorted(left))


def block_set_name(blocks: tuple[str, ...], usual: Sequence[str] = ()) -> str:
    """Return the name of a set of blocks that are edited together.

    It is "all", "none", or the blocks joined by "+".

    Args:
        blocks: the set.
        usual: blocks that experiments on the model use where none are named (`usual_blocks`); several of them together
            are "all", as are the default blocks of any family.
    """
    if not blocks:
        return NO_BLOCKS
    if len(blocks) > 1 and set(blocks) == set(usual):
        return ALL_BLOCKS
    return ALL_BLOCKS if any(set(blocks) == set(names.default) for names in _families()) else "+".join(blocks)


def block_set_blocks(name: str, family: str = DEFAULT_FAMILY) -> tuple[str, ...]:
    """Return the blocks of a block set's name; the inverse of `block_set_name`.

    Args:
        name: of the block set.
        family: whose default blocks "all" stands for.
    """
    if name == NO_BLOCKS:
        return ()
    return default_blocks(family) if name == ALL_BLOCKS else tuple(name.split("+"))
