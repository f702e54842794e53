"""The contract of a model family: all that is true of one architecture only.

It covers names, files, sizes, hooks, guidance, text and latents.

Everything above talks to this contract alone. Modules here import neither torch nor diffusers until a method needs
them, so that block names can be checked and runs be planned on any machine.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from riebench.errors import RiebenchError
from riebench.models.spec import ModelSpec, Preset
from riebench.registry import DEFAULT_FAMILY, MODEL_FAMILIES, families_left_out, usable_families

if TYPE_CHECKING:
    import torch
if TYPE_CHECKING:
    from torch import Tensor, nn
from riebench.models.families.blocks import BatchLayout, BlockNames, Site, Stage
from riebench.models.families.sizes import ModelDownload, NamedAutoencoder, Shape

NOTED_FAMILY = "_riebench_family"
"""Attribute of a denoiser in memory that names its family."""


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
        config_files: paths of what describes a model's parts, in its folder.
        parts: folders with weights; also names of `Shape.parameters`.
        unused_parts: parts of the pipeline that no picture from text needs, and that are not loaded.
        full_shape: measures of the full-size model, for what is not at hand.
        presets: official models.
        downloads: preset -> what has to be fetched for it.
        autoencoders: short name -> autoencoder that `--vae` may name so.
        other_pipelines: pipeline classes that people take for this family's -> what such models are called.
        other_repositories: beginning of a hub id -> what well-known models of other kinds are.
        text_names: names of the text embeddings before the first step, in the order of `TextEmbeddings.parts`.
        step_text_names: the pipeline's names of them between the steps.
        head_width: channels of an attention head of the full-size denoiser, to try attention kernels with.
        repositories: beginnings of hub ids of this family's models.
        half_files: whether such repositories hold a half-precision copy of their weights beside the full one.
        denoiser_title: what people call the denoiser.
        step_text_arguments: name of a text embedding that the pipeline cannot exchange between the steps -> the
            denoiser's keyword argument in which it can be exchanged.
        refused_methods: method -> why it cannot work on this family.
        single_file_marks: beginnings of names of tensors that only its own single files hold; empty if such files are
            not known.
        single_file_refusal: why its single files are not read; empty if they are.
    """

    name: str
    title: str
    pipeline_class: str
    denoiser_class: str
    denoiser_part: str
    names: BlockNames
    config_files: tuple[str, ...]
    parts: tuple[str, ...]
    unused_parts: tuple[str, ...]
    full_shape: Shape
    presets: tuple[Preset, ...]
    downloads: Mapping[str, ModelDownload]
    autoencoders: Mapping[str, NamedAutoencoder]
    other_pipelines: Mapping[str, str]
    other_repositories: Mapping[str, str]
    text_names: tuple[str, ...]
    step_text_names: tuple[str, ...]
    head_width: int
    repositories: tuple[str, ...] = ()
    half_files: bool = True
    denoiser_title: str = "U-Net"
    step_text_arguments: Mapping[str, str] = MappingProxyType({})
    refused_methods: Mapping[str, str] = MappingProxyType({})
    single_file_marks: tuple[str, ...] = ()
    single_file_refusal: str = ""

    # Files

    @abstractmethod
    def check_config(self, folder: Path, shown: str) -> None:
        """Refuse a folder that asks for something that would not be done.

        Its weights are not read and need not be there.

        Args:
            folder: in diffusers' layout.
            shown: what the user called it.

        Raises:
            RiebenchError: in one line, naming file and key.
        """

    @abstractmethod
    def check_schedule(self, folder: Path, steps: int, shown: str) -> None:
        """Refuse a folder whose schedule is not one call of the denoiser a step.

        Args:
            folder: in diffusers' layout.
            steps: denoising steps of a run.
            shown: what the user called it.

        Raises:
            RiebenchError: in one line, naming the scheduler.
        """

    @abstractmethod
    def check_weights(self, folder: Path, part: str, files: Sequence[Path], shown: str) -> None:
        """Refuse weights that belong to another configuration than the one beside them.

        Their headers are read, and nothing else.

        Args:
            folder: in diffusers' layout.
            part: one of `parts`.
            files: its weights.
            shown: what the user called the model.

        Raises:
            RiebenchError: in one line, naming the key.
        """

    @abstractmethod
    def check_names(self, part: str, stored: set[str], needed: Iterable[str], shown: str) -> None:
        """Refuse weights that lack tensors, or hold tensors that nothing reads.

        Args:
            part: one of `parts`.
            stored: names of the tensors in its files.
            needed: names of the tensors of the network that was built.
            shown: what the user called the model.

        Raises:
            RiebenchError: in one line, naming the first tensor.
        """

    @abstractmethod
    def check_single_file(self, name: str, tensors: set[str], *, own_autoencoder: bool = True) -> None:
        """Refuse a single file that is no whole model of this family.

        Args:
            name: of the file.
            tensors: names of its tensors.
            own_autoencoder: whether its autoencoder is needed; otherwise another one is put in its place.

        Raises:
            RiebenchError: saying what it is instead, or what it lacks.
        """

    def file_parts(self, tensors: Iterable[str]) -> tuple[str, ...] | None:
        """Return the parts whose weights a single file holds.

        The others come from the model that describes the file. None says that the file holds a whole model, which the
        pipeline's own loader reads.

        Args:
            tensors: names of the file's tensors.
        """
        return None

    def check_file_parts(self, file: Path, folder: Path, shown: str) -> None:
        """Refuse a single file whose tensors are not those that a folder describes.

        Its header is read, and nothing else. Whole models, which the pipeline's own loader reads, are checked there.

        Args:
            file: a safetensors file that `check_single_file` lets pass.
            folder: with the configurations; its weights need not be there.
            shown: what the user called file and folder.

        Raises:
            RiebenchError: in one line, naming the first tensor.
        """
        return None

    def load_file_parts(self, file: Path, folder: Path, dtypes: Mapping[str, torch.dtype]) -> dict[str, nn.Module]:
        """Return part -> its network with the weights of a single file.

        Args:
            file: a safetensors file that `check_file_parts` lets pass.
            folder: with the configurations.
            dtypes: number format of each part that is wanted of `file_parts`.
        """
        return {}

    @abstractmethod
    def check_training(
        self, file: Path, scheduler: Mapping[str, Any], autoencoder: Mapping[str, Any], shown: str
    ) -> None:
        """Refuse a file that was trained otherwise than its configuration states.

        Args:
            file: a safetensors file.
            scheduler: the scheduler's configuration.
            autoencoder: the autoencoder's.
            shown: what the user called the file.

        Raises:
            RiebenchError: in one line, naming what the file says and the key that says otherwise.
        """

    @abstractmethod
    def check_autoencoder(self, folder: Path, files: Sequence[Path], shown: str) -> None:
        """Refuse a folder that is no autoencoder for this family.

        Args:
            folder: with its configuration.
            files: its weights.
            shown: what the user called it.

        Raises:
            RiebenchError: in one line, naming the key.
        """

    @abstractmethod
    def check_denoiser_file(self, file: Path) -> None:
        """Refuse a file that is no denoiser alone.

        Raises:
            RiebenchError: saying what it is instead.
        """

    @abstractmethod
    def check_lora_file(self, file: Path) -> None:
        """Refuse a file that is no LoRA.

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

    def shape_of_file(self, file: Path, folder: Path | None = None) -> Shape:
        """Return the measures of a single file.

        They are those of the full-size model as far as nothing says more.

        Args:
            file: a safetensors file; it may be damaged.
            folder: that describes it, if it is at hand.
        """
        return self.full_shape

    @abstractmethod
    def shape_of_pipeline(self, pipe: Any) -> Shape:
        """Return the measures that matter for captures, of a pipeline in memory."""

    def shape_of_preset(self, name: str) -> Shape:
        """Return the measures of an official model whose files are not at hand.

        Args:
            name: of a preset; the full-size model stands for every other name.
        """
        return self.full_shape

    @abstractmethod
    def native_size(self, pipe: Any) -> int:
        """Return the picture side in pixels that a pipeline in memory was made for."""

    def described_size(self, folder: Path) -> int:
        """Return the picture side in pixels of a folder that describes a single file.

        Its weights need not be there.
        """
        return self.full_shape.native_size

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

    def prepare(self, pipe: Any) -> None:
        """Change a pipeline that was just loaded to one that can be followed.

        `check_schedule` and the family's page say what is changed; usually nothing is.
        """
        return None

    def owns_denoiser(self, denoiser: nn.Module) -> bool:
        """Return whether a network is a denoiser of this family.

        Subclasses of its class count: people derive from diffusers' networks.
        """
        return self.denoiser_class in [one.__name__ for one in type(denoiser).__mro__]

    def denoiser(self, pipe: Any) -> nn.Module:
        """Return the network whose blocks are edited."""
        denoiser: nn.Module = getattr(pipe, self.denoiser_part)
        return denoiser

    @abstractmethod
    def exchange_denoiser(self, pipe: Any, file: Path) -> None:
        """Put the weights of a file into a pipeline's denoiser.

        Raises:
            RiebenchError: if they do not fit.
        """

    @abstractmethod
    def add_lora(self, pipe: Any, file: Path, scale: float) -> None:
        """Add a LoRA to a pipeline's weights.

        Raises:
            RiebenchError: if it does not fit.
        """

    @abstractmethod
    def is_guided(self, pipe: Any, guidance: float) -> bool:
        """Return whether the denoiser sees an unconditional half at a guidance scale."""

    def set_tiling(self, pipe: Any, tile: int) -> None:
        """Make the autoencoder decode in tiles of a side in pixels.

        Its own default is its training size: pictures of that size would never be decoded in tiles.
        """
        pipe.vae.enable_tiling()
        pipe.vae.tile_sample_min_size = tile
        pipe.vae.tile_latent_min_size = tile // pipe.vae_scale_factor

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

    def text_projections(self, denoiser: nn.Module) -> tuple[nn.Module, ...]:
        """Return the layers whose only input is the text as the denoiser is given it.

        What they give depends on the prompt alone. The tuple is empty if there are none.
        """
        return ()

    @abstractmethod
    def attention_map(self, layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """Compute how much each position reads each token in one call of a layer.

        Args:
            layer: one of `text_attention`.
            args: positional arguments of its call.
            kwargs: its keyword arguments, and what the block's `Site.context` says.

        Returns:
            float32 [B, positions, tokens], mean over heads; sums to 1 over the tokens.
        """

    @abstractmethod
    def layout(self, guided: bool) -> BatchLayout:
        """Return how a step is laid out in calls and rows."""

    def time(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
        """Return the time that a denoiser is called with, or None if the call states none.

        diffusers' denoisers take it as `timestep`, the second argument; all rows of a batch have the same.

        Args:
            args: positional arguments of a call of the denoiser.
            kwargs: its keyword arguments.

        Returns:
            float32 [], on whatever device the caller had it.
        """
        import torch

        given = kwargs.get("timestep", args[1] if len(args) > 1 else None)
        return None if given is None else torch.as_tensor(given, dtype=torch.float32).flatten()[0]

    # Shared prefixes of runs

    def stages(self, denoiser: nn.Module) -> tuple[Stage, ...]:
        """Return the modules that a picture passes one after the other.

        The tuple is empty if only whole steps can be shared.
        """
        return ()

    @abstractmethod
    def finish_block(self, module: nn.Module, hidden: Tensor, update: Tensor) -> Any:
        """Return the output of a block for an input and a known update.

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

    def token_limit(self, pipe: Any, tokenizer: Any) -> int:
        """Return how many tokens the denoiser reads of one of `tokenizers`.

        Start and end count too.
        """
        return int(tokenizer.model_max_length)

    def count_tokens(self, pipe: Any, prompt: str) -> int:
        """Return the tokens of a whole prompt, to be held against `token_limit`.

        Start and end count too.
        """
        return len(self.tokenizers(pipe)[0](prompt, verbose=False).input_ids)

    def token_positions(self, pipe: Any, prompt: str, characters: Sequence[int]) -> set[int]:
        """Return the positions of characters of a prompt in what the denoiser reads.

        Those of all tokenizers are taken together. Characters that were cut off have none, and the tokens at the start
        and the end are no character's.

        Args:
            pipe: the pipeline.
            prompt: the whole prompt.
            characters: their indices in it.
        """
        found: set[int] = set()
        for tokenizer in self.tokenizers(pipe):
            found |= positions_of(tokenizer, prompt, characters, self.token_limit(pipe, tokenizer))
        return found

    @abstractmethod
    def embed(self, pipe: Any, prompt: str, device: torch.device, *, guided: bool) -> TextEmbeddings:
        """Encode a prompt and, under guidance, the usual negative prompt.

        The usual one is that which pipelines use when none is given.
        """

    def join_text(self, parts: Sequence[Tensor]) -> Any:
        """Return one text embedding of several prompts as the pipeline takes it.

        It is one batch, or a list with an entry for each prompt where texts differ in length.

        Args:
            parts: of each prompt, [1, ...], as `embed` gives it.
        """
        import torch

        return torch.cat(list(parts))

    @abstractmethod
    def call_options(self, spec: ModelSpec) -> dict[str, Any]:
        """Return the arguments of a pipeline's call for steps, guidance and size.

        Text and noise are added by the caller.
        """

    def step_options(self, callback: Callable[..., dict[str, Tensor]], names: Sequence[str]) -> dict[str, Any]:
        """Return the arguments by which a pipeline runs a callback after each step.

        Args:
            callback: called with the pipeline, the step, its time and a dictionary of tensors; gives those to change.
            names: of the tensors that it needs.
        """
        return {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": list(names)}

    def returned_latents(self, pipe: Any, latents: Tensor) -> Tensor:
        """Return what a pipeline's call would return for latents after its last step.

        Args:
            pipe: the pipeline.
            latents: as the pipeline carries them between the steps.
        """
        return latents

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


def positions_of(tokenizer: Any, text: str, characters: Sequence[int], length: int) -> set[int]:
    """Return the positions of some characters among the tokens of a text.

    It is padded and cut as pipelines do it.

    Args:
        tokenizer: a fast one of transformers; on which side it cuts and pads, its own files say.
        text: the whole text.
        characters: their indices in it.
        length: tokens that are read; start and end count too.
    """
    encoding = tokenizer(text, padding="max_length", max_length=length, truncation=True)
    special = encoding.encodings[0].special_tokens_mask
    tokens = {encoding.char_to_token(index) for index in characters}
    return {token for token in tokens if token is not None and not special[token]}


def positions_in_message(
    tokenizer: Any, text: str, characters: Sequence[int], length: int, left_out: int = 0
) -> set[int]:  # fmt: skip
    """Return the positions of some characters in a message given to the denoiser.

    Padding is no part of the text that it reads, on whichever side it is.

    Args:
        tokenizer: as `positions_of`.
        text: the whole message.
        characters: their indices in it.
        length: tokens that are read.
        left_out: tokens at the beginning of the message that the denoiser is not given.
    """
    encoding = tokenizer(text, padding="max_length", max_length=length, truncation=True)
    before = encoding["attention_mask"].index(1) + left_out
    return {place - before for place in positions_of(tokenizer, text, characters, length)}


def families() -> tuple[Family, ...]:
    """Return all registered families, the default one first.

    Those of packages come last; those that fail to import are left out.
    """
    return usable_families()


def family_of_repository(repo: str) -> Family:
    """Return the family of a hub id by its name alone.

    It is the default family where no other one knows the name.
    """
    for family in families():
        if any(repo.lower().startswith(start.lower()) for start in family.repositories):
            return family
    found: Family = MODEL_FAMILIES.get(DEFAULT_FAMILY)
    return found


def family_of_denoiser(denoiser: nn.Module) -> Family:
    """Return the family whose denoiser a network is.

    It is that of the pipeline that the network was loaded with (`note_family`). Of a network loaded otherwise its class
    decides, the most special one where several families have classes of its line.

    Raises:
        RiebenchError: if there is none.
    """
    noted = getattr(denoiser, NOTED_FAMILY, None)
    if noted is not None:
        found: Family = MODEL_FAMILIES.get(noted)
        return found
    line = [one.__name__ for one in type(denoiser).__mro__]
    owners = [family for family in families() if family.owns_denoiser(denoiser)]
    if not owners:
        raise RiebenchError(f"no model family has a denoiser of class {line[0]}{families_left_out()}")
    return min(owners, key=lambda one: line.index(one.denoiser_class) if one.denoiser_class in line else len(line))


def note_family(denoiser: nn.Module, family: Family) -> None:
    """Note whose family a network that was loaded is of.

    Families may share a class of denoisers.
    """
    setattr(denoiser, NOTED_FAMILY, family.name)


def family_of_pipeline(pipe: Any) -> Family:
    """Return the family whose pipeline a pipeline is.

    It is that of the most special class where several families have classes of its line.

    Raises:
        RiebenchError: if there is none.
    """
    classes = [one.__name__ for one in type(pipe).__mro__]
    for name in classes:
        for family in families():
            if family.pipeline_class == name:
                return family
    raise RiebenchError(f"no model family has a pipeline of class {classes[0]}{families_left_out()}")
