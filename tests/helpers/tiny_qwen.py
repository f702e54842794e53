"""A tiny Qwen-Image with random weights in the hub's layout: all parts of the real one, with no downloads."""

from __future__ import annotations

import string
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from diffusers.utils import logging as diffusers_logging
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from riebench.models.families.tokens.qwen.pipeline import TEMPLATE
from riebench.models.loading import LoadedModel, load_model
from riebench.models.spec import ModelOptions

WIDTH, SIZE, GRID = 24, 32, 8
"""Channels of both streams; side of a picture in pixels, and of its image tokens."""
BLOCKS = ("double.0", "double.1")
WORDS = TEMPLATE[36 : TEMPLATE.index("<|im_end|>")]
"""The part of the chat message that is one token, so that as many precede the prompt as for Qwen's tokenizer."""
_FOLDER = tempfile.TemporaryDirectory(prefix="riebench-tiny-qwen-")


def tiny_qwen_pipeline(folder: Path) -> Path:
    """Writes a pipeline folder with two blocks (24 channels, 8 x 8 tokens at 32 px) and returns it."""
    torch.manual_seed(0)
    transformer = QwenImageTransformer2DModel(
        in_channels=16, out_channels=4, num_layers=2, attention_head_dim=12, num_attention_heads=2,
        joint_attention_dim=16, axes_dims_rope=(4, 4, 4),
    )  # fmt: skip
    vae = AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[False],
        latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.5, 2.0, 0.7, 1.2],
    )  # fmt: skip
    letters = _tokenizer()
    qwen = Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config={
                "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
                "num_key_value_heads": 1, "vocab_size": len(letters), "max_position_embeddings": 2048,
                "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
                "bos_token_id": 0, "eos_token_id": 0,
            },
            vision_config={
                "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16,
                "fullatt_block_indexes": [0], "window_size": 28,
            },
        )
    )  # fmt: skip
    with torch.no_grad():
        # The gates of random blocks are near zero, so that blocks add next to nothing; larger, an edit is seen.
        for name, parameter in transformer.named_parameters():
            if "_mod" in name or "embedder" in name:
                parameter.mul_(4)
    QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), vae=vae.eval(),
        text_encoder=qwen.eval(), tokenizer=letters, transformer=transformer.eval(),
    ).save_pretrained(folder)  # fmt: skip
    return folder


@lru_cache(maxsize=1)
def tiny_qwen_folder() -> Path:
    """The tiny pipeline's folder, made once per test run."""
    diffusers_logging.disable_progress_bar()
    return tiny_qwen_pipeline(Path(_FOLDER.name) / "model")


@lru_cache(maxsize=3)
def tiny_qwen(steps: int = 2, guidance: float = 0.0) -> LoadedModel:
    """The tiny pipeline in memory."""
    return load_model(str(tiny_qwen_folder()), steps=steps, guidance=guidance, options=ModelOptions(size=SIZE))


def _tokenizer() -> Any:
    """A tokenizer of letters, with the chat message's own tokens as Qwen's has them."""
    special = ["<pad>", "<unk>", "<|im_start|>", "<|im_end|>", WORDS]
    signs = [*special, *string.ascii_letters, *string.digits, *string.punctuation, " ", "\n"]
    vocabulary = {sign: index for index, sign in enumerate(dict.fromkeys(signs))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", model_max_length=4096,
        additional_special_tokens=special[2:],
    )  # fmt: skip
