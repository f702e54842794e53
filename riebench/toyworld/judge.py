"""The judge: reads every attribute off a picture. It is the truth that scores are held against.

It is a small convolutional classifier trained on renders alone: on other pictures than the toy CLIP, with damage drawn
from another seed. The two share no weights.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from riebench.models.assets import asset_folder
from riebench.toyworld.augment import augment
from riebench.toyworld.data import Pool
from riebench.toyworld.scenes import ATTRIBUTES
from riebench.toyworld.training import Stage, fit, step_generator

SEED = 41
CONFIG: dict[str, Any] = {"steps": 900, "batch": 64, "learning_rate": 2e-3, "seed": SEED}
WEIGHTS = "model.safetensors"


class JudgeNetwork(nn.Module):
    """Pictures float [B, 3, 64, 64] in [-1, 1] -> one tensor of logits per attribute."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after, stride in ((3, 24, 1), (24, 40, 2), (40, 64, 1), (64, 96, 2), (96, 96, 1), (96, 128, 2)):
            layers += [nn.Conv2d(before, after, 3, stride, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
        self.features = nn.Sequential(*layers, nn.Conv2d(128, 24, 1), nn.Flatten(), nn.Linear(24 * 64, 192), nn.SiLU())
        self.heads = nn.ModuleDict({name: nn.Linear(192, len(values)) for name, values in ATTRIBUTES.items()})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits per attribute, float [B, number of values]."""
        features = self.features(images)
        return {name: head(features) for name, head in self.heads.items()}


class Judge:
    """Reads attributes off 64-px pictures."""

    def __init__(self, network: JudgeNetwork) -> None:
        self.network = network.eval().requires_grad_(False)

    @classmethod
    def load(cls) -> Judge:
        """The judge that ships with the package.

        Raises:
            AssetError: if its weights are damaged or missing.
        """
        return _shipped()

    @torch.no_grad()
    def probabilities(self, images: NDArray[np.uint8], batch_size: int = 128) -> dict[str, NDArray[np.float32]]:
        """Attribute -> float [B, number of values], for pictures uint8 [B, 64, 64, 3].

        Raises:
            ValueError: for pictures of another size or type.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (64, 64, 3):
            raise ValueError(f"the judge reads uint8 pictures [B, 64, 64, 3], not {images.dtype} {list(images.shape)}")
        parts: dict[str, list[NDArray[np.float32]]] = {name: [] for name in ATTRIBUTES}
        for part in torch.from_numpy(images).split(batch_size):
            logits = self.network(part.permute(0, 3, 1, 2).float() / 127.5 - 1)
            for name, values in logits.items():
                parts[name].append(values.softmax(1).numpy())
        return {name: np.concatenate(values) for name, values in parts.items()}

    def labels(self, images: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Value indices int [B, 8], in the order of `ATTRIBUTES`."""
        return np.stack([p.argmax(1) for p in self.probabilities(images).values()], axis=1)

    def read(self, images: NDArray[np.uint8]) -> list[dict[str, str]]:
        """What is on each picture: attribute -> value."""
        return [
            {name: values[i] for (name, values), i in zip(ATTRIBUTES.items(), row, strict=True)}
            for row in self.labels(images)
        ]


@lru_cache(maxsize=1)
def _shipped() -> Judge:
    network = JudgeNetwork()
    network.load_state_dict(load_file(asset_folder("judge") / WEIGHTS))
    return Judge(network)


def train(pool: Pool, work: Path, device: torch.device) -> JudgeNetwork:
    """Trains the judge on the first half of the pool."""
    torch.manual_seed(SEED)
    network = JudgeNetwork().to(device).to(memory_format=torch.channels_last)
    half = len(pool.images) // 2

    def loss(step: int) -> Tensor:
        generator = step_generator(SEED, step)
        indices = torch.randint(half, (CONFIG["batch"],), generator=generator)
        images = augment(torch.from_numpy(pool.images[indices.numpy()]), generator).to(device)
        labels = torch.from_numpy(pool.labels[indices.numpy()]).long().to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            logits = network(images)
        losses = [F.cross_entropy(logits[n].float(), labels[:, i]) for i, n in enumerate(ATTRIBUTES)]
        return torch.stack(losses).mean()

    fit(Stage("judge", CONFIG, network, loss, CONFIG["steps"], CONFIG["learning_rate"], ema_decay=0.995), work)
    return network


def save(network: JudgeNetwork, folder: Path) -> None:
    """Writes the judge's weights in half precision, as the package ships them (they are loaded into float32)."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.half().contiguous() for k, v in network.state_dict().items()}, folder / WEIGHTS)
