"""Refusal of configurations that SANA's pipelines or hooks cannot follow.

The files are read as text: nothing is loaded, so that planning finds the same faults as a run. What is not refused here
is obeyed: networks, schedule and tokenizer are built by diffusers and transformers from these very files.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from riebench.errors import RiebenchError
from riebench.models.families.folders import attention_head_problems

BRAND, SPRINT_BRAND = "SANA", "SANA-Sprint"
"""Short names of the families, for messages."""
CONFIGS = {
    "transformer": "transformer/config.json",
    "vae": "vae/config.json",
    "text_encoder": "text_encoder/config.json",
    "tokenizer": "tokenizer/tokenizer_config.json",
    "scheduler": "scheduler/scheduler_config.json",
}
"""Component -> the file that describes it."""
CLASSES = {
    "transformer": ("SanaTransformer2DModel",),
    "vae": ("AutoencoderDC",),
    "text_encoder": ("Gemma2Model",),
    "tokenizer": ("GemmaTokenizerFast", "GemmaTokenizer", "PreTrainedTokenizerFast", "TokenizersBackend"),
}
"""Component -> names of its class."""
LATENT_CHANNELS, COLOURS = 32, 3
HEADS, HEAD, CROSS_WIDTH, CAPTION = 70, 32, 2240, 2304
"""Numbers of SANA's transformer where a file is silent."""
DEPTH = 6
"""Levels of the autoencoder where a file is silent."""

Config = Mapping[str, Any]


def check_autoencoder(config: Config, shown: str, file: str) -> None:
    """Refuse an autoencoder that does not turn SANA's latents into colour pictures.

    Args:
        config: its configuration.
        shown: what the user called it.
        file: where the configuration lies, for messages.

    Raises:
        RiebenchError: in one line, naming the key.
    """
    found = config.get("_class_name", "AutoencoderDC")
    if found != "AutoencoderDC":
        raise RiebenchError(f"{shown}: {file} says _class_name {found}; SANA's autoencoder is an AutoencoderDC")
    for problem in _autoencoder(config):
        raise RiebenchError(f"{shown}: {file} {problem}")
    channels = config.get("latent_channels", LATENT_CHANNELS)
    if channels != LATENT_CHANNELS:
        raise RiebenchError(f"{shown}: {file} says latent_channels {channels}, not {LATENT_CHANNELS}")


def problems(configs: Mapping[str, Config], brand: str) -> Iterator[str]:
    """Yield what speaks against configurations: file, key and reason.

    Args:
        configs: component -> its configuration.
        brand: short name of the family; those of SANA-Sprint are told the guidance scale.
    """
    transformer, vae = configs["transformer"], configs["vae"]
    yield from (f"{CONFIGS['transformer']} {problem}" for problem in _transformer(transformer, brand))
    yield from (f"{CONFIGS['vae']} {problem}" for problem in _autoencoder(vae))
    text = attention_head_problems(configs["text_encoder"], heads=8, groups=4)
    yield from (f"{CONFIGS['text_encoder']} {problem}" for problem in text)
    rows = (
        ("in_channels", LATENT_CHANNELS, vae.get("latent_channels", LATENT_CHANNELS),
         f"latent_channels of {CONFIGS['vae']} is"),
        ("caption_channels", CAPTION, configs["text_encoder"].get("hidden_size", CAPTION),
         f"hidden_size of {CONFIGS['text_encoder']} is"),
    )  # fmt: skip
    for key, usual, wanted, words in rows:
        if transformer.get(key, usual) != wanted:
            yield f"{CONFIGS['transformer']} says {key} {transformer.get(key, usual)}, but {words} {wanted}"


def _transformer(config: Config, brand: str) -> Iterator[str]:
    if config.get("patch_size", 1) != 1:
        yield f"says patch_size {config['patch_size']}; a token of {brand} is one latent position, so it is 1"
    if not config.get("num_layers", 1):
        yield f"says num_layers 0; {brand} has blocks"
    guided, wanted = bool(config.get("guidance_embeds", False)), brand == SPRINT_BRAND
    if guided != wanted:
        how = "tells the transformer the guidance scale" if wanted else "tells the transformer no guidance scale"
        yield f"says guidance_embeds {str(guided).lower()}, but {brand}'s pipeline {how}"
    width = config.get("num_attention_heads", HEADS) * config.get("attention_head_dim", HEAD)
    if config.get("cross_attention_dim", CROSS_WIDTH) != width:
        yield (
            f"says cross_attention_dim {config.get('cross_attention_dim', CROSS_WIDTH)}, but the text is projected to "
            f"{width}, num_attention_heads times attention_head_dim"
        )
    given, made = config.get("in_channels", LATENT_CHANNELS), config.get("out_channels", LATENT_CHANNELS)
    # SANA's pipeline leaves out the second half of twice as many, a learned variance.
    known = (given,) if wanted else (given, 2 * given)
    if made not in known:
        yield f"says out_channels {made} and in_channels {given}; {brand}'s are {' or '.join(map(str, known))}"


def _autoencoder(config: Config) -> Iterator[str]:
    if config.get("in_channels", COLOURS) != COLOURS:
        yield f"says in_channels {config['in_channels']}; pictures have {COLOURS}"
    depths = [len(config.get(f"{part}_block_out_channels", (0,) * DEPTH)) for part in ("encoder", "decoder")]
    if depths[0] != depths[1]:
        yield f"gives the encoder {depths[0]} levels and the decoder {depths[1]}, so that pictures change their size"
    factor = config.get("scaling_factor", 1.0)
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not math.isfinite(factor) or not factor:
        yield f"says scaling_factor {factor!r}; it is a number other than 0"
