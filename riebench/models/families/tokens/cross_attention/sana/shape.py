"""Sizes and work of SANA-like models, known without reading their weights.

Operations follow from the configuration; a test compares them with those that PyTorch counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from riebench.blocks import ATTENTION, block_of, kind
from riebench.errors import RiebenchError
from riebench.models.families.folders import read_json
from riebench.models.families.tokens.cross_attention.sana.configuration import CONFIGS
from riebench.models.families.tokens.cross_attention.sana.names import LAYERS, LAYERS_SMALL
from riebench.models.families.tokens.cross_attention.sizes import CrossAttentionShape

PARTS = ("transformer", "text_encoder", "vae")
GEMMA_PARAMETERS, GEMMA_TABLE = 2_614_341_888, 256_000 * 2304
"""Parameters of Gemma 2 2B, and of its token table, the largest single layer."""
VAE_PARAMETERS = 312_250_275
"""Parameters of the autoencoder, DC-AE of factor 32."""
DECODER_TERAFLOP, DECODER_SIDE = 8.37, 1024
"""Work of decoding one picture of that side, as counted."""
SIDE_STEP = 32
"""The pipelines take sides that are multiples of this, whatever the autoencoder's factor."""
MAX_DECODED = 16
"""Latents up to this side, of pictures of 512 px, are decoded as a batch; larger ones one by one."""
BLOCK_TENSORS = 14
"""Tensors of all tokens that are in memory at a block's peak, as counted (14.0): those that the feed-forward layer
gates, ten wide, and the streams beside them."""
DECODER_TENSORS = 4.52
"""Tensors of full resolution that are in memory at the decoder's peak, as counted."""
WINDOW = 3 * 3
"""Weights of a convolution of each channel apart."""


def _parameters(transformer: int) -> Mapping[str, int]:
    return {"transformer": transformer, "text_encoder": GEMMA_PARAMETERS, "vae": VAE_PARAMETERS}


@dataclass(frozen=True, kw_only=True)
class SanaShape(CrossAttentionShape):
    """Measures of a SANA-like model.

    The defaults are those of SANA 1.6B.

    Attributes:
        head: channels of a head of self-attention.
        unit_share: feed-forward units of a block, in multiples of its channels.
        guidance_embeds: whether the transformer is told the guidance scale.
    """

    parts: ClassVar[tuple[str, ...]] = PARTS
    patch: ClassVar[int] = 1
    block_tensors: ClassVar[float] = BLOCK_TENSORS
    largest_layer: ClassVar[int] = GEMMA_TABLE
    decoder_tensors: ClassVar[float] = DECODER_TENSORS

    channels: int = 2240
    layers: int = LAYERS
    head: int = 32
    unit_share: float = 2.5
    caption_channels: int = 2304
    latent_channels: int = 32
    vae_factor: int = 32
    vae_width: int = 128
    guidance_embeds: bool = False
    parameters: Mapping[str, int] = field(default_factory=lambda: _parameters(1_604_462_752))

    @property
    def size_step(self) -> int:
        """Number of pixels that a picture's side is a multiple of."""
        return math.lcm(SIDE_STEP, self.vae_factor)

    @property
    def max_decoded(self) -> int:
        """Side of the largest latents that are decoded as a batch."""
        return MAX_DECODED

    def image_tokens(self, size: int) -> int:
        """Return the image tokens of a picture: one for each latent position."""
        return (size // self.vae_factor) ** 2

    def calls(self, guidance: float) -> int:
        """Return how often each picture is evaluated in a step.

        A transformer that is told the scale has no unconditional half.
        """
        return 2 if guidance > 1 and not self.guidance_embeds else 1

    def units(self, block: str) -> int:
        """Return the feed-forward units of a block."""
        return int(self.unit_share * self.channels) if kind(block) == ATTENTION and block_of(block) == block else 0

    def feed_forward_weights(self) -> float:
        """Return the weights of two layers to twice as many units, and one back."""
        return 3 * self.unit_share

    def other_work(self, tokens: int) -> float:
        """Return the work of linear self-attention and of the convolution by channel."""
        return tokens * self.channels * (2 * (self.head + 1) + 2 * self.unit_share * WINDOW)

    def decoding_teraflop(self, size: int) -> float:
        """Return the work of decoding one picture of a side in pixels."""
        return DECODER_TERAFLOP * (size / DECODER_SIDE) ** 2 * self.parameters["vae"] / VAE_PARAMETERS


SANA = SanaShape()
"""SANA 1.6B at 1024 px."""
SANA_SMALL = replace(SANA, channels=1152, layers=LAYERS_SMALL, parameters=_parameters(591_747_872))
"""SANA 0.6B at 1024 px."""
SPRINT = replace(SANA, guidance_embeds=True, parameters=_parameters(1_610_237_472))
SPRINT_SMALL = replace(SANA_SMALL, guidance_embeds=True, parameters=_parameters(593_501_216))
"""SANA-Sprint, whose transformers are told the guidance scale."""
SHAPES: Mapping[str, SanaShape] = {
    "sana": SANA, "sana-512": replace(SANA, native_size=512), "sana-0.6b": SANA_SMALL,
    "sana-0.6b-512": replace(SANA_SMALL, native_size=512), "sana-sprint": SPRINT, "sana-sprint-0.6b": SPRINT_SMALL,
}  # fmt: skip
"""Preset -> its measures."""


def described_shape(folder: Path) -> SanaShape:
    """Return the measures that a folder's configurations state.

    Its parameters are the full-size model's: they are counted in the weights.

    Raises:
        RiebenchError: if a configuration is missing or cannot be read.
    """
    return config_shape(*(read_json(folder / CONFIGS[part]) for part in ("transformer", "vae")))


def config_shape(transformer: Mapping[str, Any], vae: Mapping[str, Any]) -> SanaShape:
    """Return the measures that configurations state.

    Args:
        transformer: of the transformer.
        vae: of the autoencoder.

    Raises:
        RiebenchError: if a number is none.
    """
    try:
        head = int(transformer.get("attention_head_dim", SANA.head))
        factor = 2 ** (len(vae.get("encoder_block_out_channels", (0,) * 6)) - 1)
        return SanaShape(
            channels=int(transformer.get("num_attention_heads", 70)) * head,
            layers=int(transformer.get("num_layers", LAYERS)),
            head=head,
            unit_share=float(transformer.get("mlp_ratio", SANA.unit_share)),
            caption_channels=int(transformer.get("caption_channels", SANA.caption_channels)),
            latent_channels=int(transformer.get("in_channels", SANA.latent_channels)),
            vae_factor=factor,
            vae_width=int(vae.get("decoder_block_out_channels", (SANA.vae_width,))[0]),
            native_size=int(transformer.get("sample_size", 32)) * factor,
            guidance_embeds=bool(transformer.get("guidance_embeds", False)),
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise RiebenchError(f"the configuration of a SANA model cannot be read ({error}); fetch it again") from error
