"""The contract of a model family, filled for PixArt-Sigma."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from riebench.models.families.base import TextEmbeddings
from riebench.models.families.folders import read_json
from riebench.models.families.sizes import ModelDownload, Shape
from riebench.models.families.tokens.cross_attention.family import CrossAttentionFamily
from riebench.models.families.tokens.cross_attention.pixart import configuration, files, shape
from riebench.models.families.tokens.cross_attention.pixart.names import PIXART_NAMES
from riebench.models.families.tokens.sizes import TokenShape
from riebench.models.families.tokens.weights import AUTOENCODER, T5, NetworkClass
from riebench.models.spec import ModelSpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class PixArtFamily(CrossAttentionFamily):
    """PixArt-Sigma for 512 and 1024 px, and models trained from it.

    Under guidance both halves are one batch, the unconditional one first, with the empty prompt as the negative one.
    The transformer also predicts a variance, which the pipeline leaves out. Text is exchanged in the transformer's
    calls, since the pipeline takes none back between the steps.
    """

    name = "pixart"
    title = "PixArt-Sigma"
    brand = configuration.BRAND
    pipeline_class = files.PIPELINE
    denoiser_class = "PixArtTransformer2DModel"
    names = PIXART_NAMES
    configs = configuration.CONFIGS
    classes = configuration.CLASSES
    config_files = tuple(configuration.CONFIGS.values())
    parts = shape.PARTS
    networks_of_parts: Mapping[str, NetworkClass] = {
        "transformer": NetworkClass("PixArtTransformer2DModel"), "text_encoder": T5, "vae": AUTOENCODER,
    }  # fmt: skip
    schedulers = ("DPMSolverMultistepScheduler", "EulerDiscreteScheduler", "DDIMScheduler")
    full_shape = shape.PIXART
    presets = files.PRESETS
    downloads: Mapping[str, ModelDownload] = {}
    other_pipelines = files.OTHER_PIPELINES
    other_repositories = files.OTHER_REPOSITORIES
    repositories = files.REPOSITORIES
    step_text_names: tuple[str, ...] = ()
    step_text_arguments: Mapping[str, str] = {
        "prompt_embeds": "encoder_hidden_states", "prompt_attention_mask": "encoder_attention_mask",
    }  # fmt: skip
    refused_methods = files.REFUSED_METHODS
    single_file_marks = files.SINGLE_FILE_MARKS
    single_file_refusal = files.SINGLE_FILE_REFUSAL
    head_width = 72

    def config_problems(self, configs: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
        """Yield what speaks against configurations."""
        return configuration.problems(configs)

    def check_autoencoder_config(self, folder: Path, shown: str) -> None:
        """Refuse a folder that is no autoencoder of four channels."""
        configuration.check_autoencoder(read_json(folder / "config.json"), shown, "config.json")

    def described_shape(self, folder: Path) -> TokenShape:
        """Return the measures that a folder's configurations state."""
        return shape.described_shape(folder)

    def shape_of_pipeline(self, pipe: Any) -> Shape:
        """Return the measures that matter for captures."""
        return shape.config_shape(pipe.transformer.config, pipe.vae.config)

    def shape_of_preset(self, name: str) -> Shape:
        """Return the measures of an official model."""
        return shape.SHAPES.get(name, shape.PIXART)

    def usual_sampling(self, scheduler: Mapping[str, Any]) -> tuple[int, float]:
        """Return the steps and the guidance scale of the pipeline's call."""
        return files.STEPS, files.GUIDANCE

    def embed(self, pipe: Any, prompt: str, device: torch.device, *, guided: bool) -> TextEmbeddings:
        """Encode a prompt with T5."""
        from riebench.models.families.tokens.cross_attention.pixart import pipeline

        return pipeline.embed(pipe, prompt, device, guided=guided)

    def call_options(self, spec: ModelSpec) -> dict[str, Any]:
        """Return the arguments of the pipeline's call."""
        from riebench.models.families.tokens.cross_attention.pixart import pipeline

        return pipeline.call_options(spec)

    def step_options(self, callback: Callable[..., dict[str, Tensor]], names: Sequence[str]) -> dict[str, Any]:
        """Return the arguments by which the pipeline shows latents after each step."""
        from riebench.models.families.tokens.cross_attention.pixart import pipeline

        return pipeline.step_options(callback, names)

    def decode(self, pipe: Any, latents: Tensor) -> Tensor:
        """Decode latents in the autoencoder's number format."""
        from riebench.models.families.tokens.cross_attention.pixart import pipeline

        return pipeline.decode(pipe.vae, latents)

    def encode(self, pipe: Any, pixels: Tensor, device: torch.device) -> Tensor:
        """Encode pictures in the autoencoder's number format."""
        from riebench.models.families.tokens.cross_attention.pixart import pipeline

        return pipeline.encode(pipe.vae, pixels, device)


FAMILY = PixArtFamily()
"""The registered family."""
