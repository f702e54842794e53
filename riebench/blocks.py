"""Short names of the places inside a U-Net that riebench looks at and edits.

Three kinds of site: attention blocks (`down.2.1`, `mid.0`, `up.0.1`), residual blocks (`down.2.res.1`, `mid.res.0`)
and the feed-forward units inside an attention block (`mid.0.ff.3`, the hidden units of its transformer layer 3).
"""

from __future__ import annotations

import re

from riebench.errors import RiebenchError, near_match

ATTENTION = "attention"
RESIDUAL = "residual"
UNITS = "units"

SDXL_BLOCKS: tuple[str, ...] = (
    "down.0.res.0", "down.0.res.1",
    "down.1.res.0", "down.1.0", "down.1.res.1", "down.1.1",
    "down.2.res.0", "down.2.0", "down.2.res.1", "down.2.1",
    "mid.res.0", "mid.0", "mid.res.1",
    "up.0.res.0", "up.0.0", "up.0.res.1", "up.0.1", "up.0.res.2", "up.0.2",
    "up.1.res.0", "up.1.0", "up.1.res.1", "up.1.1", "up.1.res.2", "up.1.2",
    "up.2.res.0", "up.2.res.1", "up.2.res.2",
)  # fmt: skip
"""SDXL's 28 blocks in the order in which a picture passes through them."""

_SHORT = re.compile(r"(?P<side>down|up)\.(?P<level>\d+)\.(?P<res>res\.)?(?P<index>\d+)(?:\.ff\.(?P<layer>\d+))?")
_SHORT_MID = re.compile(r"(?P<side>mid)\.(?P<res>res\.)?(?P<index>\d+)(?:\.ff\.(?P<layer>\d+))?")
_PATH = re.compile(
    r"(?:unet\.)?(?:(?P<side>down|up)_blocks\.(?P<level>\d+)|mid_block)\.(?P<kind>attentions|resnets)\.(?P<index>\d+)"
    r"(?:\.transformer_blocks\.(?P<layer>\d+)\.ff\.net\.0)?"
)


def module_path(name: str) -> str:
    """The module path inside the U-Net.

    Args:
        name: short name, path, or path with `unet.` before it.

    Returns:
        For example "down_blocks.2.attentions.1", "mid_block.resnets.0" or
        "mid_block.attentions.0.transformer_blocks.3.ff.net.0".

    Raises:
        RiebenchError: if the name follows none of the patterns; names the nearest match.
    """
    match = _SHORT.fullmatch(name) or _SHORT_MID.fullmatch(name)
    if match is None:
        return module_path(short_name(name))
    parts = match.groupdict()
    stem = "mid_block" if parts["side"] == "mid" else f"{parts['side']}_blocks.{parts['level']}"
    if parts["res"]:
        if parts["layer"] is not None:
            raise _unknown(name)
        return f"{stem}.resnets.{parts['index']}"
    layer = "" if parts["layer"] is None else f".transformer_blocks.{parts['layer']}.ff.net.0"
    return f"{stem}.attentions.{parts['index']}{layer}"


def short_name(path: str) -> str:
    """The short name of a module path; short names pass unchanged.

    Raises:
        RiebenchError: if it is neither.
    """
    if _SHORT.fullmatch(path) or _SHORT_MID.fullmatch(path):
        return path
    match = _PATH.fullmatch(path)
    if match is None:
        raise _unknown(path)
    side = f"{match['side']}.{match['level']}" if match["side"] else "mid"
    if match["kind"] == "resnets":
        if match["layer"] is not None:
            raise _unknown(path)
        return f"{side}.res.{match['index']}"
    return f"{side}.{match['index']}" + ("" if match["layer"] is None else f".ff.{match['layer']}")


def long_name(name: str) -> str:
    """The path with `unet.` before it, as SAE folders are named."""
    return f"unet.{module_path(name)}"


def kind(name: str) -> str:
    """What a site is: `ATTENTION`, `RESIDUAL` or `UNITS`."""
    short = short_name(name)
    if ".ff." in short:
        return UNITS
    return RESIDUAL if ".res." in short else ATTENTION


def unit_site(block: str, layer: int) -> str:
    """Short name of the feed-forward units of one transformer layer of an attention block."""
    return f"{short_name(block)}.ff.{layer}"


def block_of(site: str) -> str:
    """The attention block a unit site lies in; any other site is its own block."""
    return short_name(site).split(".ff.")[0]


def _unknown(name: str) -> RiebenchError:
    return RiebenchError(f"unknown block {name!r}{near_match(name, SDXL_BLOCKS)}")


BLOCKS: tuple[str, ...] = ("down.2.1", "mid.0", "up.0.0", "up.0.1")
"""The four blocks of the published experiments."""

ALL_BLOCKS = "all"
"""Name of the block set that is exactly `BLOCKS`."""

NO_BLOCKS = "none"
"""Name of the block set of methods that touch no block."""


def block_set_name(blocks: tuple[str, ...]) -> str:
    """Names a set of blocks edited together: "all", "none", or the blocks joined by "+"."""
    if not blocks:
        return NO_BLOCKS
    return ALL_BLOCKS if set(blocks) == set(BLOCKS) else "+".join(blocks)


def block_set_blocks(name: str) -> tuple[str, ...]:
    """The blocks of a block set's name; the inverse of `block_set_name`."""
    if name == NO_BLOCKS:
        return ()
    return BLOCKS if name == ALL_BLOCKS else tuple(name.split("+"))
