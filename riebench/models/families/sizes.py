"""Downloads, sizes and work of a model family's models.

Part of the contract in `riebench.models.families.base`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from riebench.models.spec import HALF_DTYPES, ModelOptions, ModelSpec

CONFIG_PATTERNS = ("model_index.json", "scheduler/*", "tokenizer*/*", "*/config.json")
"""Everything of a model's folder that is small; single files need exactly this beside them."""
FLOAT, HALF = 4, 2
"""Bytes of a number in float32 and in 16 bits."""


def number_bytes(dtype: str) -> int:
    """Return the bytes of a number in the format that a model computes in."""
    return HALF if dtype in HALF_DTYPES else FLOAT


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
    def size_step(self) -> int:
        """Number of pixels that a picture's side is a multiple of."""

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

    def calls(self, guidance: float) -> int:
        """Return how often each picture is evaluated in a step.

        Args:
            guidance: scale of classifier-free guidance.
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
