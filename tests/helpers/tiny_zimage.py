"""A tiny Z-Image with random weights in the hub's layout: all parts of the real one, made in a second, no downloads."""

from __future__ import annotations

import string
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from diffusers.utils import logging as diffusers_logging
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3Model

from riebench.models.loading import LoadedModel, load_model
from riebench.models.spec import ModelOptions
from riebench.saes.formats import folder_name, save_sdxl_unbox

WIDTH, UNITS = 24, 64
"""Channels of all tokens, and feed-forward units of a block."""
SIZE, GRID = 24, 6
"""Side of a picture in pixels, and of its image tokens, which 28 others fill up. """
FILLED = 64
"""Image tokens once they are filled up."""
LAYERS = 2
BLOCKS = ("refiner.0", "layers.0", "layers.1")
TEMPLATE = "{{ '<u>' + messages[0].content + '</u><a>assistant speaks now:' }}"
"""A chat template of 25 tokens, so that some prompts are filled up to 32 and others to 64."""
_FOLDER = tempfile.TemporaryDirectory(prefix="riebench-tiny-zimage-")


def tiny_zimage_pipeline(folder: Path) -> Path:
    """Writes a pipeline folder with one refiner of each kind and two layers and returns it."""
    torch.manual_seed(0)
    transformer = ZImageTransformer2DModel(
        in_channels=16, dim=WIDTH, n_layers=LAYERS, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=16,
        axes_dims=[4, 4, 4], axes_lens=[1024, 512, 512],
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(16, 16), latent_channels=16, norm_num_groups=8, sample_size=SIZE, scaling_factor=0.4,
        shift_factor=0.1, down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip
    letters = _tokenizer()
    qwen = Qwen3Model(
        Qwen3Config(
            hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
            head_dim=8, vocab_size=len(letters), max_position_embeddings=512, pad_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip
    _amplify(transformer)
    ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=vae.eval(), text_encoder=qwen.eval(),
        tokenizer=letters, transformer=transformer.eval(),
    ).save_pretrained(folder)  # fmt: skip
    return folder


@lru_cache(maxsize=1)
def tiny_zimage_folder() -> Path:
    """The tiny pipeline's folder, made once per test run."""
    diffusers_logging.disable_progress_bar()
    return tiny_zimage_pipeline(Path(_FOLDER.name) / "model")


@lru_cache(maxsize=4)
def tiny_zimage(steps: int = 2, guidance: float = 0.0, size: int = SIZE) -> LoadedModel:
    """The tiny pipeline in memory."""
    return load_model(str(tiny_zimage_folder()), steps=steps, guidance=guidance, options=ModelOptions(size=size))


@lru_cache(maxsize=1)
def tiny_zimage_saes() -> Path:
    """A root folder with an SAE for each block, whose features are the channels upwards and downwards."""
    root = Path(_FOLDER.name) / "saes"
    decoder = torch.cat([torch.eye(WIDTH), -torch.eye(WIDTH)], dim=1)
    for block in BLOCKS:
        save_sdxl_unbox(
            root / folder_name(block, WIDTH, 2 * WIDTH) / "final", encoder=decoder.T, decoder=decoder,
            pre_bias=torch.zeros(WIDTH), latent_bias=torch.zeros(2 * WIDTH), k=WIDTH,
        )  # fmt: skip
    return root


def _amplify(transformer: nn.Module) -> None:
    # The gates of random blocks are near zero, so that blocks add next to nothing; larger, an edit reaches the picture.
    # What fills a sequence up is zero in a new network, as it is in no trained one.
    with torch.no_grad():
        for name, parameter in transformer.named_parameters():
            if "adaLN" in name or "embedder" in name:
                parameter.mul_(4)
            if name.endswith("pad_token"):
                parameter.normal_()


def _tokenizer() -> Any:
    """A tokenizer of letters, which pads texts and has a chat template, as Qwen's."""
    signs = ["<pad>", "<unk>", "<u>", "</u>", "<a>", *string.ascii_lowercase, *string.digits, *string.punctuation, " "]
    vocabulary = {sign: index for index, sign in enumerate(dict.fromkeys(signs))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", model_max_length=2048,
        additional_special_tokens=["<u>", "</u>", "<a>"], chat_template=TEMPLATE,
    )  # fmt: skip
