"""The export of a trained pipeline as the package ships it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from torch import nn


def save_in_half(pipe: DiffusionPipeline, folder: Path) -> None:
    """Write a pipeline in half precision; it is loaded in float32.

    Args:
        pipe: its networks are in float32 again afterwards, with the rounded weights.
        folder: where it goes, in the hub's layout.
    """
    networks = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    for network in networks.values():
        network.to(torch.float16)
    pipe.save_pretrained(folder, safe_serialization=True)
    for name, network in networks.items():
        network.to(torch.float32)
        # The path of the weights on the machine that trained them does not belong in the package.
        config = folder / name / "config.json"
        stored = json.loads(config.read_text())
        if stored.pop("_name_or_path", None) is not None:
            config.write_text(json.dumps(stored, indent=2) + "\n")
