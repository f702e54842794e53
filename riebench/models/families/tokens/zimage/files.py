"""Z-Image's official models: presets, and relatives of another kind."""

from __future__ import annotations

from riebench.models.families.single_file import FileLayout
from riebench.models.families.sizes import ModelDownload
from riebench.models.spec import DEFAULT_SCORER, Preset

PIPELINE = "ZImagePipeline"

_TURBO = "f332072aa78be7aecdf3ee76d5c247082da564a6"
_BASE = "04cc4abb7c5069926f75c9bfde9ef43d49423021"

PRESETS: tuple[Preset, ...] = (
    Preset("z-image-turbo", "Tongyi-MAI/Z-Image-Turbo", _TURBO, 8, 0.0, 1024, "bfloat16", DEFAULT_SCORER, None,
           "8 steps without guidance; Apache 2.0.", family="zimage"),
    Preset("z-image", "Tongyi-MAI/Z-Image", _BASE, 50, 4.0, 1024, "bfloat16", DEFAULT_SCORER, None,
           "50 steps, guidance 4 as Z-Image's pipeline counts it (0 is none); Apache 2.0.", family="zimage"),
)  # fmt: skip
"""The two models that make pictures from text."""

REPOSITORIES = ("Tongyi-MAI/Z-Image",)
"""Beginning of the hub ids of the official models."""
DOWNLOADS: dict[str, ModelDownload] = {}
"""Preset -> what it downloads; the sizes of the published files are not known here."""

OTHER_PIPELINES = {
    "ZImageImg2ImgPipeline": "Z-Image from pictures",
    "ZImageInpaintPipeline": "an inpainting model",
    "ZImageControlNetPipeline": "Z-Image with control pictures",
    "ZImageControlNetInpaintPipeline": "Z-Image with control pictures",
    "ZImageOmniPipeline": "Z-Image Omni, which reads pictures, too",
}
"""Pipeline class -> what people call such models."""
OTHER_REPOSITORIES = {
    "Tongyi-MAI/Z-Image-Edit": "Z-Image Edit, an editor of pictures",
    "Tongyi-MAI/Z-Image-Omni": "Z-Image Omni, which reads pictures, too",
}
"""Beginning of a hub id -> what lies there instead of a model of this family."""

REFUSED_METHODS = {
    "embed_lerp": "Z-Image's texts differ in length, so that two prompts' states cannot be mixed token by token",
    "ledits_pp": "diffusers has LEDITS++ for Stable Diffusion and SDXL only",
    "p2p": "prompt-to-prompt exchanges cross-attention, and Z-Image attends to picture and text together",
    "img2img": "diffusers' image-to-image pipeline of Z-Image counts a strength's steps otherwise than this method",
}
"""Method -> why it cannot work on this family."""

LAYOUT = FileLayout(("x_pad_token", "cap_pad_token"), ("x_embedder.", "final_layer."))
"""Single files hold the transformer alone."""
