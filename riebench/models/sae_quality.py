"""Figures that say how well an SAE describes the activations of a model.

`SaeFigures` are those of one SAE on one signal of its block; `faults` says in words what is poor about them. This
module needs no torch.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PlainSerializer

from riebench.tasks.schema import Count, StoredModel

POOR_VARIANCE = 0.5
"""Explained variance below which an SAE is poor."""
MOST_ACTIVE = 2.0
"""L0, as a multiple of k, above which an SAE is poor."""
DENSE_SHARE = 0.25
"""L0, as a share of all features, above which an SAE without a k is poor."""
MOST_DEAD = 0.9
"""Share of dead features above which an SAE is poor, if there were values enough to see more of them."""
VALUES_A_FEATURE = 10
"""Active values for each feature from which on dead features count: a few positions show few features of any SAE."""
FAR_MEAN = 2.0
"""Distance of the input's mean from what the SAE subtracts, in spreads of the input, above which it is poor."""
GOOD_VARIANCE = 0.9
"""Explained variance from which on a far mean does not count: trainings may move the subtracted mean anywhere."""

Quantity = Literal["input", "output", "update"]
"""What of a block an SAE reads or reconstructs."""

ExplainedVariance = Annotated[
    float,
    Field(le=1, allow_inf_nan=True),
    BeforeValidator(lambda stated: -math.inf if stated is None else stated),
    PlainSerializer(lambda value: value if math.isfinite(value) else None, when_used="json"),
]
"""Explained variance; minus infinity, stored as null, where a reconstruction is not finite."""


class SaeFigures(StoredModel):
    """Measured figures of one SAE on one signal of its block."""

    l0: float
    """Features that are not zero, mean over positions."""
    explained_variance: ExplainedVariance
    """1 - summed squared error / summed squared distance to the mean, over all positions and channels together."""
    dead_share: float
    """Share of features that are zero at every measured position."""
    positions: Count
    """Number of measured positions."""
    mean_distance: float | None = None
    """Distance of the input's mean from the mean that the SAE subtracts, divided by the input's spread.

    The spread is the root of the mean squared distance to the mean. None for an SAE that subtracts none, or
    normalises each position first.
    """
    size_ratio: float | None = None
    """Spread of the reconstructions divided by that of what is reconstructed; None where it is not finite."""

    @property
    def useless(self) -> bool:
        """True if the SAE explains nothing.

        Its reconstructions are worse than the mean alone, or not finite.
        """
        return not self.explained_variance >= 0

    def faults(self, features: int, k: int | None) -> list[str]:
        """Return what is poor about these figures, in words.

        There is nothing if they are as they should be.

        Args:
            features: number of features of the SAE.
            k: features that it keeps at a position, if it says so.
        """
        found = []
        if self.explained_variance < POOR_VARIANCE:
            found.append(f"explained variance {variance_text(self.explained_variance)}{self._size_text()}")
        if k is not None and self.l0 > MOST_ACTIVE * k:
            found.append(f"{self.l0:.4g} features are active at a position (L0), and k is {k}")
        elif k is None and self.l0 > DENSE_SHARE * features:
            found.append(f"{self.l0:.4g} of {features} features are active at a position (L0)")
        if self.dead_share > MOST_DEAD and self.l0 * self.positions >= VALUES_A_FEATURE * features:
            found.append(f"{self.dead_share:.0%} of its features are dead")
        far = self.mean_distance is not None and self.mean_distance > FAR_MEAN
        if far and self.explained_variance < GOOD_VARIANCE:
            found.append(f"its input's mean is {self.mean_distance:.3g} spreads from the mean that it subtracts")
        return found

    def _size_text(self) -> str:
        if self.size_ratio is None or 0.5 <= self.size_ratio <= 2:
            return ""
        return f" (its reconstructions vary {self.size_ratio:.3g} times as much as what they stand for)"


def variance_text(value: float, decimals: int = 2) -> str:
    """Return an explained variance as it is printed."""
    return f"{value:.{decimals}f}" if math.isfinite(value) else "not finite"
