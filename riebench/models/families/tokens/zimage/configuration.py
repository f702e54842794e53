"""Refusal of configurations that Z-Image's pipeline or its hooks cannot follow.

The files are read as text: nothing is loaded, so that planning finds the same faults as a run. What is not refused here
is obeyed: networks, schedule and tokenizer are built by diffusers and transformers from these very files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from riebench.errors import RiebenchError
from riebench.models.families.folders import attention_head_problems, read_json
from riebench.models.families.tokens import autoencoder

BRAND = "Z-Image"
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
    "transformer": ("ZImageTransformer2DModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("Qwen3Model", "Qwen3ForCausalLM"),
    "tokenizer": ("Qwen2Tokenizer", "Qwen2TokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend"),
}
"""Component -> names of its class."""
CHAT_TEMPLATE = "tokenizer/chat_template.jinja"
"""File of a tokenizer's chat template, where its configuration does not hold it."""
PATCH, FRAMES = 2, 1
"""Latent positions along a side of an image token, and pictures in it; the pipeline takes no other."""
MULTIPLE = 32
"""The tokens of a picture and those of a text are filled up to a multiple of this."""
TOKENS = 512
"""Longest text that the pipeline reads, its chat template included."""
LATENT_CHANNELS = 16
AXES, AXES_LENGTHS = (32, 48, 48), (1024, 512, 512)
"""Channels of a head that tell a token's place in the text, row and column, and the places that there are."""

Config = Mapping[str, Any]


def filled(tokens: int) -> int:
    """Return the tokens that a text or picture takes once it is filled up."""
    return tokens + -tokens % MULTIPLE


def check_chat_template(folder: Path, shown: str) -> None:
    """Refuse a folder that does not say how prompts become chat messages.

    Args:
        folder: in diffusers' layout.
        shown: what the user called it.

    Raises:
        RiebenchError: in one line, naming both files that could say so.
    """
    config = read_json(folder / CONFIGS["tokenizer"])
    if not config.get("chat_template") and not (folder / CHAT_TEMPLATE).is_file():
        raise RiebenchError(
            f"{shown}: {CONFIGS['tokenizer']} holds no chat_template and {CHAT_TEMPLATE} is missing; {BRAND}'s "
            "pipeline writes prompts as chat messages: download the folder again"
        )


def check_autoencoder(config: Config, shown: str, file: str) -> None:
    """Refuse an autoencoder that does not turn Z-Image's latents into colour pictures.

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
    text = attention_head_problems(configs["text_encoder"], heads=32, groups=32)
    yield from (f"{CONFIGS['text_encoder']} {problem}" for problem in text)
    yield from _widths(configs)
    positions = configs["text_encoder"].get("max_position_embeddings", TOKENS)
    if positions < TOKENS:
        yield (
            f"{CONFIGS['text_encoder']} says max_position_embeddings {positions}; {BRAND}'s pipeline reads texts of "
            f"{TOKENS} tokens"
        )


def _transformer(config: Config) -> Iterator[str]:
    patches = zip(config.get("all_patch_size", (PATCH,)), config.get("all_f_patch_size", (FRAMES,)), strict=False)
    if (PATCH, FRAMES) not in {tuple(pair) for pair in patches}:
        yield (
            f"says all_patch_size {[*config.get('all_patch_size', ())]} and all_f_patch_size "
            f"{[*config.get('all_f_patch_size', ())]}; {BRAND}'s pipeline takes patches of {PATCH} and {FRAMES}"
        )
    if config.get("siglip_feat_dim") is not None:
        yield f"says siglip_feat_dim {config['siglip_feat_dim']}, which is Z-Image Omni's; pictures are not read here"
    dim, heads = config.get("dim", 3840), config.get("n_heads", 30)
    axes, lengths = config.get("axes_dims", AXES), config.get("axes_lens", AXES_LENGTHS)
    if len(axes) != len(AXES) or sum(axes) * heads != dim or any(axis % 2 for axis in axes):
        yield f"says axes_dims {[*axes]}; they are three even numbers whose sum is dim {dim} by n_heads {heads}"
    if len(lengths) != len(AXES) or lengths[0] < TOKENS + 2 or min(lengths) < AXES_LENGTHS[1]:
        yield (
            f"says axes_lens {[*lengths]}; they are three numbers, the first at least {TOKENS + 2} and the others at "
            f"least {AXES_LENGTHS[1]}"
        )
    if not config.get("n_layers", 1):
        yield f"says n_layers 0; {BRAND} has layers of image and text tokens"


def _widths(configs: Mapping[str, Config]) -> Iterator[str]:
    transformer = configs["transformer"]
    rows = (
        ("in_channels", LATENT_CHANNELS, "vae", "latent_channels", 4),
        ("cap_feat_dim", 2560, "text_encoder", "hidden_size", 4096),
    )
    for key, usual, part, other, silent in rows:
        given, wanted = transformer.get(key, usual), configs[part].get(other, silent)
        if given != wanted:
            yield f"{CONFIGS['transformer']} says {key} {given}, but {other} of {CONFIGS[part]} is {wanted}"
