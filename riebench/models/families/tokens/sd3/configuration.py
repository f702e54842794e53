"""Refusal of configurations that pipeline or hooks cannot follow.

The files are read as text: nothing is loaded, so that planning finds the same faults as a run. What is not refused here
is obeyed: networks, schedule and tokenizers are built by diffusers and transformers from these very files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from riebench.models.families.tokens import autoencoder

BRAND = "Stable Diffusion 3"
"""Short name of the family, for messages."""
CONFIGS = {
    "transformer": "transformer/config.json",
    "vae": "vae/config.json",
    "text_encoder": "text_encoder/config.json",
    "text_encoder_2": "text_encoder_2/config.json",
    "text_encoder_3": "text_encoder_3/config.json",
    "tokenizer": "tokenizer/tokenizer_config.json",
    "tokenizer_2": "tokenizer_2/tokenizer_config.json",
    "tokenizer_3": "tokenizer_3/tokenizer_config.json",
    "scheduler": "scheduler/scheduler_config.json",
}
"""Component -> the file that describes it."""
_CLIP_TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")
CLASSES = {
    "transformer": ("SD3Transformer2DModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModelWithProjection",),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
    "text_encoder_3": ("T5EncoderModel",),
    "tokenizer": _CLIP_TOKENIZERS,
    "tokenizer_2": _CLIP_TOKENIZERS,
    "tokenizer_3": ("T5TokenizerFast", "T5Tokenizer", "PreTrainedTokenizerFast", "TokenizersBackend"),
}
"""Component -> names of its class."""
LATENT_CHANNELS, SAMPLE = 16, 128
"""Channels of latents, and their side where a file is silent."""
CLIP_TOKENS, T5_TOKENS = 77, 256
"""Longest text of CLIP where a file is silent, and the number of T5's tokens that diffusers' pipeline reads."""

Config = Mapping[str, Any]


def problems(configs: Mapping[str, Config]) -> Iterator[str]:
    """Yield what speaks against configurations: file, key and reason.

    Args:
        configs: component -> its configuration.
    """
    yield from (f"{CONFIGS['transformer']} {problem}" for problem in _transformer(configs["transformer"]))
    yield from (f"{CONFIGS['vae']} {problem}" for problem in autoencoder.autoencoder_problems(configs["vae"], BRAND))
    yield from _widths(configs)
    length = configs["tokenizer"].get("model_max_length")
    # Both CLIP encoders read texts of the first tokenizer's length.
    for part in ("text_encoder", "text_encoder_2"):
        positions = configs[part].get("max_position_embeddings", CLIP_TOKENS)
        if not isinstance(length, int) or length > positions:
            yield (
                f"{CONFIGS['tokenizer']} says model_max_length {'nothing' if length is None else f'{length:g}'}, but "
                f"{CONFIGS[part]} has max_position_embeddings {positions}"
            )


def _transformer(config: Config) -> Iterator[str]:
    given, made = config.get("in_channels", 16), config.get("out_channels", 16)
    if made is not None and made != given:
        yield f"says out_channels {made} and in_channels {given}; {BRAND}'s are equal"
    if not config.get("num_layers", 18):
        yield f"says num_layers 0; {BRAND} has blocks with two streams"
    width = config.get("num_attention_heads", 18) * config.get("attention_head_dim", 64)
    if config.get("caption_projection_dim", 1152) != width:
        yield (
            f"says caption_projection_dim {config.get('caption_projection_dim', 1152)}; text and picture are equally "
            f"wide, num_attention_heads times attention_head_dim: {width}"
        )
    most, side = config.get("pos_embed_max_size", 96), config.get("sample_size", SAMPLE)
    patch = config.get("patch_size", 2)
    if most and most * patch < side:
        yield f"says pos_embed_max_size {most}, fewer places than the {side // patch} of its sample_size {side}"


def _widths(configs: Mapping[str, Config]) -> Iterator[str]:
    transformer, clips = configs["transformer"], (configs["text_encoder"], configs["text_encoder_2"])
    clip_files = f"{CONFIGS['text_encoder']} and {CONFIGS['text_encoder_2']}"
    pooled, hidden = (sum(clip.get(key, 512) for clip in clips) for key in ("projection_dim", "hidden_size"))
    wide = configs["text_encoder_3"].get("d_model", 512)
    rows = (
        ("in_channels", 16, configs["vae"].get("latent_channels", 4), f"latent_channels of {CONFIGS['vae']} is"),
        ("pooled_projection_dim", 2048, pooled, f"the sum of projection_dim of {clip_files} is"),
        ("joint_attention_dim", 4096, wide, f"d_model of {CONFIGS['text_encoder_3']} is"),
    )
    for key, usual, wanted, words in rows:
        if transformer.get(key, usual) != wanted:
            yield f"{CONFIGS['transformer']} says {key} {transformer.get(key, usual)}, but {words} {wanted}"
    if hidden > wide:
        yield (
            f"hidden_size of {clip_files} is {hidden} together, more than d_model {wide} of "
            f"{CONFIGS['text_encoder_3']}; the pipeline would cut what does not fit"
        )
