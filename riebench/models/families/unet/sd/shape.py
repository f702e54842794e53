"""Sizes of Stable Diffusion 1 and 2, known without reading their weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from riebench.models.families.unet.sd.names import SD_BLOCKS
from riebench.models.families.unet.shape import Layers, UNetShape

PARTS = ("unet", "text_encoder", "vae")
SD1_PARAMETERS = {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480}
"""Part -> number of parameters of Stable Diffusion 1.5."""
SD2_PARAMETERS = {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840}
"""The same of Stable Diffusion 2.1 and SD-Turbo."""
LARGEST_LAYER = 49_408 * 1024
"""Parameters of the largest single layer: the token table of Stable Diffusion 2's text encoder."""
UNET_TENSORS = 26
"""Tensors of the U-Net's finest level that are in memory at its peak."""
SD2_TEXT, SD2_SIDE = 1024, 96


@dataclass(frozen=True)
class SdShape(UNetShape):
    """Measures of a model like Stable Diffusion 1 or 2; the defaults are those of 1.5."""

    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers: Layers = (1, 1, 1, 1)
    up_layers: Layers | None = None
    text_width: int = 768
    vae_factor: int = 8
    vae_width: int = 256
    sample: int = 64
    blocks: tuple[str, ...] = SD_BLOCKS
    parameters: Mapping[str, int] = field(default_factory=lambda: SD1_PARAMETERS)
    parts: ClassVar[tuple[str, ...]] = PARTS
    largest_layer: ClassVar[int] = LARGEST_LAYER
    unet_tensors: ClassVar[int] = UNET_TENSORS


SD15 = SdShape()
"""Stable Diffusion 1.5."""
SD_TURBO = SdShape(text_width=SD2_TEXT, parameters=SD2_PARAMETERS)
"""SD-Turbo."""
SD21 = SdShape(text_width=SD2_TEXT, sample=SD2_SIDE, parameters=SD2_PARAMETERS)
"""Stable Diffusion 2.1 for 768 px."""
PRESET_SHAPES = {"sd15": SD15, "sd21": SD21, "sd-turbo": SD_TURBO}
"""Preset -> its measures."""
