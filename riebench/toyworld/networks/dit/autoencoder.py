"""The autoencoder of the toy transformer: factor 4.

FLUX's pipeline packs latents 2 by 2: 64 x 64 pictures become 16 x 16 x 8 latents and 8 x 8 tokens of 32 numbers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL

from riebench.toyworld.data import Pool
from riebench.toyworld.networks import vae

CONFIG: dict[str, Any] = {
    "steps": 1200, "batch": 16, "learning_rate": 2e-3, "kl_weight": 1e-5, "channels": [16, 32, 64],
    "latent_channels": 8, "seed": 83,
}  # fmt: skip
SCALING, SHIFT = 0.3611, 0.1159
"""FLUX's own: neither is trivial, so that a program that forgets one of them makes visibly wrong pictures."""


def train(pool: Pool, work: Path, device: torch.device) -> AutoencoderKL:
    """Train the autoencoder, or finish an interrupted training."""
    trained = vae.train(pool, work, device, name="dit-vae", config=CONFIG)
    set_scale(trained)
    return trained


def set_scale(autoencoder: AutoencoderKL) -> None:
    """Give normalised latents FLUX's scale and shift.

    The configuration states both.

    Args:
        autoencoder: changed in place; each channel of its latents must have mean 0 and standard deviation 1.
    """
    ones = torch.ones(int(autoencoder.config.latent_channels), device=autoencoder.device)
    vae.normalize_latents(autoencoder, -SHIFT * SCALING * ones, SCALING * ones)
    autoencoder.register_to_config(scaling_factor=SCALING, shift_factor=SHIFT)
