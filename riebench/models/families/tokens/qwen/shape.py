"""Block names, sizes and work of models like Qwen-Image.

They are known without reading weights. Operations follow from the configuration; a test compares them with those that
PyTorch counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from riebench.errors import RiebenchError
from riebench.models.families.folders import read_json
from riebench.models.families.tokens.names import BlockList, TokenNames
from riebench.models.families.tokens.qwen.configuration import CONFIGS, HEAD, LATENT_CHANNELS, PATCH, STEPS_DOWN, TOKENS
from riebench.models.families.tokens.sizes import TokenShape

BLOCKS = 60
"""Blocks of the full-size transformer."""
USUAL_BLOCKS = ("double.12", "double.24", "double.36", "double.48")
"""Blocks that stand for all: four at equal distances, since no SAE of this family has been published yet."""
NAMES = TokenNames((BlockList("double", "transformer_blocks", BLOCKS, "img_mlp.net.0", counted="count"),), USUAL_BLOCKS)
"""Names of its blocks: an image and a text stream in each."""
PARTS = ("transformer", "text_encoder", "vae")
PARAMETERS = {"transformer": 20_430_401_088, "text_encoder": 8_292_166_656, "vae": 126_892_531}
"""Part -> number of parameters."""
TOKEN_TABLE = 152_064 * 3584
"""Parameters of the largest single layer: Qwen2.5's token table."""
BLOCK_WEIGHTS = 12
"""Weights that each token passes in a block, in squares of the width: attention 4, feed-forward layer 8."""
BLOCK_TENSORS = 13.5
"""Tensors of all tokens that are in memory at a block's peak, as counted (13.4): streams, norms, queries, keys and
values of both joined, and attention."""
DECODER_WIDTH = 6
"""The decoder keeps three tensors of this many times its own width at full resolution, as counted: it remembers what
entered its convolutions, as if more pictures of a film were to come."""
DECODER_TERAFLOP, DECODER_SIDE = 11.7, 1024
"""Work of decoding one picture of that side, as counted."""


@dataclass(frozen=True, kw_only=True)
class QwenImageShape(TokenShape):
    """Measures of a model like Qwen-Image.

    The defaults are Qwen-Image's.

    Attributes:
        count: blocks.
    """

    parts: ClassVar[tuple[str, ...]] = PARTS
    patch: ClassVar[int] = PATCH
    block_tensors: ClassVar[float] = BLOCK_TENSORS
    largest_layer: ClassVar[int] = TOKEN_TABLE

    channels: int = 3072
    tokens: int = TOKENS
    vae_width: int = DECODER_WIDTH * 96
    count: int = BLOCKS
    parameters: Mapping[str, int] = field(default_factory=lambda: PARAMETERS)

    @property
    def blocks(self) -> tuple[str, ...]:
        """Short names of the model's blocks."""
        return tuple(f"double.{index}" for index in range(self.count))

    def evaluation_teraflop(self, size: int) -> float:
        """Return the work of one call of all blocks on one picture.

        Args:
            size: picture side in pixels.
        """
        tokens = self.attended_tokens(size)
        return self.count * (2 * BLOCK_WEIGHTS * self.channels**2 * tokens + 4 * self.channels * tokens**2) / 1e12

    def decoding_teraflop(self, size: int) -> float:
        """Return the work of decoding one picture of a side in pixels."""
        return DECODER_TERAFLOP * (size / DECODER_SIDE) ** 2 * self.parameters["vae"] / PARAMETERS["vae"]


QWEN_IMAGE = QwenImageShape()
"""Qwen-Image."""


def described_shape(folder: Path) -> QwenImageShape:
    """Return the measures that a folder's configurations state.

    Its parameters are the full-size model's: they are counted in the weights.

    Raises:
        RiebenchError: if a configuration is missing or cannot be read.
    """
    return config_shape(read_json(folder / CONFIGS["transformer"]), read_json(folder / CONFIGS["vae"]))


def config_shape(transformer: Mapping[str, Any], vae: Mapping[str, Any]) -> QwenImageShape:
    """Return the measures that configurations state.

    Args:
        transformer: of the transformer.
        vae: of the autoencoder.

    Raises:
        RiebenchError: if a number is none.
    """
    try:
        factor = 2 ** len(vae.get("temperal_downsample", STEPS_DOWN))
        return QwenImageShape(
            channels=int(transformer.get("num_attention_heads", 24)) * int(transformer.get("attention_head_dim", HEAD)),
            count=int(transformer.get("num_layers", BLOCKS)),
            latent_channels=int(vae.get("z_dim", LATENT_CHANNELS)),
            vae_factor=factor,
            vae_width=DECODER_WIDTH * int(vae.get("base_dim", 96)),
            native_size=QWEN_IMAGE.native_size // QWEN_IMAGE.vae_factor * factor,
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise RiebenchError(
            f"the configuration of a model like Qwen-Image cannot be read ({error}); fetch it again"
        ) from error
