"""The contract of a model family, filled for FLUX.1."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from riebench.models.families.base import TextEmbeddings
from riebench.models.families.blocks import BatchLayout, Site
from riebench.models.families.flux import configuration, files, shape
from riebench.models.families.flux.names import FluxNames
from riebench.models.families.folders import read_json
from riebench.models.families.sizes import Shape
from riebench.models.families.tokens.family import TokenFamily
from riebench.models.families.tokens.sizes import TokenShape
from riebench.models.families.tokens.weights import AUTOENCODER, CLIP, T5, NetworkClass
from riebench.models.spec import ModelSpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

FEW_STEPS, MANY_STEPS, MANY_STEPS_GUIDANCE = 4, 28, 3.5
SHIFT = 1.15
"""A shift that pictures of 1024 px have, to try a schedule with."""


class FluxFamily(TokenFamily):
    """FLUX.1-schnell, FLUX.1-dev and models trained from them.

    schnell takes few steps without guidance. dev is told the guidance scale, so that it has no unconditional half. A
    model that is not told it gets true classifier-free guidance above scale 1: two calls a step, the conditional one
    first, with the empty prompt as the negative one.
    """

    name = "flux"
    title = "FLUX.1"
    brand = configuration.BRAND
    pipeline_class = files.PIPELINE
    denoiser_class = "FluxTransformer2DModel"
    names = FluxNames()
    configs = configuration.CONFIGS
    classes = configuration.CLASSES
    packed = True
    config_files = tuple(configuration.CONFIGS.values())
    parts = shape.PARTS
    networks_of_parts: Mapping[str, NetworkClass] = {
        "transformer": NetworkClass("FluxTransformer2DModel"), "text_encoder": CLIP, "text_encoder_2": T5,
        "vae": AUTOENCODER,
    }  # fmt: skip
    unused_parts = ("image_encoder", "feature_extractor")
    full_shape = shape.FLUX
    presets = files.PRESETS
    downloads = files.DOWNLOADS
    other_pipelines = files.OTHER_PIPELINES
    other_repositories = files.OTHER_REPOSITORIES
    repositories = files.REPOSITORIES
    text_names = ("prompt_embeds", "pooled_prompt_embeds")
    step_text_names = ("prompt_embeds",)
    step_text_arguments: Mapping[str, str] = {"pooled_prompt_embeds": "pooled_projections"}
    file_layout = files.LAYOUT
    single_file_marks = files.LAYOUT.marks
    refused_methods = files.REFUSED_METHODS

    def config_problems(self, configs: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
        """Yield what speaks against configurations."""
        return configuration.problems(configs)

    def schedule_arguments(self, steps: int) -> Mapping[str, Any]:
        """Return noise levels at equal distances, and a shift for schedules that take one."""
        return {"sigmas": [1 - step / steps for step in range(steps)], "mu": SHIFT}

    def check_autoencoder_config(self, folder: Path, shown: str) -> None:
        """Refuse a folder that is no autoencoder of sixteen channels."""
        configuration.check_autoencoder(read_json(folder / "config.json"), shown, "config.json")

    def described_shape(self, folder: Path) -> TokenShape:
        """Return the measures that a folder's configurations state."""
        return shape.described_shape(folder)

    def shape_of_pipeline(self, pipe: Any) -> Shape:
        """Return the measures that matter for captures."""
        return shape.config_shape(pipe.transformer.config, pipe.vae.config, pipe.tokenizer_2.model_max_length)

    def shape_of_preset(self, name: str) -> Shape:
        """Return the measures of schnell or dev.

        dev reads longer texts and is told the guidance scale.
        """
        return shape.FLUX_DEV if name == "flux-dev" else shape.FLUX

    def usual_sampling(self, scheduler: Mapping[str, Any]) -> tuple[int, float]:
        """Return the usual steps and guidance scale.

        A schedule that shifts with the size of the picture is that of a model for many steps.
        """
        if scheduler.get("use_dynamic_shifting"):
            return MANY_STEPS, MANY_STEPS_GUIDANCE
        return FEW_STEPS, 0.0

    def is_guided(self, pipe: Any, guidance: float) -> bool:
        """Return whether there is an unconditional half.

        A transformer that is told the guidance scale has none.
        """
        return guidance > 1 and not pipe.transformer.config.guidance_embeds

    def site(self, denoiser: nn.Module, name: str) -> Site:
        """Return a site of a transformer by its short name."""
        from riebench.models.families.flux import network

        return network.site(denoiser, name)

    def text_attention(self, block: nn.Module) -> tuple[nn.Module, ...]:
        """Return the joint attention of a block with two streams."""
        from riebench.models.families.flux import network

        return network.text_attention(block)

    def attention_map(self, layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """Compute how much each image token reads each text token."""
        from riebench.models.families.flux import network

        return network.attention_map(layer, args, kwargs)

    def layout(self, guided: bool) -> BatchLayout:
        """Return two calls a step under guidance, the conditional one first."""
        return BatchLayout(guided, ("conditional", "unconditional"), together=False)

    def token_counter(self, folder: Path | None) -> tuple[Callable[[str], int], int]:
        """Return the count of T5's tokenizer, whose tokens the transformer reads."""
        from riebench.models.families.flux import pipeline

        return pipeline.token_counter(folder)

    def tokenizers(self, pipe: Any) -> tuple[Any, ...]:
        """Return T5's tokenizer; CLIP gives one vector alone."""
        return (pipe.tokenizer_2,)

    def token_limit(self, pipe: Any, tokenizer: Any) -> int:
        """Return how many tokens the transformer reads.

        At most 256, or 512 if it is told the guidance scale.
        """
        from riebench.models.families.flux import pipeline

        return pipeline.token_limit(pipe)

    def embed(self, pipe: Any, prompt: str, device: torch.device, *, guided: bool) -> TextEmbeddings:
        """Encode a prompt with both text encoders."""
        from riebench.models.families.flux import pipeline

        return pipeline.embed(pipe, prompt, device, guided=guided)

    def call_options(self, spec: ModelSpec) -> dict[str, Any]:
        """Return the arguments of the pipeline's call."""
        from riebench.models.families.flux import pipeline

        return pipeline.call_options(spec)


FAMILY = FluxFamily()
"""The registered family."""
