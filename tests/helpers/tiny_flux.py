"""A tiny FLUX with random weights in the hub's layout: all parts of the real one, made in a second, no downloads."""

from __future__ import annotations

import string
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from diffusers.utils import logging as diffusers_logging
from tiny import _tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast, T5Config, T5EncoderModel

from riebench.models.loading import LoadedModel, load_model
from riebench.saes.formats import folder_name, save_sdxl_unbox

WIDTH = 24
"""Channels of both streams."""
SIZE, GRID = 32, 8
"""Side of a picture in pixels, and of its image tokens."""
TOKENS = 20
"""Text tokens of T5."""
DOUBLE, SINGLE = 2, 2
_FOLDER = tempfile.TemporaryDirectory(prefix="riebench-tiny-flux-")


def tiny_flux_pipeline(folder: Path, *, guidance_embeds: bool = False, shifted: bool = False) -> Path:
    """Writes a pipeline folder with two blocks of each kind (24 channels, 8 x 8 tokens at 32 px) and returns it."""
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        in_channels=16, num_layers=DOUBLE, num_single_layers=SINGLE, attention_head_dim=12, num_attention_heads=2,
        joint_attention_dim=16, pooled_projection_dim=16, guidance_embeds=guidance_embeds, axes_dims_rope=(4, 4, 4),
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(16, 16), latent_channels=4, norm_num_groups=8, sample_size=SIZE, scaling_factor=0.4,
        shift_factor=0.1, down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip
    words = _tokenizer()
    clip = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, projection_dim=16,
            vocab_size=len(words), max_position_embeddings=77, bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id,
        )
    )  # fmt: skip
    letters = _t5_tokenizer()
    t5 = T5EncoderModel(
        T5Config(
            d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, vocab_size=len(letters), pad_token_id=0,
            eos_token_id=1, feed_forward_proj="gated-gelu", tie_word_embeddings=False,
        )
    )  # fmt: skip
    _amplify(transformer)
    FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=shifted, shift=3.0 if shifted else 1.0),
        vae=vae.eval(), text_encoder=clip.eval(), tokenizer=words, text_encoder_2=t5.eval(), tokenizer_2=letters,
        transformer=transformer.eval(),
    ).save_pretrained(folder)  # fmt: skip
    return folder


@lru_cache(maxsize=2)
def tiny_flux_folder(*, dev: bool = False) -> Path:
    """The tiny pipeline's folder, made once per test run; `dev` is told the guidance scale, as FLUX.1-dev."""
    diffusers_logging.disable_progress_bar()
    return tiny_flux_pipeline(Path(_FOLDER.name) / ("dev" if dev else "schnell"), guidance_embeds=dev, shifted=dev)


@lru_cache(maxsize=4)
def tiny_flux(steps: int = 2, guidance: float = 0.0, *, dev: bool = False) -> LoadedModel:
    """The tiny pipeline in memory."""
    return load_model(str(tiny_flux_folder(dev=dev)), steps=steps, guidance=guidance)


@lru_cache(maxsize=1)
def tiny_flux_saes() -> Path:
    """A root folder with an SAE for each block, whose features are the channels upwards and downwards."""
    root = Path(_FOLDER.name) / "saes"
    decoder = torch.cat([torch.eye(WIDTH), -torch.eye(WIDTH)], dim=1)
    for block in (*(f"double.{i}" for i in range(DOUBLE)), *(f"single.{i}" for i in range(SINGLE))):
        save_sdxl_unbox(
            root / folder_name(block, WIDTH, 2 * WIDTH) / "final", encoder=decoder.T, decoder=decoder,
            pre_bias=torch.zeros(WIDTH), latent_bias=torch.zeros(2 * WIDTH), k=WIDTH,
        )  # fmt: skip
    return root


def _amplify(transformer: nn.Module) -> None:
    # The gates of random blocks are near zero, so that blocks add next to nothing; larger, an edit reaches the picture.
    with torch.no_grad():
        for name, parameter in transformer.named_parameters():
            if ("norm" in name and "linear.weight" in name) or "embedder" in name:
                parameter.mul_(4)


def _t5_tokenizer() -> Any:
    """A tokenizer of letters, which pads and ends texts as T5's does."""
    letters = ["<pad>", "</s>", "<unk>", *string.ascii_lowercase, *string.digits, "_", *string.punctuation]
    vocabulary = {letter: index for index, letter in enumerate(dict.fromkeys(letters))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=TOKENS
    )
