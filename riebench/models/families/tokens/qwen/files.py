"""Qwen-Image's official model: its preset, and relatives of another kind."""

from __future__ import annotations

from riebench.models.families.single_file import FileLayout
from riebench.models.families.sizes import ModelDownload
from riebench.models.spec import DEFAULT_SCORER, Preset

PIPELINE = "QwenImagePipeline"

_REVISION = "75e0b4be04f60ec59a75f475837eced720f823b6"

PRESETS: tuple[Preset, ...] = (
    Preset("qwen-image", "Qwen/Qwen-Image", _REVISION, 50, 4.0, 1024, "bfloat16", DEFAULT_SCORER, None,
           "50 steps, true guidance 4 by two calls a step; Apache 2.0.", family="qwen"),
)  # fmt: skip
"""The model that makes pictures from text."""

REPOSITORIES = ("Qwen/Qwen-Image",)
"""Beginning of the hub ids of the official models."""
DOWNLOADS: dict[str, ModelDownload] = {}
"""Preset -> what it downloads; the sizes of the published files are not known here."""

OTHER_PIPELINES = {
    "QwenImageEditPipeline": "Qwen-Image Edit, an editor of pictures",
    "QwenImageEditPlusPipeline": "Qwen-Image Edit, an editor of pictures",
    "QwenImageEditInpaintPipeline": "Qwen-Image Edit, an editor of pictures",
    "QwenImageImg2ImgPipeline": "Qwen-Image from pictures",
    "QwenImageInpaintPipeline": "an inpainting model",
    "QwenImageControlNetPipeline": "Qwen-Image with control pictures",
    "QwenImageControlNetInpaintPipeline": "Qwen-Image with control pictures",
    "QwenImageLayeredPipeline": "Qwen-Image Layered, which divides pictures",
}
"""Pipeline class -> what people call such models."""
OTHER_REPOSITORIES = {
    "Qwen/Qwen-Image-Edit": "Qwen-Image Edit, an editor of pictures",
    "Qwen/Qwen-Image-Layered": "Qwen-Image Layered, which divides pictures",
}
"""Beginning of a hub id -> what lies there instead of a model of this family."""

REFUSED_METHODS = {
    "ledits_pp": "diffusers has LEDITS++ for Stable Diffusion and SDXL only",
    "p2p": "prompt-to-prompt exchanges cross-attention, and Qwen-Image attends to picture and text together",
    "img2img": "diffusers' image-to-image pipeline of Qwen-Image counts a strength's steps otherwise than this method",
}
"""Method -> why it cannot work on this family."""

LAYOUT = FileLayout(("transformer_blocks.0.img_mod.1.",))
"""Single files hold the transformer alone, under the names that diffusers has."""
