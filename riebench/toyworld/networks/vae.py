"""The autoencoders and their training: diffusers' AutoencoderKL.

That of the U-Nets halves the side of a picture: 64 x 64 pictures to 32 x 32 x 4 latents and back. The same training
with another configuration makes that of the transformer.
"""

from __future__ import annotations

from collections.abc import Mapping
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


def build(config: Mapping[str, Any] = CONFIG) -> AutoencoderKL:
    """Build an untrained autoencoder.

    Args:
        config: "channels" of its levels, each of which but the last halves the side; "latent_channels", 4 if absent;
            "seed".
    """
    torch.manual_seed(config["seed"])
    levels = len(config["channels"])
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(config["channels"]),
        layers_per_block=1,
        latent_channels=config.get("latent_channels", 4),
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


def train(
    pool: Pool, work: Path, device: torch.device, *, name: str = "vae", config: Mapping[str, Any] = CONFIG
) -> AutoencoderKL:
    """Train an autoencoder, then normalise its latents per channel.

    Each channel of the latents gets mean 0 and standard deviation 1, so the scaling factor is 1.

    Args:
        pool: the training pictures.
        work: folder that holds the stage's own folder.
        device: trains there.
        name: of the stage.
        config: its settings, as `CONFIG` and for `build`.
    """
    vae = build(config).to(device=device, memory_format=torch.channels_last)

    def loss(step: int) -> Tensor:
        generator = step_generator(config["seed"], step)
        images = pictures(pool, torch.randint(len(pool.images), (config["batch"],), generator=generator), device)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            posterior = vae.encode(images).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=generator).to(device)
            decoded = vae.decode(posterior.mean + posterior.std * noise).sample
        difference = decoded.float() - images
        reconstruction = difference.abs().mean() + 2 * difference.square().mean()
        positions = posterior.mean[0, 0].numel()
        return reconstruction + config["kl_weight"] * posterior.kl().mean() / positions

    fit(Stage(name, dict(config), vae, loss, config["steps"], config["learning_rate"], ema_decay=0.998), work)
    vae.eval().requires_grad_(False)
    vae.register_to_config(scaling_factor=1.0)
    sample = encode(vae, pictures(pool, torch.arange(min(1024, len(pool.images))), device))
    normalize_latents(vae, sample.mean((0, 2, 3)), sample.std((0, 2, 3)))
    return vae


def normalize_latents(vae: AutoencoderKL, mean: Tensor, std: Tensor) -> None:
    """Give each channel of the latents mean 0 and standard deviation 1.

    An affine map is folded into the 1 x 1 convolutions around the latents.

    Args:
        vae: changed in place; what it reconstructs stays the same.
        mean: float [channels], of the latents now.
        std: float [channels].
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
    """Encode pictures in [-1, 1] as scaled mean latents: [B, channels, side, side]."""
    parts = [vae.encode(part).latent_dist.mode() for part in images.split(batch_size)]
    return (torch.cat(parts) - (vae.config.shift_factor or 0)) * vae.config.scaling_factor
