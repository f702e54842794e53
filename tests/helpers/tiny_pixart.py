"""A tiny PixArt-Sigma with random weights in the hub's layout: all parts of the real one, no downloads."""

from __future__ import annotations

import tempfile
from functools import lru_cache
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel
from diffusers.utils import logging as diffusers_logging
from tiny_flux import _t5_tokenizer
from torch import nn
from transformers import T5Config, T5EncoderModel

from riebench.models.loading import LoadedModel, load_model

WIDTH, LAYERS = 16, 2
"""Channels of a block, and blocks."""
SIZE, GRID = 32, 8
"""Side of a picture in pixels, and of its image tokens."""
_FOLDER = tempfile.TemporaryDirectory(prefix="riebench-tiny-pixart-")


def tiny_pixart_pipeline(folder: Path) -> Path:
    """Writes a pipeline folder with two blocks (16 channels, 8 x 8 tokens at 32 px) and returns it."""
    torch.manual_seed(0)
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=LAYERS,
        cross_attention_dim=WIDTH, sample_size=2 * GRID, caption_channels=12, use_additional_conditions=False,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(16, 16), latent_channels=4, norm_num_groups=8, sample_size=SIZE, scaling_factor=0.13025,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    letters = _t5_tokenizer()
    t5 = T5EncoderModel(
        T5Config(
            d_model=12, d_kv=4, d_ff=16, num_layers=1, num_heads=2, vocab_size=len(letters), pad_token_id=0,
            eos_token_id=1, feed_forward_proj="gated-gelu", tie_word_embeddings=False,
        )
    )  # fmt: skip
    _amplify(transformer)
    PixArtSigmaPipeline(
        tokenizer=letters, text_encoder=t5.eval(), vae=vae.eval(), transformer=transformer.eval(),
        scheduler=DPMSolverMultistepScheduler(beta_schedule="linear", prediction_type="epsilon"),
    ).save_pretrained(folder)  # fmt: skip
    return folder


@lru_cache(maxsize=1)
def tiny_pixart_folder() -> Path:
    """The tiny pipeline's folder, made once per test run."""
    diffusers_logging.disable_progress_bar()
    return tiny_pixart_pipeline(Path(_FOLDER.name) / "pixart")


@lru_cache(maxsize=4)
def tiny_pixart(steps: int = 2, guidance: float = 0.0) -> LoadedModel:
    """The tiny pipeline in memory."""
    return load_model(str(tiny_pixart_folder()), steps=steps, guidance=guidance)


def _amplify(transformer: nn.Module) -> None:
    # The gates of random blocks are near zero, so that blocks add next to nothing; larger, an edit reaches the picture.
    with torch.no_grad():
        for name, parameter in transformer.named_parameters():
            if "scale_shift_table" in name or "adaln_single" in name or "attn2.to_out" in name:
                parameter.mul_(4)
