"""The contract of a model family, filled as far as it holds for every U-Net."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from riebench.errors import RiebenchError
from riebench.models.families.base import Family
from riebench.models.families.blocks import BatchLayout, Site, Stage
from riebench.models.families.folders import joined_shapes, read_json
from riebench.models.families.sizes import Shape
from riebench.models.families.unet import configuration, shape, weights
from riebench.models.spec import ModelSpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


class UNetFamily(Family):
    """Models around a U-Net of `UNet2DConditionModel`.

    A sub-class adds names, presets, text, single files and editors.

    Attributes:
        architecture: the parts of its pipeline.
        stand_ins: class of a scheduler that calls the U-Net more than once in a step -> the class in its place.
    """

    denoiser_class = "UNet2DConditionModel"
    denoiser_part = "unet"
    head_width = 64
    architecture: configuration.Architecture
    full_shape: shape.UNetShape
    stand_ins: Mapping[str, str] = MappingProxyType({})

    def owns_denoiser(self, denoiser: nn.Module) -> bool:
        """Return whether a U-Net is of this family.

        It is by what it is given beside time and text.
        """
        config: Any = getattr(denoiser, "config", None)
        return super().owns_denoiser(denoiser) and (
            config is None or config.get("addition_embed_type") == self.architecture.addition
        )

    def check_config(self, folder: Path, shown: str) -> None:
        """Refuse a folder that asks for something that would not be done."""
        configuration.check_configs(folder, shown, self.architecture)

    def check_schedule(self, folder: Path, steps: int, shown: str) -> None:
        """Refuse a folder whose schedule has more calls than steps, or fails."""
        from riebench.models.families.unet import schedule

        schedule.check_schedule(folder, steps, shown, self.title, self.stand_ins)

    def check_weights(self, folder: Path, part: str, files: Sequence[Path], shown: str) -> None:
        """Refuse weights of another configuration than the one beside them."""
        config = read_json(folder / weights.place_of(part))
        weights.check_weights(part, joined_shapes(files), config, shown)

    def check_names(self, part: str, stored: set[str], needed: Iterable[str], shown: str) -> None:
        """Refuse weights that lack tensors, or hold tensors that nothing reads."""
        weights.check_names(part, stored, needed, shown)

    def check_training(
        self, file: Path, scheduler: Mapping[str, Any], autoencoder: Mapping[str, Any], shown: str
    ) -> None:
        """Refuse a file that was trained for another schedule."""
        from riebench.models.families.unet import schedule

        schedule.check_training(file, scheduler, autoencoder, shown)

    def check_autoencoder(self, folder: Path, files: Sequence[Path], shown: str) -> None:
        """Refuse a folder that is no autoencoder of four channels."""
        config = read_json(folder / "config.json")
        configuration.check_autoencoder(config, shown, self.architecture, "config.json")
        weights.check_weights("vae", joined_shapes(files), config, shown, "config.json")

    def check_denoiser_file(self, file: Path) -> None:
        """Refuse a file that is no U-Net alone."""
        from riebench.models.families.unet import additions

        additions.check_unet_file(file, self.title)

    def check_lora_file(self, file: Path) -> None:
        """Refuse a file that is no LoRA."""
        from riebench.models.families.unet import additions

        additions.check_lora_file(file)

    def shape_of_folder(self, folder: Path) -> Shape:
        """Return the measures of a model folder."""
        return shape.folder_shape(folder, self.full_shape)

    def shape_of_pipeline(self, pipe: Any) -> Shape:
        """Return the measures that matter for captures."""
        return shape.unet_shape(pipe.unet.config, pipe.vae_scale_factor, self.full_shape)

    def native_size(self, pipe: Any) -> int:
        """Return the side of the U-Net's latents in pixels."""
        side = pipe.unet.config.sample_size
        if not isinstance(side, int):
            raise RiebenchError(f"unet/config.json says sample_size {side}; give one picture side with --size")
        return int(side * pipe.vae_scale_factor)

    def described_size(self, folder: Path) -> int:
        """Return the side of the U-Net's latents in pixels, as a folder states it."""
        return shape.described_size(folder, self.full_shape)

    def autoencoder_type(self) -> Any:
        """Return diffusers' autoencoder class."""
        from diffusers import AutoencoderKL

        return AutoencoderKL

    def networks(self, pipe: Any) -> tuple[nn.Module, ...]:
        """Return the U-Net, the autoencoder and the text encoders."""
        return (pipe.unet, pipe.vae, *(getattr(pipe, part) for part in self.architecture.text_encoders))

    def exchange_denoiser(self, pipe: Any, file: Path) -> None:
        """Put the weights of a file into the U-Net."""
        from riebench.models.families.unet import additions

        additions.exchange_unet(pipe, file, self.title)

    def add_lora(self, pipe: Any, file: Path, scale: float) -> None:
        """Add a LoRA to U-Net and text encoders."""
        from riebench.models.families.unet import additions

        additions.add_lora(pipe, file, scale)

    def is_guided(self, pipe: Any, guidance: float) -> bool:
        """Return whether there is an unconditional half.

        A U-Net that is told the guidance scale has none.
        """
        return guidance > 1 and pipe.unet.config.time_cond_proj_dim is None

    def sites(self, denoiser: nn.Module) -> tuple[str, ...]:
        """Return the short names of all blocks of a U-Net."""
        from riebench.models.families.unet import network

        return network.sites(denoiser)

    def site(self, denoiser: nn.Module, name: str) -> Site:
        """Return a site of a U-Net by its short name."""
        from riebench.models.families.unet import network

        return network.site(denoiser, name)

    def update_width(self, denoiser: nn.Module, name: str) -> int:
        """Return the rows of an attention block's last projection."""
        projection: Any = denoiser.get_submodule(self.names.update_path(name))
        return int(projection.weight.shape[0])

    def unit_layers(self, module: nn.Module) -> int | None:
        """Return the number of transformer layers of an attention block."""
        from riebench.models.families.unet import network

        return network.unit_layers(module)

    def text_attention(self, block: nn.Module) -> tuple[nn.Module, ...]:
        """Return the cross-attention layers of a block."""
        from riebench.models.families.unet import network

        return network.text_attention(block)

    def text_projections(self, denoiser: nn.Module) -> tuple[nn.Module, ...]:
        """Return the projections to keys and values of all cross-attention layers."""
        from riebench.models.families.unet import network

        return network.text_projections(denoiser)

    def attention_map(self, layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """Compute how much each position reads each token."""
        from riebench.models.families.unet import network

        return network.attention_map(layer, args, kwargs)

    def layout(self, guided: bool) -> BatchLayout:
        """Return one batch a step, its unconditional half first."""
        return BatchLayout(guided)

    def stages(self, denoiser: nn.Module) -> tuple[Stage, ...]:
        """Return the first convolution and all blocks in the order of the modules."""
        from riebench.models.families.unet import network

        return network.stages(denoiser)

    def finish_block(self, module: nn.Module, hidden: Tensor, update: Tensor) -> Any:
        """Return input plus update, as an attention block gives it."""
        from riebench.models.families.unet import network

        return network.finish_block(hidden, update)

    def token_counter(self, folder: Path | None) -> tuple[Callable[[str], int], int]:
        """Return the count of the first tokenizer.

        Where there are two, both split text alike. The official models' vocabulary is that of CLIP, which open_clip
        carries in its package.
        """
        from riebench.models.families.unet import pipeline

        return pipeline.token_counter(folder)

    def tokenizers(self, pipe: Any) -> tuple[Any, ...]:
        """Return the tokenizers."""
        return tuple(getattr(pipe, part) for part in self.architecture.tokenizers)

    def call_options(self, spec: ModelSpec) -> dict[str, Any]:
        """Return the arguments of the pipeline's call."""
        from riebench.models.families.unet import pipeline

        return pipeline.call_options(spec)

    def unpack_latents(self, latents: Tensor, size: int) -> Tensor:
        """Return the latents: the pipeline carries them as pictures."""
        return latents

    def pack_latents(self, latents: Tensor) -> Tensor:
        """Return the latents: the pipeline carries them as pictures."""
        return latents

    def decode(self, pipe: Any, latents: Tensor) -> Tensor:
        """Decode latents in the autoencoder's number format."""
        from riebench.models.families.unet import pipeline

        return pipeline.decode(pipe.vae, latents)

    def encode(self, pipe: Any, pixels: Tensor, device: torch.device) -> Tensor:
        """Encode pictures in the autoencoder's number format."""
        from riebench.models.families.unet import pipeline

        return pipeline.encode(pipe.vae, pixels, device)
