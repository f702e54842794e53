"""Sizes and work of models like Stable Diffusion 3, known without weights.

Operations follow from the configuration; a test compares them with those that PyTorch counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from riebench.errors import RiebenchError
from riebench.models.families.folders import read_json
from riebench.models.families.tokens.sd3.configuration import CLIP_TOKENS, CONFIGS, LATENT_CHANNELS, SAMPLE, T5_TOKENS
from riebench.models.families.tokens.sd3.names import LARGE, MEDIUM
from riebench.models.families.tokens.sizes import CLIP_L_PARAMETERS, T5_PARAMETERS, VAE_PARAMETERS, TokenShape

PARTS = ("transformer", "text_encoder", "text_encoder_2", "text_encoder_3", "vae")
PARAMETERS = {
    "transformer": 2_469_663_936, "text_encoder": CLIP_L_PARAMETERS + 768**2, "text_encoder_2": 694_659_840,
    "text_encoder_3": T5_PARAMETERS, "vae": VAE_PARAMETERS,
}  # fmt: skip
"""Part -> number of parameters of Stable Diffusion 3.5 medium, its stored table of positions among them."""
TOKEN_WEIGHTS = 12
"""Weights that each token passes in a block, in squares of the width: attention 4, feed-forward layer 8."""
LAST_TEXT_WEIGHTS = 3
"""The same of a text token in the last block, which gives no text: queries, keys and values."""
DUAL_WEIGHTS = 4
"""The same of an image token in the second attention of a dual block."""
BLOCK_TENSORS = 13.5
"""Tensors of all tokens that are in memory at a block's peak, as counted at 1024 px (13.4 in dual blocks)."""


@dataclass(frozen=True, kw_only=True)
class Sd3Shape(TokenShape):
    """Measures of a model like Stable Diffusion 3.

    The defaults are those of Stable Diffusion 3.5 medium.

    Attributes:
        layers: its blocks.
        dual: blocks whose image tokens also attend to themselves alone.
        patch_side: latent positions along a side of an image token.
    """

    parts: ClassVar[tuple[str, ...]] = PARTS
    block_tensors: ClassVar[float] = BLOCK_TENSORS
    together: ClassVar[bool] = True

    channels: int = 1536
    layers: int = MEDIUM
    dual: int = 13
    patch_side: int = 2
    tokens: int = CLIP_TOKENS + T5_TOKENS
    parameters: Mapping[str, int] = field(default_factory=lambda: PARAMETERS)

    @property
    def size_step(self) -> int:
        """Pixels along an image token, of which a picture's side is a multiple."""
        return self.vae_factor * self.patch_side

    @property
    def blocks(self) -> tuple[str, ...]:
        """Short names of the model's blocks."""
        return tuple(f"double.{index}" for index in range(self.layers))

    def evaluation_teraflop(self, size: int) -> float:
        """Return the work of one call of all blocks on one picture.

        Args:
            size: picture side in pixels.
        """
        image, text = self.image_tokens(size), self.tokens
        passed = self.layers * TOKEN_WEIGHTS * image + self.dual * DUAL_WEIGHTS * image
        passed += ((self.layers - 1) * TOKEN_WEIGHTS + LAST_TEXT_WEIGHTS) * text
        attended = self.layers * (image + text) ** 2 + self.dual * image**2
        return (2 * self.channels**2 * passed + 4 * self.channels * attended) / 1e12


MEDIUM_35 = Sd3Shape()
"""Stable Diffusion 3.5 medium."""
LARGE_35 = replace(
    MEDIUM_35, channels=2432, layers=LARGE, dual=0, parameters={**PARAMETERS, "transformer": 8_146_280_768}
)
"""Stable Diffusion 3.5 large and large turbo."""
MEDIUM_3 = replace(MEDIUM_35, dual=0, parameters={**PARAMETERS, "transformer": 2_084_951_104})
"""Stable Diffusion 3 medium."""


def described_shape(folder: Path) -> Sd3Shape:
    """Return the measures that a folder's configurations state.

    Its parameters are the full-size model's: they are counted in the weights.

    Raises:
        RiebenchError: if a configuration is missing or cannot be read.
    """
    transformer, vae, tokenizer = (read_json(folder / CONFIGS[part]) for part in ("transformer", "vae", "tokenizer"))
    return config_shape(transformer, vae, tokenizer.get("model_max_length", CLIP_TOKENS))


def config_shape(transformer: Mapping[str, Any], vae: Mapping[str, Any], clip_tokens: int) -> Sd3Shape:
    """Return the measures that configurations state.

    Args:
        transformer: of the transformer.
        vae: of the autoencoder.
        clip_tokens: longest text of CLIP's tokenizer.

    Raises:
        RiebenchError: if a number is none.
    """
    try:
        widths = [int(width) for width in vae.get("block_out_channels", (64,))]
        factor = 2 ** (len(widths) - 1)
        layers = int(transformer.get("num_layers", 18))
        return Sd3Shape(
            channels=int(transformer.get("num_attention_heads", 18)) * int(transformer.get("attention_head_dim", 64)),
            layers=layers,
            dual=len({int(one) for one in transformer.get("dual_attention_layers", ())} & set(range(layers))),
            patch_side=int(transformer.get("patch_size", 2)),
            latent_channels=int(transformer.get("in_channels", LATENT_CHANNELS)),
            vae_factor=factor,
            vae_width=widths[min(1, len(widths) - 1)],
            native_size=int(transformer.get("sample_size", SAMPLE)) * factor,
            tokens=int(clip_tokens) + T5_TOKENS,
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise RiebenchError(
            f"the configuration of a Stable Diffusion 3 model cannot be read ({error}); fetch it again"
        ) from error
