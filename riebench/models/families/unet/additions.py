"""Files that change a model's weights: another U-Net, and LoRAs that are added.

A LoRA's product is computed in float32 and rounded once, where it is added. Every tensor of a file is used, or the file
is refused: a part left out in silence would give other pictures.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from riebench.errors import RiebenchError
from riebench.models.families.unet.weights import check_names, check_weights
from riebench.utils.weights import metadata, tensor_names, tensor_shapes

LDM = "model.diffusion_model."
"""Prefix of the U-Net's tensors in files in the layout that these models were first published in."""
WHOLE = ("conditioner.", "cond_stage_model.", "first_stage_model.")
"""Prefixes of tensors that only files of whole models hold."""


def check_unet_file(file: Path, title: str) -> None:
    """Refuse a file that is no U-Net alone.

    Args:
        file: the file.
        title: of the model family.

    Raises:
        RiebenchError: saying what it is instead.
    """
    names = tensor_names(file)
    if any(name.startswith(WHOLE) for name in names):
        raise RiebenchError(f"--unet {file.name} is a whole checkpoint, no U-Net alone; give it as the model")
    if any("lora" in name.lower() for name in names):
        raise RiebenchError(f"--unet {file.name} is a LoRA; use --lora {file.name}")
    if not {"conv_in.weight", f"{LDM}input_blocks.0.0.weight"} & names:
        raise RiebenchError(f"--unet {file.name} is no U-Net of {title} (no tensor conv_in.weight)")


def exchange_unet(pipe: Any, file: Path, title: str) -> None:
    """Put the weights of a file into a pipeline's U-Net.

    Names may be those of diffusers or those of the first publication. The configuration stays the model's own.

    Args:
        pipe: the pipeline.
        file: with the weights.
        title: of the model family.

    Raises:
        RiebenchError: if the file's weights are those of another configuration.
    """
    check_unet_file(file, title)
    shown, shapes = f"--unet {file.name}", tensor_shapes(file)
    if "conv_in.weight" in shapes:
        from safetensors.torch import load_file

        tensors = load_file(file)
    else:
        tensors = _converted(pipe.unet, file, shown)
    own = pipe.unet.state_dict()
    check_weights("unet", {name: tuple(value.shape) for name, value in tensors.items()}, pipe.unet.config, shown)
    check_names("unet", (name for name in tensors if name not in _MARKS), own, shown)
    other = next((name for name, value in own.items() if value.shape != tensors[name].shape), None)
    if other is not None:
        raise RiebenchError(f"{shown}: {other} is {list(tensors[other].shape)}, in the model {list(own[other].shape)}")
    pipe.unet.load_state_dict({name: tensors[name] for name in own})


_MARKS = ("v_pred", "ztsnr")
"""Tensors that only say how a file was trained."""


def _converted(unet: Any, file: Path, shown: str) -> dict[str, Tensor]:
    """Return a file's tensors, in the first layout, under diffusers' names."""
    with tempfile.TemporaryDirectory(prefix="riebench-unet-") as folder:
        unet.save_config(f"{folder}/unet")
        try:
            read = type(unet).from_single_file(
                str(file), config=folder, subfolder="unet", dtype=torch.float32, local_files_only=True
            )
        except (OSError, ValueError, KeyError, IndexError, RuntimeError) as error:
            why = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise RiebenchError(f"{shown} does not fit the model's U-Net: {why}") from error
    tensors: dict[str, Tensor] = read.state_dict()
    missing = [name for name, value in tensors.items() if value.is_meta]
    if missing:
        raise RiebenchError(f"{shown} lacks {len(missing)} tensors of the model's U-Net, such as {missing[0]}")
    return tensors


# LoRAs


@dataclass
class _Pair:
    """The tensors of one layer in a LoRA file."""

    values: dict[str, Tensor] = field(default_factory=dict)


_ENDINGS = {
    ".lora_down.weight": "down", ".lora_up.weight": "up", ".alpha": "alpha",
    ".lora_A.weight": "down", ".lora_B.weight": "up",
    ".lora_A.default.weight": "down", ".lora_B.default.weight": "up",
    ".lora.down.weight": "down", ".lora.up.weight": "up",
    "_lora.down.weight": "down", "_lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down", ".lora_linear_layer.up.weight": "up",
}  # fmt: skip
"""Ending of a tensor's name -> what it is, in the layouts of kohya, peft and older diffusers."""
_ADAPTER_NOTES = "lora_adapter_metadata"
"""Key of a file's notes under which diffusers keeps the settings of a LoRA."""


def check_lora_file(file: Path) -> None:
    """Refuse a file that holds something else than LoRAs.

    Raises:
        RiebenchError: naming the first tensor that is none.
    """
    names = tensor_names(file)
    if not any(_ending(name) in ("down", "up") for name in names):
        raise RiebenchError(f"--lora {file.name} is no LoRA (no tensors ending in lora_down.weight or lora_A.weight)")
    other = sorted(name for name in names if _ending(name) is None)
    if other:
        raise RiebenchError(
            f"--lora {file.name} holds {len(other)} tensors that are none of a plain LoRA, such as {other[0]}; it may "
            "be a DoRA, LoHa or LoKr: merge it into the model with the tool that it was made with"
        )


def add_lora(pipe: Any, file: Path, scale: float) -> None:
    """Add a LoRA to the weights of a pipeline's U-Net and text encoders.

    Every layer's weight W becomes W + scale * alpha / rank * up @ down.

    Args:
        pipe: the pipeline; its weights are changed.
        file: in the layout of kohya, peft or diffusers.
        scale: how strongly.

    Raises:
        RiebenchError: if a layer is not the model's, a shape does not fit or a pair is not whole.
    """
    from safetensors.torch import load_file

    check_lora_file(file)
    shown = f"--lora {file.name}"
    pairs: dict[str, _Pair] = {}
    for name, value in load_file(file).items():
        ending = next(one for one in sorted(_ENDINGS, key=len, reverse=True) if name.endswith(one))
        pairs.setdefault(_layer_name(name.removesuffix(ending)), _Pair()).values[_ENDINGS[ending]] = value
    layers = dict(_layers(pipe))
    settings = _settings(file, shown)
    unknown = sorted(name for name in pairs if name not in layers)
    if unknown:
        raise RiebenchError(f"{shown} is for another model: it has no layer {unknown[0]} ({len(unknown)} such layers)")
    seen: dict[int, str] = {}
    for name, pair in pairs.items():
        part, path, layer = layers[name]
        if id(layer) in seen:
            raise RiebenchError(f"{shown} changes {part}.{path} twice, as {seen[id(layer)]} and as {name}")
        seen[id(layer)] = name
        _add_pair(layer, pair.values, settings.get(part, {}), path, scale, f"{shown}: {name}")


def _ending(name: str) -> str | None:
    return next((what for ending, what in _ENDINGS.items() if name.endswith(ending)), None)


def _layer_name(name: str) -> str:
    """Return a layer's name in one spelling."""
    name = name.removeprefix("base_model.model.")
    for old, new in ((".processor.to_out", ".to_out.0"), (".processor.to_", ".to_"), (".to_out_lora", ".to_out.0")):
        name = name.replace(old, new)
    return name


def _layers(pipe: Any) -> Iterator[tuple[str, tuple[str, str, nn.Module]]]:
    """Yield each name of a layer in LoRA files, with its part, path and module."""
    depth = pipe.unet.config.layers_per_block
    attended = ["CrossAttn" in kind for kind in pipe.unet.config.up_block_types]
    encoders = [part for part in ("text_encoder", "text_encoder_2") if hasattr(pipe, part)]
    # An only text encoder has no number.
    shorts = ("te1", "te2") if len(encoders) > 1 else ("te",)
    for part, short in (("unet", "unet"), *zip(encoders, shorts, strict=True)):
        for path, module in getattr(pipe, part).named_modules():
            if not isinstance(module, nn.Linear | nn.Conv2d):
                continue
            found = (part, path, module)
            if part == "unet":
                old = first_name(path, depth, attended) if isinstance(depth, int) else None
                names = [path, *([old] if old else [])]
                yield path, found
            else:
                plain = path.removeprefix("text_model.")
                names = [plain, f"text_model.{plain}"]
            for name in names:
                yield f"{part}.{name}", found
                yield f"lora_{short}_{name.replace('.', '_')}", found


_TOP = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0", "conv_out": "out.2",
}  # fmt: skip
_RESIDUAL = {
    "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}  # fmt: skip
_PLACE = re.compile(
    r"(down_blocks|mid_block|up_blocks)\.(?:(\d+)\.)?(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)"
)


def first_name(path: str, layers: int, attended: Sequence[bool]) -> str | None:
    """Return a U-Net layer's name in the layout of the first publication.

    Args:
        path: of the layer in diffusers' U-Net.
        layers: residual blocks of a level on the way down.
        attended: of each level on the way up, whether it has attention.
    """
    if path in _TOP:
        return _TOP[path]
    match = _PLACE.fullmatch(path)
    if match is None:
        return None
    side, level, kind, index, rest = match[1], int(match[2] or 0), match[3], int(match[4]), match[5]
    inner = 0 if kind == "resnets" else 1
    rest = _RESIDUAL.get(rest, rest) if kind == "resnets" else rest
    if side == "mid_block":
        return f"middle_block.{2 * index if kind == 'resnets' else 1}.{rest}"
    each = layers + 1
    if kind == "downsamplers":
        return f"input_blocks.{(level + 1) * each}.0.op"
    if kind == "upsamplers":
        # Behind the attention, where there is one.
        return f"output_blocks.{level * each + layers}.{2 if attended[level] else 1}.conv"
    number = level * each + index + (1 if side == "down_blocks" else 0)
    return f"{'input' if side == 'down_blocks' else 'output'}_blocks.{number}.{inner}.{rest}"


def _settings(file: Path, shown: str) -> dict[str, dict[str, Any]]:
    """Return part -> the settings that diffusers and peft keep in a file's notes."""
    text = metadata(file).get(_ADAPTER_NOTES)
    if text is None:
        return {}
    try:
        stated = json.loads(text)
        found: dict[str, dict[str, Any]] = {}
        for key, value in stated.items():
            part, _, name = key.partition(".")
            found.setdefault(part, {})[name] = value
    except (ValueError, AttributeError) as error:
        raise RiebenchError(f"{shown}: its notes {_ADAPTER_NOTES} cannot be read ({error})") from error
    return found


def _add_pair(
    layer: nn.Module, values: Mapping[str, Tensor], settings: Mapping[str, Any], path: str, scale: float, shown: str
) -> None:
    down, up = values.get("down"), values.get("up")
    if down is None or up is None:
        raise RiebenchError(f"{shown} has no {'down' if down is None else 'up'} part; the file is not whole")
    rank = down.shape[0]
    weight: Any = layer.weight
    product = up.float().flatten(1) @ down.float().flatten(1)
    if up.shape[1] != rank or up[0, 0].numel() != 1 or product.numel() != weight.numel():
        raise RiebenchError(f"{shown} is {list(up.shape)} times {list(down.shape)}, the layer {list(weight.shape)}")
    alpha = float(values["alpha"]) if "alpha" in values else _stated_alpha(settings, path, rank)
    if not math.isfinite(alpha):
        raise RiebenchError(f"{shown} has alpha {alpha}")
    divisor = math.sqrt(rank) if settings.get("use_rslora") and "alpha" not in values else rank
    added = product.reshape(weight.shape) * (scale * alpha / divisor)
    with torch.no_grad():
        weight.copy_((weight.float() + added.to(weight.device)).to(weight.dtype))


def _stated_alpha(settings: Mapping[str, Any], path: str, rank: int) -> float:
    for pattern, alpha in (settings.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(?:.*\.)?(?:{pattern})", path):
            return float(alpha)
    return float(settings.get("lora_alpha", rank))
