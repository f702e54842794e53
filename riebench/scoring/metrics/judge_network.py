"""Toy world's judge, a small network that reads attributes of scenes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from riebench.models.assets import asset_folder
from riebench.scoring.metrics.base import UNREADABLE

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "object": ("house", "mushroom", "boat", "rocket", "cat", "car"),
    "color": ("red", "orange", "yellow", "green", "blue", "purple"),
    "material": ("plain", "striped", "dotted", "checkered"),
    "emblem": ("none", "heart", "cross"),
    "accessory": ("none", "hat", "crown", "bow"),
    "pose": ("upright", "tilted", "upside-down"),
    "background": ("white", "sky", "forest", "night", "beach", "brick"),
    "style": ("drawing", "pencil", "pixel", "watercolor"),
}
"""Attribute name -> its values; the first value is the one meant by a caption that does not mention the attribute."""

Values = Mapping[str, tuple[str, ...]]
"""Attribute name -> its values, in a fixed order."""

_FURTHER: Values = {
    "object": ("fish", "duck", "butterfly"),
    "color": ("lime", "teal", "pink"),
    "material": ("zigzag", "ringed"),
    "emblem": ("leaf", "bolt"),
    "accessory": ("flag", "flower"),
    "pose": ("sideways",),
    "background": ("snow", "water", "city"),
    "style": ("sticker", "screen"),
}

WIDE_ATTRIBUTES: dict[str, tuple[str, ...]] = {name: values + _FURTHER[name] for name, values in ATTRIBUTES.items()}
"""Attribute name -> its values in the second toy world: those of `ATTRIBUTES` at the same indices, and further ones."""

JUDGES: dict[str, Values] = {"judge": ATTRIBUTES, "judge-mixed": WIDE_ATTRIBUTES}
"""Name of a judge that ships with the package, and of its folder -> the attributes that it reads."""

UNREADABLE_LABEL = -1
"""Label of an unreadable attribute, where values have their index."""

WEIGHTS = "model.safetensors"


class JudgeNetwork(nn.Module):
    """Network from pictures, float [B, 3, 64, 64] in [-1, 1], to logits per attribute.

    Each attribute has a logit for every value and a last one for "unreadable".

    Args:
        values: attribute -> the values that it reads.

    Attributes:
        values: likewise.
        temperature: float [8], what the logits of each attribute are divided by.
        threshold: float [8], the least probability of a value that counts as read.
    """

    temperature: Tensor
    threshold: Tensor

    def __init__(self, values: Values = ATTRIBUTES) -> None:
        super().__init__()
        self.values = values
        layers: list[nn.Module] = []
        for before, after, stride in ((3, 24, 1), (24, 40, 2), (40, 64, 1), (64, 96, 2), (96, 96, 1), (96, 128, 2)):
            layers += [nn.Conv2d(before, after, 3, stride, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
        self.features = nn.Sequential(*layers, nn.Conv2d(128, 24, 1), nn.Flatten(), nn.Linear(24 * 64, 192), nn.SiLU())
        self.heads = nn.ModuleDict({name: nn.Linear(192, len(some) + 1) for name, some in values.items()})
        self.register_buffer("temperature", torch.ones(len(values)))
        self.register_buffer("threshold", torch.full((len(values),), 0.5))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Compute the logits of each attribute, float [B, number of values + 1]."""
        features = self.features(images)
        return {name: head(features) for name, head in self.heads.items()}


class Judge:
    """Judge that reads attributes off 64-pixel pictures."""

    def __init__(self, network: JudgeNetwork) -> None:
        self.network = network.eval().requires_grad_(False)

    @classmethod
    def load(cls, name: str = "judge") -> Judge:
        """Load a judge that ships with the package.

        Args:
            name: a key of `JUDGES`.

        Raises:
            AssetError: if its weights are damaged or missing.
        """
        return _load_shipped(name)

    @torch.no_grad()
    def probabilities(self, images: NDArray[np.uint8], batch_size: int = 128) -> dict[str, NDArray[np.float32]]:
        """Compute the calibrated probabilities of all values of each attribute.

        Args:
            images: uint8 [B, 64, 64, 3].
            batch_size: number of pictures per pass of the network.

        Returns:
            Attribute -> float [B, number of values + 1]; the last is the probability of "unreadable".

        Raises:
            ValueError: for pictures of another size or type.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (64, 64, 3):
            raise ValueError(f"the judge reads uint8 pictures [B, 64, 64, 3], not {images.dtype} {list(images.shape)}")
        parts: dict[str, list[NDArray[np.float32]]] = {name: [] for name in self.network.values}
        for part in torch.from_numpy(images).split(batch_size):
            logits = self.network(part.permute(0, 3, 1, 2).float() / 127.5 - 1)
            for (name, values), temperature in zip(logits.items(), self.network.temperature, strict=True):
                parts[name].append((values / temperature).softmax(1).numpy())
        return {name: np.concatenate(values) for name, values in parts.items()}

    def labels(self, images: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Read the attributes of each picture as indices of their values.

        Returns:
            int [B, 8], columns in the order of `ATTRIBUTES`. An attribute whose likeliest value is less likely than its
            threshold has `UNREADABLE_LABEL`.
        """
        columns = []
        for found, threshold in zip(self.probabilities(images).values(), self.network.threshold, strict=True):
            values = found[:, :-1]
            columns.append(np.where(values.max(1) >= float(threshold), values.argmax(1), UNREADABLE_LABEL))
        return np.stack(columns, axis=1)

    def likeliest(self, images: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Return the indices of the likeliest values, int [B, 8].

        Every attribute has one, as if it could be read.
        """
        return np.stack([found[:, :-1].argmax(1) for found in self.probabilities(images).values()], axis=1)

    def read(self, images: NDArray[np.uint8]) -> list[dict[str, str]]:
        """Read the attributes of each picture, as attribute -> value or `UNREADABLE`."""
        return [
            {
                name: UNREADABLE if i == UNREADABLE_LABEL else values[i]
                for (name, values), i in zip(self.network.values.items(), row, strict=True)
            }
            for row in self.labels(images)
        ]


@lru_cache(maxsize=len(JUDGES))
def _load_shipped(name: str) -> Judge:
    network = JudgeNetwork(JUDGES[name])
    network.load_state_dict(load_file(asset_folder(name) / WEIGHTS))
    return Judge(network)
