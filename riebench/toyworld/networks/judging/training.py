"""The judge and its training: a classifier that reads attributes, if it can.

Its answers are the ground truth that scores are compared with. It is a small convolutional classifier trained on
renders, whole ones and damaged ones: on other pictures than the toy CLIP, with augmentation drawn from another seed.
The two share no weights. Its probabilities are calibrated on pictures kept out of training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from riebench.scoring.metrics.judge_network import (
    ATTRIBUTES,
    UNREADABLE_LABEL,
    WEIGHTS,
    WIDE_ATTRIBUTES,
    JudgeNetwork,
    Values,
)
from riebench.toyworld.data import Pool, augment
from riebench.toyworld.networks.judging.damage import NO_LABEL, LabelledPool
from riebench.toyworld.networks.loop import Stage, fit, step_generator

SEED = 41
CONFIG: dict[str, Any] = {"steps": 900, "batch": 64, "learning_rate": 2e-3, "seed": SEED}
"""The first part of the training, on whole renders."""
DAMAGED_CONFIG: dict[str, Any] = {
    "steps": 500, "batch": 64, "damaged": 4_000, "damaged_share": 0.6, "learning_rate": 1.5e-3, "seed": SEED + 1,
}  # fmt: skip
"""The second part, which teaches what cannot be read: `damaged_share` of a batch are damaged pictures."""
EDITED_CONFIG: dict[str, Any] = {
    "steps": 300, "batch": 64, "damaged_share": 0.25, "edited_share": 0.35, "learning_rate": 1e-3, "seed": SEED + 2,
}  # fmt: skip
"""The third part: `edited_share` of a batch are edited pictures of the model, which no code can imitate."""
BY_EYE_CONFIG: dict[str, Any] = {
    "steps": 160, "batch": 64, "damaged_share": 0.156, "edited_share": 0.125, "by_eye_share": 0.1875,
    "unedited_share": 0.219, "learning_rate": 4e-4, "warmup": 30, "weight_decay": 0.02, "ema_decay": 0.985,
    "mirrored": 0.25, "seed": SEED + 3,
}  # fmt: skip
"""The last part: `by_eye_share` of a batch are edited pictures labelled by eye, since what an eye can tell is no matter
of code, and `unedited_share` pictures of the model that show their captions; `mirrored` is the share of pictures that
are mirrored."""
WIDE_CONFIG: dict[str, Any] = {
    "steps": 900, "batch": 64, "damaged": 4_000, "damaged_share": 0.34, "by_eye_share": 0.125, "decoded_share": 0.3,
    "learning_rate": 1.5e-3, "seed": SEED + 4,
}  # fmt: skip
"""The first part of the second world's judge, which starts from the first's: `by_eye_share` of a batch are pictures of
the first world, `decoded_share` renders that passed through the autoencoder, as the model's pictures do."""
WIDE_EDITED_CONFIG: dict[str, Any] = {
    "steps": 300, "batch": 64, "damaged_share": 0.156, "edited_share": 0.22, "own_by_eye_share": 0.22,
    "unedited_share": 0.156, "decoded_share": 0.1, "learning_rate": 6e-4, "warmup": 30, "weight_decay": 0.02,
    "ema_decay": 0.985, "mirrored": 0.25, "seed": SEED + 5,
}  # fmt: skip
"""Its second part: edited pictures of the second world's own model, labelled by code and by eye, and unedited ones."""
IGNORED = -100
"""Class of an attribute without label: it adds nothing to the loss."""

RISK = 0.05
"""Share of errors among the values of an attribute that are read, on pictures labelled by eye, that is aimed at."""
READ_UNEDITED = 0.75
"""Least share of the values in unedited pictures that is read, whatever the risk: scores need a judge that answers."""

TEMPERATURES = np.geomspace(0.5, 4, 43)


def classes(labels: Tensor, values: Values = ATTRIBUTES) -> Tensor:
    """Return the class of each label: "unreadable" is the last of an attribute.

    Args:
        labels: int [N, 8], as of `damaged_picture`.
        values: those of the world.

    Returns:
        int64 [N, 8]; `IGNORED` where there is no label.
    """
    last = torch.tensor([len(some) for some in values.values()])
    found = torch.where(labels == UNREADABLE_LABEL, last, labels.long())
    return found.masked_fill(labels == NO_LABEL, IGNORED)


@dataclass(frozen=True)
class TrainingPools:
    """Pictures that the judge learns from.

    Attributes:
        whole: renders; the judge uses the first half.
        damaged: renders damaged by code.
        edited: edited pictures labelled by code.
        by_eye: edited pictures labelled by eye.
        unedited: the model's pictures of captions, labelled by these.
    """

    whole: Pool
    damaged: LabelledPool
    edited: LabelledPool
    by_eye: LabelledPool
    unedited: LabelledPool


def train(pools: TrainingPools, work: Path, device: torch.device) -> JudgeNetwork:
    """Train the judge on whole pictures, then on damaged and edited ones as well.

    Labels by eye come last.

    Args:
        pools: the pictures.
        work: folder for checkpoints and logs.
        device: trains there.
    """
    torch.manual_seed(SEED)
    network = JudgeNetwork().to(device).to(memory_format=torch.channels_last)
    sources = {
        "damaged_share": pools.damaged, "edited_share": pools.edited, "by_eye_share": pools.by_eye,
        "unedited_share": pools.unedited, "": first_half(pools.whole),
    }  # fmt: skip
    parts = {
        "judge": CONFIG, "judge-damaged": DAMAGED_CONFIG, "judge-edited": EDITED_CONFIG, "judge-by-eye": BY_EYE_CONFIG,
    }  # fmt: skip
    for name, config in parts.items():
        _train_part(network, sources, name, config, work)
    return network


def train_wide(sources: Mapping[str, LabelledPool], start: Path, work: Path, device: torch.device) -> JudgeNetwork:
    """Train the second world's judge from that of the first.

    Args:
        sources: pictures by the name of their share in `WIDE_CONFIG` and `WIDE_EDITED_CONFIG`; those of the name ""
            fill the rest of a batch.
        start: folder of the first world's judge.
        work: folder for checkpoints and logs.
        device: trains there.
    """
    torch.manual_seed(WIDE_CONFIG["seed"])
    network = widened(load_file(start / WEIGHTS)).to(device).to(memory_format=torch.channels_last)
    _train_part(network, sources, "mixed-judge", WIDE_CONFIG, work)
    _train_part(network, sources, "mixed-judge-edited", WIDE_EDITED_CONFIG, work)
    return network


@torch.no_grad()
def widened(state: dict[str, Tensor]) -> JudgeNetwork:
    """Build the second world's judge with the weights of the first's.

    Weights of further values are drawn at random.

    Args:
        state: weights of the first world's judge.
    """
    network = JudgeNetwork(WIDE_ATTRIBUTES)
    own = network.state_dict()
    for key, value in state.items():
        if value.shape == own[key].shape:
            own[key].copy_(value)
        else:  # a head: "unreadable" stays last
            own[key][: len(value) - 1] = value[:-1]
            own[key][-1] = value[-1]
    return network


def first_half(pool: Pool) -> LabelledPool:
    """Return the renders that a judge learns from; the CLIP has the others."""
    first = pool.halves()[0]
    return LabelledPool(first.images, first.labels.astype(np.int8))


def _train_part(
    network: JudgeNetwork, sources: Mapping[str, LabelledPool], name: str, config: dict[str, Any], work: Path
) -> None:
    device = network.temperature.device

    def loss(step: int) -> Tensor:
        generator, left, images, labels = step_generator(config["seed"], step), config["batch"], [], []
        for share, source in sources.items():
            count = round(config["batch"] * config.get(share, 0)) if share else left
            chosen = torch.randint(len(source.images), (count,), generator=generator).numpy()
            images.append(source.images[chosen])
            labels.append(source.labels[chosen])
            left -= count
        x = augment(torch.from_numpy(np.concatenate(images)), generator).to(device)
        if "mirrored" in config:
            mirrored = torch.rand(len(x), generator=generator) < config["mirrored"]
            x = torch.where(mirrored.to(device).view(-1, 1, 1, 1), x.flip(-1), x)
        wanted = classes(torch.from_numpy(np.concatenate(labels)), network.values).to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            logits = network(x)
        losses = [
            F.cross_entropy(logits[n].float(), wanted[:, i], ignore_index=IGNORED) for i, n in enumerate(ATTRIBUTES)
        ]
        return torch.stack(losses).mean()

    stage = Stage(
        name, config, network, loss, config["steps"], config["learning_rate"],
        warmup=config.get("warmup", Stage.warmup), weight_decay=config.get("weight_decay", Stage.weight_decay),
        ema_decay=config.get("ema_decay", 0.99),
    )  # fmt: skip
    fit(stage, work)


@torch.no_grad()
def calibrate(network: JudgeNetwork, by_eye: LabelledPool, unedited: LabelledPool) -> None:
    """Set temperatures and thresholds on pictures that it was not trained on.

    The temperature of an attribute gives its labels by eye the highest likelihood. Its threshold lets as much be read
    as `RISK` allows on the pictures labelled by eye (a value read where the label is "unreadable" is an error too), but
    at least `READ_UNEDITED` of what unedited pictures show.

    Args:
        network: its `temperature` and `threshold` are set.
        by_eye: edited pictures labelled by eye.
        unedited: pictures that show what their captions say.
    """
    network.eval()
    logits = [_logits(network, pool) for pool in (by_eye, unedited)]
    wanted = [classes(torch.from_numpy(pool.labels), network.values) for pool in (by_eye, unedited)]
    for i, name in enumerate(ATTRIBUTES):
        losses = [float(F.cross_entropy(logits[0][name] / float(t), wanted[0][:, i])) for t in TEMPERATURES]
        network.temperature[i] = float(TEMPERATURES[int(np.argmin(losses))])
        likely, right = [], []
        for found, true in zip(logits, wanted, strict=True):
            best = (found[name] / network.temperature[i]).softmax(1)[:, :-1].max(1)
            likely.append(best.values.numpy())
            right.append((best.indices == true[:, i]).numpy())
        least_unedited = float(np.quantile(likely[1][right[1]], 1 - READ_UNEDITED))
        network.threshold[i] = min(threshold(likely[0], right[0]), least_unedited)


def _logits(network: JudgeNetwork, pool: LabelledPool) -> dict[str, Tensor]:
    parts: dict[str, list[Tensor]] = {name: [] for name in network.values}
    for images in torch.from_numpy(pool.images).split(128):
        for name, values in network(images.permute(0, 3, 1, 2).float() / 127.5 - 1).items():
            parts[name].append(values.float())
    return {name: torch.cat(some) for name, some in parts.items()}


def threshold(likely: NDArray[np.float32], right: NDArray[np.bool_], risk: float = RISK) -> float:
    """Return the least probability from which on few enough values are wrong.

    Args:
        likely: probability of each likeliest value, [N].
        right: whether it is the label, [N].
        risk: share of errors allowed.

    Returns:
        A probability of `likely`; 1 if even the likeliest values are wrong too often.
    """
    order = np.argsort(-likely, kind="stable")
    errors = np.cumsum(~right[order]) / np.arange(1, len(order) + 1)
    allowed = np.flatnonzero(errors <= risk)
    return float(likely[order][allowed[-1]]) if len(allowed) else 1.0


def save(network: JudgeNetwork, folder: Path) -> None:
    """Write the judge's weights in half precision, as the package ships them.

    They are loaded into float32.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.half().contiguous() for k, v in network.state_dict().items()}, folder / WEIGHTS)
