"""Refusal of configurations that FLUX's pipeline or its hooks cannot follow.

The files are read as text: nothing is loaded, so that planning finds the same faults as a run. What is not refused here
is obeyed: networks, schedule and tokenizers are built by diffusers and transformers from these very files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from riebench.models.families.folders import read_json
from riebench.models.families.tokens import autoencoder

BRAND = "FLUX"
"""Short name of the family, for messages."""

CONFIGS = {
    "transformer": "transformer/config.json",
    "vae": "vae/config.json",
    "text_encoder": "text_encoder/config.json",
    "text_encoder_2": "text_encoder_2/config.json",
    "tokenizer": "tokenizer/tokenizer_config.json",
    "tokenizer_2": "tokenizer_2/tokenizer_config.json",
    "scheduler": "scheduler/scheduler_config.json",
}
"""Component -> the file that describes it."""
CLASSES = {
    "transformer": ("FluxTransformer2DModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
    "text_encoder_2": ("T5EncoderModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "tokenizer_2": ("T5TokenizerFast", "T5Tokenizer", "PreTrainedTokenizerFast", "TokenizersBackend"),
}
"""Component -> names of its class."""
PATCH = 2
"""Latent positions along a side of an image token."""
LATENT_CHANNELS, CLIP_TOKENS = 16, 77
"""Channels of latents, and the longest text of CLIP where a file is silent."""
TOKENS, TOKENS_GUIDED = 256, 512
"""Longest text of T5 that FLUX.1-schnell and FLUX.1-dev were made for."""
AXES, HEAD = (16, 56, 56), 128

Config = Mapping[str, Any]


def text_tokens(limit: int | None, *, guidance_embeds: bool) -> int:
    """Return how many tokens of T5 a transformer reads.

    Args:
        limit: longest text of the model's own tokenizer; None if it is not known.
        guidance_embeds: whether the transformer is told the guidance scale, as that of FLUX.1-dev.
    """
    usual = TOKENS_GUIDED if guidance_embeds else TOKENS
    return usual if limit is None else min(int(limit), usual)


def guidance_embeds(folder: Path) -> bool:
    """Return whether the transformer of a folder is told the guidance scale."""
    return bool(read_json(folder / CONFIGS["transformer"]).get("guidance_embeds", False))


def check_autoencoder(config: Config, shown: str, file: str = CONFIGS["vae"]) -> None:
    """Refuse an autoencoder that does not turn FLUX's latents into colour pictures.

    Args:
        config: its configuration.
        shown: what the user called it.
        file: where the configuration lies, for messages.

    Raises:
        RiebenchError: in one line, naming the key.
    """
    autoencoder.check_autoencoder(config, shown, file, BRAND, LATENT_CHANNELS)


def problems(configs: Mapping[str, Config]) -> Iterator[str]:
    """Yield what speaks against configurations: file, key and reason.

    Args:
        configs: component -> its configuration.
    """
    yield from (f"{CONFIGS['transformer']} {problem}" for problem in _transformer(configs["transformer"]))
    yield from (f"{CONFIGS['vae']} {problem}" for problem in autoencoder.autoencoder_problems(configs["vae"], BRAND))
    yield from _widths(configs)
    length = configs["tokenizer"].get("model_max_length")
    positions = configs["text_encoder"].get("max_position_embeddings", CLIP_TOKENS)
    if not isinstance(length, int) or length > positions:
        yield (
            f"{CONFIGS['tokenizer']} says model_max_length {'nothing' if length is None else f'{length:g}'}, but "
            f"{CONFIGS['text_encoder']} has max_position_embeddings {positions}"
        )


def _transformer(config: Config) -> Iterator[str]:
    if config.get("patch_size", 1) != 1:
        yield f"says patch_size {config['patch_size']}; FLUX's pipeline packs latents itself, so it is 1"
    given, made = config.get("in_channels", 64), config.get("out_channels")
    if made is not None and made != given:
        yield f"says out_channels {made} and in_channels {given}; FLUX's are equal"
    axes, head = config.get("axes_dims_rope", AXES), config.get("attention_head_dim", HEAD)
    if len(axes) != len(AXES) or sum(axes) != head or any(axis % 2 for axis in axes):
        yield f"says axes_dims_rope {[*axes]}; they are three even numbers whose sum is attention_head_dim {head}"
    if not config.get("num_layers", 1):
        yield "says num_layers 0; FLUX has blocks with two streams"


def _widths(configs: Mapping[str, Config]) -> Iterator[str]:
    transformer, vae = configs["transformer"], configs["vae"]
    packed = PATCH**2 * vae.get("latent_channels", 4)
    rows = (
        ("in_channels", 64, packed, f"{PATCH**2} times latent_channels of {CONFIGS['vae']} is"),
        ("pooled_projection_dim", 768, configs["text_encoder"].get("hidden_size", 512),
         f"hidden_size of {CONFIGS['text_encoder']} is"),
        ("joint_attention_dim", 4096, configs["text_encoder_2"].get("d_model", 512),
         f"d_model of {CONFIGS['text_encoder_2']} is"),
    )  # fmt: skip
    for key, usual, wanted, words in rows:
        if transformer.get(key, usual) != wanted:
            yield f"{CONFIGS['transformer']} says {key} {transformer.get(key, usual)}, but {words} {wanted}"
