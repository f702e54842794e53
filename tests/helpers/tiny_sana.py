"""A tiny SANA and SANA-Sprint with random weights in the hub's layout: all parts of the real ones, no downloads."""

from __future__ import annotations

import string
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    DPMSolverMultistepScheduler,
    SanaPipeline,
    SanaSprintPipeline,
    SanaTransformer2DModel,
    SCMScheduler,
)
from diffusers.utils import logging as diffusers_logging
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import Gemma2Config, Gemma2Model, PreTrainedTokenizerFast

from riebench.models.loading import LoadedModel, load_model
from riebench.saes.formats import folder_name, save_sdxl_unbox

WIDTH, UNITS, LAYERS = 16, 40, 2
"""Channels and feed-forward units of a block, and blocks."""
SIZE, GRID = 32, 8
"""Side of a picture in pixels, and of its image tokens."""
LETTERS = [*string.ascii_lowercase, *string.ascii_uppercase, *string.digits, " ", "\n", *string.punctuation]
_FOLDER = tempfile.TemporaryDirectory(prefix="riebench-tiny-sana-")


def letter_tokenizer(**more: Any) -> Any:
    """A tokenizer of letters with a start token, as Gemma's has one."""
    vocabulary = {letter: index for index, letter in enumerate(["<pad>", "<eos>", "<bos>", "<unk>", *LETTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>", **more
    )


def tiny_autoencoder(**more: Any) -> AutoencoderDC:
    """A DC-AE of factor 4 and four channels."""
    return AutoencoderDC(
        latent_channels=4, encoder_block_out_channels=(8, 8, 8), decoder_block_out_channels=(8, 8, 8),
        encoder_layers_per_block=(1, 1, 1), decoder_layers_per_block=(1, 1, 1), encoder_qkv_multiscales=((),) * 3,
        decoder_qkv_multiscales=((),) * 3, upsample_block_type="interpolate", downsample_block_type="conv",
        scaling_factor=0.41407, **more,
    )  # fmt: skip


def tiny_sana_pipeline(folder: Path, *, sprint: bool = False) -> Path:
    """Writes a pipeline folder with two blocks (16 channels, 8 x 8 tokens at 32 px) and returns it."""
    torch.manual_seed(0)
    transformer = SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=LAYERS,
        num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=WIDTH, caption_channels=12,
        sample_size=GRID, guidance_embeds=sprint, qk_norm="rms_norm_across_heads" if sprint else None,
    )  # fmt: skip
    tokenizer = letter_tokenizer()
    text = Gemma2Model(
        Gemma2Config(
            vocab_size=len(tokenizer), hidden_size=12, intermediate_size=16, num_hidden_layers=1,
            num_attention_heads=1, num_key_value_heads=1, head_dim=4, query_pre_attn_scalar=4,
        )
    )  # fmt: skip
    _amplify(transformer)
    parts = {
        "vae": tiny_autoencoder().eval(), "text_encoder": text.eval(), "tokenizer": tokenizer,
        "transformer": transformer.eval(),
    }  # fmt: skip
    if sprint:
        SanaSprintPipeline(scheduler=SCMScheduler(), **parts).save_pretrained(folder)
    else:
        flow = DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, algorithm_type="dpmsolver++"
        )
        SanaPipeline(scheduler=flow, **parts).save_pretrained(folder)
    return folder


@lru_cache(maxsize=2)
def tiny_sana_folder(*, sprint: bool = False) -> Path:
    """The tiny pipeline's folder, made once per test run."""
    diffusers_logging.disable_progress_bar()
    return tiny_sana_pipeline(Path(_FOLDER.name) / ("sprint" if sprint else "sana"), sprint=sprint)


@lru_cache(maxsize=4)
def tiny_sana(steps: int = 2, guidance: float = 0.0, *, sprint: bool = False) -> LoadedModel:
    """The tiny pipeline in memory."""
    return load_model(str(tiny_sana_folder(sprint=sprint)), steps=steps, guidance=guidance)


@lru_cache(maxsize=1)
def tiny_sana_saes() -> Path:
    """A root folder with an SAE for each block, whose features are the channels upwards and downwards."""
    root = Path(_FOLDER.name) / "saes"
    decoder = torch.cat([torch.eye(WIDTH), -torch.eye(WIDTH)], dim=1)
    for index in range(LAYERS):
        save_sdxl_unbox(
            root / folder_name(f"block.{index}", WIDTH, 2 * WIDTH) / "final", encoder=decoder.T, decoder=decoder,
            pre_bias=torch.zeros(WIDTH), latent_bias=torch.zeros(2 * WIDTH), k=WIDTH,
        )  # fmt: skip
    return root


def _amplify(transformer: nn.Module) -> None:
    # The gates of random blocks are near zero, so that blocks add next to nothing; larger, an edit reaches the picture.
    with torch.no_grad():
        for name, parameter in transformer.named_parameters():
            if "scale_shift_table" in name or "time_embed" in name or "attn2.to_out" in name:
                parameter.mul_(4)
