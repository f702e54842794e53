"""The contract of a model family, filled with the answers that token models share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from riebench.errors import RiebenchError
from riebench.models.families.base import EditingTask, Family
from riebench.models.families.blocks import Site
from riebench.models.families.folders import (
    INDEX,
    check_index,
    check_shapes,
    check_tensor_names,
    count_parameters,
    joined_shapes,
    quantised,
    read_json,
)
from riebench.models.families.single_file import T5_TABLES, FileLayout, FileParts, check_file
from riebench.models.families.sizes import NamedAutoencoder, Shape
from riebench.models.families.tokens.names import TokenNames
from riebench.models.families.tokens.sizes import TokenShape
from riebench.models.families.tokens.weights import AUTOENCODER, NetworkClass, config_shapes
from riebench.utils.weights import check_wide, tensor_names

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

REFUSED_METHODS: Mapping[str, str] = {
    "ledits_pp": "diffusers has LEDITS++ for Stable Diffusion and SDXL only",
    "p2p": "prompt-to-prompt takes over attention in U-Nets like SDXL's only",
    "img2img": "its family names no image-to-image pipeline",
}
"""Method -> why it cannot work, where a family says nothing of it."""


class TokenFamily(Family):
    """Models whose denoiser is a transformer of image tokens.

    They are read from folders in diffusers' layout, and from single files where diffusers converts these. There are no
    LoRAs for them.

    Attributes:
        names: of its blocks, from a table.
        brand: short name of the family, for messages.
        configs: component -> the file that describes it.
        classes: component -> names of its class, the usual one first.
        networks_of_parts: part with weights -> class of its network.
        schedulers: schedulers that its pipeline runs with, the usual one first.
        packed: whether its pipeline carries latents in patches of 2 by 2.
        file_layout: names of the tensors in its single files; None if they are not read.
    """

    denoiser_part = "transformer"
    denoiser_title = "transformer"
    names: TokenNames
    autoencoders: Mapping[str, NamedAutoencoder] = {}
    half_files = False
    head_width = 128
    brand: str
    configs: Mapping[str, str]
    classes: Mapping[str, tuple[str, ...]]
    networks_of_parts: Mapping[str, NetworkClass]
    full_shape: TokenShape
    schedulers: tuple[str, ...] = ("FlowMatchEulerDiscreteScheduler",)
    packed = False
    file_layout: FileLayout | None = None
    refused_methods: Mapping[str, str] = REFUSED_METHODS

    # Files

    @abstractmethod
    def config_problems(self, configs: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
        """Yield what speaks against configurations: file, key and reason.

        Args:
            configs: component -> its configuration; weights that are quantised are refused already.
        """

    def check_config(self, folder: Path, shown: str) -> None:
        """Refuse a folder that asks for something that would not be done."""
        check_index(read_json(folder / INDEX), self.classes, self.brand, shown)
        configs = {part: read_json(folder / place) for part, place in self.configs.items()}
        for problem in chain(quantised(configs, self.configs), self.config_problems(configs)):
            raise RiebenchError(f"{shown}: {problem}")

    def schedule_arguments(self, steps: int) -> Mapping[str, Any]:
        """Return arguments of `set_timesteps` to try a schedule with.

        They are those with which the pipeline sets the steps, besides their number.
        """
        return {}

    def check_schedule(self, folder: Path, steps: int, shown: str) -> None:
        """Refuse a folder whose schedule is none of the family's, or cannot be followed.

        One that draws noise without a seed is refused, too.
        """
        from riebench.models.families.tokens import schedule

        schedule.check_schedule(folder, steps, shown, self.brand, self.schedulers, self.schedule_arguments(steps))

    def check_weights(self, folder: Path, part: str, files: Sequence[Path], shown: str) -> None:
        """Refuse weights of other shapes than the configuration beside them gives."""
        needed = config_shapes(folder / self.configs[part], self.networks_of_parts[part])
        have, wanted = (
            {self.plain_name(part, name): sides for name, sides in shapes.items()}
            for shapes in (joined_shapes(files), needed)
        )
        check_shapes(have, wanted, self.configs[part], shown)

    def check_names(self, part: str, stored: set[str], needed: Iterable[str], shown: str) -> None:
        """Refuse weights that lack tensors, or hold tensors that nothing reads."""
        have, wanted = ({self.plain_name(part, name) for name in names} for names in (stored, needed))
        check_tensor_names(part, have, wanted, self.configs[part], shown, more=part.startswith("text"))

    def plain_name(self, part: str, name: str) -> str:
        """Return a tensor's name as all versions of the libraries have it."""
        network = self.networks_of_parts[part].network
        if network.startswith("CLIPTextModel"):
            return name.removeprefix("text_model.")
        return T5_TABLES[1] if network.endswith("T5EncoderModel") and name in T5_TABLES else name

    def check_single_file(self, name: str, tensors: set[str], *, own_autoencoder: bool = True) -> None:
        """Refuse a single file without a transformer of this family.

        What else it lacks comes from another model.
        """
        if self.file_layout is None:
            why = self.single_file_refusal or f"{self.brand} is read from folders in diffusers' layout"
            raise RiebenchError(f"{name}: {why}; give the model's folder or hub id")
        check_file(name, tensors, self.file_layout, self.brand)

    def file_parts(self, tensors: Iterable[str]) -> tuple[str, ...] | None:
        """Return the parts that a single file holds, the transformer among them."""
        parts = self._single_file
        return None if parts is None else parts.held(tensors)

    def check_file_parts(self, file: Path, folder: Path, shown: str) -> None:
        """Refuse a single file whose tensors are not those that a folder describes."""
        parts = self._single_file
        if parts is not None:
            parts.check(file, folder, shown)

    def load_file_parts(self, file: Path, folder: Path, dtypes: Mapping[str, torch.dtype]) -> dict[str, nn.Module]:
        """Return part -> its network with the weights of a single file."""
        parts = self._single_file
        return {} if parts is None else parts.load(file, folder, dtypes, file.name)

    @property
    def _single_file(self) -> FileParts | None:
        if self.file_layout is None:
            return None
        return FileParts(self.file_layout, self.networks_of_parts, self.configs, self.plain_name)

    def check_training(
        self, file: Path, scheduler: Mapping[str, Any], autoencoder: Mapping[str, Any], shown: str
    ) -> None:
        """Refuse nothing: files of such models do not say how they were trained."""

    @abstractmethod
    def check_autoencoder_config(self, folder: Path, shown: str) -> None:
        """Refuse an autoencoder's folder whose configuration is none for this family.

        Raises:
            RiebenchError: in one line, naming the key.
        """

    def check_autoencoder(self, folder: Path, files: Sequence[Path], shown: str) -> None:
        """Refuse a folder that is no autoencoder for this family."""
        self.check_autoencoder_config(folder, shown)
        network = self.networks_of_parts.get("vae", AUTOENCODER)
        check_shapes(joined_shapes(files), config_shapes(folder / "config.json", network), "config.json", shown)

    def check_denoiser_file(self, file: Path) -> None:
        """Refuse a file that is no transformer alone."""
        parts, shown = self._single_file, f"--unet {file.name}"
        if parts is None:
            raise RiebenchError(f"{shown}: {self.brand}'s transformer is read from the model's folder alone")
        names = tensor_names(file)
        check_file(shown, names, parts.layout, self.brand)
        check_wide(file)
        if len(parts.held(names)) > 1:
            raise RiebenchError(f"{shown} is a whole checkpoint, no transformer alone; give it as the model")

    def check_lora_file(self, file: Path) -> None:
        """Refuse every file: only weights of SDXL are added to."""
        raise RiebenchError(
            f"--lora {file.name}: LoRAs are added to SDXL alone; merge it into {self.brand}'s folder before"
        )

    @abstractmethod
    def described_shape(self, folder: Path) -> TokenShape:
        """Return the measures that a folder's configurations state.

        Its weights need not be there.

        Raises:
            RiebenchError: if a configuration is missing or cannot be read.
        """

    def shape_of_folder(self, folder: Path) -> Shape:
        """Return the measures of a model folder, its parameters counted in its weights."""
        found = self.described_shape(folder)
        return replace(found, parameters={part: count_parameters(folder / part) for part in self.parts})

    def shape_of_file(self, file: Path, folder: Path | None = None) -> Shape:
        """Return the measures of a single file.

        Without a folder that describes it, its blocks are counted in the header; all else is the full-size model's.
        """
        parts, full = self._single_file, self.full_shape
        try:
            if parts is None:
                return full
            if folder is not None:
                found = self.described_shape(folder)
                stored = [part for part in self.parts if any((folder / part).glob("*.safetensors"))]
                beside = {part: count_parameters(folder / part) for part in stored}
                return replace(found, parameters={**found.parameters, **beside, **parts.counts(file)})
            counts = parts.blocks(file, [one.folder for one in self.names.lists.values()])
            fields: dict[str, Any] = {one.counted: counts[one.folder] for one in self.names.lists.values()}
        except (RiebenchError, KeyError):
            # The checks of files say what is wrong.
            return full
        known = (full, *(self.shape_of_preset(preset.name) for preset in self.presets if preset.on_hub))
        same = (one for one in known if all(getattr(one, name) == count for name, count in fields.items()))
        return next(same, None) or replace(full, **fields)

    @abstractmethod
    def shape_of_pipeline(self, pipe: Any) -> Shape:
        """Return the measures that matter for captures, of a pipeline in memory."""

    def described_size(self, folder: Path) -> int:
        """Return the picture side in pixels of a folder that describes a single file."""
        return self.described_shape(folder).native_size

    def native_size(self, pipe: Any) -> int:
        """Return the picture side in pixels that a pipeline in memory was made for."""
        return self.shape_of_pipeline(pipe).native_size

    # Loading

    def pipeline_type(self) -> Any:
        """Return diffusers' pipeline class."""
        import diffusers

        return getattr(diffusers, self.pipeline_class)

    def autoencoder_type(self) -> Any:
        """Return diffusers' autoencoder class."""
        import diffusers

        return getattr(diffusers, self.networks_of_parts["vae"].network)

    def loading_options(self) -> dict[str, Any]:
        """Return no further arguments."""
        return {}

    def networks(self, pipe: Any) -> tuple[nn.Module, ...]:
        """Return the transformer, the autoencoder and the text encoders."""
        encoders = [part for part in self.parts if part.startswith("text_encoder")]
        return tuple(getattr(pipe, part) for part in ("transformer", "vae", *encoders))

    def exchange_denoiser(self, pipe: Any, file: Path) -> None:
        """Put the weights of a file into the transformer.

        The configuration stays the model's own.
        """
        self.check_denoiser_file(file)
        parts = self._single_file
        if parts is not None:
            shown, network = f"--unet {file.name}", pipe.transformer
            tensors, own = parts.denoiser(file, dict(network.config), shown), network.state_dict()
            stored, needed = ({name: tuple(value.shape) for name, value in one.items()} for one in (tensors, own))
            parts.compare("transformer", stored, needed, shown)
            network.load_state_dict(tensors)

    def add_lora(self, pipe: Any, file: Path, scale: float) -> None:
        """Refuse every file; see `check_lora_file`."""
        self.check_lora_file(file)

    def is_guided(self, pipe: Any, guidance: float) -> bool:
        """Return whether there is an unconditional half."""
        return guidance > 1

    # Hooks

    def sites(self, denoiser: nn.Module) -> tuple[str, ...]:
        """Return the short names of all blocks of a transformer."""
        from riebench.models.families.tokens import streams

        return streams.sites(denoiser, self.names)

    def site(self, denoiser: nn.Module, name: str) -> Site:
        """Return a site of a transformer by its short name."""
        from riebench.models.families.tokens import streams

        return streams.site(denoiser, self.names, name)

    def update_width(self, denoiser: nn.Module, name: str) -> int:
        """Return the channels of all streams."""
        transformer: Any = denoiser
        return int(transformer.inner_dim)

    def unit_layers(self, module: nn.Module) -> int | None:
        """Return 1: a block has one feed-forward layer for its image tokens."""
        return 1

    def finish_block(self, module: nn.Module, hidden: Tensor, update: Tensor) -> Any:
        """Return no text, and input plus update as the image stream."""
        from riebench.models.families.tokens import streams

        image = (hidden.float() + update.float()).to(hidden.dtype)
        index = streams.place_of(module, "image").index
        return image if index is None else (*[None] * index, image)

    # Latents of an AutoencoderKL that is scaled and shifted

    def unpack_latents(self, latents: Tensor, size: int) -> Tensor:
        """Return latents as pictures, as most pipelines carry them."""
        from riebench.models.families.tokens import autoencoder

        return autoencoder.unpack_latents(latents) if self.packed else latents

    def pack_latents(self, latents: Tensor) -> Tensor:
        """Return latents as the pipeline carries them."""
        from riebench.models.families.tokens import autoencoder

        return autoencoder.pack_latents(latents) if self.packed else latents

    def decode(self, pipe: Any, latents: Tensor) -> Tensor:
        """Decode latents in the autoencoder's number format."""
        from riebench.models.families.tokens import autoencoder

        return autoencoder.decode(pipe.vae, autoencoder.unpack_latents(latents) if self.packed else latents)

    def encode(self, pipe: Any, pixels: Tensor, device: Any) -> Tensor:
        """Encode pictures in the autoencoder's number format."""
        from riebench.models.families.tokens import autoencoder

        return autoencoder.encode(pipe.vae, pixels, device)

    # Editors of other people

    def editing_pipeline(self, task: EditingTask, pipe: Any) -> Any:
        """Refuse every task; see `refused_methods`."""
        raise self._refused(task)

    def same_condition(self, denoiser: nn.Module) -> AbstractContextManager[None]:
        """Refuse: there is no LEDITS++ for this family."""
        raise self._refused("ledits_pp")

    def _refused(self, method: str) -> RiebenchError:
        why = {**REFUSED_METHODS, **self.refused_methods}[method]
        return RiebenchError(f"{method} cannot be used on {self.title}: {why}")
