"""Latents of token models: configuration, packing, decoding and encoding.

The autoencoder is diffusers' AutoencoderKL, whose latents are scaled and shifted for the transformer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from math import isqrt
from typing import TYPE_CHECKING, Any

from riebench.errors import RiebenchError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

COLOURS = 3
"""Channels of a picture."""


def check_autoencoder(config: Mapping[str, Any], shown: str, file: str, brand: str, channels: int) -> None:
    """Refuse an autoencoder that does not turn latents into colour pictures.

    Args:
        config: its configuration.
        shown: what the user called it.
        file: where the configuration lies, for messages.
        brand: short name of the family, for messages.
        channels: of the latents.

    Raises:
        RiebenchError: in one line, naming the key.
    """
    found = config.get("_class_name", "AutoencoderKL")
    if found != "AutoencoderKL":
        raise RiebenchError(f"{shown}: {file} says _class_name {found}; {brand}'s autoencoder is an AutoencoderKL")
    for problem in autoencoder_problems(config, brand):
        raise RiebenchError(f"{shown}: {file} {problem}")
    if config.get("latent_channels", 4) != channels:
        raise RiebenchError(f"{shown}: {file} says latent_channels {config.get('latent_channels', 4)}, not {channels}")


def autoencoder_problems(config: Mapping[str, Any], brand: str) -> Iterator[str]:
    """Yield what speaks against an autoencoder's configuration: key and reason."""
    for key, wanted in (("in_channels", COLOURS), ("out_channels", COLOURS)):
        if config.get(key, wanted) != wanted:
            yield f"says {key} {config[key]}; {brand}'s autoencoder has {wanted}"
    for key, usual in (("scaling_factor", 0.18215), ("shift_factor", None)):
        value = config.get(key, usual)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            yield f"says {key} {value!r}; {brand}'s pipeline needs a number"
        elif key == "scaling_factor" and not value:
            yield "says scaling_factor 0; it is a number other than 0"


def unpack_latents(latents: Tensor) -> Tensor:
    """Return packed latents [B, (s/2)^2, 4c] of a square picture as [B, c, s, s]."""
    side = isqrt(latents.shape[1])
    patches = latents.unflatten(2, (-1, 2, 2)).unflatten(1, (side, side))
    return patches.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def pack_latents(latents: Tensor) -> Tensor:
    """Return latents [B, c, h, w] in patches of 2 by 2: [B, (h/2)(w/2), 4c]."""
    patches = latents.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))
    return patches.permute(0, 2, 4, 1, 3, 5).flatten(3, 5).flatten(1, 2)


def decode(vae: Any, latents: Tensor) -> Tensor:
    """Decode latents [B, c, h, w] in the autoencoder's own number format.

    Returns [B, 3, H, W] in -1 to 1.
    """
    scaled = latents.float() / vae.config.scaling_factor + vae.config.shift_factor
    pixels: Tensor = vae.decode(scaled.to(vae.dtype), return_dict=False)[0]
    return pixels


def encode(vae: Any, pixels: Tensor, device: torch.device) -> Tensor:
    """Encode pictures [B, 3, H, W] in -1 to 1.

    Returns float32 [B, c, h, w]: the mean of the answer, shifted and scaled for the transformer.
    """
    latents: Tensor = vae.encode(pixels.to(device, vae.dtype)).latent_dist.mode().float()
    return (latents - vae.config.shift_factor) * vae.config.scaling_factor
