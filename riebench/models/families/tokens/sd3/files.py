"""Official models of Stable Diffusion 3 and 3.5, and relatives of another kind."""

from __future__ import annotations

from riebench.models.families.single_file import CLIP_G, CLIP_L, T5, WHOLE, FileLayout
from riebench.models.spec import DEFAULT_SCORER, Preset

PIPELINE = "StableDiffusion3Pipeline"

_LICENCE = "Stability AI Community License; the hub asks for a login."

PRESETS: tuple[Preset, ...] = (
    Preset("sd3.5-medium", "stabilityai/stable-diffusion-3.5-medium", "b940f670f0eda2d07fbb75229e779da1ad11eb80", 40,
           4.5, 1024, "bfloat16", DEFAULT_SCORER, None, f"40 steps with guidance 4.5; {_LICENCE}", family="sd3"),
    Preset("sd3.5-large", "stabilityai/stable-diffusion-3.5-large", "ceddf0a7fdf2064ea28e2213e3b84e4afa170a0f", 28,
           3.5, 1024, "bfloat16", DEFAULT_SCORER, None, f"28 steps with guidance 3.5; {_LICENCE}", family="sd3"),
    Preset("sd3.5-large-turbo", "stabilityai/stable-diffusion-3.5-large-turbo",
           "ec07796fc06b096cc56de9762974a28f4c632eda", 4, 0.0, 1024, "bfloat16", DEFAULT_SCORER, None,
           f"4 steps without guidance; {_LICENCE}", family="sd3"),
    Preset("sd3-medium", "stabilityai/stable-diffusion-3-medium-diffusers",
           "ea42f8cef0f178587cf766dc8129abd379c90671", 28, 7.0, 1024, "bfloat16", DEFAULT_SCORER, None,
           f"28 steps with guidance 7; {_LICENCE}", family="sd3"),
)  # fmt: skip
"""The models that were published in diffusers' layout."""
REPOSITORIES = ("stabilityai/stable-diffusion-3",)
"""Beginning of the hub ids of the official models."""

OTHER_PIPELINES = {
    "StableDiffusion3Img2ImgPipeline": "Stable Diffusion 3 from pictures",
    "StableDiffusion3InpaintPipeline": "an inpainting model",
    "StableDiffusion3ControlNetPipeline": "Stable Diffusion 3 with control pictures",
    "StableDiffusion3PAGPipeline": "Stable Diffusion 3 with perturbed attention",
}
"""Pipeline class -> what people call such models."""
OTHER_REPOSITORIES = {
    "stabilityai/stable-diffusion-3.5-controlnets": "control networks alone",
    "stabilityai/stable-diffusion-3.5-large-tensorrt": "Stable Diffusion 3.5 compiled for TensorRT",
    "stabilityai/stable-diffusion-3.5-medium-tensorrt": "Stable Diffusion 3.5 compiled for TensorRT",
}
"""Beginning of a hub id -> what lies there instead of a model of this family."""

LAYOUT = FileLayout(
    ("joint_blocks.0.x_block.", "transformer_blocks.0.norm1_context.linear."),
    ("joint_blocks.",),
    {**WHOLE, "text_encoder": (CLIP_L,), "text_encoder_2": (CLIP_G,), "text_encoder_3": (T5,)},
    unprojected="text_encoder",
)
"""Single files hold the transformer, mostly with the autoencoder, some with text encoders."""

REFUSED_METHODS = {
    "ledits_pp": "diffusers has LEDITS++ for Stable Diffusion and SDXL only",
    "p2p": "prompt-to-prompt exchanges cross-attention, and this transformer attends to picture and text together",
    "img2img": "diffusers' image-to-image pipeline of Stable Diffusion 3 counts the steps of a strength otherwise than "
               "this method",
}  # fmt: skip
"""Method -> why it cannot work on this family."""
