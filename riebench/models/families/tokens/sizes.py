"""Measures and memory of token models, known without reading their weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from riebench.blocks import ATTENTION, TEXT, block_of, kind
from riebench.models.families.sizes import FLOAT, number_bytes
from riebench.models.spec import TILE, ModelOptions, ModelSpec

T5_PARAMETERS, CLIP_L_PARAMETERS = 4_762_310_656, 123_060_480
"""Parameters of the encoder of T5 XXL and of CLIP L's text encoder."""
T5_TABLE = 32_128 * 4096
"""Parameters of T5's token table."""
VAE_PARAMETERS = 83_819_683
"""Parameters of an autoencoder of 16 channels as large as SDXL's, without the two 1x1 convolutions beside them."""
DECODER_TERAFLOP, DECODER_SIDE = 10.5, 1024
"""Work of decoding one picture of that side: the decoder is as large as SDXL's."""
DECODER_TENSORS = 3
"""Tensors of full resolution that are in memory while the last level of the decoder runs."""
MAX_DECODED = 64
"""Latents up to this side are decoded as a batch; larger ones one by one."""


@dataclass(frozen=True, kw_only=True)
class TokenShape(ABC):
    """Measures of a token model.

    Sub-classes add their blocks and their work.

    Attributes:
        parts: folders with weights.
        patch: latent positions along a side of an image token.
        block_tensors: tensors of all tokens that are in memory at a block's peak.
        unit_ratio: feed-forward units of a block, in multiples of its channels.
        together: whether the halves of guidance are one batch.
        largest_layer: parameters of the largest single layer.
        decoder_tensors: tensors of full resolution that are in memory at the decoder's peak.
        channels: of all streams.
        latent_channels: of the latents.
        vae_factor: pixels per latent position along a side.
        vae_width: channels of the widest tensor that the decoder keeps at full resolution.
        native_size: picture side in pixels that the model was made for.
        tokens: text tokens.
        parameters: a name of `parts` -> its number of parameters.
    """

    parts: ClassVar[tuple[str, ...]]
    patch: ClassVar[int] = 2
    block_tensors: ClassVar[float]
    unit_ratio: ClassVar[float] = 4
    together: ClassVar[bool] = False
    largest_layer: ClassVar[int] = T5_TABLE
    decoder_tensors: ClassVar[float] = DECODER_TENSORS

    channels: int
    latent_channels: int = 16
    vae_factor: int = 8
    vae_width: int = 256
    native_size: int = 1024
    tokens: int = 256
    parameters: Mapping[str, int] = field(default_factory=dict)

    @property
    @abstractmethod
    def blocks(self) -> tuple[str, ...]:
        """Short names of the model's blocks."""

    @abstractmethod
    def evaluation_teraflop(self, size: int) -> float:
        """Return the work of one call of the denoiser on one picture of a side in pixels."""

    @property
    def size_step(self) -> int:
        """Pixels along an image token, of which a picture's side is a multiple."""
        return self.vae_factor * self.patch

    @property
    def max_decoded(self) -> int:
        """Side of the largest latents that are decoded as a batch."""
        return MAX_DECODED

    def calls(self, guidance: float) -> int:
        """Return how often each picture is evaluated in a step."""
        return 2 if guidance > 1 else 1

    def width(self, block: str) -> int:
        """Return the channels of a block's update, those of all blocks."""
        return self.channels

    def image_tokens(self, size: int) -> int:
        """Return the image tokens of pictures of a side in pixels."""
        side: int = size // self.size_step
        return side * side

    def positions(self, block: str, size: int) -> int:
        """Return the image tokens of pictures of a side in pixels.

        Of a text stream its text tokens.
        """
        return self.tokens if kind(block) == TEXT else self.image_tokens(size)

    def units(self, block: str) -> int:
        """Return the feed-forward units of a block; 0 for a text stream."""
        whole = kind(block) == ATTENTION and block_of(block) == block
        return int(self.unit_ratio * self.channels) if whole else 0

    def prefix_numbers(self, size: int, steps: int, blocks: Sequence[str], starts: int) -> int:
        """Return how many numbers edited runs can share with one source run.

        Those are the answers of whole steps.
        """
        return self.latent_channels * (size // self.vae_factor) ** 2 * steps

    def attended_tokens(self, size: int) -> int:
        """Return the tokens that pass a block, text and image in one sequence."""
        return self.image_tokens(size) + self.tokens

    def activation_bytes(self, model: ModelSpec, options: ModelOptions, batch_size: int) -> int:
        """Return the peak bytes of activations while so many pictures are made at once."""
        rows = batch_size * (self.calls(model.guidance) if self.together else 1)
        tokens = self.attended_tokens(model.size)
        denoised = int(rows * tokens * self.channels * self.block_tensors * number_bytes(model.dtype))
        batched = model.size // self.vae_factor <= self.max_decoded and not options.vae_slicing
        side = min(model.size, TILE) if options.vae_tiling else model.size
        decoded = (batch_size if batched else 1) * side**2 * self.vae_width * self.decoder_tensors
        return max(denoised, int(decoded * FLOAT))

    def weight_bytes(self, dtype: str, options: ModelOptions | None = None) -> int:
        """Return the device memory for weights alone, the autoencoder's in float32.

        Args:
            dtype: number format of transformer and text encoders.
            options: how the model is loaded.
        """
        chosen = options or ModelOptions()
        width = number_bytes(dtype)
        sizes = {part: self.parameters[part] * (FLOAT if part == "vae" else width) for part in self.parts}
        if chosen.offload == "sequential":
            return self.largest_layer * width
        return max(sizes.values()) if chosen.offload == "model" else sum(sizes.values())

    def decoding_teraflop(self, size: int) -> float:
        """Return the work of decoding one picture of a side in pixels."""
        pixels = (size / DECODER_SIDE) ** 2
        return DECODER_TERAFLOP * pixels * self.parameters["vae"] / VAE_PARAMETERS
