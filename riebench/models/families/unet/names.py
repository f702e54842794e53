"""Short names of the blocks of a U-Net.

Three kinds of site: attention blocks (`down.2.1`, `mid.0`, `up.0.1`), residual blocks (`down.2.res.1`, `mid.res.0`)
and the feed-forward units inside an attention block (`mid.0.ff.3`, the hidden units of its transformer layer 3).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from riebench.blocks import ATTENTION, RESIDUAL, UNITS, unknown_block
from riebench.models.families.blocks import BlockNames

_SHORT = re.compile(r"(?P<side>down|up)\.(?P<level>\d+)\.(?P<res>res\.)?(?P<index>\d+)(?:\.ff\.(?P<layer>\d+))?")
_SHORT_MID = re.compile(r"(?P<side>mid)\.(?P<res>res\.)?(?P<index>\d+)(?:\.ff\.(?P<layer>\d+))?")
_PATH = re.compile(
    r"(?:unet\.)?(?:(?P<side>down|up)_blocks\.(?P<level>\d+)|mid_block)\.(?P<kind>attentions|resnets)\.(?P<index>\d+)"
    r"(?:\.transformer_blocks\.(?P<layer>\d+)\.ff\.net\.0)?"
)


class UNetNames(BlockNames):
    """Names that hold for every U-Net; which blocks there are, each family says."""

    known: tuple[str, ...] = ()
    default: tuple[str, ...] = ()
    prefixes = ("unet", "down", "mid", "up")

    def short_name(self, name: str) -> str | None:
        """Return the short name of a module path, with or without `unet.` before it.

        Short names pass unchanged.
        """
        if _SHORT.fullmatch(name) or _SHORT_MID.fullmatch(name):
            return name
        match = _PATH.fullmatch(name)
        if match is None or (match["kind"] == "resnets" and match["layer"] is not None):
            return None
        side = f"{match['side']}.{match['level']}" if match["side"] else "mid"
        if match["kind"] == "resnets":
            return f"{side}.res.{match['index']}"
        return f"{side}.{match['index']}" + ("" if match["layer"] is None else f".ff.{match['layer']}")

    def module_path(self, short: str) -> str:
        """Return the module path inside the U-Net.

        For example "down_blocks.2.attentions.1", "mid_block.resnets.0" or
        "mid_block.attentions.0.transformer_blocks.3.ff.net.0".

        Raises:
            RiebenchError: for feed-forward units of a residual block, which has none.
        """
        match = _SHORT.fullmatch(short) or _SHORT_MID.fullmatch(short)
        if match is None:
            raise unknown_block(short)
        parts = match.groupdict()
        stem = "mid_block" if parts["side"] == "mid" else f"{parts['side']}_blocks.{parts['level']}"
        if parts["res"]:
            if parts["layer"] is not None:
                raise unknown_block(short)
            return f"{stem}.resnets.{parts['index']}"
        layer = "" if parts["layer"] is None else f".transformer_blocks.{parts['layer']}.ff.net.0"
        return f"{stem}.attentions.{parts['index']}{layer}"

    def long_name(self, short: str) -> str:
        """Return the path with `unet.` before it, as SAE folders are named."""
        return f"unet.{self.module_path(short)}"

    def update_path(self, short: str) -> str:
        """Return the path of an attention block's last projection.

        It gives exactly what the block adds. For other sites it is their own path.
        """
        path = self.module_path(short)
        return f"{path}.proj_out" if self.kind(short) == ATTENTION else path

    def update_block(self, path: str) -> str | None:
        """Return the attention block whose last projection a path is, or None."""
        stem = path.removesuffix(".proj_out")
        return None if stem == path else self.short_name(stem)

    def kind(self, short: str) -> str:
        """Return whether a site is an attention block, a residual block or units."""
        if ".ff." in short:
            return UNITS
        return RESIDUAL if ".res." in short else ATTENTION

    def pass_order(self, shorts: Sequence[str]) -> tuple[str, ...]:
        """Return blocks on the way down, in the middle and on the way up.

        Each residual block precedes its attention block.
        """

        def place(short: str) -> tuple[int, ...]:
            side, *numbers = short.split(".")
            level = int(numbers[0]) if side != "mid" else 0
            return ("down", "mid", "up").index(side), level, 2 * int(numbers[-1]) + ("res" not in numbers)

        return tuple(sorted(shorts, key=place))

    def unit_site(self, block: str, layer: int) -> str:
        """Return the short name of the feed-forward units of one transformer layer."""
        return f"{block}.ff.{layer}"

    def block_of(self, site: str) -> str:
        """Return the attention block that a unit site lies in.

        Any other site is its own block.
        """
        return site.split(".ff.")[0]
