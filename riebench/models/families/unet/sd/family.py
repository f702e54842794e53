"""The contract of a model family, filled for Stable Diffusion 1 and 2."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from riebench.models.families.base import EditingTask, TextEmbeddings
from riebench.models.families.blocks import BlockNames
from riebench.models.families.sizes import NamedAutoencoder, Shape
from riebench.models.families.unet.family import UNetFamily
from riebench.models.families.unet.sd import files, shape
from riebench.models.families.unet.sd.configuration import SD_PARTS, check_folder
from riebench.models.families.unet.sd.names import SdNames

if TYPE_CHECKING:
    import torch
    from torch import nn

FEW_STEPS, MANY_STEPS, MANY_STEPS_GUIDANCE = 4, 50, 7.5


class SdFamily(UNetFamily):
    """Stable Diffusion 1.5, 2.1, SD-Turbo and models trained from them.

    Turbo takes few steps without guidance, the others many steps with it. The safety checker is never loaded: it would
    blacken pictures, and no picture depends on it otherwise.
    """

    name = "sd"
    title = SD_PARTS.title
    pipeline_class = files.PIPELINE
    names: BlockNames = SdNames()
    architecture = SD_PARTS
    config_files = tuple(SD_PARTS.files.values())
    parts = shape.PARTS
    unused_parts = ("safety_checker", "feature_extractor", "image_encoder")
    full_shape = shape.SD15
    presets = files.PRESETS
    downloads: Mapping[str, Any] = MappingProxyType({})
    autoencoders: Mapping[str, NamedAutoencoder] = MappingProxyType({})
    other_pipelines = files.OTHER_PIPELINES
    other_repositories = files.OTHER_REPOSITORIES
    repositories = files.REPOSITORIES
    single_file_marks = files.SINGLE_FILE_MARKS
    text_names = ("prompt_embeds",)
    step_text_names = ("prompt_embeds",)
    stand_ins: Mapping[str, str] = MappingProxyType({"PNDMScheduler": "DDIMScheduler"})

    def check_config(self, folder: Path, shown: str) -> None:
        """Refuse a folder that asks for something that would not be done."""
        check_folder(folder, shown)

    def check_single_file(self, name: str, tensors: set[str], *, own_autoencoder: bool = True) -> None:
        """Refuse a single file that is no whole model of this family."""
        files.check_tensors(name, tensors, own_autoencoder=own_autoencoder)

    def shape_of_preset(self, name: str) -> Shape:
        """Return the measures of an official model; 1.5 stands for all others."""
        return shape.PRESET_SHAPES.get(name, shape.SD15)

    def usual_sampling(self, scheduler: Mapping[str, Any]) -> tuple[int, float]:
        """Return the usual steps and guidance scale.

        A scheduler whose time steps trail is that of a model for few steps, unless it begins with pure noise, as models
        for many steps do that were trained so.
        """
        if scheduler.get("timestep_spacing") == "trailing" and not scheduler.get("rescale_betas_zero_snr"):
            return FEW_STEPS, 0.0
        return MANY_STEPS, MANY_STEPS_GUIDANCE

    def pipeline_type(self) -> Any:
        """Return diffusers' pipeline class."""
        from diffusers import StableDiffusionPipeline

        return StableDiffusionPipeline

    def loading_options(self) -> dict[str, Any]:
        """Ask for no safety checker, which is never loaded."""
        return {"requires_safety_checker": False}

    def prepare(self, pipe: Any) -> None:
        """Put DDIM in the place of PNDM, which calls the U-Net twice in its first step.

        DDIM follows from the same configuration and calls it once in each step.
        """
        from riebench.models.families.unet.sd import pipeline

        pipeline.replace_scheduler(pipe, self.stand_ins)

    def embed(self, pipe: Any, prompt: str, device: torch.device, *, guided: bool) -> TextEmbeddings:
        """Encode a prompt with the text encoder."""
        from riebench.models.families.unet.sd import pipeline

        return pipeline.embed(pipe, prompt, device, guided=guided)

    def editing_pipeline(self, task: EditingTask, pipe: Any) -> Any:
        """Build diffusers' pipeline for image-to-image or LEDITS++."""
        from riebench.models.families.unet.sd import pipeline

        return pipeline.editing_pipeline(task, pipe)

    def same_condition(self, denoiser: nn.Module) -> AbstractContextManager[None]:
        """Change nothing: LEDITS++ gives each row of this family its own condition."""
        return nullcontext()


FAMILY = SdFamily()
"""The registered family."""
