"""The quality of an SAE by construction, measured without any edit.

Its single features are compared with known attribute values.

The level of a feature in a scene is its mean value over positions. For each attribute value two things are known of a
feature: the area under the ROC curve with which its level tells scenes with the value from those without, and the
cosine between its direction and the true one. Its truth about the value is (2 area - 1) x cosine, not below 0: 1 for a
feature that is the value, 0 for one that tells nothing or writes in another direction. The feature of the highest truth
is chosen on one half of the scenes and measured on the other. `measure_truth` does that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor

from riebench.sae_validity.scenes import SceneUpdates
from riebench.sae_validity.true_dictionary import ValueDirection
from riebench.saes.sae import SparseAutoencoder
from riebench.tasks.schema import Count, StoredModel

_CHUNK = 8192


class ValueTruth(StoredModel):
    """The best single feature of one attribute value."""

    value: str
    """Attribute and value, such as color:red."""
    block: str
    feature: Count
    area: float
    """Under the ROC curve, on scenes that the feature was not chosen on: 0.5 for chance."""
    cosine: float
    """Between the feature's direction and the true one of its block."""

    @property
    def truth(self) -> float:
        """Agreement with the value, from 0 to 1."""
        return float(_truth(np.array(self.area), np.array(self.cosine)))


def measure_truth(
    saes: Mapping[str, SparseAutoencoder], scenes: SceneUpdates, directions: Mapping[str, list[ValueDirection]]
) -> list[ValueTruth]:
    """Find the best single feature of every attribute value.

    Args:
        saes: block -> SAE of its updates.
        scenes: random scenes that nothing was trained on.
        directions: block -> its values' directions, from scenes that no dictionary was made from.

    Returns:
        One entry for each block and value that it carries.
    """
    found = []
    half = torch.arange(len(scenes.labels)) % 2 == 0
    for block, sae in saes.items():
        levels = _levels(sae, scenes.updates[block])
        for one in directions[block]:
            if not one.carried:
                continue
            has = scenes.has(one.attribute, one.value)
            cosines = (sae.directions @ one.direction).numpy()
            best = int(np.argmax(_truth(areas(levels[half], has[half]), cosines)))
            area = float(areas(levels[~half][:, [best]], has[~half])[0])
            found.append(
                ValueTruth(
                    value=one.name, block=block, feature=best, area=round(area, 4),
                    cosine=round(float(cosines[best]), 4),
                )
            )  # fmt: skip
    return found


def areas(levels: Tensor, has: Tensor) -> NDArray[np.float64]:
    """Compute the area under the ROC curve of each feature.

    Args:
        levels: [scenes, n].
        has: bool [scenes], with at least one of each.

    Returns:
        [n], 0.5 where a feature is the same in all scenes.
    """
    ranks = np.asarray(rankdata(levels.numpy(), axis=0))
    inside = has.numpy()
    positive, negative = int(inside.sum()), int((~inside).sum())
    above: NDArray[np.float64] = ranks[inside].sum(axis=0) - positive * (positive + 1) / 2
    return above / (positive * negative)


def _truth(area: NDArray[Any], cosine: NDArray[Any]) -> NDArray[Any]:
    """Return the truth of features about a value, elementwise from 0 to 1."""
    found: NDArray[Any] = np.clip(2 * area - 1, 0, None) * np.clip(cosine, 0, None)
    return found


@torch.no_grad()
def _levels(sae: SparseAutoencoder, updates: Tensor) -> Tensor:
    """Return the mean value of each feature in each scene: [scenes, n]."""
    count, positions, width = updates.shape
    rows = updates.reshape(count * positions, width)
    codes = [sae.encode(part.float()) for part in rows.split(_CHUNK // positions * positions or positions)]
    return torch.cat([part.unflatten(0, (-1, positions)).mean(dim=1) for part in codes])
