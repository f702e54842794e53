"""Hooks on a U-Net: updates, edits and the layers that read the text.

A block's update is what it adds. For an attention block it is read at the last projection, which is exact in every
number format; output minus input would lose digits in half precision.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from riebench.blocks import ATTENTION, UNITS
from riebench.models.families.blocks import Site, Stage
from riebench.models.families.unet.names import UNetNames

NAMES = UNetNames()
STAGE = re.compile(
    r"conv_in|(?:down_blocks\.\d+|mid_block|up_blocks\.\d+)\.(?:resnets|attentions|downsamplers|upsamplers)\.\d+"
)
"""Paths of the modules that a picture passes through one after the other."""


@dataclass(frozen=True)
class UNetSite(Site):
    """A site whose `point` gives its update as it is.

    Attention blocks and feed-forward units are such sites.
    """

    module: nn.Module
    point: nn.Module

    def hidden(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """Return the hidden states [B, C, H, W] that enter the block."""
        hidden: Tensor = args[0] if args else kwargs["hidden_states"]
        return hidden

    def stream(self, output: Any) -> Tensor:
        """Return an output, alone or as the first of several values."""
        return output if isinstance(output, Tensor) else output[0]

    def update(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Tensor:
        """Return what `point` gives."""
        return self.stream(output)

    def with_stream(self, output: Any, changed: Tensor) -> Any:
        """Return the output with its first value exchanged."""
        return changed if isinstance(output, Tensor) else (changed, *output[1:])

    def bypass(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Any:
        """Return the input in the place of the output."""
        return self.with_stream(output, self.hidden(args, kwargs))

    def grid(self, hidden: Tensor) -> tuple[int, int]:
        """Return the last two sides."""
        return hidden.shape[-2], hidden.shape[-1]

    def as_picture(self, values: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return values as [B, C, H, W].

        A linear projection works on [B, H*W, C]; a convolution, as that of Stable Diffusion 1, gives [B, C, H, W].
        """
        return values if values.dim() == 4 else values.transpose(1, 2).unflatten(2, grid)


@dataclass(frozen=True)
class ResidualSite(UNetSite):
    """A residual block, whose update is its output less what its shortcut puts there."""

    def update(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Tensor:
        """Return output minus shortcut."""
        return self.stream(output) - self._shortcut(args, kwargs)

    def bypass(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Any:
        """Return the input, through the shortcut if there is one, as the output."""
        return self.with_stream(output, self._shortcut(args, kwargs))

    def _shortcut(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """Return the share of the input in the output.

        The block divides all of its output by one number.
        """
        hidden = self.hidden(args, kwargs)
        shortcut: Any = getattr(self.module, "conv_shortcut", None)
        straight: Tensor = hidden if shortcut is None else shortcut(hidden)
        scale: float = getattr(self.module, "output_scale_factor", 1.0)
        return straight if scale == 1.0 else straight / scale


def site(unet: nn.Module, name: str) -> Site:
    """Return a site of a U-Net by its short name.

    Raises:
        AttributeError: if the U-Net has no such module.
    """
    module = unet.get_submodule(NAMES.module_path(name))
    kind = NAMES.kind(name)
    if kind == ATTENTION:
        return UNetSite(module, unet.get_submodule(NAMES.update_path(name)))
    return UNetSite(module, module) if kind == UNITS else ResidualSite(module, module)


def sites(unet: nn.Module) -> tuple[str, ...]:
    """Return the short names of all blocks of a U-Net."""
    found = []
    for path, _ in unet.named_modules():
        parts = path.split(".")
        if parts[-1].isdigit() and len(parts) >= 3 and parts[-2] in ("attentions", "resnets"):
            found.append(NAMES.short_name(path) or path)
    return tuple(found)


def unit_layers(module: nn.Module) -> int | None:
    """Return the number of transformer layers in a block's module, or None."""
    layers = getattr(module, "transformer_blocks", None)
    return None if layers is None else len(layers)


_TEXT_ATTENTION: WeakKeyDictionary[nn.Module, tuple[nn.Module, ...]] = WeakKeyDictionary()
"""Block -> its cross-attention layers, which every captured batch asks for."""


def text_attention(block: nn.Module) -> tuple[nn.Module, ...]:
    """Return the cross-attention layers of a block."""
    found = _TEXT_ATTENTION.get(block)
    if found is None:
        found = tuple(module for path, module in block.named_modules() if path.endswith(".attn2"))
        _TEXT_ATTENTION[block] = found
    return found


def text_projections(unet: nn.Module) -> tuple[nn.Module, ...]:
    """Return the projections to keys and values of all cross-attention layers."""
    layers: list[Any] = [layer for layer in text_attention(unet) if getattr(layer, "norm_cross", None) is None]
    return tuple(projection for layer in layers for projection in (layer.to_k, layer.to_v))


def attention_map(layer: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """Compute how much each position reads each token in a cross-attention layer.

    It is computed from the arguments of one call.

    Computed beside the layer, which runs as it would without: pictures do not depend on whether somebody looks.

    Returns:
        float32 [B, positions, tokens], mean over heads; sums to 1 over the tokens.
    """
    text = kwargs.get("encoder_hidden_states", args[1] if len(args) > 1 else None)
    hidden = args[0] if args else kwargs["hidden_states"]
    query = layer.head_to_batch_dim(layer.to_q(hidden))
    key = layer.head_to_batch_dim(layer.to_k(text))
    weights = torch.softmax((query.float() @ key.float().transpose(1, 2)) * layer.scale, dim=-1)
    return weights.unflatten(0, (hidden.shape[0], layer.heads)).mean(1)


def stages(unet: nn.Module) -> tuple[Stage, ...]:
    """Return the modules that a picture passes one after the other."""
    modules = {path: module for path, module in unet.named_modules() if STAGE.fullmatch(path)}
    return tuple(
        Stage(path, module, _is_skip(path, modules), ".attentions." in path) for path, module in modules.items()
    )


def _is_skip(path: str, modules: Mapping[str, nn.Module]) -> bool:
    """Return whether upward blocks read a stage's output.

    They read that of downward stages, unless an attention block follows.
    """
    followed = ".resnets." in path and path.replace("resnets", "attentions") in modules
    return path == "conv_in" or (path.startswith("down_blocks") and not followed)


def finish_block(hidden: Tensor, update: Tensor) -> tuple[Tensor]:
    """Return an attention block's output for an input and a known update."""
    if update.dim() == 3:
        update = update.transpose(1, 2).unflatten(2, hidden.shape[-2:]).contiguous()
    return (update + hidden,)
