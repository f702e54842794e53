"""The contract of a model family, filled for Z-Image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from riebench.models.families.base import TextEmbeddings
from riebench.models.families.blocks import BatchLayout, Site
from riebench.models.families.folders import read_json
from riebench.models.families.sizes import Shape
from riebench.models.families.tokens.family import TokenFamily
from riebench.models.families.tokens.sizes import TokenShape
from riebench.models.families.tokens.weights import AUTOENCODER, NetworkClass
from riebench.models.families.tokens.zimage import configuration, files, pipeline, shape
from riebench.models.families.tokens.zimage.names import ZImageNames
from riebench.models.spec import ModelSpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

FEW_STEPS, MANY_STEPS, MANY_STEPS_GUIDANCE = 8, 50, 4.0
FEW_STEPS_SHIFT = 3.0
"""Shift of the noise levels of a model for few steps; larger ones are those of models for many."""
SHIFT = 1.15
"""A shift that pictures of 1024 px have, to try a schedule with that takes one."""
WORD_HEAD = "lm_head.weight"
"""The part of a language model that files often leave out, since it is equal to the token table."""


class ZImageFamily(TokenFamily):
    """Z-Image, Z-Image-Turbo and models trained from them.

    Both halves of guidance are one batch, the conditional one first, with the empty prompt as the negative one. The
    pipeline adds its scale times the difference of the halves to the conditional one: 0 is no guidance.
    """

    name = "zimage"
    title = "Z-Image"
    brand = configuration.BRAND
    pipeline_class = files.PIPELINE
    denoiser_class = "ZImageTransformer2DModel"
    names = ZImageNames()
    configs = configuration.CONFIGS
    classes = configuration.CLASSES
    config_files = tuple(configuration.CONFIGS.values())
    networks_of_parts: Mapping[str, NetworkClass] = {
        "transformer": NetworkClass("ZImageTransformer2DModel"),
        "text_encoder": NetworkClass("Qwen3Model", "Qwen3Config"),
        "vae": AUTOENCODER,
    }
    parts = shape.PARTS
    unused_parts = ()
    full_shape = shape.Z_IMAGE
    presets = files.PRESETS
    downloads = files.DOWNLOADS
    other_pipelines = files.OTHER_PIPELINES
    other_repositories = files.OTHER_REPOSITORIES
    repositories = files.REPOSITORIES
    text_names = ("prompt_embeds",)
    step_text_names = ("prompt_embeds",)
    file_layout = files.LAYOUT
    single_file_marks = files.LAYOUT.marks
    refused_methods = files.REFUSED_METHODS

    def config_problems(self, configs: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
        """Yield what speaks against configurations."""
        return configuration.problems(configs)

    def check_config(self, folder: Path, shown: str) -> None:
        """Refuse a folder that asks for something that would not be done.

        One that does not say how prompts become chat messages is refused, too.
        """
        super().check_config(folder, shown)
        configuration.check_chat_template(folder, shown)

    def schedule_arguments(self, steps: int) -> Mapping[str, Any]:
        """Return noise levels at equal distances, and a shift for schedules that take one."""
        return {"sigmas": [1 - step / steps for step in range(steps)], "mu": SHIFT}

    def plain_name(self, part: str, name: str) -> str:
        """Return a tensor's name in Qwen3 without the head that chooses words."""
        return name.removeprefix("model.") if part == "text_encoder" else name

    def check_names(self, part: str, stored: set[str], needed: Iterable[str], shown: str) -> None:
        """Refuse weights that lack tensors; the head that chooses words is not read."""
        super().check_names(part, stored, (name for name in needed if name != WORD_HEAD), shown)

    def check_autoencoder_config(self, folder: Path, shown: str) -> None:
        """Refuse a folder that is no autoencoder of sixteen channels."""
        configuration.check_autoencoder(read_json(folder / "config.json"), shown, "config.json")

    def described_shape(self, folder: Path) -> TokenShape:
        """Return the measures that a folder's configurations state."""
        return shape.described_shape(folder)

    def shape_of_pipeline(self, pipe: Any) -> Shape:
        """Return the measures that matter for captures."""
        return shape.config_shape(pipe.transformer.config, pipe.vae.config)

    def usual_sampling(self, scheduler: Mapping[str, Any]) -> tuple[int, float]:
        """Return the usual steps and guidance scale.

        A schedule that shifts its noise levels further than Turbo's is that of a model for many steps.
        """
        many = scheduler.get("shift", FEW_STEPS_SHIFT) > FEW_STEPS_SHIFT
        return (MANY_STEPS, MANY_STEPS_GUIDANCE) if many else (FEW_STEPS, 0.0)

    def is_guided(self, pipe: Any, guidance: float) -> bool:
        """Return whether there is an unconditional half, as there is above 0."""
        return guidance > 0

    def site(self, denoiser: nn.Module, name: str) -> Site:
        """Return a site of a transformer by its short name."""
        from riebench.models.families.tokens.zimage import network

        return network.site(denoiser, name)

    def update_width(self, denoiser: nn.Module, name: str) -> int:
        """Return the channels of all tokens."""
        transformer: Any = denoiser
        return int(transformer.dim)

    def text_attention(self, block: nn.Module) -> tuple[nn.Module, ...]:
        """Return the attention of a layer of image and text tokens."""
        from riebench.models.families.tokens.zimage import network

        return network.text_attention(block)

    def attention_map(self, layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """Compute how much each image token reads each text token."""
        from riebench.models.families.tokens.zimage import network

        return network.attention_map(layer, args, kwargs)

    def layout(self, guided: bool) -> BatchLayout:
        """Return one call a step, whose batch begins with the conditional half."""
        return BatchLayout(guided, ("conditional", "unconditional"))

    def token_counter(self, folder: Path | None) -> tuple[Callable[[str], int], int]:
        """Return the count of the tokens of a prompt's chat message."""
        return pipeline.token_counter(folder)

    def tokenizers(self, pipe: Any) -> tuple[Any, ...]:
        """Return Qwen's tokenizer."""
        return (pipe.tokenizer,)

    def token_limit(self, pipe: Any, tokenizer: Any) -> int:
        """Return how many tokens the pipeline reads, its chat template included."""
        return configuration.TOKENS

    def count_tokens(self, pipe: Any, prompt: str) -> int:
        """Return the tokens of a prompt's chat message."""
        return pipeline.count_tokens(pipe.tokenizer, prompt)

    def token_positions(self, pipe: Any, prompt: str, characters: Sequence[int]) -> set[int]:
        """Return the positions of some characters of a prompt in its chat message."""
        return pipeline.token_positions(pipe.tokenizer, prompt, characters)

    def embed(self, pipe: Any, prompt: str, device: torch.device, *, guided: bool) -> TextEmbeddings:
        """Encode a prompt with Qwen3."""
        return pipeline.embed(pipe, prompt, device, guided=guided)

    def join_text(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Return the texts one by one: they differ in length."""
        return [part[0] for part in parts]

    def call_options(self, spec: ModelSpec) -> dict[str, Any]:
        """Return the arguments of the pipeline's call."""
        return pipeline.call_options(spec)


FAMILY = ZImageFamily()
"""The registered family."""
