"""The pipeline of toy-dit: diffusers' own FluxPipeline, in the hub's layout."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from numpy.typing import NDArray

from riebench.toyworld.networks.dit.text import TOKENS, CaptionEncoder
from riebench.utils.terminal import ProgressBar

STEPS = 4


def assemble(transformer: FluxTransformer2DModel, autoencoder: AutoencoderKL) -> FluxPipeline:
    """Assemble the pipeline from its trained parts.

    The scheduler is that of FLUX.1-schnell: noise levels at equal distances, none of them shifted.

    Args:
        transformer: the network.
        autoencoder: with scale and shift.
    """
    text = CaptionEncoder()
    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False),
        vae=autoencoder,
        text_encoder=text.encoders[0],
        tokenizer=text.tokenizers[0],
        text_encoder_2=text.encoders[1],
        tokenizer_2=text.tokenizers[1],
        transformer=transformer,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(
    pipe: FluxPipeline, captions: Sequence[str], *, seed: int = 0, steps: int = STEPS, batch: int = 50
) -> NDArray[np.uint8]:
    """Generate pictures of captions by the pipeline's own call, without guidance.

    Args:
        pipe: as `assemble` makes it.
        captions: one a picture.
        seed: picture i has seed + i.
        steps: denoising steps.
        batch: pictures at a time.

    Returns:
        uint8 [N, 64, 64, 3].
    """
    parts = []
    for first in ProgressBar(range(0, len(captions), batch), title=f"toy-dit, {steps} steps"):
        some = list(captions[first : first + batch])
        images = pipe(
            some, height=64, width=64, num_inference_steps=steps, guidance_scale=0.0, max_sequence_length=TOKENS,
            generator=[torch.Generator().manual_seed(seed + first + i) for i in range(len(some))], output_type="np",
        ).images  # fmt: skip
        parts.append((images * 255).round().astype(np.uint8))
    return np.concatenate(parts)
