"""What a generating model looks like from outside: channels, grids and sizes, known without reading its weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from riebench.blocks import ATTENTION, SDXL_BLOCKS, kind, short_name
from riebench.errors import RiebenchError
from riebench.models.presets import PARAMETERS, PARTS

FEED_FORWARD = 4
"""A feed-forward layer has this many times as many units as its block has channels."""


@dataclass(frozen=True)
class Shape:
    """An SDXL-like model's measures; the defaults are SDXL's own, as counted on its full architecture.

    Attributes:
        channels: of the U-Net, level by level from the finest grid to the coarsest.
        layers: transformer layers of an attention block, level by level.
        vae_factor: pixels per latent position along a side.
        vae_width: channels of the widest tensor that the decoder keeps at full resolution.
        sample: side of the latents that the model was made for.
        blocks: short names of its blocks.
        parameters: a name of `riebench.models.presets.PARTS` -> its number of parameters.
    """

    channels: tuple[int, ...] = (320, 640, 1280)
    layers: tuple[int, ...] = (1, 2, 10)
    vae_factor: int = 8
    vae_width: int = 256
    sample: int = 128
    blocks: tuple[str, ...] = SDXL_BLOCKS
    parameters: Mapping[str, int] = field(default_factory=lambda: PARAMETERS)

    def level(self, block: str) -> int:
        """Which level a block lies on; 0 is the finest grid."""
        parts = short_name(block).split(".")
        last = len(self.channels) - 1
        if parts[0] == "mid":
            return last
        found = int(parts[1]) if parts[0] == "down" else last - int(parts[1])
        return min(max(found, 0), last)

    def width(self, block: str) -> int:
        """Channels of a block's update."""
        return self.channels[self.level(block)]

    def positions(self, block: str, size: int) -> int:
        """Positions of a block's grid for pictures of a side in pixels."""
        return int((size // self.vae_factor // 2 ** self.level(block)) ** 2)

    def units(self, block: str) -> int:
        """Feed-forward units of an attention block, over all its layers; 0 for residual blocks."""
        if kind(block) != ATTENTION:
            return 0
        return self.layers[self.level(block)] * FEED_FORWARD * self.width(block)


SDXL = Shape()
"""SDXL Turbo and SDXL Base alike."""


def folder_shape(folder: Path) -> Shape:
    """The measures of a model folder in diffusers' layout, from its configurations and its files' headers.

    Raises:
        RiebenchError: if a configuration or weights file is missing or cannot be read.
    """
    unet, vae = (_config(folder / part / "config.json") for part in ("unet", "vae"))
    channels = tuple(int(width) for width in unet["block_out_channels"])
    depth = unet.get("transformer_layers_per_block", 1)
    widths = [int(width) for width in vae["block_out_channels"]]
    return Shape(
        channels=channels,
        layers=tuple(depth) if isinstance(depth, list) else (int(depth),) * len(channels),
        vae_factor=2 ** (len(widths) - 1),
        vae_width=widths[min(1, len(widths) - 1)],
        sample=int(unet.get("sample_size") or SDXL.sample),
        blocks=_blocks(unet),
        parameters={part: _parameters(folder / part) for part in PARTS},
    )


def unet_shape(config: Mapping[str, Any], vae_factor: int) -> Shape:
    """The measures that matter for captures, from the configuration of a U-Net in memory.

    Args:
        config: the U-Net's.
        vae_factor: pixels per latent position along a side.
    """
    channels = tuple(int(width) for width in config["block_out_channels"])
    depth = config.get("transformer_layers_per_block", 1)
    layers = tuple(depth) if isinstance(depth, list | tuple) else (int(depth),) * len(channels)
    return Shape(channels=channels, layers=layers, vae_factor=vae_factor)


def _blocks(unet: Mapping[str, Any]) -> tuple[str, ...]:
    layers = unet.get("layers_per_block", 2)
    names: list[str] = []
    for side, types, count in (
        ("down", unet["down_block_types"], layers), ("mid", [unet.get("mid_block_type") or ""], 1),
        ("up", unet["up_block_types"], layers + 1),
    ):  # fmt: skip
        for level, block_type in enumerate(types):
            stem = side if side == "mid" else f"{side}.{level}"
            residual = count + 1 if side == "mid" else count
            names += [f"{stem}.res.{index}" for index in range(residual)]
            names += [f"{stem}.{index}" for index in range(count) if "CrossAttn" in block_type]
    return tuple(names)


def _config(path: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        config["block_out_channels"], config["down_block_types"], config["up_block_types"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RiebenchError(f"{path} cannot be read ({error}); fetch the model folder again") from error
    return config


def _parameters(folder: Path) -> int:
    files = sorted(folder.glob("*.safetensors"))
    # A folder may hold the same weights in two formats; shards of one format belong together.
    half = [file for file in files if ".fp16" in file.name]
    chosen = half if half and len(half) < len(files) else files
    if not chosen:
        raise RiebenchError(f"{folder} holds no *.safetensors; fetch the model folder again")
    return sum(prod(shape) for file in chosen for shape in tensor_shapes(file).values())


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape of a safetensors file, from its header alone.

    Raises:
        RiebenchError: if it is no such file, for instance a Git-LFS pointer.
    """
    with path.open("rb") as file:
        start = file.read(40)
        if start.startswith(b"version https://git-lfs"):
            raise RiebenchError(f"{path} is a Git-LFS pointer, not the file; run `git lfs pull` where it came from")
        try:
            length = int.from_bytes(start[:8], "little")
            if len(start) < 8 or length > path.stat().st_size:
                raise ValueError("it is cut off")
            file.seek(8)
            header = json.loads(file.read(length))
            return {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
        except (ValueError, KeyError, TypeError) as error:
            raise RiebenchError(f"{path} is damaged ({error}); fetch it again") from error
