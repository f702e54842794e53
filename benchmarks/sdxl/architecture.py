"""SDXL's true architecture without its trained weights.

It is built for counting, without any memory, or with random weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn

from riebench.models.loading import DTYPES, LoadedModel
from riebench.models.spec import ModelSpec

UNET: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
"""What of the U-Net's configuration differs from the class's defaults."""
VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 1024,
    "scaling_factor": 0.13025,
    "force_upcast": True,
}
"""The same of the autoencoder."""
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
TOKENS, TEXT_WIDTH, POOLED_WIDTH = 77, 2048, 1280
MANY_STEPS = 10
"""From this many steps on, noise is scheduled as SDXL Base does it, below as SDXL Turbo does."""


def build_unet(device: str = "meta", dtype: str = "float32", seed: int = 0) -> UNet2DConditionModel:
    """Build SDXL's U-Net.

    On the device "meta" it takes no memory; elsewhere it has random weights of sensible size.
    """
    return _built(lambda: UNet2DConditionModel(**UNET), device, dtype, seed)


def build_vae(device: str = "meta", dtype: str = "float32", seed: int = 1) -> AutoencoderKL:
    """Build SDXL's autoencoder; devices as `build_unet`."""
    return _built(lambda: AutoencoderKL(**VAE), device, dtype, seed)


def _built(make: Any, device: str, dtype: str, seed: int) -> Any:
    with torch.device("meta"):
        module = make()
    module = nn.Module.to(module, DTYPES[dtype]).eval().requires_grad_(False)
    if device == "meta":
        return module
    module = module.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(seed)
    for part in module.modules():
        _fill(part, generator)
    return module


def _fill(module: nn.Module, generator: torch.Generator) -> None:
    for name, values in module.named_parameters(recurse=False):
        if values.dim() > 1:
            # Outputs as large as inputs, so that nothing overflows on the way through 70 layers.
            nn.init.normal_(values, std=values[0].numel() ** -0.5, generator=generator)
        else:
            nn.init.constant_(values, 1.0 if name == "weight" else 0.0)


def _random_prompts(pipe: Any) -> Callable[..., tuple[Tensor, Tensor | None, Tensor, Tensor | None]]:
    """Return an `encode_prompt` that needs no text encoders.

    A prompt's embedding is random numbers that follow from its words.
    """
    plain = pipe.encode_prompt

    def encode_prompt(
        prompt: str | None, *, device: torch.device, do_classifier_free_guidance: bool, **more: Any
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        if prompt is None:
            # The embeddings are given, as they are whenever pictures are generated.
            return plain(prompt, device=device, do_classifier_free_guidance=do_classifier_free_guidance, **more)
        seed = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:7], "big")
        generator = torch.Generator().manual_seed(seed)
        made = [torch.randn(shape, generator=generator) for shape in ((1, TOKENS, TEXT_WIDTH), (1, POOLED_WIDTH))]
        embeds, pooled = (values.to(device, pipe.unet.dtype) for values in made)
        if not do_classifier_free_guidance:
            return embeds, None, pooled, None
        # As the real pipeline's are where no negative prompt is given.
        return embeds, torch.zeros_like(embeds), pooled, torch.zeros_like(pooled)

    return encode_prompt


def random_sdxl(
    device: str, dtype: str, *, steps: int, guidance: float, size: int, parts: tuple[Any, Any] | None = None
) -> LoadedModel:
    """Build a loaded model of SDXL's architecture with random weights.

    It can do everything that a model with trained weights can.

    Args:
        device: where it computes.
        dtype: of the U-Net; the autoencoder is in float32.
        steps: below `MANY_STEPS` with SDXL Turbo's scheduler, else with SDXL Base's.
        guidance: scale of classifier-free guidance.
        size: picture side in pixels.
        parts: U-Net and autoencoder to use again.
    """
    unet, vae = parts or (build_unet(device, dtype), build_vae(device))
    scheduler = (
        EulerDiscreteScheduler(**SCHEDULE, timestep_spacing="leading") if steps >= MANY_STEPS
        else EulerAncestralDiscreteScheduler(**SCHEDULE, timestep_spacing="trailing")
    )  # fmt: skip
    pipe = StableDiffusionXLPipeline(
        vae=vae, unet=unet, scheduler=scheduler, text_encoder=None, text_encoder_2=None, tokenizer=None,
        tokenizer_2=None, force_zeros_for_empty_prompt=True, add_watermarker=False,
    )  # fmt: skip
    pipe.encode_prompt = _random_prompts(pipe)
    pipe.set_progress_bar_config(disable=True)
    spec = ModelSpec(
        name="random-sdxl", source="random", revision=None, steps=steps, guidance=guidance, size=size, dtype=dtype
    )
    return LoadedModel(pipe, spec)
