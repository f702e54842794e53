"""Sizes and work of models around a U-Net, known without reading their weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from riebench.blocks import ATTENTION, kind, short_name
from riebench.errors import RiebenchError
from riebench.models.families.folders import count_parameters
from riebench.models.families.sizes import FLOAT, number_bytes
from riebench.models.families.unet.work import unet_operations
from riebench.models.spec import FP16_FIX, TILE, ModelOptions, ModelSpec

FEED_FORWARD = 4
"""A feed-forward layer has this many times as many units as its block has channels."""
LATENT_CHANNELS = 4
TOKENS = 77
"""Tokens of a text, so of a text attention map."""
DECODER_TERAFLOP, DECODED_SIZE, DECODER_PARAMETERS = 10.5, 1024, 83_653_863
"""Work of decoding one picture of a side in pixels with the full-size autoencoder, and its parameters."""
DECODER_TENSORS = 3
"""Tensors of full resolution that are in memory while the last level of the decoder runs."""
MAX_DECODED = 64
"""Latents up to this side are decoded as a batch; larger ones one by one: the decoder needs far more memory than the
U-Net, and a batch gains nothing."""
Layers = tuple[int | tuple[int, ...], ...]
"""Transformer layers of an attention block, level by level; several where the blocks of a level differ."""


@dataclass(frozen=True)
class UNetShape:
    """Measures of a model around a U-Net.

    Attributes:
        channels: of the U-Net, level by level from the finest grid to the coarsest.
        layers: transformer layers of an attention block, level by level; several where the blocks of a level differ.
        up_layers: the same on the way up, from the coarsest level on; None if it mirrors the way down.
        text_width: numbers of a text token.
        vae_factor: pixels per latent position along a side.
        vae_width: channels of the widest tensor that the decoder keeps at full resolution.
        sample: side of the latents that the model was made for.
        blocks: short names of its blocks.
        parameters: a name of `parts` -> its number of parameters.
        parts: folders with weights.
        largest_layer: parameters of the largest single layer of the full-size model.
        unet_tensors: tensors of the U-Net's finest level that are in memory at its peak.
    """

    channels: tuple[int, ...]
    layers: Layers
    up_layers: Layers | None
    text_width: int
    vae_factor: int
    vae_width: int
    sample: int
    blocks: tuple[str, ...]
    parameters: Mapping[str, int]
    parts: ClassVar[tuple[str, ...]]
    largest_layer: ClassVar[int]
    unet_tensors: ClassVar[int]

    @property
    def size_step(self) -> int:
        """Number of pixels that a picture's side is a multiple of."""
        return self.vae_factor

    @property
    def native_size(self) -> int:
        """Picture side in pixels that the model was made for."""
        return self.sample * self.vae_factor

    @property
    def tokens(self) -> int:
        """Text tokens that an attention map has."""
        return TOKENS

    @property
    def max_decoded(self) -> int:
        """Side of the largest latents that are decoded as a batch."""
        return MAX_DECODED

    def calls(self, guidance: float) -> int:
        """Return how often each picture is evaluated in a step: twice under guidance."""
        return 2 if guidance > 1 else 1

    def level(self, block: str) -> int:
        """Return the level that a block lies on; 0 is the finest grid."""
        parts = short_name(block).split(".")
        last = len(self.channels) - 1
        if parts[0] == "mid":
            return last
        found = int(parts[1]) if parts[0] == "down" else last - int(parts[1])
        return min(max(found, 0), last)

    def width(self, block: str) -> int:
        """Return the channels of a block's update."""
        return self.channels[self.level(block)]

    def positions(self, block: str, size: int) -> int:
        """Return the positions of a block's grid for pictures of a side in pixels."""
        # Each level begins with a convolution that rounds an odd side up.
        return int((-(-(size // self.vae_factor) // 2 ** self.level(block))) ** 2)

    def units(self, block: str) -> int:
        """Return the feed-forward units of a block, over all its layers.

        Returns 0 for residual blocks.
        """
        if kind(block) != ATTENTION:
            return 0
        return self.depth(block) * FEED_FORWARD * self.width(block)

    def depth(self, block: str) -> int:
        """Return the transformer layers of an attention block."""
        parts = short_name(block).split(".")
        up = self.up_layers if parts[0] == "up" else None
        depth = self.layers[self.level(block)] if up is None else up[min(int(parts[1]), len(up) - 1)]
        return depth if isinstance(depth, int) else depth[min(int(parts[-1]), len(depth) - 1)]

    def prefix_numbers(self, size: int, steps: int, blocks: Sequence[str], starts: int) -> int:
        """Return how many numbers edited runs can share with one source run.

        See `Shape.prefix_numbers`.
        """
        latents = (size // self.vae_factor) ** 2
        grids = [latents // 4**level for level in range(len(self.channels))]
        # What upward blocks read: the first convolution, two blocks a level, and the way down to the next level.
        skips = self.channels[0] * latents + sum(2 * c * grid for c, grid in zip(self.channels, grids, strict=True))
        skips += sum(c * grid for c, grid in zip(self.channels[:-1], grids[1:], strict=True))
        # The input of such a block may be that of two joined; beside it lies its update.
        kept = sum(2 * self.width(block) * self.positions(block, size) for block in blocks)
        return LATENT_CHANNELS * latents * steps + starts * (skips + kept)

    def activation_bytes(self, model: ModelSpec, options: ModelOptions, batch_size: int) -> int:
        """Return the peak bytes of activations while so many pictures are made at once."""
        latents = model.size // self.vae_factor
        rows = batch_size * (2 if model.guidance > 1 else 1)
        unet = rows * latents**2 * self.channels[0] * self.unet_tensors * number_bytes(model.dtype)
        decoded = batch_size if latents <= MAX_DECODED and not options.vae_slicing else 1
        side = min(model.size, TILE) if options.vae_tiling else model.size
        width = number_bytes(model.dtype) if options.vae == FP16_FIX else FLOAT
        return max(unet, decoded * side**2 * self.vae_width * DECODER_TENSORS * width)

    def weight_bytes(self, dtype: str, options: ModelOptions | None = None) -> int:
        """Return the device memory for weights alone.

        The autoencoder counts in float32 unless it is the one made for float16.

        Args:
            dtype: number format of U-Net and text encoders.
            options: how the model is loaded.
        """
        chosen = options or ModelOptions()
        width = number_bytes(dtype)
        vae_width = width if chosen.vae == FP16_FIX else FLOAT
        sizes = {part: self.parameters[part] * (vae_width if part == "vae" else width) for part in self.parts}
        if chosen.offload == "sequential":
            return self.largest_layer * width
        return max(sizes.values()) if chosen.offload == "model" else sum(sizes.values())

    def evaluation_teraflop(self, size: int) -> float:
        """Return the work of one call of the U-Net on one picture of a side in pixels."""
        return unet_operations(self, size // self.vae_factor) / 1e12

    def decoding_teraflop(self, size: int) -> float:
        """Return the work of decoding one picture of a side in pixels."""
        pixels = (size / DECODED_SIZE) ** 2
        return DECODER_TERAFLOP * pixels * self.parameters["vae"] / DECODER_PARAMETERS


Kind = TypeVar("Kind", bound=UNetShape)


def folder_shape(folder: Path, full: Kind) -> Kind:
    """Return the measures of a model folder in diffusers' layout.

    They are read from its configurations and its files' headers.

    Args:
        folder: of the model.
        full: the full-size model of its family, for what the configurations leave out.

    Raises:
        RiebenchError: if a configuration or weights file is missing or cannot be read.
    """
    unet, vae = (_config(folder / part / "config.json") for part in ("unet", "vae"))
    widths = [int(width) for width in vae["block_out_channels"]]
    return type(full)(
        **_network(unet, full),
        vae_factor=2 ** (len(widths) - 1),
        vae_width=widths[min(1, len(widths) - 1)],
        sample=_sample(unet, full),
        blocks=_blocks(unet),
        parameters={part: count_parameters(folder / part) for part in full.parts},
    )


def described_size(folder: Path, full: UNetShape) -> int:
    """Return the picture side in pixels of a folder whose weights need not be there.

    Raises:
        RiebenchError: if a configuration is missing or cannot be read.
    """
    unet, vae = (_config(folder / part / "config.json") for part in ("unet", "vae"))
    return _sample(unet, full) * int(2 ** (len(vae["block_out_channels"]) - 1))


def unet_shape(config: Mapping[str, Any], vae_factor: int, full: Kind) -> Kind:
    """Return the measures that matter for captures, of a U-Net in memory.

    Args:
        config: the U-Net's.
        vae_factor: pixels per latent position along a side.
        full: the full-size model of its family, for all else.
    """
    return replace(full, vae_factor=vae_factor, **_network(config, full))


def _network(config: Mapping[str, Any], full: UNetShape) -> dict[str, Any]:
    """Return the fields of a shape that a U-Net's configuration states."""
    channels = tuple(int(width) for width in config["block_out_channels"])
    text = config.get("cross_attention_dim") or full.text_width
    width = max(text) if isinstance(text, list | tuple) else text
    return {"channels": channels, "text_width": int(width), **_depths(config, len(channels))}


def _depths(config: Mapping[str, Any], levels: int) -> dict[str, Any]:
    """Return the transformer layers of a U-Net, as the fields of a shape."""

    def listed(values: Any) -> Layers:
        each = values if isinstance(values, list | tuple) else [values] * levels
        return tuple(tuple(map(int, one)) if isinstance(one, list | tuple) else int(one) for one in each)

    up = config.get("reverse_transformer_layers_per_block")
    down = listed(config.get("transformer_layers_per_block", 1))
    return {"layers": down, "up_layers": None if up is None else listed(up)}


def _sample(unet: Mapping[str, Any], full: UNetShape) -> int:
    side = unet.get("sample_size") or full.sample
    # Pictures are square; where the model's are not, the side has to be given.
    return int(min(side) if isinstance(side, list) else side)


def _blocks(unet: Mapping[str, Any]) -> tuple[str, ...]:
    layers = unet.get("layers_per_block", 2)
    down, up = unet["down_block_types"], unet["up_block_types"]
    counts = list(layers) if isinstance(layers, list) else [int(layers)] * len(down)
    middle = unet.get("mid_block_type", "UNetMidBlock2DCrossAttn")
    names: list[str] = []
    for side, types, numbers in (
        ("down", down, counts), ("mid", [middle] if middle else [], [1]), ("up", up, [n + 1 for n in counts[::-1]]),
    ):  # fmt: skip
        for level, (block_type, count) in enumerate(zip(types, numbers, strict=False)):
            stem = side if side == "mid" else f"{side}.{level}"
            attended = "CrossAttn" in block_type
            # Without attention, the middle is one residual block and its twin, as with it.
            residual = count + 1 if side == "mid" else count
            names += [f"{stem}.res.{index}" for index in range(residual)]
            names += [f"{stem}.{index}" for index in range(count) if attended]
    return tuple(names)


def _config(path: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        config["block_out_channels"], config["down_block_types"], config["up_block_types"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RiebenchError(f"{path} cannot be read ({error}); fetch the model folder again") from error
    return config
