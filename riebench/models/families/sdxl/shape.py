"""Sizes and work of SDXL-like models, known without reading their weights.

Operations and activations follow, rounded, what `benchmarks.sdxl.counting` counts on SDXL's full architecture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from riebench.models.families.sdxl.names import SdxlNames
from riebench.models.families.unet import shape
from riebench.models.families.unet.shape import DECODER_TERAFLOP, UNetShape

__all__ = ["DECODER_TERAFLOP", "SDXL", "folder_shape", "unet_shape"]

PARTS = ("unet", "text_encoder", "text_encoder_2", "vae")
PARAMETERS = {"unet": 2_567_463_684, "vae": 83_653_863, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840}
"""Part -> number of parameters of the full-size model."""
LARGEST_LAYER = 49_408 * 1280
"""Parameters of the largest single layer: the second text encoder's token table."""
UNET_TERAFLOP = 6.5
"""Work of one call of the full-size U-Net on one picture of 1024 px; scaled by parameters and latents."""
UNET_TENSORS = 16
"""Tensors of the U-Net's finest level that are in memory at its peak."""


@dataclass(frozen=True)
class SdxlShape(UNetShape):
    """Measures of an SDXL-like model.

    The defaults are SDXL's own, as counted on its full architecture.
    """

    channels: tuple[int, ...] = (320, 640, 1280)
    layers: shape.Layers = (1, 2, 10)
    up_layers: shape.Layers | None = None
    text_width: int = 2048
    vae_factor: int = 8
    vae_width: int = 256
    sample: int = 128
    blocks: tuple[str, ...] = SdxlNames.known
    parameters: Mapping[str, int] = field(default_factory=lambda: PARAMETERS)
    parts: ClassVar[tuple[str, ...]] = PARTS
    largest_layer: ClassVar[int] = LARGEST_LAYER
    unet_tensors: ClassVar[int] = UNET_TENSORS

    def evaluation_teraflop(self, size: int) -> float:
        """Return the work of one call of the U-Net on one picture of a side in pixels."""
        latents = (size // self.vae_factor / SDXL.sample) ** 2
        return UNET_TERAFLOP * latents * self.parameters["unet"] / SDXL.parameters["unet"]


SDXL = SdxlShape()
"""SDXL Turbo and SDXL Base alike."""


def folder_shape(folder: Path) -> SdxlShape:
    """Return the measures of a model folder in diffusers' layout.

    They are read from its configurations and its files' headers.

    Raises:
        RiebenchError: if a configuration or weights file is missing or cannot be read.
    """
    return shape.folder_shape(folder, SDXL)


def unet_shape(config: Mapping[str, Any], vae_factor: int) -> SdxlShape:
    """Return the measures that matter for captures, of a U-Net in memory.

    Args:
        config: the U-Net's.
        vae_factor: pixels per latent position along a side.
    """
    return shape.unet_shape(config, vae_factor, SDXL)
