"""The blocks of a model and its sizes, known without its weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from riebench.blocks import usual_blocks
from riebench.models.families.base import Family
from riebench.models.families.sizes import Shape
from riebench.models.spec import ModelOptions, ModelSpec


@dataclass(frozen=True)
class Block:
    """One block of a model.

    Attributes:
        name: short name.
        kind: a word of `riebench.blocks.KINDS`.
        path: of its module inside the denoiser.
        channels: of its update.
        positions: of its grid.
        units: feed-forward units over all its layers; 0 if there are none.
        usual: whether experiments edit it where no blocks are named.
    """

    name: str
    kind: str
    path: str
    channels: int
    positions: int
    units: int
    usual: bool


@dataclass(frozen=True)
class ModelBlocks:
    """The blocks of a model, and what it takes to run it.

    Attributes:
        model: its name.
        family: what people call its family.
        size: picture side in pixels.
        dtype: number format of denoiser and text encoders.
        here: whether its files are on this machine; otherwise the numbers are the official model's.
        blocks: in the order in which a picture passes them.
        parameters: part -> its parameters.
        weight_bytes: of all parts together.
        activation_bytes: at the peak while one picture is made.
        teraflop: of one evaluation of the denoiser on one picture.
    """

    model: str
    family: str
    size: int
    dtype: str
    here: bool
    blocks: tuple[Block, ...]
    parameters: dict[str, int]
    weight_bytes: int
    activation_bytes: int
    teraflop: float

    def as_json(self) -> dict[str, Any]:
        """Return all of it as JSON can hold it."""
        return asdict(self)


def list_blocks(family: Family, shape: Shape, spec: ModelSpec, *, here: bool) -> ModelBlocks:
    """Return a model's blocks and sizes.

    Args:
        family: of the model.
        shape: its measures.
        spec: its name, picture side and number format.
        here: whether its files are on this machine.
    """
    usual, options, names = usual_blocks(shape.blocks, family.name), ModelOptions(), family.names
    blocks = tuple(
        Block(name, names.kind(name), names.module_path(name), shape.width(name), shape.positions(name, spec.size),
              shape.units(name), name in usual)
        for name in names.pass_order(shape.blocks)
    )  # fmt: skip
    return ModelBlocks(
        spec.name, family.title, spec.size, spec.dtype, here, blocks, dict(shape.parameters),
        shape.weight_bytes(spec.dtype, options), shape.activation_bytes(spec, options, 1),
        shape.evaluation_teraflop(spec.size),
    )  # fmt: skip
