"""A tiny Stable Diffusion with random weights in the hub's layout: all parts of the real one, no downloads."""

from __future__ import annotations

import json
import re
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import sdxl_files
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.utils import logging as diffusers_logging
from safetensors.torch import load_file, save_file
from tiny import _tokenizer, amplify
from transformers import CLIPTextConfig, CLIPTextModel

from riebench.models.loading import LoadedModel, load_model
from riebench.saes.formats import folder_name, save_sdxl_unbox

CHANNELS = (8, 8, 16, 16)
"""Channels of the four levels, the finest first."""
SIZE, SIDE = 32, 16
"""Side of a picture in pixels, and of its latents."""
BLOCKS = (
    *(f"down.{level}.{index}" for level in (0, 1, 2) for index in (0, 1)), "mid.0",
    *(f"up.{level}.{index}" for level in (1, 2, 3) for index in (0, 1, 2)),
)  # fmt: skip
"""The sixteen blocks with attention."""
Kind = Literal["1.5", "pndm", "2.1", "turbo"]
_FOLDER = tempfile.TemporaryDirectory(prefix="riebench-tiny-sd-")
_BETAS: Any = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
_SCHEDULERS: dict[str, Any] = {
    "1.5": lambda: DDIMScheduler(**_BETAS, set_alpha_to_one=False, clip_sample=False),
    "pndm": lambda: PNDMScheduler(**_BETAS, skip_prk_steps=True),
    "2.1": lambda: DDIMScheduler(**_BETAS, prediction_type="v_prediction", set_alpha_to_one=False, clip_sample=False),
    "turbo": lambda: EulerDiscreteScheduler(**_BETAS, timestep_spacing="trailing"),
}


def tiny_sd_pipeline(folder: Path, kind: Kind, **changes: Any) -> Path:
    """Writes a pipeline folder with the sixteen blocks (2 by 2 positions in the middle at 32 px) and returns it.

    1.5 ends its blocks with a convolution, 2.1 and turbo with a linear layer; "pndm" is 1.5 with the scheduler that its
    files state. A safety checker is named, and not there.
    """
    torch.manual_seed(0)
    first = kind in ("1.5", "pndm")
    unet = UNet2DConditionModel(
        sample_size=SIDE, block_out_channels=CHANNELS, cross_attention_dim=16, norm_num_groups=4,
        attention_head_dim=2 if first else (1, 1, 2, 2), use_linear_projection=not first, **changes,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 8), latent_channels=4, norm_num_groups=4, sample_size=SIZE, scaling_factor=0.18215,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    words = _tokenizer()
    text = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=len(words),
            max_position_embeddings=77, bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
        )
    )  # fmt: skip
    amplify(unet)
    diffusers_logging.disable_progress_bar()
    StableDiffusionPipeline(
        vae=vae.eval(), text_encoder=text.eval(), tokenizer=words, unet=unet.eval(), scheduler=_SCHEDULERS[kind](),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip
    index = json.loads((folder / "model_index.json").read_text())
    index |= {
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"], "requires_safety_checker": True,
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
    }  # fmt: skip
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@lru_cache(maxsize=4)
def tiny_sd_folder(kind: Kind = "1.5") -> Path:
    """The tiny pipeline's folder, made once per test run."""
    return tiny_sd_pipeline(Path(_FOLDER.name) / f"tiny-sd-{kind}", kind)


@lru_cache(maxsize=4)
def tiny_sd(steps: int = 2, guidance: float = 0.0, kind: Kind = "1.5") -> LoadedModel:
    """The tiny pipeline in memory."""
    return load_model(str(tiny_sd_folder(kind)), steps=steps, guidance=guidance)


@lru_cache(maxsize=1)
def tiny_sd_saes() -> Path:
    """A root folder with an SAE for some blocks, whose features are the channels upwards and downwards."""
    root = Path(_FOLDER.name) / "saes"
    for block in ("down.2.1", "mid.0", "up.1.1", "up.1.2"):
        width = CHANNELS[-1]
        decoder = torch.cat([torch.eye(width), -torch.eye(width)], dim=1)
        save_sdxl_unbox(
            root / folder_name(block, width, 2 * width) / "final", encoder=decoder.T, decoder=decoder,
            pre_bias=torch.zeros(width), latent_bias=torch.zeros(2 * width), k=width,
        )  # fmt: skip
    return root


def sd_single_file(path: Path, kind: Kind, *, autoencoder: bool = True) -> Path:
    """Writes the tiny model as one file under the names that it was first published with."""
    folder = tiny_sd_folder(kind)
    parts = {part: load_file(next((folder / part).glob("*.safetensors"))) for part in ("unet", "vae", "text_encoder")}
    text = {name.removeprefix("text_model."): value for name, value in parts["text_encoder"].items()}
    if kind == "1.5":
        named = {f"cond_stage_model.transformer.text_model.{name}": value for name, value in text.items()}
    else:
        text["text_projection.weight"] = torch.eye(16)
        named = {f"cond_stage_model.model.{name}": value for name, value in sdxl_files._open_clip(text)}
    named |= {f"model.diffusion_model.{_unet_name(name)}": value for name, value in parts["unet"].items()}
    if autoencoder:
        named |= {
            f"first_stage_model.{sdxl_files._vae_name(name)}": sdxl_files._vae_value(name, value)
            for name, value in parts["vae"].items()
        }
    save_file({name: value.contiguous() for name, value in named.items()}, path, {"format": "pt"})
    return path


def _unet_name(name: str) -> str:
    found = re.fullmatch(r"up_blocks\.(\d)\.upsamplers\.0\.conv\.(\w+)", name)
    # Behind the attention, which all levels have but the coarsest.
    behind = f"output_blocks.{3 * int(found[1]) + 2}.{2 if int(found[1]) else 1}.conv.{found[2]}" if found else ""
    return behind or sdxl_files.unet_name(name)
