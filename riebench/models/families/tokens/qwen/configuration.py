"""Refusal of configurations that Qwen-Image's pipeline or its hooks cannot follow.

The files are read as text: nothing is loaded, so that planning finds the same faults as a run. What is not refused here
is obeyed: networks, schedule and tokenizer are built by diffusers and transformers from these very files.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from riebench.models.families.folders import attention_head_problems

BRAND = "Qwen-Image"
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
    "transformer": ("QwenImageTransformer2DModel",),
    "vae": ("AutoencoderKLQwenImage",),
    "text_encoder": ("Qwen2_5_VLForConditionalGeneration",),
    "tokenizer": ("Qwen2Tokenizer", "Qwen2TokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend"),
}
"""Component -> names of its class."""
PATCH = 2
"""Latent positions along a side of an image token."""
TOKENS = 256
"""Text tokens of every prompt: shorter ones are padded and masked, longer ones cut off."""
LATENT_CHANNELS, COLOURS = 16, 3
STEPS_DOWN = (False, True, True)
"""One entry for each time that the autoencoder halves a picture's sides, where its configuration is silent."""
AXES, HEAD = (16, 56, 56), 128
OTHER_KINDS = ("guidance_embeds", "zero_cond_t", "use_additional_t_cond", "use_layer3d_rope")
"""Keys of transformers that the pipeline of text alone does not call as they need it."""

Config = Mapping[str, Any]


def problems(configs: Mapping[str, Config]) -> Iterator[str]:
    """Yield what speaks against configurations: file, key and reason.

    Args:
        configs: component -> its configuration.
    """
    yield from (f"{CONFIGS['transformer']} {problem}" for problem in _transformer(configs["transformer"]))
    yield from (f"{CONFIGS['vae']} {problem}" for problem in _autoencoder(configs["vae"]))
    transformer, text = configs["transformer"], configs["text_encoder"]
    packed = PATCH**2 * configs["vae"].get("z_dim", LATENT_CHANNELS)
    if transformer.get("in_channels", 64) != packed:
        yield (
            f"{CONFIGS['transformer']} says in_channels {transformer['in_channels']}, but {PATCH**2} times z_dim of "
            f"{CONFIGS['vae']} is {packed}"
        )
    # Older files hold the language model's keys beside the others.
    stated = text.get("text_config", text)
    if not isinstance(stated, dict):
        yield f"{CONFIGS['text_encoder']} says text_config {stated!r:.60}; it holds the keys of the language model"
        return
    for problem in attention_head_problems(stated, heads=64, groups=8):
        yield f"{CONFIGS['text_encoder']} {problem}"
    width = stated.get("hidden_size", 8192)
    if transformer.get("joint_attention_dim", 3584) != width:
        yield (
            f"{CONFIGS['transformer']} says joint_attention_dim {transformer.get('joint_attention_dim', 3584)}, but "
            f"hidden_size of {CONFIGS['text_encoder']} is {width}"
        )


def _transformer(config: Config) -> Iterator[str]:
    for key in OTHER_KINDS:
        if config.get(key):
            yield f"says {key} {config[key]}; {BRAND}'s pipeline for text cannot run such a transformer"
    given, patch = config.get("in_channels", 64), config.get("patch_size", PATCH)
    made = patch**2 * (config.get("out_channels", LATENT_CHANNELS) or given)
    if made != given:
        yield f"says patch_size {patch} and out_channels of {made // patch**2}, which do not make in_channels {given}"
    axes, head = config.get("axes_dims_rope", AXES), config.get("attention_head_dim", HEAD)
    if len(axes) != len(AXES) or sum(axes) != head or any(axis % 2 for axis in axes):
        yield f"says axes_dims_rope {[*axes]}; they are three even numbers whose sum is attention_head_dim {head}"
    if not config.get("num_layers", 1):
        yield f"says num_layers 0; {BRAND} has blocks"


def _autoencoder(config: Config) -> Iterator[str]:
    if config.get("input_channels", COLOURS) != COLOURS:
        yield f"says input_channels {config['input_channels']}; {BRAND}'s autoencoder has {COLOURS}"
    channels = config.get("z_dim", LATENT_CHANNELS)
    for key in ("latents_mean", "latents_std"):
        numbers = config.get(key)
        if numbers is None and channels == LATENT_CHANNELS:
            continue
        if not isinstance(numbers, list) or len(numbers) != channels or not all(map(_is_number, numbers)):
            yield f"says {key} {numbers!r:.60}; it is a list of {channels} finite numbers, one for each of z_dim"
        elif key == "latents_std" and not all(numbers):
            yield "says latents_std with a 0, by which latents would be divided"
    halvings, widths = config.get("temperal_downsample", STEPS_DOWN), config.get("dim_mult", (1, 2, 4, 4))
    if len(widths) != len(halvings) + 1:
        yield f"says {len(widths)} numbers in dim_mult, but {len(halvings)} in temperal_downsample; it is one more"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
