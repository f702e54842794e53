"""The autoencoder and its training: diffusers' AutoencoderKL, factor 2.

It maps 64 x 64 pictures to 32 x 32 x 4 latents and back.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from riebench.toyworld.data import Pool
from riebench.toyworld.networks.loop import Stage, fit, step_generator

SEED = 11
CONFIG: dict[str, Any] = {
    "steps": 1500,
    "batch": 16,
    "learning_rate": 2e-3,
    "kl_weight": 1e-5,
    "channels": [24, 48],
    "seed": SEED,
}


def build() -> AutoencoderKL:
    """Build an untrained autoencoder of the toy world's shape."""
    torch.manual_seed(SEED)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(24, 48),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
        force_upcast=False,
        mid_block_add_attention=False,
    )


def pictures(pool: Pool, indices: Tensor, device: torch.device) -> Tensor:
    """Return pool pictures as float [B, 3, 64, 64] in [-1, 1].

    They are channels last in memory.
    """
    batch = torch.from_numpy(pool.images[indices.numpy()]).to(device)
    return (batch.permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def train(pool: Pool, work: Path, device: torch.device) -> AutoencoderKL:
    """Train the autoencoder, then normalise its latents per channel.

    Each channel of the latents gets mean 0 and standard deviation 1, so the scaling factor is 1.
    """
    vae = build().to(device=device, memory_format=torch.channels_last)

    def loss(step: int) -> Tensor:
        generator = step_generator(SEED, step)
        images = pictures(pool, torch.randint(len(pool.images), (CONFIG["batch"],), generator=generator), device)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            posterior = vae.encode(images).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=generator).to(device)
            decoded = vae.decode(posterior.mean + posterior.std * noise).sample
        difference = decoded.float() - images
        reconstruction = difference.abs().mean() + 2 * difference.square().mean()
        return reconstruction + CONFIG["kl_weight"] * posterior.kl().mean() / 1024

    fit(Stage("vae", CONFIG, vae, loss, CONFIG["steps"], CONFIG["learning_rate"], ema_decay=0.998), work)
    vae.eval().requires_grad_(False)
    vae.register_to_config(scaling_factor=1.0)
    sample = encode(vae, pictures(pool, torch.arange(1024), device))
    normalize_latents(vae, sample.mean((0, 2, 3)), sample.std((0, 2, 3)))
    return vae


def normalize_latents(vae: AutoencoderKL, mean: Tensor, std: Tensor) -> None:
    """Give each channel of the latents mean 0 and standard deviation 1.

    An affine map is folded into the 1 x 1 convolutions around the latents.

    Args:
        vae: changed in place; what it reconstructs stays the same.
        mean: float [4], of the latents now.
        std: float [4].
    """
    channels = len(mean)
    inward, outward = vae.quant_conv, vae.post_quant_conv
    inward.weight[:channels] /= std.view(-1, 1, 1, 1)
    inward.bias[:channels] = (inward.bias[:channels] - mean) / std
    inward.bias[channels:] -= 2 * std.log()
    outward.bias += outward.weight[:, :, 0, 0] @ mean
    outward.weight *= std.view(1, -1, 1, 1)


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor, batch_size: int = 128) -> Tensor:
    """Encode pictures in [-1, 1] as scaled mean latents: [B, 4, 32, 32]."""
    parts = [vae.encode(part).latent_dist.mode() for part in images.split(batch_size)]
    return torch.cat(parts) * vae.config.scaling_factor
