"""A tiny SDXL with random weights: all parts of the real one, made in a second, no downloads."""

from __future__ import annotations

import string
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import torch
from diffusers import AutoencoderKL, EulerAncestralDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from riebench.generation.generator import Capture, Generator
from riebench.models.families.sdxl.names import BLOCKS
from riebench.models.loading import LoadedModel, load_model
from riebench.saes.formats import folder_name, save_sdxl_unbox

CHANNELS = 64
GRID = 4
SIZE = 32
FEATURES = 96
SPARSITY = 8
_FOLDER = tempfile.TemporaryDirectory(prefix="riebench-tiny-")


def tiny_pipeline(folder: Path, *, layers: int = 1, widths: tuple[int, int] = (16, 16)) -> Path:
    """Writes a pipeline folder with the four SDXL blocks (64 channels, 4 x 4 positions at 32 px) and returns it.

    The widths are those of the two text encoders; the U-Net reads both, 32 together.
    """
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, block_out_channels=(32, 32, CHANNELS), layers_per_block=2,
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=layers, attention_head_dim=(2, 2, 4), cross_attention_dim=32,
        use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16, norm_num_groups=8,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(16, 16), in_channels=3, out_channels=3, latent_channels=4, norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, sample_size=SIZE,
        scaling_factor=0.13025,
    )  # fmt: skip
    texts = []
    for kind, width in zip((CLIPTextModel, CLIPTextModelWithProjection), widths, strict=True):
        config = CLIPTextConfig(
            hidden_size=width, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, projection_dim=16,
            vocab_size=len(_vocabulary()), max_position_embeddings=77, bos_token_id=_vocabulary()["<|startoftext|>"],
            eos_token_id=_vocabulary()["<|endoftext|>"], pad_token_id=_vocabulary()["<|endoftext|>"],
        )  # fmt: skip
        texts.append(kind(config).eval())
    amplify(unet)
    pipe = StableDiffusionXLPipeline(
        vae=vae.eval(), text_encoder=texts[0], text_encoder_2=texts[1], tokenizer=_tokenizer(),
        tokenizer_2=_tokenizer(), unet=unet.eval(), scheduler=EulerAncestralDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="trailing",
            steps_offset=1,
        ), force_zeros_for_empty_prompt=True, add_watermarker=False,
    )  # fmt: skip
    pipe.save_pretrained(folder)
    return folder


@lru_cache(maxsize=1)
def tiny_folder() -> Path:
    """The tiny pipeline's folder, made once per test run."""
    diffusers_logging.disable_progress_bar()
    return tiny_pipeline(Path(_FOLDER.name) / "tiny")


@lru_cache(maxsize=4)
def tiny_model(steps: int = 2, guidance: float = 0.0) -> LoadedModel:
    """The tiny pipeline in memory."""
    return load_model(str(tiny_folder()), steps=steps, guidance=guidance)


@lru_cache(maxsize=1)
def tiny_saes() -> Path:
    """A root folder with a random SAE for each of the four blocks, around the mean of what the block adds.

    With the mean they explain some of the variance, so that runs take them.
    """
    prompts = ["a red house", "a blue boat", "two cats", "snow"]
    trace = Generator(tiny_model()).generate(prompts, [0, 1, 2, 3], capture=Capture(BLOCKS)).trace
    return _write_saes("saes", 0.75, {block: trace.get(block).mean((0, 1, 3, 4)) for block in BLOCKS})


@lru_cache(maxsize=1)
def useless_saes() -> Path:
    """Likewise, of the same directions without a mean: they explain nothing, and runs take them on request only."""
    return _write_saes("useless", 1.0, {block: torch.zeros(CHANNELS) for block in BLOCKS})


def _write_saes(name: str, scale: float, means: Mapping[str, torch.Tensor]) -> Path:
    root = Path(_FOLDER.name) / name
    generator = torch.Generator().manual_seed(0)
    for block, mean in means.items():
        decoder = torch.nn.functional.normalize(torch.randn(CHANNELS, FEATURES, generator=generator), dim=0)
        save_sdxl_unbox(
            root / folder_name(block, SPARSITY, FEATURES) / "final", encoder=scale * decoder.T, decoder=decoder,
            pre_bias=mean, latent_bias=torch.zeros(FEATURES), k=SPARSITY,
        )  # fmt: skip
    return root


def amplify(unet: UNet2DConditionModel) -> None:
    # Random attention adds next to nothing; made larger, an edit of it reaches the picture.
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if name.endswith(("proj_out.weight", "attn2.to_out.0.weight", "attn2.to_q.weight", "attn2.to_k.weight")):
                parameter.mul_(8)


def _vocabulary() -> dict[str, int]:
    letters = string.ascii_lowercase + string.digits + string.punctuation
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return {piece: index for index, piece in enumerate(pieces)}


def _tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer(vocab=_vocabulary(), merges=[], model_max_length=77)
