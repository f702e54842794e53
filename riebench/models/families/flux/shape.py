"""Sizes and work of FLUX-like models, known without reading their weights.

Operations follow from the configuration; a test compares them with those that PyTorch counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from riebench.errors import RiebenchError
from riebench.models.families.flux.configuration import CONFIGS, PATCH, text_tokens
from riebench.models.families.flux.names import DOUBLE, FLUX_BLOCKS, SINGLE
from riebench.models.families.folders import read_json
from riebench.models.families.tokens.sizes import CLIP_L_PARAMETERS, T5_PARAMETERS, VAE_PARAMETERS, TokenShape

PARTS = ("transformer", "text_encoder", "text_encoder_2", "vae")
PARAMETERS = {
    "transformer": 11_891_178_560, "text_encoder": CLIP_L_PARAMETERS, "text_encoder_2": T5_PARAMETERS,
    "vae": VAE_PARAMETERS,
}  # fmt: skip
"""Part -> number of parameters of FLUX.1-schnell."""
PARAMETERS_GUIDED = {**PARAMETERS, "transformer": 11_901_408_320}
"""The same of FLUX.1-dev, whose transformer is told the guidance scale."""
BLOCK_WEIGHTS = 12
"""Weights that each token passes in a block, in squares of the width: attention 4, feed-forward layer 8."""
BLOCK_TENSORS = 18
"""Tensors of all tokens that are in memory at a block's peak, as counted (17.3): streams, norm, queries, keys,
values, attention, units, and both joined."""


@dataclass(frozen=True, kw_only=True)
class FluxShape(TokenShape):
    """Measures of a FLUX-like model.

    The defaults are those of FLUX.1-schnell.

    Attributes:
        double: blocks with two streams.
        single: blocks of one joined stream.
        guidance_embeds: whether the transformer is told the guidance scale.
    """

    parts: ClassVar[tuple[str, ...]] = PARTS
    patch: ClassVar[int] = PATCH
    block_tensors: ClassVar[float] = BLOCK_TENSORS

    channels: int = 3072
    double: int = DOUBLE
    single: int = SINGLE
    guidance_embeds: bool = False
    parameters: Mapping[str, int] = field(default_factory=lambda: PARAMETERS)

    @property
    def blocks(self) -> tuple[str, ...]:
        """Short names of the model's blocks."""
        if (self.double, self.single) == (DOUBLE, SINGLE):
            return FLUX_BLOCKS
        return (
            *(f"double.{index}" for index in range(self.double)), *(f"single.{index}" for index in range(self.single)),
        )  # fmt: skip

    def calls(self, guidance: float) -> int:
        """Return how often each picture is evaluated in a step.

        A transformer that is told the scale has no unconditional half.
        """
        return 2 if guidance > 1 and not self.guidance_embeds else 1

    def evaluation_teraflop(self, size: int) -> float:
        """Return the work of one call of all blocks on one picture.

        Args:
            size: picture side in pixels.
        """
        tokens = self.attended_tokens(size)
        weights = 2 * BLOCK_WEIGHTS * self.channels**2 * tokens
        attention = 4 * self.channels * tokens**2
        return (self.double + self.single) * (weights + attention) / 1e12


FLUX = FluxShape()
"""FLUX.1-schnell."""
FLUX_DEV = replace(FLUX, tokens=512, guidance_embeds=True, parameters=PARAMETERS_GUIDED)
"""FLUX.1-dev."""


def described_shape(folder: Path) -> FluxShape:
    """Return the measures that a folder's configurations state.

    Its parameters are the full-size model's: they are counted in the weights.

    Raises:
        RiebenchError: if a configuration is missing or cannot be read.
    """
    transformer, vae, tokenizer = (read_json(folder / CONFIGS[part]) for part in ("transformer", "vae", "tokenizer_2"))
    return config_shape(transformer, vae, tokenizer.get("model_max_length"))


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
            latent_channels=int(transformer.get("in_channels", 64)) // PATCH**2,
            vae_factor=factor,
            vae_width=widths[min(1, len(widths) - 1)],
            native_size=int(min(side) if isinstance(side, list | tuple) else side),
            tokens=text_tokens(None if tokens is None else int(tokens), guidance_embeds=guided),
            guidance_embeds=guided,
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise RiebenchError(f"the configuration of a FLUX model cannot be read ({error}); fetch it again") from error
