"""The contract of a model family, filled for FLUX.1."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from riebench.errors import RiebenchError
from riebench.models.families.base import EditingTask, Family, TextEmbeddings
from riebench.models.families.blocks import BatchLayout, BlockNames, Site
from riebench.models.families.flux import configuration, files, shape
from riebench.models.families.flux.names import FluxNames
from riebench.models.families.folders import check_shapes, check_tensor_names, joined_shapes, read_json
from riebench.models.families.sizes import NamedAutoencoder, Shape
from riebench.models.spec import ModelSpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

FEW_STEPS, MANY_STEPS, MANY_STEPS_GUIDANCE = 4, 28, 3.5
T5_TABLES = ("encoder.embed_tokens.weight", "shared.weight")
"""Two names of T5's one token table; files hold it under either."""


class FluxFamily(Family):
    """FLUX.1-schnell, FLUX.1-dev and models trained from them.

    schnell takes few steps without guidance. dev is told the guidance scale, so that it has no unconditional half. A
    model that is not told it gets true classifier-free guidance above scale 1: two calls a step, the conditional one
    first, with the empty prompt as the negative one.
    """

    name = "flux"
    title = "FLUX.1"
    pipeline_class = files.PIPELINE
    denoiser_class = "FluxTransformer2DModel"
    denoiser_part = "transformer"
    denoiser_title = "transformer"
    names: BlockNames = FluxNames()
    config_files = tuple(configuration.CONFIGS.values())
    parts = shape.PARTS
    unused_parts = ("image_encoder", "feature_extractor")
    full_shape = shape.FLUX
    presets = files.PRESETS
    downloads = files.DOWNLOADS
    autoencoders: Mapping[str, NamedAutoencoder] = {}
    other_pipelines = files.OTHER_PIPELINES
    other_repositories = files.OTHER_REPOSITORIES
    repositories = files.REPOSITORIES
    half_files = False
    text_names = ("prompt_embeds", "pooled_prompt_embeds")
    step_text_names = ("prompt_embeds",)
    step_text_arguments: Mapping[str, str] = {"pooled_prompt_embeds": "pooled_projections"}
    refused_methods = files.REFUSED_METHODS
    head_width = 128

    def check_config(self, folder: Path, shown: str) -> None:
        """Refuse a folder that asks for something that would not be done."""
        configuration.check_configs(folder, shown)

    def check_schedule(self, folder: Path, steps: int, shown: str) -> None:
        """Refuse a folder whose schedule is not flow matching in Euler steps.

        One that draws noise without a seed is refused, too.
        """
        from riebench.models.families.flux import schedule

        schedule.check_schedule(folder, steps, shown)

    def check_weights(self, folder: Path, part: str, files: Sequence[Path], shown: str) -> None:
        """Refuse weights of other shapes than the configuration beside them gives."""
        from riebench.models.families.flux import weights

        needed = weights.needed_shapes(part, folder)
        check_shapes(joined_shapes(files), needed, configuration.CONFIGS[part], shown)

    def check_names(self, part: str, stored: set[str], needed: Iterable[str], shown: str) -> None:
        """Refuse weights that lack tensors, or hold tensors that nothing reads."""
        have, wanted = ({_plain(part, name) for name in names} for names in (stored, needed))
        check_tensor_names(part, have, wanted, configuration.CONFIGS[part], shown, more=part.startswith("text"))

    def check_single_file(self, name: str, tensors: set[str], *, own_autoencoder: bool = True) -> None:
        """Refuse every single file: those of FLUX hold the transformer alone."""
        raise RiebenchError(
            f"{name}: FLUX is read from folders in diffusers' layout; give the model's folder or hub id"
        )

    def check_training(
        self, file: Path, scheduler: Mapping[str, Any], autoencoder: Mapping[str, Any], shown: str
    ) -> None:
        """Refuse nothing: files of FLUX do not say how they were trained."""

    def check_autoencoder(self, folder: Path, files: Sequence[Path], shown: str) -> None:
        """Refuse a folder that is no autoencoder of sixteen channels."""
        from riebench.models.families.flux import weights

        configuration.check_autoencoder(read_json(folder / "config.json"), shown, "config.json")
        check_shapes(joined_shapes(files), weights.autoencoder_shapes(folder / "config.json"), "config.json", shown)

    def check_denoiser_file(self, file: Path) -> None:
        """Refuse every file: only the U-Net of SDXL is exchanged."""
        raise RiebenchError(
            f"--unet {file.name}: FLUX has no U-Net; give the folder of the model that holds the weights"
        )

    def check_lora_file(self, file: Path) -> None:
        """Refuse every file: only weights of SDXL are added to."""
        raise RiebenchError(f"--lora {file.name}: LoRAs are added to SDXL alone; merge it into FLUX's folder before")

    def shape_of_folder(self, folder: Path) -> Shape:
        """Return the measures of a model folder."""
        return shape.folder_shape(folder)

    def shape_of_pipeline(self, pipe: Any) -> Shape:
        """Return the measures that matter for captures."""
        return shape.config_shape(pipe.transformer.config, pipe.vae.config, pipe.tokenizer_2.model_max_length)

    def shape_of_preset(self, name: str) -> Shape:
        """Return the measures of schnell or dev.

        dev reads longer texts and is told the guidance scale.
        """
        return shape.FLUX_DEV if name == "flux-dev" else shape.FLUX

    def native_size(self, pipe: Any) -> int:
        """Return the side of the pictures that the autoencoder was made for.

        The transformer states none.
        """
        return self.shape_of_pipeline(pipe).native_size

    def usual_sampling(self, scheduler: Mapping[str, Any]) -> tuple[int, float]:
        """Return the usual steps and guidance scale.

        A schedule that shifts with the size of the picture is that of a model for many steps.
        """
        if scheduler.get("use_dynamic_shifting"):
            return MANY_STEPS, MANY_STEPS_GUIDANCE
        return FEW_STEPS, 0.0

    def pipeline_type(self) -> Any:
        """Return diffusers' pipeline class."""
        from diffusers import FluxPipeline

        return FluxPipeline

    def autoencoder_type(self) -> Any:
        """Return diffusers' autoencoder class."""
        from diffusers import AutoencoderKL

        return AutoencoderKL

    def loading_options(self) -> dict[str, Any]:
        """Return no further arguments."""
        return {}

    def networks(self, pipe: Any) -> tuple[nn.Module, ...]:
        """Return the transformer, the autoencoder and both text encoders."""
        return (pipe.transformer, pipe.vae, pipe.text_encoder, pipe.text_encoder_2)

    def exchange_denoiser(self, pipe: Any, file: Path) -> None:
        """Refuse every file; see `check_denoiser_file`."""
        self.check_denoiser_file(file)

    def add_lora(self, pipe: Any, file: Path, scale: float) -> None:
        """Refuse every file; see `check_lora_file`."""
        self.check_lora_file(file)

    def is_guided(self, pipe: Any, guidance: float) -> bool:
        """Return whether there is an unconditional half.

        A transformer that is told the guidance scale has none.
        """
        return guidance > 1 and not pipe.transformer.config.guidance_embeds

    def sites(self, denoiser: nn.Module) -> tuple[str, ...]:
        """Return the short names of all blocks of a transformer."""
        from riebench.models.families.flux import network

        return network.sites(denoiser)

    def site(self, denoiser: nn.Module, name: str) -> Site:
        """Return a site of a transformer by its short name."""
        from riebench.models.families.flux import network

        return network.site(denoiser, name)

    def update_width(self, denoiser: nn.Module, name: str) -> int:
        """Return the channels of both streams."""
        transformer: Any = denoiser
        return int(transformer.inner_dim)

    def unit_layers(self, module: nn.Module) -> int | None:
        """Return 1: a block has one feed-forward layer for its image tokens."""
        return 1

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

    def finish_block(self, module: nn.Module, hidden: Tensor, update: Tensor) -> Any:
        """Return no text, and input plus update as the image stream."""
        return None, (hidden.float() + update.float()).to(hidden.dtype)

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

    def unpack_latents(self, latents: Tensor, size: int) -> Tensor:
        """Return packed latents as pictures."""
        from riebench.models.families.flux import pipeline

        return pipeline.unpack_latents(latents)

    def pack_latents(self, latents: Tensor) -> Tensor:
        """Return latents in patches of 2 by 2."""
        from riebench.models.families.flux import pipeline

        return pipeline.pack_latents(latents)

    def decode(self, pipe: Any, latents: Tensor) -> Tensor:
        """Decode packed latents in the autoencoder's number format."""
        from riebench.models.families.flux import pipeline

        return pipeline.decode(pipe.vae, latents)

    def encode(self, pipe: Any, pixels: Tensor, device: torch.device) -> Tensor:
        """Encode pictures in the autoencoder's number format."""
        from riebench.models.families.flux import pipeline

        return pipeline.encode(pipe.vae, pixels, device)

    def editing_pipeline(self, task: EditingTask, pipe: Any) -> Any:
        """Refuse every task; see `refused_methods`."""
        raise RiebenchError(f"{task} cannot be used on {self.title}: {self.refused_methods[task]}")

    def same_condition(self, denoiser: nn.Module) -> AbstractContextManager[None]:
        """Refuse: there is no LEDITS++ for this family."""
        raise RiebenchError(f"ledits_pp cannot be used on {self.title}: {self.refused_methods['ledits_pp']}")


def _plain(part: str, name: str) -> str:
    """Return a tensor's name as all versions of the libraries have it."""
    if part == "text_encoder":
        return name.removeprefix("text_model.")
    return T5_TABLES[1] if part == "text_encoder_2" and name in T5_TABLES else name


FAMILY = FluxFamily()
"""The registered family."""
