"""What a folder of collected updates says of itself."""

from __future__ import annotations

from pydantic import Field, field_validator

from riebench.blocks import short_name
from riebench.models.spec import ModelSpec
from riebench.tasks.schema import Stored

NUMBER_BYTES = 2
"""Bytes of a stored number, float16."""
SEED_STRIDE = 1_000_003
SEED_RULE = f"picture i, counted from 0, has noise of its own: seed * {SEED_STRIDE} + i"
LARGEST_SEED = 2**43
"""Of a folder; noise has seeds below 2**63."""


class BlockLayout(Stored):
    """What a picture gives of one block."""

    width: int = Field(ge=1)
    """Channels d."""
    rows: int = Field(ge=1)
    """Rows of a picture: steps x grid positions, step after step."""

    @property
    def bytes_per_picture(self) -> int:
        """Size of a picture's rows."""
        return self.width * self.rows * NUMBER_BYTES

    @property
    def bytes_per_million(self) -> int:
        """Size of a million positions."""
        return self.width * NUMBER_BYTES * 1_000_000


class CollectionIndex(Stored):
    """What one folder holds; every shard of it is made alike."""

    version: int = 1
    model: ModelSpec
    signal: str = "update"
    blocks: dict[str, BlockLayout]
    seed: int = Field(ge=0)
    seed_rule: str = SEED_RULE
    pictures_per_shard: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    """Pictures generated at a time: numbers depend on it by floating-point noise."""
    dtype: str = "float16"

    @field_validator("blocks")
    @classmethod
    def _short_names(cls, blocks: dict[str, BlockLayout]) -> dict[str, BlockLayout]:
        # They are folder names too, and an index may come from anywhere.
        if not blocks or any(short_name(block) != block for block in blocks):
            raise ValueError("blocks go by their short names")
        return blocks

    def seed_of(self, picture: int) -> int:
        """The seed of a picture's noise."""
        return self.seed * SEED_STRIDE + picture

    def checked(self, shard: Shard) -> Shard:
        """The shard, if its files can be those of this folder: one a block, and each large enough for its pictures.

        Raises:
            ValueError: if they cannot.
        """
        if shard.files.keys() != self.blocks.keys():
            raise ValueError("it has other blocks than the folder")
        if any(file.bytes < shard.pictures * self.blocks[name].bytes_per_picture for name, file in shard.files.items()):
            raise ValueError("it claims more pictures than its files hold")
        return shard

    def difference(self, other: CollectionIndex) -> str:
        """What another one has otherwise, in words; "" for nothing. Two names for the same weights are one model."""
        mine, theirs = (
            {
                **index.model_dump(mode="json", exclude={"model"}),
                **{f"model {name}": value for name, value in index.model.identity.items()},
            }
            for index in (self, other)
        )
        differing = [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]
        return ", ".join(f"{name} is {_short(mine.get(name))}, not {_short(theirs.get(name))}" for name in differing)


class ShardFile(Stored):
    """One file of a shard."""

    bytes: int
    sha256: str


class Shard(Stored):
    """One finished shard."""

    number: int = Field(ge=0)
    pictures: int = Field(ge=1)
    prompts_sha256: str
    files: dict[str, ShardFile]
    """Block -> its file."""


def _short(value: object) -> str:
    text = "+".join(value) if isinstance(value, dict) else str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."
