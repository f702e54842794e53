"""The contract of a model family, filled for SDXL."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from riebench.models.families.base import EditingTask, TextEmbeddings
from riebench.models.families.blocks import BlockNames
from riebench.models.families.sdxl import files, shape
from riebench.models.families.sdxl.configuration import SDXL_PARTS
from riebench.models.families.sdxl.names import SdxlNames
from riebench.models.families.unet.family import UNetFamily

if TYPE_CHECKING:
    import torch
    from torch import nn

FEW_STEPS, MANY_STEPS, MANY_STEPS_GUIDANCE = 4, 20, 5.0


class SdxlFamily(UNetFamily):
    """SDXL Turbo, SDXL Base and models trained from them.

    Turbo takes few steps without guidance, Base many steps with it.
    """

    name = "sdxl"
    title = "SDXL"
    pipeline_class = files.PIPELINE
    names: BlockNames = SdxlNames()
    architecture = SDXL_PARTS
    config_files = tuple(SDXL_PARTS.files.values())
    parts = shape.PARTS
    unused_parts = ("image_encoder", "feature_extractor")
    full_shape = shape.SDXL
    presets = files.PRESETS
    downloads = files.DOWNLOADS
    autoencoders = files.AUTOENCODERS
    other_pipelines = files.OTHER_PIPELINES
    other_repositories = files.OTHER_REPOSITORIES
    single_file_marks = files.SINGLE_FILE_MARKS
    text_names = ("prompt_embeds", "pooled_prompt_embeds")
    step_text_names = ("prompt_embeds", "add_text_embeds")

    def check_single_file(self, name: str, tensors: set[str], *, own_autoencoder: bool = True) -> None:
        """Refuse a single file that is no whole SDXL."""
        files.check_tensors(name, tensors, own_autoencoder=own_autoencoder)

    def usual_sampling(self, scheduler: Mapping[str, Any]) -> tuple[int, float]:
        """Return the usual steps and guidance scale.

        A scheduler whose time steps trail is that of a model for few steps.
        """
        if scheduler.get("timestep_spacing") == "trailing":
            return FEW_STEPS, 0.0
        return MANY_STEPS, MANY_STEPS_GUIDANCE

    def pipeline_type(self) -> Any:
        """Return diffusers' pipeline class."""
        from diffusers import StableDiffusionXLPipeline

        return StableDiffusionXLPipeline

    def loading_options(self) -> dict[str, Any]:
        """Leave the watermark out: with it, pixels depend on which packages are installed."""
        return {"add_watermarker": False}

    def embed(self, pipe: Any, prompt: str, device: torch.device, *, guided: bool) -> TextEmbeddings:
        """Encode a prompt with both text encoders."""
        from riebench.models.families.sdxl import pipeline

        return pipeline.embed(pipe, prompt, device, guided=guided)

    def editing_pipeline(self, task: EditingTask, pipe: Any) -> Any:
        """Build diffusers' pipeline for image-to-image or LEDITS++."""
        from riebench.models.families.sdxl import pipeline

        return pipeline.editing_pipeline(task, pipe)

    def same_condition(self, denoiser: nn.Module) -> AbstractContextManager[None]:
        """Make the last row of LEDITS++'s conditions that of every edited row."""
        from riebench.models.families.sdxl import pipeline

        return pipeline.same_condition(denoiser)


FAMILY = SdxlFamily()
"""The registered family."""
