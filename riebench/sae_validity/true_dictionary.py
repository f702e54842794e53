"""The true dictionary: one feature for each attribute value that a block carries.

The toy world's scenes are known, so the direction that a value adds to a block's update is known as well: the mean
difference between pictures that have the value and pictures of the same scene, noise and words that have another one.

`value_directions` computes the directions, `true_dictionary` the features, and `save_true` writes them as an SAE. A
feature's value is the amount of its direction by generalised least squares: other variation of the updates counts by
its covariance, so that neighbouring values disturb little. It is about 0 where the value is absent, and a threshold
half way to the amount that a present value has decides where the feature is active.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor, nn

from riebench.sae_validity.scenes import PairUpdates
from riebench.saes.figures import FeatureStatistics, feature_statistics
from riebench.saes.readers.saelens import save_jumprelu
from riebench.scoring.metrics.judge_network import ATTRIBUTES

AGREEMENT = 0.7
"""Least cosine between a direction's estimates from two halves of the scenes with which a block carries the value."""
SIZE = 0.2
"""Least size of an attribute's values in a block that carries them, as a mean: see `ValueDirection.size`.

Attributes that a block reads from the text reach 0.4 and more in it. Smaller sizes are what a later block does because
the image before it has changed.
"""
RIDGE = 1e-3
"""Added to the covariance of the updates, in units of their mean variance."""
NEVER = 1e9
"""Threshold of the one feature of a block that carries nothing, which is never active."""


@dataclass(frozen=True)
class ValueDirection:
    """The direction that one attribute value adds to a block's update.

    Attributes:
        attribute: name.
        value: one of its values.
        direction: [d], of length one.
        amount: mean length of the difference along it, where the value shows.
        agreement: cosine between the estimates from both halves of the scenes.
        size: the squared amount over the variance of the updates, which is above 1 where few positions show much.
        carried: whether the block carries the value.
    """

    attribute: str
    value: str
    direction: Tensor
    amount: float
    agreement: float
    size: float
    carried: bool

    @property
    def name(self) -> str:
        """The attribute and its value, such as color:red."""
        return f"{self.attribute}:{self.value}"


@dataclass(frozen=True)
class TrueFeatures:
    """The features of one block.

    Attributes:
        names: attribute values, one for each feature.
        encoder: [n, d].
        directions: [n, d], unit rows.
        center: [d], mean of the updates.
        latent_bias: [n].
        threshold: [n].
    """

    names: tuple[str, ...]
    encoder: Tensor
    directions: Tensor
    center: Tensor
    latent_bias: Tensor
    threshold: Tensor

    def codes(self, x: Tensor) -> Tensor:
        """Compute feature values [N, n] of positions [N, d]."""
        values = (x - self.center) @ self.encoder.T + self.latent_bias
        return values.relu() * (values > self.threshold)


def value_directions(pairs: PairUpdates, block: str) -> list[ValueDirection]:
    """Compute the direction of every attribute value in one block.

    Args:
        pairs: scenes in all values of each attribute, at least two.
        block: short name.
    """
    variance = float(pairs.positions(block).float().var(dim=0, correction=0).sum())
    return [one for attribute in ATTRIBUTES for one in _attribute_directions(pairs, block, attribute, variance)]


def _attribute_directions(pairs: PairUpdates, block: str, attribute: str, variance: float) -> list[ValueDirection]:
    differences = pairs.differences(block, attribute)
    means = differences.mean(dim=2)
    directions = nn.functional.normalize(means.mean(dim=0), dim=1)
    even, odd = (means[half::2].mean(dim=0) for half in (0, 1))
    agreements = nn.functional.cosine_similarity(even, odd, dim=1).tolist()
    amounts = [_weighted(differences[:, i] @ row) for i, row in enumerate(directions)]
    sizes = [amount**2 / variance for amount in amounts]
    carries = fmean(sizes) >= SIZE
    return [
        ValueDirection(
            attribute, value, directions[i], amounts[i], agreements[i], sizes[i], carries and agreements[i] >= AGREEMENT
        )
        for i, value in enumerate(ATTRIBUTES[attribute])
    ]  # fmt: skip


def true_dictionary(pairs: PairUpdates, block: str) -> TrueFeatures:
    """Compute the features of one block: one for each value that it carries.

    Args:
        pairs: scenes in all values of each attribute.
        block: short name.
    """
    positions = pairs.positions(block).float()
    center = positions.mean(dim=0)
    carried = [one for one in value_directions(pairs, block) if one.carried]
    if not carried:
        nothing = torch.eye(1, positions.shape[1])
        return TrueFeatures(("nothing",), nothing, nothing.clone(), center, torch.zeros(1), torch.full((1,), NEVER))
    covariance = torch.cov(positions.T.double(), correction=0)
    covariance += RIDGE * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=torch.float64)
    directions = torch.stack([one.direction for one in carried])
    solved = torch.linalg.solve(covariance, directions.T.double()).T.float()
    encoder = solved / (solved * directions).sum(dim=1, keepdim=True)
    absent, present = _levels(pairs, block, carried, encoder)
    return TrueFeatures(
        tuple(one.name for one in carried), encoder, directions, center, encoder @ center - absent,
        ((present - absent) / 2).clamp(min=0),
    )  # fmt: skip


def save_true(features: TrueFeatures, data: Tensor, folder: Path, block: str) -> FeatureStatistics:
    """Write the features of one block as a JumpReLU SAE in the layout of SAELens.

    Args:
        features: of the block.
        data: [N, d], positions that the features' statistics are computed over.
        folder: gets the files.
        block: short name.
    """
    statistics = feature_statistics(features.codes, data)
    save_jumprelu(
        folder, encoder=features.encoder, decoder=features.directions.T, pre_bias=features.center,
        latent_bias=features.latent_bias, threshold=features.threshold, k=len(ATTRIBUTES), block=block,
        mean=statistics.mean, std=statistics.std, extra={"features": list(features.names)},
    )  # fmt: skip
    return statistics


def _levels(
    pairs: PairUpdates, block: str, carried: list[ValueDirection], encoder: Tensor
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return each feature's mean before its bias, without and with its value.

    Both are [n], taken at the positions where the value shows, by how much it does.
    """
    absent, present = [], []
    for one, row in zip(carried, encoder, strict=True):
        index = ATTRIBUTES[one.attribute].index(one.value)
        shown = (pairs.differences(block, one.attribute)[:, index] @ one.direction).clamp(min=0)
        levels = pairs.values[block][one.attribute].float() @ row
        others = (levels.sum(dim=1) - levels[:, index]) / (levels.shape[1] - 1)
        absent.append((others * shown).sum() / shown.sum())
        present.append((levels[:, index] * shown).sum() / shown.sum())
    return torch.stack(absent), torch.stack(present)


def _weighted(amounts: Tensor) -> float:
    """Return the mean of the positive amounts, each weighted by itself."""
    positive = amounts.clamp(min=0)
    return float(positive.square().sum() / positive.sum().clamp(min=torch.finfo(torch.float32).tiny))
