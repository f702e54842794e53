"""Sizes and work of PixArt-Sigma, known without reading its weights.

Operations follow from the configuration; a test compares them with those that PyTorch counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from riebench.errors import RiebenchError
from riebench.models.families.folders import read_json
from riebench.models.families.tokens.cross_attention.pixart.configuration import CONFIGS, HEAD, HEADS, PATCH, SIDE
from riebench.models.families.tokens.cross_attention.pixart.names import LAYERS
from riebench.models.families.tokens.cross_attention.sizes import CrossAttentionShape
from riebench.models.families.tokens.sizes import T5_PARAMETERS

PARTS = ("transformer", "text_encoder", "vae")
VAE_PARAMETERS = 83_653_863
"""Parameters of SDXL's autoencoder, which is PixArt-Sigma's."""
BLOCK_TENSORS = 12
"""Tensors of all tokens that are in memory at a block's peak, as counted (12.0): the feed-forward units, four wide,
before and after their activation, and the streams beside them."""
FEED_FORWARD = 8
"""Weights that a token passes in a feed-forward layer, in squares of the width."""


@dataclass(frozen=True, kw_only=True)
class PixArtShape(CrossAttentionShape):
    """Measures of a PixArt-Sigma-like model.

    Attributes:
        patch_size: latent positions along a side of an image token.
    """

    parts: ClassVar[tuple[str, ...]] = PARTS
    block_tensors: ClassVar[float] = BLOCK_TENSORS

    channels: int = HEADS * HEAD
    layers: int = LAYERS
    caption_channels: int = 4096
    latent_channels: int = 4
    patch_size: int = PATCH
    parameters: Mapping[str, int] = field(
        default_factory=lambda: {
            "transformer": 610_856_096, "text_encoder": T5_PARAMETERS, "vae": VAE_PARAMETERS,
        }
    )  # fmt: skip

    @property
    def size_step(self) -> int:
        """Pixels along an image token, of which a picture's side is a multiple.

        The pipeline takes multiples of 8 alone.
        """
        return max(self.vae_factor * self.patch_size, 8)

    def image_tokens(self, size: int) -> int:
        """Return the image tokens of pictures of a side in pixels."""
        return (size // (self.vae_factor * self.patch_size)) ** 2

    def feed_forward_weights(self) -> float:
        """Return the weights of one layer to four times as many units, and one back."""
        return FEED_FORWARD

    def other_work(self, tokens: int) -> float:
        """Return the multiplications of self-attention between tokens."""
        return 2 * tokens**2 * self.channels


PIXART = PixArtShape()
"""PixArt-Sigma at 1024 px."""
PIXART_512 = replace(PIXART, native_size=512)
SHAPES: Mapping[str, PixArtShape] = {"pixart-sigma": PIXART, "pixart-sigma-512": PIXART_512}
"""Preset -> its measures."""


def described_shape(folder: Path) -> PixArtShape:
    """Return the measures that a folder's configurations state.

    Its parameters are the full-size model's: they are counted in the weights.

    Raises:
        RiebenchError: if a configuration is missing or cannot be read.
    """
    return config_shape(*(read_json(folder / CONFIGS[part]) for part in ("transformer", "vae")))


def config_shape(transformer: Mapping[str, Any], vae: Mapping[str, Any]) -> PixArtShape:
    """Return the measures that configurations state.

    Args:
        transformer: of the transformer.
        vae: of the autoencoder.

    Raises:
        RiebenchError: if a number is none.
    """
    try:
        widths = [int(width) for width in vae.get("block_out_channels", (64,))]
        factor = 2 ** (len(widths) - 1)
        return PixArtShape(
            channels=int(transformer.get("num_attention_heads", HEADS))
            * int(transformer.get("attention_head_dim", HEAD)),
            layers=int(transformer.get("num_layers", LAYERS)),
            caption_channels=int(transformer.get("caption_channels") or PIXART.caption_channels),
            latent_channels=int(transformer.get("in_channels", PIXART.latent_channels)),
            patch_size=int(transformer.get("patch_size", PATCH)),
            vae_factor=factor,
            vae_width=widths[min(1, len(widths) - 1)],
            native_size=int(transformer.get("sample_size", SIDE)) * factor,
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise RiebenchError(f"the configuration of a PixArt model cannot be read ({error}); fetch it again") from error
