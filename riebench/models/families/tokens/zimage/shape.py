"""Sizes and work of models like Z-Image, known without reading their weights.

Operations follow from the configuration; a test compares them with those that PyTorch counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from riebench.blocks import ATTENTION, TEXT, block_of, kind
from riebench.errors import RiebenchError
from riebench.models.families.folders import read_json
from riebench.models.families.tokens.sizes import VAE_PARAMETERS, TokenShape
from riebench.models.families.tokens.zimage.configuration import CONFIGS, PATCH, TOKENS, filled
from riebench.models.families.tokens.zimage.names import LAYERS, REFINERS

PARTS = ("transformer", "text_encoder", "vae")
PARAMETERS = {"transformer": 6_154_908_736, "text_encoder": 4_022_468_096, "vae": VAE_PARAMETERS}
"""Part -> number of parameters; Z-Image and Z-Image-Turbo have equally many."""
TOKEN_TABLE = 151_936 * 2560
"""Parameters of the largest single layer: Qwen3's token table."""
USUAL_TEXT = 64
"""Text tokens that work and attention maps are estimated with: a chat message of two or three sentences."""
BLOCK_WEIGHTS = 12
"""Weights that each token passes in a block, in squares of the width: attention 4, feed-forward layer 8."""
BLOCK_TENSORS = 16.0
"""Tensors of all tokens that are in memory at a block's peak, as counted (15.9): tokens, norms, queries, keys, values,
attention, and units three times."""


def unit_count(channels: int) -> int:
    """Return the feed-forward units of a block, as diffusers computes them."""
    return int(channels / 3 * 8)


@dataclass(frozen=True, kw_only=True)
class ZImageShape(TokenShape):
    """Measures of a model like Z-Image.

    The defaults are those of Z-Image and Z-Image-Turbo.

    Attributes:
        layers: blocks of image and text tokens together.
        refiners: blocks of each of them alone.
    """

    parts: ClassVar[tuple[str, ...]] = PARTS
    patch: ClassVar[int] = PATCH
    block_tensors: ClassVar[float] = BLOCK_TENSORS
    together: ClassVar[bool] = True
    largest_layer: ClassVar[int] = TOKEN_TABLE

    channels: int = 3840
    tokens: int = USUAL_TEXT
    layers: int = LAYERS
    refiners: int = REFINERS
    parameters: Mapping[str, int] = field(default_factory=lambda: PARAMETERS)

    @property
    def blocks(self) -> tuple[str, ...]:
        """Short names of the model's blocks."""
        return (
            *(f"refiner.{index}" for index in range(self.refiners)),
            *(f"layers.{index}" for index in range(self.layers)),
        )

    def calls(self, guidance: float) -> int:
        """Return how often each picture is evaluated in a step.

        Z-Image's pipeline adds its scale times the difference of the halves, so that 0 is no guidance.
        """
        return 2 if guidance > 0 else 1

    def positions(self, block: str, size: int) -> int:
        """Return the image tokens of pictures of a side in pixels.

        Of a text stream the tokens of the longest text, since all prompts are given as many.
        """
        return TOKENS if kind(block) == TEXT else self.image_tokens(size)

    def units(self, block: str) -> int:
        """Return the feed-forward units of a block; 0 for a text stream."""
        return unit_count(self.channels) if kind(block) == ATTENTION and block_of(block) == block else 0

    def attended_tokens(self, size: int) -> int:
        """Return the tokens that pass a layer: image and text, each filled up."""
        return filled(self.image_tokens(size)) + filled(self.tokens)

    def evaluation_teraflop(self, size: int) -> float:
        """Return the work of one call of all blocks on one picture.

        Args:
            size: picture side in pixels.
        """
        image, text = filled(self.image_tokens(size)), filled(self.tokens)
        work = self.layers * self._block(image + text) + self.refiners * (self._block(image) + self._block(text))
        return work / 1e12

    def _block(self, tokens: int) -> float:
        return 2 * BLOCK_WEIGHTS * self.channels**2 * tokens + 4 * self.channels * tokens**2


Z_IMAGE = ZImageShape()
"""Z-Image and Z-Image-Turbo."""


def described_shape(folder: Path) -> ZImageShape:
    """Return the measures that a folder's configurations state.

    Its parameters are the full-size model's: they are counted in the weights.

    Raises:
        RiebenchError: if a configuration is missing or cannot be read.
    """
    return config_shape(read_json(folder / CONFIGS["transformer"]), read_json(folder / CONFIGS["vae"]))


def config_shape(transformer: Mapping[str, Any], vae: Mapping[str, Any]) -> ZImageShape:
    """Return the measures that configurations state.

    Args:
        transformer: of the transformer.
        vae: of the autoencoder.

    Raises:
        RiebenchError: if a number is none.
    """
    try:
        widths = [int(width) for width in vae.get("block_out_channels", (64,))]
        side = vae.get("sample_size") or Z_IMAGE.native_size
        return ZImageShape(
            channels=int(transformer.get("dim", Z_IMAGE.channels)),
            layers=int(transformer.get("n_layers", LAYERS)),
            refiners=int(transformer.get("n_refiner_layers", REFINERS)),
            latent_channels=int(transformer.get("in_channels", Z_IMAGE.latent_channels)),
            vae_factor=2 ** (len(widths) - 1),
            vae_width=widths[min(1, len(widths) - 1)],
            native_size=int(min(side) if isinstance(side, list | tuple) else side),
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise RiebenchError(
            f"the configuration of a model like Z-Image cannot be read ({error}); fetch it again"
        ) from error
