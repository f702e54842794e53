"""The judge and its training: a classifier that reads every attribute.

Its answers are the ground truth that scores are compared with. It is a small convolutional classifier trained on
renders alone: on other pictures than the toy CLIP, with augmentation drawn from another seed. The two share no weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from riebench.scoring.metrics.judge_network import ATTRIBUTES, WEIGHTS, JudgeNetwork
from riebench.toyworld.data import Pool, augment
from riebench.toyworld.networks.loop import Stage, fit, step_generator

SEED = 41
CONFIG: dict[str, Any] = {"steps": 900, "batch": 64, "learning_rate": 2e-3, "seed": SEED}


def train(pool: Pool, work: Path, device: torch.device) -> JudgeNetwork:
    """Train the judge on the first half of the pool."""
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
    """Write the judge's weights in half precision, as the package ships them.

    They are loaded into float32.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.half().contiguous() for k, v in network.state_dict().items()}, folder / WEIGHTS)
