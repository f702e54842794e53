"""The parts of SDXL's pipeline."""

from __future__ import annotations

from riebench.models.families.unet.configuration import POOLED, Architecture

SDXL_PARTS = Architecture(
    "SDXL", {"text_encoder": "CLIPTextModel", "text_encoder_2": "CLIPTextModelWithProjection"}, addition=POOLED
)
"""Two text encoders, the second of which gives the pooled text."""
