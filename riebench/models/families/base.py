"""The contract of a model family: all that is true of one architecture only.

It covers names, files, sizes, hooks, guidance, text and latents.

Everything above talks to this contract alone. Modules here import neither torch nor diffusers until a method needs
them, so that block names can be checked and runs be planned on any machine.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from riebench.errors import RiebenchError
from riebench.models.spec import HALF_DTYPES, ModelOptions, ModelSpec, Preset
from riebench.registry import MODEL_FAMILIES

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

CONFIG_PATTERNS = ("model_index.json", "scheduler/*", "tokenizer*/*", "*/config.json")
"""Everything of a model's folder that is small; single files need exactly this beside them."""

Half = Literal["conditional", "unconditional"]
"""The two halves of classifier-free guidance; without guidance everything is conditional."""


class BlockNames(ABC):
    """Names of the places in a denoiser that riebench looks at and edits.

    Attributes:
        known: short names of all blocks of the full-size architecture, in the order in which a picture passes them.
        default: the blocks of the published experiments; what "all" stands for.
        prefixes: words that the name of a block may begin with, in any of its forms.
    """

    known: tuple[str, ...]
    default: tuple[str, ...]
    prefixes: tuple[str, ...]

    @abstractmethod
    def short_name(self, name: str) -> str | None:
        """Return the short name of a block in any of its forms.

        Returns None for a block of another family.
        """

    @abstractmethod
    def module_path(self, short: str) -> str:
        """Return the path of the block's module inside the denoiser.

        Raises:
            RiebenchError: if the short name stands for nothing.
        """

    @abstractmethod
    def long_name(self, short: str) -> str:
        """Return the path that SAE folders and files are named by."""

    @abstractmethod
    def update_path(self, short: str) -> str:
        """Return the path of the module that gives a block's update.

        It is the block's own path if no module inside the block gives it.
        """

    @abstractmethod
    def update_block(self, path: str) -> str | None:
        """Return the short name of the block whose `update_path` a path is, or None."""

    @abstractmethod
    def kind(self, short: str) -> str:
        """Return what a site is: a word of `riebench.blocks.KINDS`."""

    @abstractmethod
    def pass_order(self, shorts: Sequence[str]) -> tuple[str, ...]:
        """Return blocks in the order in which a picture passes them."""

    @abstractmethod
    def unit_site(self, block: str, layer: int) -> str:
        """Return the short name of the feed-forward units of one layer of a block."""

    @abstractmethod
    def block_of(self, site: str) -> str:
        """Return the block that a site of feed-forward units lies in.

        Any other site is its own block.
        """


class Site(ABC):
    """One place in a denoiser, as hooks read and change it.

    Attributes:
        module: the block's module; runs once in each call of the denoiser, and what enters it is the input.
        point: the module whose output an edit changes; `module` itself, or one inside it.
    """

    module: nn.Module
    point: nn.Module

    @abstractmethod
    def hidden(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """Return the image stream that enters `module`, from the arguments of its call."""

    @abstractmethod
    def stream(self, output: Any) -> Tensor:
        """Return the image stream in an output of `module` or `point`."""

    @abstractmethod
    def update(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Tensor:
        """Return what the block adds to the image stream, from one call of `point`.

        Returns:
            In the layout of the stream at `point`, batch first: [B, C, H, W] or [B, positions, C].
        """

    @abstractmethod
    def with_stream(self, output: Any, changed: Tensor) -> Any:
        """Return an output of `point` with another image stream in it."""

    @abstractmethod
    def bypass(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Any:
        """Return what `module` would give if it added nothing, from one call of it."""

    @abstractmethod
    def grid(self, hidden: Tensor) -> tuple[int, int]:
        """Return (height, width) of the positions of an input."""

    @abstractmethod
    def as_picture(self, values: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return a stream or update laid out as [B, C, H, W]."""


@dataclass(frozen=True)
class BatchLayout:
    """Layout of one step of the denoiser in calls and rows under guidance.

    Attributes:
        guided: whether there is an unconditional half.
        order: the halves in the order in which they come, in one batch or in calls one after the other.
        together: whether both halves are one batch; otherwise each is a call of its own.
    """

    guided: bool
    order: tuple[Half, Half] = ("unconditional", "conditional")
    together: bool = True

    @property
    def calls(self) -> int:
        """Calls of the denoiser in each step."""
        return 1 if self.together or not self.guided else 2

    def halves(self, call: int) -> tuple[Half, ...]:
        """Return the halves in the batch of a call, in order.

        Args:
            call: of the run, from 0.
        """
        if not self.guided:
            return ("conditional",)
        return self.order if self.together else (self.order[call % 2],)

    def split(self, values: Tensor, call: int) -> dict[Half, Tensor]:
        """Return each half's rows of a batch [B, ...]."""
        halves = self.halves(call)
        return dict(zip(halves, values.chunk(len(halves)), strict=True))

    def offset(self, half: Half, batch: int, call: int) -> int | None:
        """Return how many rows precede a half's rows in a call's batch.

        Returns None if the half is not in that call.

        Args:
            half: the half.
            batch: pictures, so rows of each half.
            call: of the run, from 0.
        """
        halves = self.halves(call)
        return halves.index(half) * batch if half in halves else None


@dataclass(frozen=True)
class Stage:
    """A module that a picture passes through.

    Runs share their beginning stage by stage (`riebench.generation.prefix`).

    Attributes:
        path: inside the denoiser.
        module: the module itself.
        is_skip: whether later stages read its output besides the next one.
        wraps: whether the module gives its output as the first of a tuple.
    """

    path: str
    module: nn.Module
    is_skip: bool
    wraps: bool


@dataclass(frozen=True)
class HubFile:
    """One file of a repository.

    Attributes:
        path: inside the repository.
        size: bytes.
        sha256: its first 8 hexadecimal digits, or "" where they are not known.
    """

    path: str
    size: int
    sha256: str = ""


@dataclass(frozen=True)
class ModelDownload:
    """Files that have to be fetched for one official model.

    Attributes:
        source: hub id.
        revision: commit.
        licence: in words.
        half: weight files for float16 and bfloat16.
        full: weight files for float32.
        small: bytes of the configurations and tokenizers beside them.
    """

    source: str
    revision: str
    licence: str
    half: tuple[HubFile, ...]
    full: tuple[HubFile, ...]
    small: int

    def files(self, dtype: str) -> tuple[HubFile, ...]:
        """Return the weight files that a number format is loaded from."""
        return self.half if dtype in HALF_DTYPES else self.full

    def download_bytes(self, dtype: str) -> int:
        """Return the bytes of those files and of the small ones beside them."""
        return sum(file.size for file in self.files(dtype)) + self.small

    def download_command(self, dtype: str) -> str:
        """Return the line that fetches exactly what is needed into the hub's cache."""
        names = [file.path for file in self.files(dtype)]
        includes = " ".join(f"--include '{pattern}'" for pattern in (*CONFIG_PATTERNS, *names))
        return f"hf download {self.source} --revision {self.revision} {includes}"


@dataclass(frozen=True)
class NamedAutoencoder:
    """An autoencoder that `--vae` may name in short.

    Attributes:
        source: hub id.
        revision: commit.
        file: its weights.
    """

    source: str
    revision: str
    file: HubFile


class Shape(Protocol):
    """Channels, grids, sizes and work of a model, known without its weights."""

    @property
    def vae_factor(self) -> int:
        """Pixels per latent position along a side."""

    @property
    def native_size(self) -> int:
        """Picture side in pixels that the model was made for."""

    @property
    def blocks(self) -> tuple[str, ...]:
        """Short names of the model's blocks."""

    @property
    def parameters(self) -> Mapping[str, int]:
        """Part -> its number of parameters."""

    @property
    def tokens(self) -> int:
        """Text tokens that an attention map has."""

    @property
    def max_decoded(self) -> int:
        """Side of the largest latents that are decoded as a batch.

        Larger ones are decoded one by one.
        """

    def width(self, block: str) -> int:
        """Return the channels of a block's update."""

    def positions(self, block: str, size: int) -> int:
        """Return the positions of a block's grid for pictures of a side in pixels."""

    def units(self, block: str) -> int:
        """Return the feed-forward units of a block, over all its layers.

        Returns 0 where there are none.
        """

    def prefix_numbers(self, size: int, steps: int, blocks: Sequence[str], starts: int) -> int:
        """Return how many numbers edited runs can share with one source run.

        See `riebench.generation.prefix`.

        Args:
            size: picture side in pixels.
            steps: denoising steps.
            blocks: blocks that may be the first changed one.
            starts: number of steps that may be the first changed one.
        """

    def activation_bytes(self, model: ModelSpec, options: ModelOptions, batch_size: int) -> int:
        """Return the peak bytes of activations while so many pictures are made at once."""

    def weight_bytes(self, dtype: str, options: ModelOptions | None = None) -> int:
        """Return the device memory for weights alone.

        Args:
            dtype: number format of denoiser and text encoders.
            options: how the model is loaded.
        """

    def evaluation_teraflop(self, size: int) -> float:
        """Return the work of one call of the denoiser on one picture of a side in pixels."""

    def decoding_teraflop(self, size: int) -> float:
        """Return the work of decoding one picture of a side in pixels."""


@dataclass(frozen=True)
class TextEmbeddings:
    """A prompt as the denoiser reads it.

    It is encoded alone, so that it does not depend on the batch.

    Attributes:
        conditional: argument of the pipeline -> [1, ...].
        negative: the same of the negative prompt; empty without guidance.
    """

    conditional: Mapping[str, Tensor]
    negative: Mapping[str, Tensor]

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """The conditional tensors in order."""
        return tuple(self.conditional.values())

    @property
    def arguments(self) -> dict[str, Tensor]:
        """All tensors as arguments of the pipeline's call."""
        return {**self.conditional, **self.negative}


class Family(ABC):
    """One architecture of text-to-image models.

    Attributes:
        name: as registered.
        title: what people call it.
        pipeline_class: name of diffusers' pipeline class, as `model_index.json` states it.
        denoiser_class: name of the class of its denoiser.
        denoiser_part: the denoiser's folder and attribute of the pipeline.
        names: names of its blocks.
        parts: folders with weights; also names of `Shape.parameters`.
        full_shape: measures of the full-size model, for what is not at hand.
        presets: official models.
        downloads: preset -> what has to be fetched for it.
        autoencoders: short name -> autoencoder that `--vae` may name so.
        other_pipelines: pipeline classes that people take for this family's -> what such models are called.
        text_names: names of the text embeddings before the first step, in the order of `TextEmbeddings.parts`.
        step_text_names: the pipeline's names of them between the steps.
        head_width: channels of an attention head of the full-size denoiser, to try attention kernels with.
    """

    name: str
    title: str
    pipeline_class: str
    denoiser_class: str
    denoiser_part: str
    names: BlockNames
    parts: tuple[str, ...]
    full_shape: Shape
    presets: tuple[Preset, ...]
    downloads: Mapping[str, ModelDownload]
    autoencoders: Mapping[str, NamedAutoencoder]
    other_pipelines: Mapping[str, str]
    text_names: tuple[str, ...]
    step_text_names: tuple[str, ...]
    head_width: int

    # Files

    @abstractmethod
    def check_config(self, folder: Path, shown: str) -> None:
        """Refuse a folder of this pipeline class whose networks are of another kind.

        Args:
            folder: in diffusers' layout.
            shown: what the user called it.

        Raises:
            RiebenchError: if it is of another kind.
        """

    @abstractmethod
    def check_single_file(self, name: str, tensors: set[str]) -> None:
        """Refuse a single file that is no whole model of this family.

        Args:
            name: of the file.
            tensors: names of its tensors.

        Raises:
            RiebenchError: saying what it is instead.
        """

    @abstractmethod
    def shape_of_folder(self, folder: Path) -> Shape:
        """Return the measures of a model folder.

        They are read from its configurations and its files' headers.

        Raises:
            RiebenchError: if a configuration or weights file is missing or cannot be read.
        """

    @abstractmethod
    def shape_of_pipeline(self, pipe: Any) -> Shape:
        """Return the measures that matter for captures, of a pipeline in memory."""

    @abstractmethod
    def native_size(self, pipe: Any) -> int:
        """Return the picture side in pixels that a pipeline in memory was made for."""

    @abstractmethod
    def usual_sampling(self, scheduler: Mapping[str, Any]) -> tuple[int, float]:
        """Return the usual steps and guidance scale for a scheduler's configuration."""

    # Loading

    @abstractmethod
    def pipeline_type(self) -> Any:
        """Return diffusers' pipeline class."""

    @abstractmethod
    def autoencoder_type(self) -> Any:
        """Return diffusers' autoencoder class."""

    @abstractmethod
    def loading_options(self) -> dict[str, Any]:
        """Return further arguments for the functions that load the pipeline."""

    @abstractmethod
    def networks(self, pipe: Any) -> tuple[nn.Module, ...]:
        """Return the networks of a pipeline, the denoiser first."""

    def denoiser(self, pipe: Any) -> nn.Module:
        """Return the network whose blocks are edited."""
        denoiser: nn.Module = getattr(pipe, self.denoiser_part)
        return denoiser

    @abstractmethod
    def set_tiling(self, pipe: Any, tile: int) -> None:
        """Make the autoencoder decode in tiles of a side in pixels."""

    # Hooks

    @abstractmethod
    def sites(self, denoiser: nn.Module) -> tuple[str, ...]:
        """Return the short names of all blocks of a denoiser."""

    @abstractmethod
    def site(self, denoiser: nn.Module, name: str) -> Site:
        """Return a site by its short name.

        Raises:
            AttributeError: if the denoiser has no such module.
        """

    @abstractmethod
    def update_width(self, denoiser: nn.Module, name: str) -> int:
        """Return the channels of a block's update, by the block's short name."""

    @abstractmethod
    def unit_layers(self, module: nn.Module) -> int | None:
        """Return the number of layers with feed-forward units in a block's module.

        Returns None if it has none.
        """

    @abstractmethod
    def text_attention(self, block: nn.Module) -> tuple[nn.Module, ...]:
        """Return the attention layers of a block in which positions read the text.

        The tuple is empty if there are none.
        """

    @abstractmethod
    def attention_map(self, layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """Compute how much each position reads each token in one call of a layer.

        The layer is one of `text_attention`.

        Returns:
            float32 [B, positions, tokens], mean over heads; sums to 1 over the tokens.
        """

    @abstractmethod
    def layout(self, guided: bool) -> BatchLayout:
        """Return how a step is laid out in calls and rows."""

    # Shared beginnings of runs

    @abstractmethod
    def stages(self, denoiser: nn.Module) -> tuple[Stage, ...]:
        """Return the modules that a picture passes one after the other.

        The tuple is empty if only whole steps can be shared.
        """

    @abstractmethod
    def finish_block(self, module: nn.Module, hidden: Tensor, update: Tensor) -> Any:
        """Return the output of a block of `stages` for an input and a known update.

        Args:
            module: the block's module.
            hidden: [B, C, H, W], its input.
            update: in the layout of its `Site.point`.
        """

    # Text, latents and pictures

    @abstractmethod
    def token_counter(self, folder: Path | None) -> tuple[Callable[[str], int], int]:
        """Return a counter of a prompt's tokens, and how many tokens are read.

        Start and end count too. No model is loaded.

        Args:
            folder: of the model; None counts as the official models do, whose files may not be here.
        """

    @abstractmethod
    def tokenizers(self, pipe: Any) -> tuple[Any, ...]:
        """Return the tokenizers whose positions the denoiser's text has in common."""

    @abstractmethod
    def embed(self, pipe: Any, prompt: str, device: torch.device, *, guided: bool) -> TextEmbeddings:
        """Encode a prompt and, under guidance, the usual negative prompt.

        The usual one is that which pipelines use when none is given.
        """

    @abstractmethod
    def call_options(self, spec: ModelSpec) -> dict[str, Any]:
        """Return the arguments of a pipeline's call for steps, guidance and size.

        Text and noise are added by the caller.
        """

    @abstractmethod
    def unpack_latents(self, latents: Tensor, size: int) -> Tensor:
        """Return latents, as the pipeline carries them, laid out as [B, c, h, w].

        Args:
            latents: as the pipeline's step callback gets them.
            size: picture side in pixels.
        """

    @abstractmethod
    def pack_latents(self, latents: Tensor) -> Tensor:
        """Return latents [B, c, h, w] as the pipeline carries them between the steps.

        This is the inverse of `unpack_latents`.
        """

    @abstractmethod
    def decode(self, pipe: Any, latents: Tensor) -> Tensor:
        """Decode latents.

        Args:
            pipe: the pipeline.
            latents: [B, ...], as the pipeline's call returns them.

        Returns:
            [B, 3, H, W] in -1 to 1, up to overshoot, in the autoencoder's number format.
        """

    @abstractmethod
    def encode(self, pipe: Any, pixels: Tensor, device: torch.device) -> Tensor:
        """Encode pictures as the denoiser takes them.

        The latents are the mean of the autoencoder's answer, scaled.

        Args:
            pipe: the pipeline.
            pixels: [B, 3, H, W] in -1 to 1.
            device: where the autoencoder computes.

        Returns:
            float32 [B, c, h, w].
        """

    # Editors of other people

    @abstractmethod
    def editing_pipeline(self, task: EditingTask, pipe: Any) -> Any:
        """Build a pipeline of diffusers that edits pictures from a loaded one.

        It shares the networks.

        Its scheduler is a copy, since schedulers hold the state of a run.

        Raises:
            RiebenchError: if diffusers has none for this family.
        """

    @abstractmethod
    def same_condition(self, denoiser: nn.Module) -> AbstractContextManager[None]:
        """Give every edited row of an editing pipeline the condition of the last row.

        Inside, the denoiser gets n unconditional rows and n edited ones, but conditions of n + 1 rows.
        """


EditingTask = Literal["img2img", "ledits_pp"]
"""Pipelines of diffusers that edit pictures: image-to-image and LEDITS++."""


def families() -> tuple[Family, ...]:
    """Return all registered families.

    Those of packages that fail to import are left out.
    """
    return tuple(MODEL_FAMILIES.usable().values())


def family_of_denoiser(denoiser: nn.Module) -> Family:
    """Return the family whose denoiser a network is.

    Raises:
        RiebenchError: if there is none.
    """
    # Subclasses count: people derive from diffusers' networks.
    classes = [one.__name__ for one in type(denoiser).__mro__]
    for family in families():
        if family.denoiser_class in classes:
            return family
    raise RiebenchError(f"no model family has a denoiser of class {classes[0]}")


def family_of_pipeline(pipe: Any) -> Family:
    """Return the family whose pipeline a pipeline is.

    Raises:
        RiebenchError: if there is none.
    """
    classes = [one.__name__ for one in type(pipe).__mro__]
    for family in families():
        if family.pipeline_class in classes:
            return family
    raise RiebenchError(f"no model family has a pipeline of class {classes[0]}")
