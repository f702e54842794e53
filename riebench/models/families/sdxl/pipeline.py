"""SDXL's pipeline in diffusers: text and editing."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from riebench.models.families.base import EditingTask, TextEmbeddings
from riebench.models.families.unet.pipeline import check_inversion, inversion_scheduler

TEXT_NAMES = ("prompt_embeds", "pooled_prompt_embeds")
"""What the pipeline calls the text embeddings before the first step."""


def embed(pipe: Any, prompt: str, device: torch.device, *, guided: bool) -> TextEmbeddings:
    """Encode a prompt with both text encoders.

    The negative prompt is the one the pipeline uses when none is given: all zeros.
    """
    embeds, negative, pooled, negative_pooled = pipe.encode_prompt(
        prompt, device=device, num_images_per_prompt=1, do_classifier_free_guidance=guided
    )
    conditional = dict(zip(TEXT_NAMES, (embeds, pooled), strict=True))
    other = zip(TEXT_NAMES, (negative, negative_pooled), strict=True)
    return TextEmbeddings(conditional, {f"negative_{name}": values for name, values in other if values is not None})


def editing_pipeline(task: EditingTask, pipe: Any) -> Any:
    """Build diffusers' pipeline for image-to-image or LEDITS++.

    It shares the networks of a loaded pipeline.
    """
    import diffusers

    parts = {**pipe.components, "scheduler": copy.deepcopy(pipe.scheduler)}
    zeros = bool(pipe.config.force_zeros_for_empty_prompt)
    more: dict[str, Any] = {"force_zeros_for_empty_prompt": zeros, "add_watermarker": False}
    if task == "img2img":
        return diffusers.StableDiffusionXLImg2ImgPipeline(**parts, **more)
    check_inversion(pipe)
    parts["scheduler"] = inversion_scheduler(parts["scheduler"])
    return diffusers.LEditsPPPipelineStableDiffusionXL(**parts, **more)


@contextmanager
def same_condition(unet: nn.Module) -> Iterator[None]:
    """Give every picture of a batch the last row of LEDITS++'s conditions.

    That row is its one edit.

    The U-Net gets n unconditional rows and n edited ones, but the pipeline brings conditions of n + 1 rows.
    """

    def spread(_module: nn.Module, args: Any, kwargs: Any) -> Any:
        half = len(args[0]) // 2

        def rows(values: Tensor) -> Tensor:
            return torch.cat([values[:half], values[half : half + 1].expand(half, *values.shape[1:])])

        added = {name: rows(values) for name, values in kwargs["added_cond_kwargs"].items()}
        states = rows(kwargs["encoder_hidden_states"])
        return args, {**kwargs, "encoder_hidden_states": states, "added_cond_kwargs": added}

    handle = unet.register_forward_pre_hook(spread, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
