"""Stable Diffusion's pipeline in diffusers: text, scheduler and editing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import diffusers
import torch
from torch import Tensor

from riebench.errors import RiebenchError
from riebench.models.families.base import EditingTask, TextEmbeddings
from riebench.models.families.unet.pipeline import check_inversion, inversion_scheduler

TEXT = "prompt_embeds"
"""What the pipeline calls the text embeddings, before the first step and between the steps."""


def embed(pipe: Any, prompt: str, device: torch.device, *, guided: bool) -> TextEmbeddings:
    """Encode a prompt.

    The negative prompt is the one the pipeline uses when none is given: the empty one, encoded.
    """
    embeds, negative = pipe.encode_prompt(
        prompt, device=device, num_images_per_prompt=1, do_classifier_free_guidance=guided
    )
    return TextEmbeddings({TEXT: embeds}, {} if negative is None else {f"negative_{TEXT}": negative})


def replace_scheduler(pipe: Any, stand_ins: Mapping[str, str]) -> None:
    """Put the scheduler in place that stands in for a pipeline's own, if there is one.

    It is made from the same configuration. What it predicts is not clipped, as the pipeline's own schedulers do not.
    """
    name = stand_ins.get(type(pipe.scheduler).__name__)
    if name is not None:
        pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config, clip_sample=False)


def editing_pipeline(task: EditingTask, pipe: Any) -> Any:
    """Build diffusers' pipeline for image-to-image or LEDITS++.

    It shares the networks of a loaded pipeline; there is no safety checker in it.

    Raises:
        RiebenchError: if LEDITS++ cannot invert the model.
    """
    parts = {**pipe.components, "scheduler": copy.deepcopy(pipe.scheduler)}
    if task == "img2img":
        return diffusers.StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
    check_inversion(pipe)
    side = pipe.unet.config.sample_size
    if not isinstance(side, int):
        raise RiebenchError(f"ledits_pp needs one side of the latents, but unet/config.json says sample_size {side}")
    parts["scheduler"] = inversion_scheduler(parts["scheduler"])
    del parts["image_encoder"]
    made = diffusers.LEditsPPPipelineStableDiffusion(**parts, requires_safety_checker=False)
    made.vae = _Decoder(pipe.vae)
    made.invert = partial(_invert, made, made.invert)
    return made


def _invert(pipe: Any, plain: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Invert a picture with the texts in the right order.

    diffusers' pipeline takes the two texts from `encode_prompt` the wrong way round when it inverts, and only then.
    """
    encode = pipe.encode_prompt

    def exchanged(**texts: Any) -> tuple[Any, Any, Any]:
        edited, empty, count = encode(**texts)
        return empty, edited, count

    pipe.encode_prompt = exchanged
    try:
        return plain(*args, **options)
    finally:
        pipe.encode_prompt = encode


class _Decoder:
    """An autoencoder that takes latents of any number format.

    LEDITS++ decodes what it inverts in the number format of the text encoder.

    Args:
        vae: the autoencoder.
    """

    def __init__(self, vae: Any) -> None:
        self._vae = vae
        self.config = vae.config

    def decode(self, latents: Tensor, **options: Any) -> Any:
        """Decode latents in the autoencoder's own number format."""
        return self._vae.decode(latents.to(self._vae.dtype), **options)
