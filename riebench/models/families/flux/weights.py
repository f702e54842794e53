"""Shapes of the tensors that FLUX's configurations describe.

The networks are built without memory for their weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from riebench.errors import RiebenchError
from riebench.models.families.flux.configuration import CONFIGS
from riebench.models.families.folders import read_json

Shapes = Mapping[str, tuple[int, ...]]
"""Tensor name -> its shape."""


def needed_shapes(part: str, folder: Path) -> Shapes:
    """Return the tensors of one part as its configuration describes them.

    Args:
        part: a name of `riebench.models.families.flux.shape.PARTS`.
        folder: of the model.

    Raises:
        RiebenchError: if no network can be built from the configuration.
    """
    if part == "vae":
        return autoencoder_shapes(folder / CONFIGS["vae"])
    return _shapes(folder / CONFIGS[part], {"transformer": _transformer, "text_encoder": _clip}.get(part, _t5))


def autoencoder_shapes(config: Path) -> Shapes:
    """Return the tensors of an autoencoder as its configuration describes them.

    Raises:
        RiebenchError: as `needed_shapes`.
    """
    return _shapes(config, _autoencoder)


def _shapes(config: Path, build: Any) -> Shapes:
    stated = read_json(config)
    try:
        with torch.device("meta"):
            network: nn.Module = build(stated)
    except (TypeError, ValueError, RuntimeError, AttributeError, LookupError, ZeroDivisionError) as error:
        why = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise RiebenchError(f"{config} describes no network that can be built: {why}") from error
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


def _transformer(config: Mapping[str, Any]) -> nn.Module:
    made: nn.Module = FluxTransformer2DModel.from_config(dict(config))
    return made


def _autoencoder(config: Mapping[str, Any]) -> nn.Module:
    made: nn.Module = AutoencoderKL.from_config(dict(config))
    return made


def _clip(config: Mapping[str, Any]) -> nn.Module:
    made: nn.Module = CLIPTextModel(CLIPTextConfig(**config))
    return made


def _t5(config: Mapping[str, Any]) -> nn.Module:
    made: nn.Module = T5EncoderModel(T5Config(**config))
    return made
