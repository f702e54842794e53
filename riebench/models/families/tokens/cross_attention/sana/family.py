"""The contract of a model family, filled for SANA and SANA-Sprint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from riebench.models.families.base import TextEmbeddings
from riebench.models.families.blocks import Site
from riebench.models.families.folders import read_json
from riebench.models.families.sizes import ModelDownload, Shape
from riebench.models.families.tokens.cross_attention.family import CrossAttentionFamily
from riebench.models.families.tokens.cross_attention.sana import configuration, files, shape
from riebench.models.families.tokens.cross_attention.sana.names import SANA_NAMES
from riebench.models.families.tokens.cross_attention.text import TOKENS
from riebench.models.families.tokens.cross_attention.trial import check_steps
from riebench.models.families.tokens.sizes import TokenShape
from riebench.models.families.tokens.weights import NetworkClass
from riebench.models.spec import ModelSpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

GEMMA = NetworkClass("Gemma2Model", "Gemma2Config")


class SanaFamily(CrossAttentionFamily):
    """SANA of 1.6 and 0.6 billion parameters, and models trained from them.

    Its pipeline puts an instruction before every prompt. Under guidance both halves are one batch, the unconditional
    one first, with the empty prompt as the negative one.
    """

    name = "sana"
    title = "SANA"
    brand = configuration.BRAND
    pipeline_class = files.PIPELINE
    denoiser_class = "SanaTransformer2DModel"
    names = SANA_NAMES
    configs = configuration.CONFIGS
    classes = configuration.CLASSES
    config_files = tuple(configuration.CONFIGS.values())
    parts = shape.PARTS
    networks_of_parts: Mapping[str, NetworkClass] = {
        "transformer": NetworkClass("SanaTransformer2DModel"), "text_encoder": GEMMA,
        "vae": NetworkClass("AutoencoderDC"),
    }  # fmt: skip
    schedulers: tuple[str, ...] = ("DPMSolverMultistepScheduler", "FlowMatchEulerDiscreteScheduler")
    full_shape: TokenShape = shape.SANA
    presets = files.PRESETS
    downloads: Mapping[str, ModelDownload] = {}
    other_pipelines = files.OTHER_PIPELINES
    other_repositories = files.OTHER_REPOSITORIES
    repositories: tuple[str, ...] = files.REPOSITORIES
    file_layout = files.LAYOUT
    single_file_marks = files.LAYOUT.marks
    refused_methods = files.REFUSED_METHODS
    head_width = 112

    def config_problems(self, configs: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
        """Yield what speaks against configurations."""
        return configuration.problems(configs, self.brand)

    def check_autoencoder_config(self, folder: Path, shown: str) -> None:
        """Refuse a folder that is no DC-AE of thirty-two channels."""
        configuration.check_autoencoder(read_json(folder / "config.json"), shown, "config.json")

    def described_shape(self, folder: Path) -> TokenShape:
        """Return the measures that a folder's configurations state."""
        return shape.described_shape(folder)

    def shape_of_pipeline(self, pipe: Any) -> Shape:
        """Return the measures that matter for captures."""
        return shape.config_shape(pipe.transformer.config, pipe.vae.config)

    def shape_of_preset(self, name: str) -> Shape:
        """Return the measures of an official model."""
        return shape.SHAPES.get(name, self.full_shape)

    def usual_sampling(self, scheduler: Mapping[str, Any]) -> tuple[int, float]:
        """Return the steps and the guidance scale of the pipeline's call."""
        return files.STEPS, files.GUIDANCE

    def set_tiling(self, pipe: Any, tile: int) -> None:
        """Make the autoencoder decode in tiles of a side in pixels.

        About an eighth of them overlaps.
        """
        factor = pipe.vae_scale_factor
        stride = tile - max(tile // 8 // factor, 1) * factor
        pipe.vae.enable_tiling(tile, tile, stride, stride)

    def site(self, denoiser: nn.Module, name: str) -> Site:
        """Return a site of a transformer by its short name."""
        from riebench.models.families.tokens.cross_attention.sana import network

        return network.site(denoiser, name)

    def token_limit(self, pipe: Any, tokenizer: Any) -> int:
        """Return how many tokens of a prompt are read; the start counts too.

        The last token of the instruction takes one place.
        """
        return TOKENS - 1

    def token_positions(self, pipe: Any, prompt: str, characters: Sequence[int]) -> set[int]:
        """Return the positions of some characters of a prompt behind the instruction."""
        from riebench.models.families.tokens.cross_attention.sana import pipeline

        return pipeline.token_positions(pipe, prompt, characters)

    def embed(self, pipe: Any, prompt: str, device: torch.device, *, guided: bool) -> TextEmbeddings:
        """Encode a prompt behind the pipeline's instruction."""
        from riebench.models.families.tokens.cross_attention.sana import pipeline

        return pipeline.embed(pipe, prompt, device, guided=guided)

    def call_options(self, spec: ModelSpec) -> dict[str, Any]:
        """Return the arguments of the pipeline's call."""
        from riebench.models.families.tokens.cross_attention.sana import pipeline

        # Its own default, the empty text, is refused beside embeddings.
        return {**pipeline.call_options(spec), "negative_prompt": None}

    def decode(self, pipe: Any, latents: Tensor) -> Tensor:
        """Decode latents in the autoencoder's number format."""
        from riebench.models.families.tokens.cross_attention.sana import pipeline

        return pipeline.decode(pipe.vae, latents)

    def encode(self, pipe: Any, pixels: Tensor, device: torch.device) -> Tensor:
        """Encode pictures in the autoencoder's number format."""
        from riebench.models.families.tokens.cross_attention.sana import pipeline

        return pipeline.encode(pipe.vae, pixels, device)


class SprintFamily(SanaFamily):
    """SANA-Sprint: SANA distilled to one to four steps.

    Its transformer is told the guidance scale and is called once a step for each picture. After each step its scheduler
    adds noise of the picture's own seed.
    """

    name = "sana-sprint"
    title = "SANA-Sprint"
    brand = configuration.SPRINT_BRAND
    pipeline_class = files.SPRINT_PIPELINE
    schedulers = ("SCMScheduler",)
    full_shape = shape.SPRINT
    presets = files.SPRINT_PRESETS
    other_pipelines: Mapping[str, str] = {}
    other_repositories: Mapping[str, str] = {}
    repositories = files.SPRINT_REPOSITORIES
    refused_methods = files.SPRINT_REFUSED_METHODS

    def check_schedule(self, folder: Path, steps: int, shown: str) -> None:
        """Refuse a folder whose schedule is not that of consistency models."""
        arguments = self.schedule_arguments(steps)
        check_steps(folder, steps, shown, self.brand, self.schedulers, arguments, names_end=True)

    def schedule_arguments(self, steps: int) -> Mapping[str, Any]:
        """Return the times that the pipeline's call sets."""
        from riebench.models.families.tokens.cross_attention.sana import pipeline

        return pipeline.sprint_schedule(self.pipeline_type(), steps)

    def usual_sampling(self, scheduler: Mapping[str, Any]) -> tuple[int, float]:
        """Return the steps and the guidance scale of the pipeline's call."""
        return files.SPRINT_STEPS, files.GUIDANCE

    def is_guided(self, pipe: Any, guidance: float) -> bool:
        """Return False: the transformer is told the scale."""
        return False

    def call_options(self, spec: ModelSpec) -> dict[str, Any]:
        """Return the arguments of the pipeline's call, with its own times."""
        from riebench.models.families.tokens.cross_attention.sana import pipeline

        return {**pipeline.call_options(spec), **self.schedule_arguments(spec.steps)}

    def returned_latents(self, pipe: Any, latents: Tensor) -> Tensor:
        """Return latents after the last step without the scheduler's scale."""
        return latents / pipe.scheduler.config.sigma_data


FAMILY = SanaFamily()
SPRINT_FAMILY = SprintFamily()
"""The registered families."""
