"""Comparison of weights with the configuration beside them, by names and shapes.

Libraries fill what a file lacks with random numbers and leave out what a configuration has no place for. So the
weights of each part are compared with its configuration before they are read, and keys that disagree are named.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from riebench.errors import RiebenchError
from riebench.models.families.folders import check_tensor_names

Shapes = Mapping[str, tuple[int, ...]]
"""Tensor name -> its shape."""
OLD_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
"""Older names of an autoencoder's attention, which diffusers still reads."""
NOT_WEIGHTS = ("embeddings.position_ids",)
"""Tensors in older files that no network needs."""


def check_weights(
    part: str, shapes: Shapes, config: Mapping[str, Any], shown: str, file: str | None = None
) -> None:  # fmt: skip
    """Refuse weights that belong to another configuration than the one beside them.

    Args:
        part: "unet", "vae", or a text encoder's.
        shapes: of all its files, under the names of diffusers or transformers.
        config: its configuration.
        shown: what the user called the model.
        file: where the configuration lies, for messages; None for the part's place in a model folder.

    Raises:
        RiebenchError: in one line, naming the first key that disagrees.
    """
    found = {"unet": _unet, "vae": _autoencoder}.get(part, _text_encoder)(dict(shapes), config)
    for key, says, has in found:
        raise RiebenchError(f"{shown}: {file or place_of(part)} says {key} {says}, but the weights have {has}")


def check_names(part: str, stored: Iterable[str], needed: Iterable[str], shown: str) -> None:
    """Refuse weights that lack tensors, or hold tensors that nothing reads.

    Text encoders may hold more: a configuration may leave out their last layers on purpose.

    Args:
        part: as for `check_weights`.
        stored: names of the tensors in its files.
        needed: names of the tensors of the network that was built.
        shown: what the user called the model.

    Raises:
        RiebenchError: in one line, naming the first tensor.
    """
    have, wanted = ({_plain(part, name) for name in names} for names in (stored, needed))
    check_tensor_names(part, have, wanted, place_of(part), shown, more=part.startswith("text"))


def place_of(part: str) -> str:
    """Return the place of a part's configuration in a model folder."""
    return f"{part}/config.json"


def _plain(part: str, name: str) -> str:
    if part.startswith("text"):
        return name.removeprefix("text_model.")
    if part == "vae":
        for old, new in OLD_NAMES.items():
            name = name.replace(old, new)
    return name


Disagreement = tuple[str, Any, Any]
"""Key, what the configuration says, what the weights have."""


def _unet(shapes: dict[str, tuple[int, ...]], config: Mapping[str, Any]) -> Iterator[Disagreement]:
    if "conv_in.weight" not in shapes:
        return
    levels = len(config.get("down_block_types", ()))
    widths = [shapes.get(f"down_blocks.{level}.resnets.0.conv1.weight", (0,))[0] for level in range(levels)]
    if widths and all(widths):
        yield from _differ("block_out_channels", list(config.get("block_out_channels", ())), widths)
    stored = _count(shapes, r"down_blocks\.(\d+)\.")
    yield from _differ("down_block_types", config.get("down_block_types"), f"{stored} levels", stored != levels)
    for key, side in (("down_block_types", "down_blocks"), ("up_block_types", "up_blocks")):
        says = ["CrossAttn" in kind for kind in config.get(key, ())]
        has = [any(name.startswith(f"{side}.{level}.attentions.") for name in shapes) for level in range(len(says))]
        yield from _differ(key, config.get(key), f"attention in {has.count(True)} of them", says != has)
    says_mid = {"UNetMidBlock2DCrossAttn": (True, True), None: (False, False)}.get(
        config.get("mid_block_type", "UNetMidBlock2DCrossAttn"), (True, False)
    )
    has_mid = tuple(any(n.startswith(f"mid_block.{p}.") for n in shapes) for p in ("resnets", "attentions"))
    yield from _differ("mid_block_type", config.get("mid_block_type"), _mid(has_mid), says_mid != has_mid)
    yield from _unet_ends(shapes, config)
    yield from _unet_depths(shapes, config)
    yield from _unet_text(shapes, config)


def _mid(found: tuple[bool, ...]) -> str:
    return "residual blocks and attention" if found[1] else "residual blocks" if found[0] else "none"


def _unet_ends(shapes: Shapes, config: Mapping[str, Any]) -> Iterator[Disagreement]:
    first, last = shapes["conv_in.weight"], shapes.get("conv_out.weight", (4, 0, 3, 3))
    yield from _differ("in_channels", config.get("in_channels", 4), first[1])
    yield from _differ("conv_in_kernel", config.get("conv_in_kernel", 3), first[-1])
    yield from _differ("out_channels", config.get("out_channels", 4), last[0])
    yield from _differ("conv_out_kernel", config.get("conv_out_kernel", 3), last[-1])
    time = shapes.get("time_embedding.linear_1.weight", (0, 0))
    width = (config.get("block_out_channels") or [0])[0]
    fourier = config.get("time_embedding_type", "positional") == "fourier"
    usual = width * (2 if fourier else 4)
    yield from _differ(
        "time_embedding_type", config.get("time_embedding_type"), "a random projection of the time" if not fourier else
        "none", fourier != ("time_proj.weight" in shapes),
    )  # fmt: skip
    says = config.get("time_embedding_dim") or usual
    yield from _differ("time_embedding_dim", config.get("time_embedding_dim"), time[0], says != time[0])
    cond = shapes.get("time_embedding.cond_proj.weight")
    yield from _differ("time_cond_proj_dim", config.get("time_cond_proj_dim"), None if cond is None else cond[1])
    added = shapes.get("add_embedding.linear_1.weight")
    yield from _differ(
        "projection_class_embeddings_input_dim", config.get("projection_class_embeddings_input_dim"),
        None if added is None else added[1],
    )  # fmt: skip
    projected = shapes.get("down_blocks.0.resnets.0.time_emb_proj.weight", (0,))[0]
    scaled = config.get("resnet_time_scale_shift", "default") == "scale_shift"
    wide = 2 * width if scaled else width
    yield from _differ(
        "resnet_time_scale_shift", config.get("resnet_time_scale_shift"), f"{projected} channels for it",
        bool(projected) and projected != wide,
    )  # fmt: skip


def _unet_depths(shapes: Shapes, config: Mapping[str, Any]) -> Iterator[Disagreement]:
    types = config.get("down_block_types", ())
    layers = _per_level(config.get("layers_per_block", 2), len(types))
    has = [_count(shapes, rf"down_blocks\.{level}\.resnets\.(\d+)\.") for level in range(len(types))]
    yield from _differ("layers_per_block", config.get("layers_per_block"), has, layers != has)
    depths = _per_level(config.get("transformer_layers_per_block", 1), len(types))
    for level, kind in enumerate(types):
        if "CrossAttn" in kind and level < len(layers):
            yield from _depth(shapes, f"down_blocks.{level}", depths[level], layers[level], _DEPTH)
    reverse = config.get("reverse_transformer_layers_per_block")
    key = _DEPTH if reverse is None else f"reverse_{_DEPTH}"
    up = list(reversed(depths)) if reverse is None else list(reverse)
    for level, kind in enumerate(config.get("up_block_types", ())):
        if "CrossAttn" in kind and level < len(layers):
            yield from _depth(shapes, f"up_blocks.{level}", up[level], layers[::-1][level] + 1, key)
    if config.get("mid_block_type", "UNetMidBlock2DCrossAttn") == "UNetMidBlock2DCrossAttn" and depths:
        yield from _depth(shapes, "mid_block", depths[-1], 1, _DEPTH)


_DEPTH = "transformer_layers_per_block"


def _depth(shapes: Shapes, place: str, depth: Any, count: int, key: str) -> Iterator[Disagreement]:
    says = list(depth)[:count] if isinstance(depth, list | tuple) else [depth] * count
    has = [
        _count(shapes, rf"{re.escape(place)}\.attentions\.{index}\.transformer_blocks\.(\d+)\.")
        for index in range(count)
    ]
    yield from _differ(key, f"{depth} for {place}", has, says != has)


def _unet_text(shapes: Shapes, config: Mapping[str, Any]) -> Iterator[Disagreement]:
    attention = [name for name in shapes if name.endswith(".attn2.to_k.weight")]
    if not attention:
        return
    first = attention[0]
    texts = config.get("cross_attention_dim", 1280)
    width = shapes[first][1]
    yield from _differ(
        "cross_attention_dim", texts, width, width not in (texts if isinstance(texts, list) else [texts])
    )
    gated = any(".fuser." in name for name in shapes)
    says = str(config.get("attention_type", "default")).startswith("gated")
    yield from _differ("attention_type", config.get("attention_type"), "gates" if gated else "none", gated != says)
    own = [shapes[name] for name in shapes if name.endswith(".attn1.to_k.weight") and not name.startswith("mid_block")]
    said = config.get("only_cross_attention", False)
    if isinstance(said, bool) and any(shape[0] != width for shape in own):
        # Only where the two widths differ do the shapes tell.
        crossed = any(shape[0] != shape[1] for shape in own)
        yield from _differ("only_cross_attention", said, crossed)
    linear = len(shapes.get(first.partition(".transformer_blocks.")[0] + ".proj_in.weight", (0, 0))) == 2
    flag = bool(config.get("use_linear_projection", False))
    yield from _differ(
        "use_linear_projection", flag, "linear projections" if linear else "convolutions", linear != flag
    )
    projected = shapes.get("encoder_hid_proj.weight")
    says_hidden = config.get("encoder_hid_dim")
    yield from _differ("encoder_hid_dim", says_hidden, None if projected is None else projected[1])


def _autoencoder(shapes: dict[str, tuple[int, ...]], config: Mapping[str, Any]) -> Iterator[Disagreement]:
    first, last, middle = (
        shapes.get(f"{name}.weight") for name in ("encoder.conv_in", "decoder.conv_out", "decoder.conv_in")
    )
    if first is None or last is None or middle is None:
        return
    yield from _differ("in_channels", config.get("in_channels", 3), first[1])
    yield from _differ("out_channels", config.get("out_channels", 3), last[0])
    yield from _differ("latent_channels", config.get("latent_channels", 4), middle[1])
    levels = _count(shapes, r"encoder\.down_blocks\.(\d+)\.")
    widths = [shapes.get(f"encoder.down_blocks.{level}.resnets.0.conv1.weight", (0,))[0] for level in range(levels)]
    yield from _differ("block_out_channels", list(config.get("block_out_channels", ())), widths)
    for key, side in (("down_block_types", "encoder.down_blocks"), ("up_block_types", "decoder.up_blocks")):
        kinds = config.get(key, ())
        says = ["Attn" in kind for kind in kinds]
        has = [any(name.startswith(f"{side}.{level}.attentions.") for name in shapes) for level in range(levels)]
        yield from _differ(key, list(kinds), f"attention in {has.count(True)} of {levels}", says != has)
    layers = _count(shapes, r"encoder\.down_blocks\.0\.resnets\.(\d+)\.")
    yield from _differ("layers_per_block", config.get("layers_per_block", 1), layers)
    for key, start in (
        ("use_quant_conv", "quant_conv."), ("use_post_quant_conv", "post_quant_conv."),
        ("mid_block_add_attention", "decoder.mid_block.attentions."),
    ):  # fmt: skip
        there = any(name.startswith(start) for name in shapes)
        yield from _differ(key, bool(config.get(key, True)), there)


def _text_encoder(shapes: dict[str, tuple[int, ...]], config: Mapping[str, Any]) -> Iterator[Disagreement]:
    plain = {name.removeprefix("text_model."): shape for name, shape in shapes.items()}
    words, places = (plain.get(f"embeddings.{name}_embedding.weight") for name in ("token", "position"))
    if words is None or places is None:
        return
    yield from _differ("vocab_size", config.get("vocab_size", 49408), words[0])
    yield from _differ("hidden_size", config.get("hidden_size", 512), words[1])
    yield from _differ("max_position_embeddings", config.get("max_position_embeddings", 77), places[0])
    inner = plain.get("encoder.layers.0.mlp.fc1.weight", (0,))[0]
    yield from _differ("intermediate_size", config.get("intermediate_size", 2048), inner)
    layers, says = _count(plain, r"encoder\.layers\.(\d+)\."), config.get("num_hidden_layers", 12)
    # Fewer than stored are wanted where the last layers are skipped on purpose.
    yield from _differ("num_hidden_layers", says, layers, says > layers)
    projection = plain.get("text_projection.weight")
    if projection is not None:
        yield from _differ("projection_dim", config.get("projection_dim", 512), projection[0])


def _differ(key: str, says: Any, has: Any, differ: bool | None = None) -> Iterator[Disagreement]:
    if (says != has) if differ is None else differ:
        yield key, says, has


def _count(shapes: Iterable[str], pattern: str) -> int:
    """Return how many different indices names have at the place of a pattern's group."""
    found = re.compile(pattern)
    return len({match[1] for name in shapes if (match := found.match(name))})


def _per_level(value: Any, levels: int) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value] * levels
