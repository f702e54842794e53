"""The contract of a model family, filled for Qwen-Image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from riebench.errors import RiebenchError
from riebench.models.families.base import TextEmbeddings
from riebench.models.families.blocks import BatchLayout
from riebench.models.families.sizes import Shape
from riebench.models.families.tokens.family import TokenFamily
from riebench.models.families.tokens.qwen import configuration, files, shape
from riebench.models.families.tokens.sizes import TokenShape
from riebench.models.families.tokens.weights import NetworkClass
from riebench.models.spec import ModelSpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

STEPS, GUIDANCE = 50, 4.0
SHIFT = 1.15
"""A shift that large pictures have, to try a schedule with that takes one."""
OVERLAP = 4
"""Tiles overlap by their side divided by this, as the autoencoder's own do."""


class QwenImageFamily(TokenFamily):
    """Qwen-Image and models trained from it.

    Above scale 1 it gets true classifier-free guidance: two calls a step, the conditional one first, with the negative
    prompt " " as in diffusers' examples.
    """

    name = "qwen"
    title = "Qwen-Image"
    brand = configuration.BRAND
    pipeline_class = files.PIPELINE
    denoiser_class = "QwenImageTransformer2DModel"
    names = shape.NAMES
    configs = configuration.CONFIGS
    classes = configuration.CLASSES
    packed = True
    config_files = tuple(configuration.CONFIGS.values())
    networks_of_parts: Mapping[str, NetworkClass] = {
        "transformer": NetworkClass("QwenImageTransformer2DModel"),
        "text_encoder": NetworkClass("Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLConfig"),
        "vae": NetworkClass("AutoencoderKLQwenImage"),
    }
    parts = shape.PARTS
    unused_parts = ()
    full_shape = shape.QWEN_IMAGE
    presets = files.PRESETS
    downloads = files.DOWNLOADS
    other_pipelines = files.OTHER_PIPELINES
    other_repositories = files.OTHER_REPOSITORIES
    repositories = files.REPOSITORIES
    text_names = ("prompt_embeds", "prompt_embeds_mask")
    step_text_names = ("prompt_embeds",)
    step_text_arguments: Mapping[str, str] = {"prompt_embeds_mask": "encoder_hidden_states_mask"}
    file_layout = files.LAYOUT
    single_file_marks = files.LAYOUT.marks
    refused_methods = files.REFUSED_METHODS

    def config_problems(self, configs: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
        """Yield what speaks against configurations."""
        return configuration.problems(configs)

    def schedule_arguments(self, steps: int) -> Mapping[str, Any]:
        """Return noise levels at equal distances, and a shift for schedules that take one."""
        return {"sigmas": [1 - step / steps for step in range(steps)], "mu": SHIFT}

    def plain_name(self, part: str, name: str) -> str:
        """Return a tensor's name as older and newer files of Qwen2.5-VL have it in common."""
        return name.removeprefix("model.").removeprefix("language_model.") if part == "text_encoder" else name

    def check_autoencoder_config(self, folder: Path, shown: str) -> None:
        """Refuse every folder: the autoencoder is one of films, which is not exchanged."""
        raise RiebenchError(f"{shown}: {self.brand}'s autoencoder is not exchanged; leave --vae out")

    def described_shape(self, folder: Path) -> TokenShape:
        """Return the measures that a folder's configurations state."""
        return shape.described_shape(folder)

    def shape_of_pipeline(self, pipe: Any) -> Shape:
        """Return the measures that matter for captures."""
        return shape.config_shape(pipe.transformer.config, pipe.vae.config)

    def usual_sampling(self, scheduler: Mapping[str, Any]) -> tuple[int, float]:
        """Return the pipeline's own steps and guidance scale."""
        return STEPS, GUIDANCE

    def set_tiling(self, pipe: Any, tile: int) -> None:
        """Make the autoencoder decode in overlapping tiles of a side in pixels."""
        pipe.vae.enable_tiling(*[tile] * 2, *[tile - tile // OVERLAP] * 2)

    def text_attention(self, block: nn.Module) -> tuple[nn.Module, ...]:
        """Return the joint attention of a block."""
        found: Any = block
        return (found.attn,)

    def attention_map(self, layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """Compute how much each image token reads each text token."""
        from riebench.models.families.tokens.qwen import network

        return network.attention_map(layer, args, kwargs)

    def layout(self, guided: bool) -> BatchLayout:
        """Return two calls a step under guidance, the conditional one first."""
        return BatchLayout(guided, ("conditional", "unconditional"), together=False)

    def token_counter(self, folder: Path | None) -> tuple[Callable[[str], int], int]:
        """Return the count of the tokens of a prompt's chat message."""
        from riebench.models.families.tokens.qwen import pipeline

        return pipeline.token_counter(folder)

    def tokenizers(self, pipe: Any) -> tuple[Any, ...]:
        """Return Qwen's tokenizer."""
        return (pipe.tokenizer,)

    def token_limit(self, pipe: Any, tokenizer: Any) -> int:
        """Return how many tokens the transformer reads."""
        return configuration.TOKENS

    def count_tokens(self, pipe: Any, prompt: str) -> int:
        """Return the tokens of a prompt's chat message."""
        from riebench.models.families.tokens.qwen import pipeline

        return pipeline.count_tokens(pipe.tokenizer, prompt)

    def token_positions(self, pipe: Any, prompt: str, characters: Sequence[int]) -> set[int]:
        """Return the positions of some characters of a prompt in its chat message."""
        from riebench.models.families.tokens.qwen import pipeline

        return pipeline.token_positions(pipe.tokenizer, prompt, characters)

    def embed(self, pipe: Any, prompt: str, device: torch.device, *, guided: bool) -> TextEmbeddings:
        """Encode a prompt with Qwen2.5-VL."""
        from riebench.models.families.tokens.qwen import pipeline

        return pipeline.embed(pipe, prompt, device, guided=guided)

    def call_options(self, spec: ModelSpec) -> dict[str, Any]:
        """Return the arguments of the pipeline's call."""
        from riebench.models.families.tokens.qwen import pipeline

        return pipeline.call_options(spec)

    def decode(self, pipe: Any, latents: Tensor) -> Tensor:
        """Decode packed latents in the autoencoder's number format."""
        from riebench.models.families.tokens.qwen import pipeline

        return pipeline.decode(pipe.vae, latents)

    def encode(self, pipe: Any, pixels: Tensor, device: Any) -> Tensor:
        """Encode pictures in the autoencoder's number format."""
        from riebench.models.families.tokens.qwen import pipeline

        return pipeline.encode(pipe.vae, pixels, device)


FAMILY = QwenImageFamily()
"""The registered family."""
