"""Short names of the blocks of a transformer, from a table of its lists of blocks.

A block is named by its list and its index, as in `double.3`; the name stands for its image stream. Its text stream is
`double.3/text`, and the feed-forward units of its image tokens are `double.3.ff.0`.

Names are looked up without a model. `transformer_blocks` is the path of a list in several families: those with two
streams call it `double`, and a path alone is read so; on a model that calls it otherwise the same block is found by its
path (`riebench.blocks.as_named`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from riebench.blocks import ATTENTION, TEXT, UNITS, unknown_block
from riebench.models.families.blocks import BlockNames

TEXT_END = "/text"
"""End of the name of a block's text stream."""
UNITS_END = ".ff.0"
"""End of the name of a block's feed-forward units."""


@dataclass(frozen=True)
class BlockList:
    """One list of blocks of a transformer.

    Attributes:
        side: the word that short names begin with.
        folder: its path inside the transformer.
        count: its blocks in the full-size model.
        units: path of the feed-forward units inside a block, for example "ff.net.0".
        has_text: whether a block gives a text stream.
        reads_text: whether attention of its image tokens to the text can be read.
        counted: the field of the family's `Shape` that counts its blocks.
    """

    side: str
    folder: str
    count: int
    units: str
    has_text: bool = True
    reads_text: bool = True
    counted: str = "layers"

    @property
    def blocks(self) -> tuple[str, ...]:
        """Short names of its blocks in the full-size model."""
        return tuple(f"{self.side}.{index}" for index in range(self.count))


class TokenNames(BlockNames):
    """Names of the blocks of a transformer, all with attention.

    Args:
        lists: in the order in which a picture passes them.
        default: blocks of the published experiments; all of them where none are named.
    """

    def __init__(self, lists: Sequence[BlockList], default: Sequence[str] = ()) -> None:
        self.lists = {one.side: one for one in lists}
        self.known = tuple(name for one in lists for name in one.blocks)
        self.default = tuple(default) or self.known
        self.prefixes = ("transformer", *self.lists)
        folders = sorted((re.escape(one.folder) for one in lists), key=len, reverse=True)
        units = "|".join(sorted({re.escape(f".{one.units}") for one in lists}))
        self._sides = {one.folder: one.side for one in lists}
        self._short = re.compile(rf"(?P<side>{'|'.join(self.lists)})\.(?P<index>\d+)(?P<rest>\.ff\.0|/text)?")
        self._path = re.compile(
            rf"(?:transformer\.)?(?P<folder>{'|'.join(folders)})\.(?P<index>\d+)(?P<rest>{units}|/text)?"
        )

    def short_name(self, name: str) -> str | None:
        """Return the short name of a module path.

        The path may begin with `transformer.`. Short names pass unchanged.
        """
        match = self._short.fullmatch(name)
        if match is not None:
            return name if match["rest"] != TEXT_END or self.lists[match["side"]].has_text else None
        match = self._path.fullmatch(name)
        if match is None:
            return None
        side = self._sides[match["folder"]]
        known, rest = self.lists[side], match["rest"] or ""
        if not rest or (rest == TEXT_END and known.has_text):
            return f"{side}.{match['index']}{rest}"
        return f"{side}.{match['index']}{UNITS_END}" if rest == f".{known.units}" else None

    def module_path(self, short: str) -> str:
        """Return the module path inside the transformer.

        For example "transformer_blocks.3" or "transformer_blocks.3.ff.net.0". The text stream has its block's path.
        """
        match = self._short.fullmatch(short)
        if match is None:
            raise unknown_block(short)
        known = self.lists[match["side"]]
        path = f"{known.folder}.{match['index']}"
        return f"{path}.{known.units}" if match["rest"] == UNITS_END else path

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
        """Return blocks list by list, each by its index."""
        sides = list(self.lists)

        def place(short: str) -> tuple[int, int, str]:
            side, index = self.block_of(short).split(".")
            return sides.index(side), int(index), short

        return tuple(sorted(shorts, key=place))

    def unit_site(self, block: str, layer: int) -> str:
        """Return the short name of the feed-forward units of a block's image tokens."""
        return f"{block}.ff.{layer}"

    def block_of(self, site: str) -> str:
        """Return the block that a unit site or a text stream belongs to."""
        return site.removesuffix(TEXT_END).split(".ff.")[0]

    def reads_text(self, short: str) -> bool:
        """Return whether attention of a block's image tokens to the text can be read."""
        return self.kind(short) == ATTENTION and self.lists[short.split(".")[0]].reads_text
