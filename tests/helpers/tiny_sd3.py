"""A tiny Stable Diffusion 3.5 with random weights in the hub's layout: all parts of the real one, no downloads."""

from __future__ import annotations

import tempfile
from functools import lru_cache
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from diffusers.utils import logging as diffusers_logging
from tiny import _tokenizer
from tiny_flux import _amplify, _t5_tokenizer
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from riebench.models.loading import LoadedModel, load_model
from riebench.saes.formats import folder_name, save_sdxl_unbox

WIDTH = 24
"""Channels of both streams."""
SIZE, GRID = 32, 8
"""Side of a picture in pixels, and of its image tokens."""
LAYERS = 3
BLOCKS = tuple(f"double.{index}" for index in range(LAYERS))
CLIP_TOKENS, TOKENS = 77, 77 + 256
"""CLIP's text tokens, and all."""
_FOLDER = tempfile.TemporaryDirectory(prefix="riebench-tiny-sd3-")


def tiny_sd3_pipeline(folder: Path, pooled: tuple[int, int] = (8, 16)) -> Path:
    """Writes a pipeline folder with three blocks (24 channels, 8 x 8 tokens at 32 px), the first dual; returns it.

    `pooled` are the widths of the CLIPs' single vectors.
    """
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=16, in_channels=4, out_channels=4, num_layers=LAYERS, attention_head_dim=12, num_attention_heads=2,
        joint_attention_dim=32, caption_projection_dim=WIDTH, pooled_projection_dim=24, pos_embed_max_size=12,
        dual_attention_layers=(0,), qk_norm="rms_norm",
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(16, 16), latent_channels=4, norm_num_groups=8, sample_size=SIZE, scaling_factor=0.4,
        shift_factor=0.1, down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip
    words = _tokenizer()
    clips = [
        CLIPTextModelWithProjection(
            CLIPTextConfig(
                hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, projection_dim=width,
                vocab_size=len(words), max_position_embeddings=CLIP_TOKENS, bos_token_id=words.bos_token_id,
                eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id,
            )
        ).eval()
        for width in pooled
    ]  # fmt: skip
    letters = _t5_tokenizer()
    t5 = T5EncoderModel(
        T5Config(
            d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2, vocab_size=len(letters), pad_token_id=0,
            eos_token_id=1, feed_forward_proj="gated-gelu", tie_word_embeddings=False,
        )
    )  # fmt: skip
    _amplify(transformer)
    StableDiffusion3Pipeline(
        transformer=transformer.eval(), scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=vae.eval(),
        text_encoder=clips[0], tokenizer=words, text_encoder_2=clips[1], tokenizer_2=words, text_encoder_3=t5.eval(),
        tokenizer_3=letters,
    ).save_pretrained(folder)  # fmt: skip
    return folder


@lru_cache(maxsize=1)
def tiny_sd3_folder() -> Path:
    """The tiny pipeline's folder, made once per test run."""
    diffusers_logging.disable_progress_bar()
    return tiny_sd3_pipeline(Path(_FOLDER.name) / "sd3")


@lru_cache(maxsize=4)
def tiny_sd3(steps: int = 2, guidance: float = 0.0) -> LoadedModel:
    """The tiny pipeline in memory."""
    return load_model(str(tiny_sd3_folder()), steps=steps, guidance=guidance)


@lru_cache(maxsize=1)
def tiny_sd3_saes() -> Path:
    """A root folder with an SAE for each block, whose features are the channels upwards and downwards."""
    root = Path(_FOLDER.name) / "saes"
    decoder = torch.cat([torch.eye(WIDTH), -torch.eye(WIDTH)], dim=1)
    for block in BLOCKS:
        save_sdxl_unbox(
            root / folder_name(block, WIDTH, 2 * WIDTH) / "final", encoder=decoder.T, decoder=decoder,
            pre_bias=torch.zeros(WIDTH), latent_bias=torch.zeros(2 * WIDTH), k=WIDTH,
        )  # fmt: skip
    return root
