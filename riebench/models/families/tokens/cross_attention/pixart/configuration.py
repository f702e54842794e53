"""Refusal of configurations that PixArt-Sigma's pipeline or hooks cannot follow.

The files are read as text: nothing is loaded, so that planning finds the same faults as a run. What is not refused here
is obeyed: networks, schedule and tokenizer are built by diffusers and transformers from these very files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from riebench.models.families.tokens import autoencoder

BRAND = "PixArt-Sigma"
"""Short name of the family, for messages."""
CONFIGS = {
    "transformer": "transformer/config.json",
    "vae": "vae/config.json",
    "text_encoder": "text_encoder/config.json",
    "tokenizer": "tokenizer/tokenizer_config.json",
    "scheduler": "scheduler/scheduler_config.json",
}
"""Component -> the file that describes it."""
CLASSES = {
    "transformer": ("PixArtTransformer2DModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("T5EncoderModel",),
    "tokenizer": ("T5Tokenizer", "T5TokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend"),
}
"""Component -> names of its class."""
LATENT_CHANNELS, HEADS, HEAD, PATCH = 4, 16, 72, 2
"""Numbers of PixArt's transformer where a file is silent."""
SIDE = 128
"""Side of the latents that the transformer was made for, where a file is silent; there it is told the size, too."""

Config = Mapping[str, Any]


def check_autoencoder(config: Config, shown: str, file: str) -> None:
    """Refuse an autoencoder that does not turn PixArt's latents into pictures.

    Args:
        config: its configuration.
        shown: what the user called it.
        file: where the configuration lies, for messages.

    Raises:
        RiebenchError: in one line, naming the key.
    """
    autoencoder.check_autoencoder(_unshifted(config), shown, file, BRAND, LATENT_CHANNELS)


def problems(configs: Mapping[str, Config]) -> Iterator[str]:
    """Yield what speaks against configurations: file, key and reason.

    Args:
        configs: component -> its configuration.
    """
    transformer, vae = configs["transformer"], configs["vae"]
    yield from (f"{CONFIGS['transformer']} {problem}" for problem in _transformer(transformer))
    yield from (f"{CONFIGS['vae']} {problem}" for problem in autoencoder.autoencoder_problems(_unshifted(vae), BRAND))
    if vae.get("shift_factor"):
        yield f"{CONFIGS['vae']} says shift_factor {vae['shift_factor']}, which {BRAND}'s pipeline leaves out"
    rows = (
        ("in_channels", LATENT_CHANNELS, vae.get("latent_channels", LATENT_CHANNELS),
         f"latent_channels of {CONFIGS['vae']} is"),
        ("caption_channels", None, configs["text_encoder"].get("d_model", 512),
         f"d_model of {CONFIGS['text_encoder']} is"),
    )  # fmt: skip
    for key, usual, wanted, words in rows:
        if transformer.get(key, usual) != wanted:
            yield f"{CONFIGS['transformer']} says {key} {transformer.get(key, usual)}, but {words} {wanted}"


def _unshifted(config: Config) -> Config:
    # Latents are scaled and not shifted; a shift of zero stands for none.
    return {**config, "shift_factor": config.get("shift_factor") or 0.0}


def _transformer(config: Config) -> Iterator[str]:
    sized = config.get("use_additional_conditions")
    # diffusers decides by the side where the file is silent.
    if sized or (sized is None and config.get("sample_size", SIDE) == SIDE):
        yield f"says use_additional_conditions {sized}, but {BRAND}'s pipeline tells the transformer no size"
    if not config.get("num_layers", 1):
        yield f"says num_layers 0; {BRAND} has blocks"
    if config.get("attention_type", "default") != "default":
        yield f"says attention_type {config['attention_type']}; {BRAND}'s pipeline gives no boxes"
    width = config.get("num_attention_heads", HEADS) * config.get("attention_head_dim", HEAD)
    if config.get("cross_attention_dim", HEADS * HEAD) != width:
        yield (
            f"says cross_attention_dim {config.get('cross_attention_dim', HEADS * HEAD)}, but the text is projected to "
            f"{width}, num_attention_heads times attention_head_dim"
        )
    given = config.get("in_channels", LATENT_CHANNELS)
    made, known = config.get("out_channels", 2 * LATENT_CHANNELS), (2 * given, given)
    # The pipeline leaves out the second half, a learned variance.
    if made not in known:
        yield f"says out_channels {made} and in_channels {given}; {BRAND}'s are {' or '.join(map(str, known))}"
