"""Short names of the blocks of FLUX's transformer.

Blocks with two streams are `double.0` to `double.18`, blocks of one joined stream `single.0` to `single.37`. A block's
name stands for its image stream; its text stream is `double.3/text`. The feed-forward units of its image tokens are
`double.3.ff.0` and `single.9.ff.0`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from riebench.blocks import ATTENTION, TEXT, UNITS, unknown_block
from riebench.models.families.blocks import BlockNames

DOUBLE, SINGLE = 19, 38
"""Blocks of the full-size transformer."""
FLUX_BLOCKS: tuple[str, ...] = (
    *(f"double.{index}" for index in range(DOUBLE)), *(f"single.{index}" for index in range(SINGLE)),
)  # fmt: skip
"""All blocks in the order in which a picture passes through them."""
BLOCKS: tuple[str, ...] = ("double.18", "single.9")
"""Blocks that SAEs of FLUX.1-schnell have been published for."""
TEXT_END = "/text"
"""End of the name of a block's text stream."""

_SHORT = re.compile(r"(?P<side>double|single)\.(?P<index>\d+)(?P<rest>\.ff\.0|/text)?")
_PATH = re.compile(
    r"(?:transformer\.)?(?P<side>single_transformer_blocks|transformer_blocks)\.(?P<index>\d+)"
    r"(?P<rest>\.ff\.net\.0|\.act_mlp|/text)?"
)
_FOLDERS = {"double": "transformer_blocks", "single": "single_transformer_blocks"}
_UNITS = {"double": ".ff.net.0", "single": ".act_mlp"}


class FluxNames(BlockNames):
    """FLUX's 57 blocks, all with attention."""

    known = FLUX_BLOCKS
    default = BLOCKS
    prefixes = ("transformer", "double", "single")

    def short_name(self, name: str) -> str | None:
        """Return the short name of a module path.

        The path may begin with `transformer.`. Short names pass unchanged.
        """
        if _SHORT.fullmatch(name):
            return name
        match = _PATH.fullmatch(name)
        if match is None:
            return None
        side = "single" if match["side"].startswith("single") else "double"
        rest = match["rest"] or ""
        if rest not in ("", TEXT_END, _UNITS[side]):
            return None
        return f"{side}.{match['index']}{'.ff.0' if rest == _UNITS[side] else rest}"

    def module_path(self, short: str) -> str:
        """Return the module path inside the transformer.

        For example "transformer_blocks.3", "transformer_blocks.3.ff.net.0" or "single_transformer_blocks.9.act_mlp".
        The text stream has its block's path.
        """
        match = _SHORT.fullmatch(short)
        if match is None:
            raise unknown_block(short)
        path = f"{_FOLDERS[match['side']]}.{match['index']}"
        return path + _UNITS[match["side"]] if match["rest"] == ".ff.0" else path

    def long_name(self, short: str) -> str:
        """Return the module path with `transformer.` before it, as SAE folders have it."""
        return f"transformer.{self.module_path(short)}"

    def update_path(self, short: str) -> str:
        """Return the block's own path: no module inside it gives all that it adds."""
        return self.module_path(short)

    def update_block(self, path: str) -> str | None:
        """Return None: no module gives a block's update."""
        return None

    def kind(self, short: str) -> str:
        """Return whether a site is a block, its text stream or units."""
        if short.endswith(TEXT_END):
            return TEXT
        return UNITS if ".ff." in short else ATTENTION

    def pass_order(self, shorts: Sequence[str]) -> tuple[str, ...]:
        """Return blocks with two streams first, then those of one."""

        def place(short: str) -> tuple[int, int, str]:
            side, index = self.block_of(short).split(".")
            return ("double", "single").index(side), int(index), short

        return tuple(sorted(shorts, key=place))

    def unit_site(self, block: str, layer: int) -> str:
        """Return the short name of the feed-forward units of a block's image tokens."""
        return f"{block}.ff.{layer}"

    def block_of(self, site: str) -> str:
        """Return the block that a unit site or a text stream belongs to."""
        return site.removesuffix(TEXT_END).split(".ff.")[0]

    def reads_text(self, short: str) -> bool:
        """Return whether a block keeps its text tokens apart.

        Only there attention to them can be looked at.
        """
        return short.startswith("double.") and self.kind(short) == ATTENTION
