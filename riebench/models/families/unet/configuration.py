"""Refusal of configurations that a U-Net's pipeline or its hooks cannot follow.

The files are read as text: nothing is loaded, so that planning finds the same faults as a run. What is not refused here
is obeyed: networks, schedule and tokenizers are built by diffusers and transformers from these very files.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from riebench.errors import RiebenchError
from riebench.models.families.folders import INDEX, check_index, quantised, read_json

AUTOENCODER, SCHEDULER = "vae/config.json", "scheduler/scheduler_config.json"
"""Places of two configurations in a model folder."""
TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")
BLOCK_TYPES = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
"""Key of a U-Net -> kinds of blocks whose updates can be read and changed."""
WORDS: dict[str, tuple[Any, ...]] = {
    "resnet_time_scale_shift": ("default", "scale_shift"), "time_embedding_type": ("positional", "fourier"),
    "downsample_padding": (1, 0),
}  # fmt: skip
"""Key of a U-Net -> values with which it can be built and its levels fit, the usual one first."""
MID_BLOCK_TYPES = ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None)
LATENT_CHANNELS, COLOURS, TIME_NUMBERS, TOKENS = 4, 3, 6, 77
"""Channels of latents and pictures, numbers that say a picture's size and crop, and the longest text of a CLIP."""
POOLED = "text_time"
"""Word of a U-Net that is given a pooled text and a picture's size beside the time."""

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Architecture:
    """The parts that a pipeline around a U-Net consists of.

    Attributes:
        title: what people call its models.
        text_encoders: component -> name of its class, in the order in which the U-Net reads them.
        addition: `addition_embed_type` of the U-Net: what it is given beside time and text.
        channel_spread: whether the pipeline follows `latents_mean` and `latents_std` of the autoencoder.
        other_factors: `scaling_factor` of an autoencoder for other latents -> what it belongs to.
    """

    title: str
    text_encoders: Mapping[str, str]
    addition: str | None
    channel_spread: bool = True
    other_factors: tuple[tuple[float, str], ...] = ()

    @property
    def tokenizers(self) -> tuple[str, ...]:
        """The tokenizers, one for each text encoder."""
        return tuple(part.replace("text_encoder", "tokenizer") for part in self.text_encoders)

    @property
    def files(self) -> dict[str, str]:
        """Component -> the file that describes it."""
        return {
            **{part: f"{part}/config.json" for part in ("unet", "vae", *self.text_encoders)},
            **{part: f"{part}/tokenizer_config.json" for part in self.tokenizers},
            "scheduler": SCHEDULER,
        }

    @property
    def classes(self) -> dict[str, tuple[str, ...]]:
        """Component -> names of its class."""
        return {
            "unet": ("UNet2DConditionModel",), "vae": ("AutoencoderKL",),
            **{part: (name,) for part, name in self.text_encoders.items()},
            **dict.fromkeys(self.tokenizers, TOKENIZERS),
        }  # fmt: skip


def check_configs(folder: Path, shown: str, known: Architecture) -> None:
    """Refuse a folder whose files ask for something that would not be done.

    Args:
        folder: in diffusers' layout; without weights where it only describes a single file.
        shown: what the user called it.
        known: the architecture that it states.

    Raises:
        RiebenchError: in one line, naming file and key.
    """
    index, files = read_json(folder / INDEX), known.files
    if index.get("add_watermarker"):
        raise RiebenchError(
            f"{shown}: {INDEX} says add_watermarker true, but pictures are made without a watermark; set it to null"
        )
    check_index(index, known.classes, known.title, shown)
    configs = {part: read_json(folder / place) for part, place in files.items() if "tokenizer" not in part}
    configs |= {part: _optional(folder / place) for part, place in files.items() if "tokenizer" in part}
    check_unet(configs["unet"], shown, known)
    for problem in problems(configs, known):
        raise RiebenchError(f"{shown}: {problem}")
    for part, encoder in zip(known.tokenizers, known.text_encoders, strict=True):
        words = _optional(folder / part / "vocab.json")
        size = int(configs[encoder].get("vocab_size", 0) or 0)
        if size and words and max(words.values()) >= size:
            raise RiebenchError(
                f"{shown}: {files[encoder]} says vocab_size {size}, but {part}/vocab.json has "
                f"{max(words.values()) + 1} words"
            )


def check_autoencoder(config: Config, shown: str, known: Architecture, file: str) -> None:
    """Refuse an autoencoder that does not turn a model's latents into colour pictures.

    Args:
        config: its configuration.
        shown: what the user called it.
        known: the architecture that it is for.
        file: where the configuration lies, for messages.

    Raises:
        RiebenchError: in one line, naming the key.
    """
    found = config.get("_class_name", "AutoencoderKL")
    if found != "AutoencoderKL":
        raise RiebenchError(
            f"{shown}: {file} says _class_name {found}; {known.title}'s autoencoder is an AutoencoderKL"
        )
    for problem in _autoencoder(config, known):
        raise RiebenchError(f"{shown}: {file} {problem}")


def check_unet(config: Config, shown: str, known: Architecture) -> None:
    """Refuse a U-Net of another architecture.

    Args:
        config: its configuration.
        shown: what the user called it.
        known: the architecture that it has to be of.

    Raises:
        RiebenchError: in one line, naming the key.
    """
    channels, addition = config.get("in_channels", LATENT_CHANNELS), config.get("addition_embed_type")
    if addition != known.addition or channels != LATENT_CHANNELS:
        raise RiebenchError(
            f"{shown} has a U-Net of another kind (addition_embed_type {addition!r}, in_channels {channels}); "
            f"{known.title} has {known.addition!r} and {LATENT_CHANNELS}"
        )


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def problems(configs: Mapping[str, Config], known: Architecture) -> Iterator[str]:
    """Yield what speaks against configurations: file, key and reason.

    Args:
        configs: component -> its configuration.
        known: the architecture that they describe.
    """
    files = known.files
    yield from quantised(configs, files)
    yield from (f"{files['unet']} {problem}" for problem in _unet(configs["unet"], known.title))
    yield from (f"{files['vae']} {problem}" for problem in _autoencoder(configs["vae"], known))
    for part in known.text_encoders:
        yield from (f"{files[part]} {problem}" for problem in _text_encoder(configs[part], known.title))
    yield from _tokenizers(configs, known)
    yield from _text_widths(configs, known)


def _unet(config: Config, title: str) -> Iterator[str]:
    out = config.get("out_channels", LATENT_CHANNELS)
    if out != LATENT_CHANNELS:
        yield f"says out_channels {out}; {title}'s U-Net gives {LATENT_CHANNELS}"
    if config.get("class_embed_type") is not None or config.get("num_class_embeds") is not None:
        key = "class_embed_type" if config.get("class_embed_type") is not None else "num_class_embeds"
        yield f"says {key} {config[key]!r}, but {title}'s pipeline gives no class labels"
    if config.get("class_embeddings_concat"):
        yield f"says class_embeddings_concat true, but {title}'s pipeline gives no class labels"
    if config.get("dual_cross_attention"):
        yield f"says dual_cross_attention true, which {title}'s pipeline does not feed"
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
    yield from _words(config)
    yield from _divisors(config)


def _words(config: Config) -> Iterator[str]:
    for key, known in WORDS.items():
        if config.get(key, known[0]) not in known:
            yield f"says {key} {config[key]!r}; the U-Net has {' or '.join(map(repr, known))}"
    for key in ("time_embedding_act_fn", "timestep_post_act"):
        if not isinstance(config.get(key), str | None):
            yield f"says {key} {config[key]!r}; it is the name of a function, or null"
    reverse = config.get("reverse_transformer_layers_per_block")
    if reverse is not None and not isinstance(reverse, list | tuple):
        yield f"says reverse_transformer_layers_per_block {reverse!r}; it is a list of numbers, one for each level"
    for key in ("conv_in_kernel", "conv_out_kernel"):
        if config.get(key, 3) % 2 == 0:
            yield f"says {key} {config[key]}; an even side would change the size of the latents"


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


def _autoencoder(config: Config, known: Architecture) -> Iterator[str]:
    for key, wanted in (("latent_channels", LATENT_CHANNELS), ("in_channels", COLOURS), ("out_channels", COLOURS)):
        if config.get(key, wanted) != wanted:
            yield f"says {key} {config[key]}; {known.title}'s autoencoder has {wanted}"
    for key in ("latents_mean", "latents_std"):
        values = config.get(key)
        if values is not None and not known.channel_spread:
            yield f"says {key}, which {known.title}'s pipeline does not follow"
        elif values is not None and (not isinstance(values, list) or len(values) != LATENT_CHANNELS):
            yield f"says {key} {str(values)[:40]}; there is one number for each of {LATENT_CHANNELS} latent channels"
    factor = config.get("scaling_factor", 0.18215)
    if not isinstance(factor, int | float) or not math.isfinite(factor) or not factor:
        yield f"says scaling_factor {factor!r}; it is a number other than 0"
    yield from (
        f"says scaling_factor {factor:g}, that of {owner}: its latents mean other pictures than {known.title}'s"
        for other, owner in known.other_factors if factor == other
    )  # fmt: skip
    groups = config.get("norm_num_groups", 32)
    if groups and any(width % groups for width in config.get("block_out_channels", ())):
        yield f"says norm_num_groups {groups}, which does not divide block_out_channels {config['block_out_channels']}"


def _text_encoder(config: Config, title: str) -> Iterator[str]:
    for key in ("return_dict", "use_return_dict"):
        if config.get(key, True) is False:
            yield f"says {key} false, but {title}'s pipeline reads the outputs by name"
    heads, width = config.get("num_attention_heads", 8), config.get("hidden_size", 512)
    if width % heads:
        yield f"says num_attention_heads {heads}, which does not divide hidden_size {width}"


def _tokenizers(configs: Mapping[str, Config], known: Architecture) -> Iterator[str]:
    files = known.files
    for part, encoder in zip(known.tokenizers, known.text_encoders, strict=True):
        positions = configs[encoder].get("max_position_embeddings", TOKENS)
        length = configs[part].get("model_max_length")
        if not isinstance(length, int) or length > positions:
            yield (
                f"{files[part]} says model_max_length {'nothing' if length is None else f'{length:g}'}, but "
                f"{files[encoder]} has max_position_embeddings {positions}"
            )
    first, *others = known.tokenizers
    for other in others:
        one, two = (configs[part].get("model_max_length") for part in (first, other))
        if one != two:
            yield (
                f"{files[first]} says model_max_length {one}, {files[other]} {two}; the U-Net reads both texts "
                "position by position"
            )


def _text_widths(configs: Mapping[str, Config], known: Architecture) -> Iterator[str]:
    unet, files = configs["unet"], known.files
    whole = sum(configs[part].get("hidden_size", 512) for part in known.text_encoders)
    projected = unet.get("encoder_hid_dim")
    key = "cross_attention_dim" if projected is None else "encoder_hid_dim"
    widths = _each(unet.get("cross_attention_dim", 1280) if projected is None else projected, 1)
    if any(width != whole for width in widths):
        places = " and ".join(files[part] for part in known.text_encoders)
        texts = f"the texts are {whole} wide together" if len(known.text_encoders) > 1 else f"the text is {whole} wide"
        yield f"{files['unet']} says {key} {unet.get(key)}, but {texts} (hidden_size of {places})"
    if known.addition == POOLED:
        yield from _pooled_width(unet, configs, known)


def _pooled_width(unet: Config, configs: Mapping[str, Config], known: Architecture) -> Iterator[str]:
    last = [*known.text_encoders][-1]
    pooled = configs[last].get("projection_dim", 512)
    added = TIME_NUMBERS * (unet.get("addition_time_embed_dim") or 0) + pooled
    wanted = unet.get("projection_class_embeddings_input_dim")
    if wanted != added:
        yield (
            f"{known.files['unet']} says projection_class_embeddings_input_dim {wanted}, but {TIME_NUMBERS} times "
            f"addition_time_embed_dim {unet.get('addition_time_embed_dim')} and projection_dim {pooled} of "
            f"{known.files[last]} are {added}"
        )
