"""The autoencoder of the toy transformer.

It is that of the U-Nets, with another scale and shift. FLUX's pipeline packs latents 2 by 2: 64 x 64 pictures become
32 x 32 x 4 latents and 16 x 16 tokens of 16 numbers.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL

from riebench.toyworld.networks import vae

SCALING, SHIFT = 0.3611, 0.1159
"""FLUX's own: neither is trivial, so that a program that forgets one of them makes visibly wrong pictures."""


def load(folder: Path) -> AutoencoderKL:
    """Load a U-Net's autoencoder, frozen, and give its latents FLUX's scale and shift.

    Args:
        folder: a U-Net's pipeline, whose latents have mean 0 and standard deviation 1 without a scale.
    """
    autoencoder = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32)
    set_scale(autoencoder)
    return autoencoder.requires_grad_(False).eval()


def set_scale(autoencoder: AutoencoderKL) -> None:
    """Give normalised latents FLUX's scale and shift.

    The mean of the latents becomes the shift; the configuration states both.

    Args:
        autoencoder: changed in place; each channel of its latents must have mean 0 and standard deviation 1.
    """
    ones = torch.ones(int(autoencoder.config.latent_channels), device=autoencoder.device)
    with torch.no_grad():
        vae.normalize_latents(autoencoder, -SHIFT * SCALING * ones, SCALING * ones)
    autoencoder.register_to_config(scaling_factor=SCALING, shift_factor=SHIFT)
