"""Models and SAEs in memory, for single pictures and for looking at features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from riebench.analysis.export import data_frame
from riebench.api.display import html_table, text_table
from riebench.blocks import ATTENTION, kind, usual_blocks
from riebench.errors import RiebenchError
from riebench.features.inspect import stored_statistics
from riebench.features.painter import Painter, feature_block
from riebench.generation.hooks import known_sites
from riebench.models.loading import LoadedModel
from riebench.models.lookup import ModelRecipe
from riebench.models.spec import ModelOptions, ModelSpec
from riebench.saes.sae import SparseAutoencoder
from riebench.saes.sources import sources_of

if TYPE_CHECKING:
    from pandas import DataFrame


def load_model(
    name: str | Path,
    *,
    steps: int | None = None,
    guidance: float | None = None,
    dtype: str | None = None,
    device: str = "auto",
    size: int | None = None,
    single_file_config: str | None = None,
    vae: str | None = None,
    unet: str | None = None,
    lora: str | Sequence[str] = (),
    offload: str = "none",
    attention: str = "default",
    offline: bool = False,
) -> LoadedModel:
    """Load a model, to be given to `riebench.edit` and `riebench.load_saes`.

    Args:
        name: preset, folder, single file or hub id.
        steps: denoising steps; None for the model's, as with all that follows.
        guidance: guidance scale.
        dtype: float32, float16 or bfloat16.
        device: cpu, cuda, cuda:1, mps, or auto.
        size: picture side in pixels.
        single_file_config: for a single file: a preset such as sdxl-turbo, or its model's folder or hub id.
        vae: another autoencoder.
        unet: another U-Net or transformer, a .safetensors file.
        lora: LoRAs added to the weights, FILE or FILE:SCALE.
        offload: weights kept off the GPU: none, model, sequential.
        attention: default, sliced, or one of PyTorch's kernels.
        offline: True to fetch nothing.

    Raises:
        RiebenchError: if there is no such model, it cannot be loaded or does not fit.
    """
    loras = (lora,) if isinstance(lora, str) else tuple(lora)
    options = ModelOptions(
        size=size, config=single_file_config, vae=vae, unet=unet, loras=loras, offload=offload, attention=attention
    )
    return ModelRecipe(str(name), steps, guidance, dtype, device, offline, options).load()


def with_steps(model: LoadedModel, steps: int | None) -> LoadedModel:
    """Return the same model with another number of denoising steps.

    Its networks are shared.

    Raises:
        RiebenchError: if the number is out of range.
    """
    if steps is None or steps == model.spec.steps:
        return model
    return replace(model, spec=ModelSpec.checked(**{**model.spec.model_dump(), "steps": steps}))


def sae_text(saes: Any) -> str | None:
    """Return a source of SAEs as the command line reads it.

    Args:
        saes: None for the model's own; a folder, file, "hf://ID[@REVISION]" or "BLOCK=PLACE,..."; a mapping from blocks
            to such places; or loaded SAEs.

    Raises:
        RiebenchError: for anything else.
    """
    if isinstance(saes, Saes):
        return saes.source
    if isinstance(saes, Mapping):
        return ",".join(f"{block}={place}" for block, place in saes.items())
    if saes is None or isinstance(saes, str | Path):
        return None if saes is None else str(saes)
    raise RiebenchError(
        f"a {type(saes).__name__} names no SAEs; give a folder, hf://ID, or a mapping from blocks to them"
    )


def interval_text(part: str | tuple[float, float]) -> str:
    """Return a part of a run as the command line reads it.

    Raises:
        RiebenchError: if it is neither a text nor two numbers.
    """
    if isinstance(part, str):
        return part
    try:
        first, last = (float(share) for share in part)
    except (TypeError, ValueError) as error:
        raise RiebenchError(f"edit_steps {part!r}: give two shares, such as (0, 0.5) for the first half") from error
    return f"{first:g}:{last:g}"


class BlockSae:
    """The SAE of one block.

    Args:
        block: its short name.
        autoencoder: its weights.
        source: where it was read from; None for the model's own.
        model: the model that it belongs to.
        offline: True to fetch nothing.

    Attributes:
        block: as given.
        autoencoder: as given.
    """

    def __init__(
        self, block: str, autoencoder: SparseAutoencoder, source: str | None, model: LoadedModel, offline: bool
    ) -> None:
        self.block = block
        self.autoencoder = autoencoder
        self._source, self._model, self._offline = source, model, offline

    @property
    def n(self) -> int:
        """Number of features."""
        return self.autoencoder.n

    @property
    def d(self) -> int:
        """Width of what is encoded."""
        return self.autoencoder.d

    @property
    def reads(self) -> str:
        """The block's signal that is encoded.

        "update" (what the block adds to its input), "output", or "input".
        """
        return self.autoencoder.reads

    @torch.inference_mode()
    def encode(self, activations: Any, time: float | None = None) -> Tensor:
        """Compute feature values.

        Args:
            activations: what the SAE reads (see `reads`), an array or tensor [..., d].
            time: the denoiser's time, where features depend on it.

        Returns:
            float32 [..., n].

        Raises:
            RiebenchError: if the last size is not d, or a time is needed and missing.
        """
        return self.autoencoder.encode(self._tensor(activations), time)

    @torch.inference_mode()
    def decode(self, values: Any, like: Any = None) -> Tensor:
        """Reconstruct updates, or outputs, from feature values.

        Args:
            values: array or tensor [..., n].
            like: what was encoded, [..., d]; needed where the SAE normalises each position, or has a skip connection.

        Returns:
            float32 [..., d].

        Raises:
            RiebenchError: if the last size is not n, or `like` is missing.
        """
        given = self._tensor(values)
        if given.shape[-1] != self.n:
            raise RiebenchError(f"the SAE of {self.block} has {self.n} features, but the values have {given.shape[-1]}")
        if like is None and self.autoencoder.skip is not None:
            raise RiebenchError(f"the transcoder of {self.block} has a skip connection; give the inputs: like=...")
        if like is None and self.autoencoder.normalise != "none" and not self.autoencoder.transcoder:
            raise RiebenchError(f"the SAE of {self.block} normalises each position; give the {self.reads}s: like=...")
        return self.autoencoder.decode(given, None if like is None else self._tensor(like))

    @cached_property
    def _statistics(self) -> tuple[Tensor | None, Tensor | None]:
        """Mean and standard deviation that the files state."""
        return stored_statistics(self._source, self._model, self.block, self.autoencoder, offline=self._offline)

    @property
    def states_means(self) -> bool:
        """True if the SAE's files state the mean size of each feature."""
        return self._statistics[0] is not None

    @cached_property
    def features(self) -> DataFrame:
        """One row for each feature.

        `length` is that of its decoder row and `bias` that of its encoder; `mean` and `std` are its size where it is
        active, as the SAE's own files state it, missing where they do not.
        """
        mean, std = (None if values is None else values.tolist() for values in self._statistics)
        lengths, biases = self.autoencoder.row_scale.tolist(), self.autoencoder.latent_bias.tolist()
        return data_frame([
            {
                "feature": index, "length": lengths[index], "bias": biases[index],
                "mean": None if mean is None else mean[index], "std": None if std is None else std[index],
            }
            for index in range(self.n)
        ])  # fmt: skip

    def _tensor(self, values: Any) -> Tensor:
        return torch.as_tensor(values).to(self.autoencoder.directions.device)

    def __repr__(self) -> str:
        one = self.autoencoder
        return (
            f"SAE of {self.block}: {one.n} features of width {one.d}, {one.activation}{f', k {one.k}' if one.k else ''}"
        )


class Saes(Mapping[str, BlockSae]):
    """SAEs of a model by block; each is loaded when it is first asked for.

    Args:
        model: the model that they belong to.
        source: see `sae_text`; None for the model's own.
        blocks: short names of the blocks.
        prompts: prompts that the usual sizes of features are measured on; None for a sample of the model's suite.
        offline: True to fetch nothing.
        progress: whether a bar is shown while measuring.
        loaded: block -> SAE that is in memory already.

    Attributes:
        source: as given.
        painter: switches features of the model.
    """

    def __init__(
        self, model: LoadedModel, source: str | None, blocks: Sequence[str], *, prompts: Sequence[str] | None = None,
        offline: bool = False, progress: bool = True, loaded: Mapping[str, SparseAutoencoder] | None = None,
    ) -> None:  # fmt: skip
        self.source = source
        self.painter = Painter(model, source, prompts=prompts, offline=offline, progress=progress, loaded=loaded)
        self._blocks = tuple(dict.fromkeys(blocks))
        self._options: dict[str, Any] = {"prompts": prompts, "offline": offline, "progress": progress}
        self._made: dict[str, BlockSae] = {}

    @property
    def model(self) -> LoadedModel:
        """The model that they belong to."""
        return self.painter.model

    def __getitem__(self, block: str) -> BlockSae:
        # A mapping raises KeyError for what it has not; an unknown block is an error of riebench, which names the near.
        name = feature_block(block, self.model)
        if name not in self._made:
            autoencoder = self.painter.sae(name)
            self._made[name] = BlockSae(name, autoencoder, self.source, self.model, self._options["offline"])
        return self._made[name]

    def __contains__(self, block: object) -> bool:
        return block in self._blocks

    def __iter__(self) -> Iterator[str]:
        return iter(self._blocks)

    def __len__(self) -> int:
        return len(self._blocks)

    def for_model(self, model: LoadedModel) -> Saes:
        """Return the same SAEs for the same networks with another number of steps.

        Raises:
            RiebenchError: if the model has other networks.
        """
        if model is self.model:
            return self
        if model.pipe is not self.model.pipe:
            raise RiebenchError(
                f"these SAEs were loaded for another model, {self.model.spec.name}; load them for this one"
            )
        loaded = {name: one.autoencoder for name, one in self._made.items()}
        return Saes(model, self.source, self._blocks, loaded=loaded, **self._options)

    def strongest(
        self, prompt: str, *, blocks: Sequence[str] | None = None, seed: int = 0, mask: Any = None, count: int = 10
    ) -> DataFrame:
        """Find the strongest features of a picture, relative to their usual size.

        Args:
            prompt: of the picture.
            blocks: blocks to look at; None for all.
            seed: of the picture's noise.
            mask: the part to look at; see `riebench.edit`.
            count: number of features, at most.

        Returns:
            One row for each: block, feature, its mean value there, and the share of steps and positions at which it is
            active.

        Raises:
            RiebenchError: for a block or region that is not there.
        """
        found = self.painter.strongest(prompt, blocks=blocks or self._blocks, seed=seed, mask=mask, count=count)
        return data_frame([
            {"block": one.block, "feature": one.index, "value": one.value, "share": one.share} for one in found
        ])  # fmt: skip

    def _lines(self) -> list[tuple[str, int, int]]:
        return [(block, self[block].n, self[block].d) for block in self]

    def __repr__(self) -> str:
        return f"SAEs of {self.model.spec.name}\n{text_table(_LISTED, self._lines())}"

    def _repr_html_(self) -> str:
        return str(html_table(f"SAEs of {self.model.spec.name}", _LISTED, self._lines()))


_LISTED = ("block", "features", "width")


def load_saes(
    place: str | Path | Mapping[str, str | Path] | None = None,
    *,
    model: str | Path | LoadedModel,
    blocks: Sequence[str] | None = None,
    prompts: Sequence[str] | None = None,
    offline: bool = False,
    progress: bool = True,
) -> Saes:
    """Load SAEs of a model.

    Args:
        place: a folder, a file, "hf://ID[@REVISION]", or a mapping from blocks to such places; None for the SAEs that
            belong to the model.
        model: the model, or its name.
        blocks: blocks to load SAEs of; None for those that places are named for, or else the usual ones.
        prompts: prompts that the usual sizes of features are measured on; None for a sample of the model's suite.
        offline: True to fetch nothing.
        progress: whether a bar is shown while measuring.

    Returns:
        A mapping from the short names of blocks to their SAEs, each with `encode`, `decode` and `features`.

    Raises:
        RiebenchError: if there are none, one is damaged, or one was made for another model.
    """
    loaded = model if isinstance(model, LoadedModel) else load_model(model, offline=offline)
    source = sae_text(place)
    if blocks is None:
        named = [one.block for one in sources_of(source, loaded) if one.block is not None]
        blocks = named or list(usual_blocks(known_sites(loaded.denoiser), loaded.family.name))
    found = Saes(loaded, source, [name for name in blocks if kind(name) == ATTENTION] or blocks, prompts=prompts,
                 offline=offline, progress=progress)  # fmt: skip
    # What is missing or damaged shows here and not when a feature is first switched.
    for block in found:
        found[block]
    return found
