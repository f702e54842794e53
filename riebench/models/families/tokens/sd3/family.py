"""The contract of a model family, filled for Stable Diffusion 3 and 3.5."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from riebench.models.families.base import TextEmbeddings
from riebench.models.families.blocks import BatchLayout, Site
from riebench.models.families.folders import read_json
from riebench.models.families.sizes import ModelDownload, Shape
from riebench.models.families.tokens import autoencoder
from riebench.models.families.tokens.family import TokenFamily
from riebench.models.families.tokens.sd3 import configuration, files, shape
from riebench.models.families.tokens.sd3.names import NAMES
from riebench.models.families.tokens.sizes import TokenShape
from riebench.models.families.tokens.weights import AUTOENCODER, CLIP_PROJECTED, T5, NetworkClass
from riebench.models.spec import ModelSpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

STEPS, GUIDANCE = 28, 4.5
SHIFT = 1.15
"""A shift that pictures of 1024 px have, to try a schedule with."""
_SHAPES = {"sd3.5-large": shape.LARGE_35, "sd3.5-large-turbo": shape.LARGE_35, "sd3-medium": shape.MEDIUM_3}


class Sd3Family(TokenFamily):
    """Stable Diffusion 3 and 3.5, and models trained from them.

    Guidance is one batch, its unconditional half first, with the empty prompt as the negative one. The text is CLIP's
    77 tokens and after them T5's 256.
    """

    name = "sd3"
    title = "Stable Diffusion 3"
    brand = configuration.BRAND
    pipeline_class = files.PIPELINE
    denoiser_class = "SD3Transformer2DModel"
    names = NAMES
    configs = configuration.CONFIGS
    classes = configuration.CLASSES
    config_files = tuple(configuration.CONFIGS.values())
    parts = shape.PARTS
    networks_of_parts: Mapping[str, NetworkClass] = {
        "transformer": NetworkClass("SD3Transformer2DModel"), "text_encoder": CLIP_PROJECTED,
        "text_encoder_2": CLIP_PROJECTED, "text_encoder_3": T5, "vae": AUTOENCODER,
    }  # fmt: skip
    unused_parts = ("image_encoder", "feature_extractor")
    full_shape = shape.MEDIUM_35
    presets = files.PRESETS
    downloads: Mapping[str, ModelDownload] = {}
    other_pipelines = files.OTHER_PIPELINES
    other_repositories = files.OTHER_REPOSITORIES
    repositories = files.REPOSITORIES
    text_names = ("prompt_embeds", "pooled_prompt_embeds")
    step_text_names = ("prompt_embeds", "pooled_prompt_embeds")
    file_layout = files.LAYOUT
    single_file_marks = files.LAYOUT.marks
    refused_methods = files.REFUSED_METHODS
    head_width = 64

    def config_problems(self, configs: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
        """Yield what speaks against configurations."""
        return configuration.problems(configs)

    def schedule_arguments(self, steps: int) -> Mapping[str, Any]:
        """Return a shift for schedules that take one; the published ones have their own."""
        return {"mu": SHIFT}

    def check_autoencoder_config(self, folder: Path, shown: str) -> None:
        """Refuse a folder that is no autoencoder of sixteen channels."""
        config = read_json(folder / "config.json")
        autoencoder.check_autoencoder(config, shown, "config.json", self.brand, configuration.LATENT_CHANNELS)

    def described_shape(self, folder: Path) -> TokenShape:
        """Return the measures that a folder's configurations state."""
        return shape.described_shape(folder)

    def shape_of_pipeline(self, pipe: Any) -> Shape:
        """Return the measures that matter for captures."""
        return shape.config_shape(pipe.transformer.config, pipe.vae.config, pipe.tokenizer.model_max_length)

    def shape_of_preset(self, name: str) -> Shape:
        """Return the measures of an official model."""
        return _SHAPES.get(name, self.full_shape)

    def usual_sampling(self, scheduler: Mapping[str, Any]) -> tuple[int, float]:
        """Return the steps and guidance scale of models that are not distilled."""
        return STEPS, GUIDANCE

    def site(self, denoiser: nn.Module, name: str) -> Site:
        """Return a site of a transformer by its short name."""
        from riebench.models.families.tokens.sd3 import network

        return network.site(denoiser, name)

    def text_attention(self, block: nn.Module) -> tuple[nn.Module, ...]:
        """Return the joint attention of a block."""
        from riebench.models.families.tokens.sd3 import network

        return network.text_attention(block)

    def attention_map(self, layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """Compute how much each image token reads each text token."""
        from riebench.models.families.tokens.sd3 import network

        return network.attention_map(layer, args, kwargs)

    def layout(self, guided: bool) -> BatchLayout:
        """Return one call a step, the unconditional half first."""
        return BatchLayout(guided)

    def token_counter(self, folder: Path | None) -> tuple[Callable[[str], int], int]:
        """Return the count of CLIP's tokenizer, whose texts are cut first."""
        from riebench.models.families.tokens.sd3 import pipeline

        return pipeline.token_counter(folder)

    def tokenizers(self, pipe: Any) -> tuple[Any, ...]:
        """Return CLIP's tokenizer, whose tokens are the first of the text."""
        return (pipe.tokenizer,)

    def embed(self, pipe: Any, prompt: str, device: torch.device, *, guided: bool) -> TextEmbeddings:
        """Encode a prompt with all three text encoders."""
        from riebench.models.families.tokens.sd3 import pipeline

        return pipeline.embed(pipe, prompt, device, guided=guided)

    def call_options(self, spec: ModelSpec) -> dict[str, Any]:
        """Return the arguments of the pipeline's call."""
        from riebench.models.families.tokens.sd3 import pipeline

        return pipeline.call_options(spec)


FAMILY = Sd3Family()
"""The registered family."""
