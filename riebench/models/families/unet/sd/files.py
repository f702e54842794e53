"""Official models of Stable Diffusion 1 and 2, and the check of single files."""

from __future__ import annotations

from riebench.errors import RiebenchError
from riebench.models.spec import DEFAULT_SCORER, Preset

PIPELINE = "StableDiffusionPipeline"

_SD15 = "451f4fe16113bff5a5d2269ed5ad43b0592e9a14"
_SD21 = "5cae40e6a2745ae2b01ad92ae5043f95f23644d6"
_TURBO = "b261bac6fd2cf515557d5d0707481eafa0485ec2"

PRESETS: tuple[Preset, ...] = (
    Preset("sd15", "stable-diffusion-v1-5/stable-diffusion-v1-5", _SD15, 50, 7.5, 512, "float16", DEFAULT_SCORER, None,
           "50 steps of DDIM (in place of PNDM, whose first step takes two calls) with guidance 7.5; CreativeML Open "
           "RAIL-M; a copy of the repository that its publisher withdrew.", family="sd"),
    Preset("sd21", "stabilityai/stable-diffusion-2-1", _SD21, 50, 7.5, 768, "float16", DEFAULT_SCORER, None,
           "768 px, v-prediction, 50 steps of DDIM with guidance 7.5; CreativeML Open RAIL++-M; if its publisher has "
           "withdrawn the repository, give a copy's hub id or folder.", family="sd"),
    Preset("sd-turbo", "stabilityai/sd-turbo", _TURBO, 4, 0.0, 512, "float16", DEFAULT_SCORER, None,
           "1 to 4 steps without guidance; Stability AI Community License.", family="sd"),
)  # fmt: skip
"""Three models that were published, at commits that several independent projects name."""

REPOSITORIES = (
    "stable-diffusion-v1-5/", "runwayml/stable-diffusion-v1", "CompVis/stable-diffusion-v1",
    "stabilityai/stable-diffusion-2", "stabilityai/sd-turbo",
)  # fmt: skip
"""Beginnings of hub ids of the official models."""
OTHER_PIPELINES = {
    "StableDiffusionImg2ImgPipeline": "Stable Diffusion from pictures",
    "StableDiffusionInpaintPipeline": "an inpainting model",
    "StableDiffusionDepth2ImgPipeline": "a model of pictures with depth",
    "StableDiffusionUpscalePipeline": "an upscaler",
    "StableUnCLIPImg2ImgPipeline": "Stable Diffusion from pictures",
    "LatentConsistencyModelPipeline": "a latent consistency model",
}
"""Pipeline class -> what people call such models."""
OTHER_REPOSITORIES = {
    "stable-diffusion-v1-5/stable-diffusion-inpainting": "an inpainting model",
    "runwayml/stable-diffusion-inpainting": "an inpainting model",
    "stabilityai/stable-diffusion-2-inpainting": "an inpainting model",
    "stabilityai/stable-diffusion-2-depth": "a model of pictures with depth",
    "stabilityai/stable-diffusion-2-1-unclip": "Stable Diffusion from pictures",
    "stabilityai/stable-diffusion-x4": "an upscaler",
    "stabilityai/sd-vae": "an autoencoder alone, for --vae",
}
"""Beginning of a hub id -> what lies there instead of a model of this family."""

SINGLE_FILE_MARKS = ("cond_stage_model.",)
"""Beginnings of names of tensors that only single files of this family hold."""
_UNET, _AUTOENCODER = "model.diffusion_model.", "first_stage_model."
_OTHERS = {
    "control_model.": "a ControlNet",
    "depth_model.": "a model of pictures with depth",
    "lora_": "a LoRA, no whole model; use it with --lora",
}
"""Beginning of a tensor's name -> what a file with it is."""


def check_tensors(name: str, tensors: set[str], *, own_autoencoder: bool = True) -> None:
    """Refuse a single file that is no whole model.

    Args:
        name: of the file.
        tensors: names of its tensors.
        own_autoencoder: whether its autoencoder is needed.

    Raises:
        RiebenchError: saying what it is instead, or what it lacks.
    """

    def held(start: str) -> bool:
        return any(tensor.startswith(start) for tensor in tensors)

    other = next((words for start, words in _OTHERS.items() if held(start)), None)
    missing = next((start for start in (_UNET, *SINGLE_FILE_MARKS) if not held(start)), None)
    if other is not None or missing is not None:
        lacks = f" (no tensors {missing}*)" if missing else ""
        looks = f"; it looks like {other}" if other else ""
        raise RiebenchError(f"{name} is no Stable Diffusion checkpoint{lacks}{looks}")
    if own_autoencoder and not held(_AUTOENCODER):
        raise RiebenchError(
            f"{name} is a Stable Diffusion checkpoint without its autoencoder (no tensors {_AUTOENCODER}*); give one "
            "with --vae, a folder or a hub id"
        )
