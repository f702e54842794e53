"""Refusal of configurations that SDXL's pipeline or its hooks cannot follow.

The files are read as text: nothing is loaded, so that planning finds the same faults as a run. What is not refused here
is obeyed: networks, schedule and tokenizers are built by diffusers and transformers from these very files.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from riebench.errors import RiebenchError
from riebench.models.families.folders import INDEX, check_index, quantised, read_json

CONFIGS = {
    "unet": "unet/config.json",
    "vae": "vae/config.json",
    "text_encoder": "text_encoder/config.json",
    "text_encoder_2": "text_encoder_2/config.json",
    "tokenizer": "tokenizer/tokenizer_config.json",
    "tokenizer_2": "tokenizer_2/tokenizer_config.json",
    "scheduler": "scheduler/scheduler_config.json",
}
"""Component -> the file that describes it."""
CLASSES = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "tokenizer_2": ("CLIPTokenizer", "CLIPTokenizerFast"),
}
"""Component -> names of its class."""
BLOCK_TYPES = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
"""Key of a U-Net -> kinds of blocks whose updates can be read and changed."""
MID_BLOCK_TYPES = ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None)
LATENT_CHANNELS, COLOURS, TIME_NUMBERS, TOKENS = 4, 3, 6, 77
"""Channels of latents and pictures, numbers that say a picture's size and crop, and the longest text of a CLIP."""

Config = Mapping[str, Any]


def check_configs(folder: Path, shown: str) -> None:
    """Refuse a folder whose files ask for something that would not be done.

    Args:
        folder: in diffusers' layout; without weights where it only describes a single file.
        shown: what the user called it.

    Raises:
        RiebenchError: in one line, naming file and key.
    """
    index = read_json(folder / INDEX)
    _check_index(index, shown)
    configs = {part: read_json(folder / place) for part, place in CONFIGS.items() if "tokenizer" not in part}
    configs |= {part: _optional(folder / place) for part, place in CONFIGS.items() if "tokenizer" in part}
    check_unet(configs["unet"], shown)
    for problem in problems(configs):
        raise RiebenchError(f"{shown}: {problem}")
    for part in ("tokenizer", "tokenizer_2"):
        words = _optional(folder / part / "vocab.json")
        known = int(configs[part.replace("tokenizer", "text_encoder")].get("vocab_size", 0) or 0)
        if known and words and max(words.values()) >= known:
            encoder = CONFIGS[part.replace("tokenizer", "text_encoder")]
            raise RiebenchError(
                f"{shown}: {encoder} says vocab_size {known}, but {part}/vocab.json has {max(words.values()) + 1} words"
            )


def check_autoencoder(config: Config, shown: str, file: str = CONFIGS["vae"]) -> None:
    """Refuse an autoencoder that does not turn SDXL's latents into colour pictures.

    Args:
        config: its configuration.
        shown: what the user called it.
        file: where the configuration lies, for messages.

    Raises:
        RiebenchError: in one line, naming the key.
    """
    found = config.get("_class_name", "AutoencoderKL")
    if found != "AutoencoderKL":
        raise RiebenchError(f"{shown}: {file} says _class_name {found}; SDXL's autoencoder is an AutoencoderKL")
    for problem in _autoencoder(config):
        raise RiebenchError(f"{shown}: {file} {problem}")


def check_unet(config: Config, shown: str, file: str = CONFIGS["unet"]) -> None:
    """Refuse a U-Net that is not SDXL's, or that wants inputs it does not get.

    Args:
        config: its configuration.
        shown: what the user called it.
        file: where the configuration lies, for messages.

    Raises:
        RiebenchError: in one line, naming the key.
    """
    channels = config.get("in_channels", LATENT_CHANNELS)
    if config.get("addition_embed_type") != "text_time" or channels != LATENT_CHANNELS:
        raise RiebenchError(
            f"{shown} has a U-Net of another kind (addition_embed_type {config.get('addition_embed_type')!r}, "
            f"in_channels {channels}); SDXL has 'text_time' and 4"
        )
    for problem in _unet(config):
        raise RiebenchError(f"{shown}: {file} {problem}")


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _check_index(index: Config, shown: str) -> None:
    if index.get("add_watermarker"):
        raise RiebenchError(
            f"{shown}: {INDEX} says add_watermarker true, but pictures are made without a watermark; set it to null"
        )
    check_index(index, CLASSES, "SDXL", shown)


def problems(configs: Mapping[str, Config]) -> Iterator[str]:
    """Yield what speaks against configurations: file, key and reason.

    Args:
        configs: component -> its configuration.
    """
    yield from quantised(configs, CONFIGS)
    yield from (f"{CONFIGS['unet']} {problem}" for problem in _unet(configs["unet"]))
    yield from (f"{CONFIGS['vae']} {problem}" for problem in _autoencoder(configs["vae"]))
    for part in ("text_encoder", "text_encoder_2"):
        yield from (f"{CONFIGS[part]} {problem}" for problem in _text_encoder(configs[part]))
    yield from _tokenizers(configs)
    yield from _text_widths(configs)


def _unet(config: Config) -> Iterator[str]:
    out = config.get("out_channels", LATENT_CHANNELS)
    if out != LATENT_CHANNELS:
        yield f"says out_channels {out}; SDXL's U-Net gives {LATENT_CHANNELS}"
    if config.get("class_embed_type") is not None or config.get("num_class_embeds") is not None:
        key = "class_embed_type" if config.get("class_embed_type") is not None else "num_class_embeds"
        yield f"says {key} {config[key]!r}, but SDXL's pipeline gives no class labels"
    if config.get("class_embeddings_concat"):
        yield "says class_embeddings_concat true, but SDXL's pipeline gives no class labels"
    if config.get("dual_cross_attention"):
        yield "says dual_cross_attention true, which SDXL's pipeline does not feed"
    if config.get("num_attention_heads") is not None:
        yield "says num_attention_heads; diffusers takes the number of heads from attention_head_dim alone"
    if config.get("encoder_hid_dim_type") not in (None, "text_proj"):
        yield f"says encoder_hid_dim_type {config['encoder_hid_dim_type']!r}, which needs a picture beside the prompt"
    for key, known in BLOCK_TYPES.items():
        other = [kind for kind in config.get(key, known) if kind not in known]
        if other:
            yield f"says {key} {other[0]}; blocks are edited in {' and '.join(known)} only"
    if config.get("mid_block_type", MID_BLOCK_TYPES[0]) not in MID_BLOCK_TYPES:
        yield f"says mid_block_type {config['mid_block_type']}; blocks are edited in {MID_BLOCK_TYPES[0]} only"
    yield from _divisors(config)


def _divisors(config: Config) -> Iterator[str]:
    channels = _each(config.get("block_out_channels"), 4)
    groups, heads = config.get("norm_num_groups", 32), config.get("attention_head_dim", 8)
    if groups and any(width % groups for width in channels):
        yield f"says norm_num_groups {groups}, which does not divide block_out_channels {channels}"
    for width, count in zip(channels, _each(heads, len(channels)), strict=False):
        if isinstance(count, int) and count and width % count:
            yield f"says attention_head_dim {heads}, which does not divide block_out_channels {channels}"


def _each(value: Any, count: int) -> list[Any]:
    return list(value) if isinstance(value, Sequence) else [] if value is None else [value] * count


def _autoencoder(config: Config) -> Iterator[str]:
    for key, wanted in (("latent_channels", LATENT_CHANNELS), ("in_channels", COLOURS), ("out_channels", COLOURS)):
        if config.get(key, wanted) != wanted:
            yield f"says {key} {config[key]}; SDXL's autoencoder has {wanted}"
    for key in ("latents_mean", "latents_std"):
        values = config.get(key)
        if values is not None and (not isinstance(values, list) or len(values) != LATENT_CHANNELS):
            yield f"says {key} {str(values)[:40]}; there is one number for each of {LATENT_CHANNELS} latent channels"
    factor = config.get("scaling_factor", 0.18215)
    if not isinstance(factor, int | float) or not math.isfinite(factor) or not factor:
        yield f"says scaling_factor {factor!r}; it is a number other than 0"
    groups = config.get("norm_num_groups", 32)
    if groups and any(width % groups for width in config.get("block_out_channels", ())):
        yield f"says norm_num_groups {groups}, which does not divide block_out_channels {config['block_out_channels']}"


def _text_encoder(config: Config) -> Iterator[str]:
    for key in ("return_dict", "use_return_dict"):
        if config.get(key, True) is False:
            yield f"says {key} false, but SDXL's pipeline reads the outputs by name"
    heads, width = config.get("num_attention_heads", 8), config.get("hidden_size", 512)
    if width % heads:
        yield f"says num_attention_heads {heads}, which does not divide hidden_size {width}"


def _tokenizers(configs: Mapping[str, Config]) -> Iterator[str]:
    lengths = {}
    for part in ("tokenizer", "tokenizer_2"):
        encoder = part.replace("tokenizer", "text_encoder")
        positions = configs[encoder].get("max_position_embeddings", TOKENS)
        length = configs[part].get("model_max_length")
        if not isinstance(length, int) or length > positions:
            yield (
                f"{CONFIGS[part]} says model_max_length {'nothing' if length is None else f'{length:g}'}, but "
                f"{CONFIGS[encoder]} has max_position_embeddings {positions}"
            )
        lengths[part] = length
    if lengths["tokenizer"] != lengths["tokenizer_2"]:
        yield (
            f"{CONFIGS['tokenizer']} says model_max_length {lengths['tokenizer']}, {CONFIGS['tokenizer_2']} "
            f"{lengths['tokenizer_2']}; the U-Net reads both texts position by position"
        )


def _text_widths(configs: Mapping[str, Config]) -> Iterator[str]:
    unet, first, second = configs["unet"], configs["text_encoder"], configs["text_encoder_2"]
    both = first.get("hidden_size", 512) + second.get("hidden_size", 512)
    projected = unet.get("encoder_hid_dim")
    key = "cross_attention_dim" if projected is None else "encoder_hid_dim"
    widths = _each(unet.get("cross_attention_dim", 1280) if projected is None else projected, 1)
    if any(width != both for width in widths):
        yield (
            f"{CONFIGS['unet']} says {key} {unet.get(key)}, but the texts are {both} wide together (hidden_size of "
            f"{CONFIGS['text_encoder']} and {CONFIGS['text_encoder_2']})"
        )
    pooled = second.get("projection_dim", 512)
    added = TIME_NUMBERS * (unet.get("addition_time_embed_dim") or 0) + pooled
    wanted = unet.get("projection_class_embeddings_input_dim")
    if wanted != added:
        yield (
            f"{CONFIGS['unet']} says projection_class_embeddings_input_dim {wanted}, but {TIME_NUMBERS} times "
            f"addition_time_embed_dim {unet.get('addition_time_embed_dim')} and projection_dim {pooled} of "
            f"{CONFIGS['text_encoder_2']} are {added}"
        )
