"""Sizes and work of FLUX-like models, known without reading their weights.

Operations follow from the configuration; a test compares them with those that PyTorch counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from riebench.blocks import ATTENTION, TEXT, block_of, kind
from riebench.errors import RiebenchError
from riebench.models.families.flux.configuration import CONFIGS, PATCH, text_tokens
from riebench.models.families.flux.names import DOUBLE, FLUX_BLOCKS, SINGLE
from riebench.models.families.folders import count_parameters, read_json
from riebench.models.families.sizes import FLOAT, number_bytes
from riebench.models.spec import TILE, ModelOptions, ModelSpec

PARTS = ("transformer", "text_encoder", "text_encoder_2", "vae")
PARAMETERS = {
    "transformer": 11_891_178_560, "text_encoder": 123_060_480, "text_encoder_2": 4_762_310_656, "vae": 83_819_683,
}  # fmt: skip
"""Part -> number of parameters of FLUX.1-schnell."""
PARAMETERS_GUIDED = {**PARAMETERS, "transformer": 11_901_408_320}
"""The same of FLUX.1-dev, whose transformer is told the guidance scale."""
LARGEST_LAYER = 32_128 * 4096
"""Parameters of the largest single layer: T5's token table."""
FEED_FORWARD = 4
"""A feed-forward layer has this many times as many units as its block has channels."""
BLOCK_WEIGHTS = 12
"""Weights that each token passes in a block, in squares of the width: attention 4, feed-forward layer 8."""
BLOCK_TENSORS = 18
"""Tensors of all tokens that are in memory at a block's peak, as counted (17.3): streams, norm, queries, keys,
values, attention, units, and both joined."""
DECODER_TERAFLOP = 10.5
"""Work of decoding one picture of 1024 px: the decoder is as large as SDXL's."""
DECODER_TENSORS = 3
"""Tensors of full resolution that are in memory while the last level of the decoder runs."""
MAX_DECODED = 64
"""Latents up to this side are decoded as a batch; larger ones one by one."""


@dataclass(frozen=True)
class FluxShape:
    """Measures of a FLUX-like model.

    The defaults are those of FLUX.1-schnell.

    Attributes:
        channels: of both streams.
        double: blocks with two streams.
        single: blocks of one joined stream.
        packed: channels of an image token's latents.
        vae_factor: pixels per latent position along a side.
        vae_width: channels of the widest tensor that the decoder keeps at full resolution.
        native_size: picture side in pixels that the model was made for.
        tokens: text tokens.
        guidance_embeds: whether the transformer is told the guidance scale.
        parameters: a name of `PARTS` -> its number of parameters.
    """

    channels: int = 3072
    double: int = DOUBLE
    single: int = SINGLE
    packed: int = 64
    vae_factor: int = 8
    vae_width: int = 256
    native_size: int = 1024
    tokens: int = 256
    guidance_embeds: bool = False
    parameters: Mapping[str, int] = field(default_factory=lambda: PARAMETERS)

    @property
    def size_step(self) -> int:
        """Pixels along an image token, of which a picture's side is a multiple."""
        return self.vae_factor * PATCH

    @property
    def blocks(self) -> tuple[str, ...]:
        """Short names of the model's blocks."""
        if (self.double, self.single) == (DOUBLE, SINGLE):
            return FLUX_BLOCKS
        return (
            *(f"double.{index}" for index in range(self.double)), *(f"single.{index}" for index in range(self.single)),
        )  # fmt: skip

    @property
    def max_decoded(self) -> int:
        """Side of the largest latents that are decoded as a batch."""
        return MAX_DECODED

    def calls(self, guidance: float) -> int:
        """Return how often each picture is evaluated in a step.

        A transformer that is told the scale has no unconditional half.
        """
        return 2 if guidance > 1 and not self.guidance_embeds else 1

    def width(self, block: str) -> int:
        """Return the channels of a block's update, those of all blocks."""
        return self.channels

    def positions(self, block: str, size: int) -> int:
        """Return the image tokens of pictures of a side in pixels.

        Of a text stream its text tokens.
        """
        return self.tokens if kind(block) == TEXT else self._image_tokens(size)

    def _image_tokens(self, size: int) -> int:
        side: int = size // self.size_step
        return side * side

    def units(self, block: str) -> int:
        """Return the feed-forward units of a block; 0 for a text stream."""
        return FEED_FORWARD * self.channels if kind(block) == ATTENTION and block_of(block) == block else 0

    def prefix_numbers(self, size: int, steps: int, blocks: Sequence[str], starts: int) -> int:
        """Return how many numbers edited runs can share with one source run.

        Those are the answers of whole steps.
        """
        return self.packed * self._image_tokens(size) * steps

    def activation_bytes(self, model: ModelSpec, options: ModelOptions, batch_size: int) -> int:
        """Return the peak bytes of activations while so many pictures are made at once."""
        tokens = self._image_tokens(model.size) + self.tokens
        denoised = batch_size * tokens * self.channels * BLOCK_TENSORS * number_bytes(model.dtype)
        decoded = batch_size if model.size // self.vae_factor <= MAX_DECODED and not options.vae_slicing else 1
        side = min(model.size, TILE) if options.vae_tiling else model.size
        return max(denoised, decoded * side**2 * self.vae_width * DECODER_TENSORS * FLOAT)

    def weight_bytes(self, dtype: str, options: ModelOptions | None = None) -> int:
        """Return the device memory for weights alone, the autoencoder's in float32.

        Args:
            dtype: number format of transformer and text encoders.
            options: how the model is loaded.
        """
        chosen = options or ModelOptions()
        width = number_bytes(dtype)
        sizes = {part: self.parameters[part] * (FLOAT if part == "vae" else width) for part in PARTS}
        if chosen.offload == "sequential":
            return LARGEST_LAYER * width
        return max(sizes.values()) if chosen.offload == "model" else sum(sizes.values())

    def evaluation_teraflop(self, size: int) -> float:
        """Return the work of one call of all blocks on one picture.

        Args:
            size: picture side in pixels.
        """
        tokens = self._image_tokens(size) + self.tokens
        weights = 2 * BLOCK_WEIGHTS * self.channels**2 * tokens
        attention = 4 * self.channels * tokens**2
        return (self.double + self.single) * (weights + attention) / 1e12

    def decoding_teraflop(self, size: int) -> float:
        """Return the work of decoding one picture of a side in pixels."""
        pixels = (size / FLUX.native_size) ** 2
        return DECODER_TERAFLOP * pixels * self.parameters["vae"] / PARAMETERS["vae"]


FLUX = FluxShape()
"""FLUX.1-schnell."""
FLUX_DEV = replace(FLUX, tokens=512, guidance_embeds=True, parameters=PARAMETERS_GUIDED)
"""FLUX.1-dev."""


def folder_shape(folder: Path) -> FluxShape:
    """Return the measures of a model folder in diffusers' layout.

    They are read from its configurations and its files' headers.

    Raises:
        RiebenchError: if a configuration or weights file is missing or cannot be read.
    """
    transformer, vae, tokenizer = (read_json(folder / CONFIGS[part]) for part in ("transformer", "vae", "tokenizer_2"))
    found = config_shape(transformer, vae, tokenizer.get("model_max_length"))
    return replace(found, parameters={part: count_parameters(folder / part) for part in PARTS})


def config_shape(transformer: Mapping[str, Any], vae: Mapping[str, Any], tokens: int | None) -> FluxShape:
    """Return the measures that configurations state.

    Args:
        transformer: of the transformer.
        vae: of the autoencoder.
        tokens: longest text of T5's tokenizer.

    Raises:
        RiebenchError: if a number is none.
    """
    try:
        widths = [int(width) for width in vae.get("block_out_channels", (64,))]
        factor = 2 ** (len(widths) - 1)
        side = vae.get("sample_size") or FLUX.native_size
        guided = bool(transformer.get("guidance_embeds", False))
        return FluxShape(
            channels=int(transformer.get("num_attention_heads", 24)) * int(transformer.get("attention_head_dim", 128)),
            double=int(transformer.get("num_layers", DOUBLE)),
            single=int(transformer.get("num_single_layers", SINGLE)),
            packed=int(transformer.get("in_channels", 64)),
            vae_factor=factor,
            vae_width=widths[min(1, len(widths) - 1)],
            native_size=int(min(side) if isinstance(side, list | tuple) else side),
            tokens=text_tokens(None if tokens is None else int(tokens), guidance_embeds=guided),
            guidance_embeds=guided,
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise RiebenchError(f"the configuration of a FLUX model cannot be read ({error}); fetch it again") from error
