"""The network of the toy transformer, and the way latents become tokens.

It is diffusers' FluxTransformer2DModel with three double and two single blocks.
"""

from __future__ import annotations

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from riebench.toyworld.networks.diffusion import short_attention
from riebench.toyworld.networks.dit.text import POOLED, STATE

SEED = 97
LATENT_CHANNELS = 4
LATENT_SIDE = 32
BLOCKS = ("double.0", "double.1", "double.2", "single.0", "single.1")
"""Short names of all blocks."""


def build(seed: int = SEED) -> FluxTransformer2DModel:
    """Build an untrained transformer whose blocks change nothing yet.

    The modulation of every block begins at zero, and so does the output: training is faster than from diffusers' own
    initial weights.
    """
    torch.manual_seed(seed)
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=4 * LATENT_CHANNELS, num_layers=3, num_single_layers=2, attention_head_dim=32,
        num_attention_heads=4, joint_attention_dim=STATE, pooled_projection_dim=POOLED, axes_dims_rope=(8, 12, 12),
    )  # fmt: skip
    zeroed = [block.norm for block in transformer.single_transformer_blocks]
    for block in transformer.transformer_blocks:
        zeroed += [block.norm1, block.norm1_context]
    for linear in (*(norm.linear for norm in zeroed), transformer.norm_out.linear, transformer.proj_out):
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
    return transformer


def pack(latents: Tensor) -> Tensor:
    """Turn latents into tokens, 2 by 2 latents each, as FLUX's pipeline does.

    Args:
        latents: float [B, channels, side, side].

    Returns:
        float [B, side * side / 4, channels * 4], row by row.
    """
    batch, channels, height, width = latents.shape
    cells = latents.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return cells.reshape(batch, height * width // 4, channels * 4)


def image_positions(side: int = LATENT_SIDE // 2) -> Tensor:
    """Return the positions of image tokens: float [side * side, 3].

    Each is (0, row, column).
    """
    place = torch.arange(side)
    return torch.stack([torch.zeros(side * side), place.repeat_interleave(side), place.repeat(side)], dim=1)


class Velocity:
    """The transformer as a function from noisy tokens to their velocity.

    It computes under bfloat16 autocast.

    Args:
        transformer: the network, perhaps compiled.
        device: where it is.
        tokens: number of text tokens.
    """

    def __init__(self, transformer: nn.Module, device: torch.device, tokens: int) -> None:
        self.transformer, self.device = transformer, device
        self.positions, self.text_positions = image_positions().to(device), torch.zeros(tokens, 3, device=device)

    def __call__(self, noisy: Tensor, sigma: Tensor, states: Tensor, pooled: Tensor) -> Tensor:
        """Predict noise minus data.

        Args:
            noisy: float [B, tokens, channels].
            sigma: float [B], share of noise, 0 to 1.
            states: float [B, text tokens, 128].
            pooled: float [B, 64].

        Returns:
            float, shaped like `noisy`.
        """
        with torch.autocast(self.device.type, dtype=torch.bfloat16), short_attention():
            velocity = self.transformer(
                hidden_states=noisy, timestep=sigma, encoder_hidden_states=states, pooled_projections=pooled,
                img_ids=self.positions, txt_ids=self.text_positions, return_dict=False,
            )[0]  # fmt: skip
        return velocity.float()
