"""The parts of Stable Diffusion's pipeline, and what it changes in silence."""

from __future__ import annotations

import re
from pathlib import Path

from riebench.errors import RiebenchError
from riebench.models.families.folders import read_json
from riebench.models.families.unet.configuration import Architecture, check_configs

SDXL_FACTOR = 0.13025
"""The `scaling_factor` of SDXL's autoencoder."""
SD_PARTS = Architecture(
    "Stable Diffusion", {"text_encoder": "CLIPTextModel"}, addition=None, channel_spread=False,
    other_factors=((SDXL_FACTOR, "SDXL"),),
)  # fmt: skip
"""One text encoder, and nothing beside time and text."""
SMALLEST_SIDE, OLD_VERSION = 64, (0, 9)
"""The pipeline takes a smaller side for this one in files of an older diffusers."""


def check_folder(folder: Path, shown: str) -> None:
    """Refuse a folder that asks for something that would not be done.

    Raises:
        RiebenchError: in one line, naming file and key.
    """
    check_configs(folder, shown, SD_PARTS)
    file = SD_PARTS.files["unet"]
    config = read_json(folder / file)
    version = re.match(r"(\d+)\.(\d+)", str(config.get("_diffusers_version", "")))
    side = config.get("sample_size")
    if version and (int(version[1]), int(version[2])) < OLD_VERSION and isinstance(side, int) and side < SMALLEST_SIDE:
        raise RiebenchError(
            f"{shown}: {file} says sample_size {side} and _diffusers_version {config['_diffusers_version']}, which the "
            f"pipeline takes for {SMALLEST_SIDE}; write the side that the model was made for, and leave the version out"
        )
