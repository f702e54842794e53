"""A number of the validity tables, with its interval, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from riebench.inference import interval
from riebench.tradeoff import Examples

Floats = NDArray[np.float64]

MIN_DEFINED = 0.95
"""Share of the replicates in which a number must exist for its interval to be shown."""
FEW = "fewer than 2 independent examples in a category"
RARE = "undefined in more than 5 % of the replicates"


@dataclass(frozen=True)
class Cell:
    """One number.

    Attributes:
        value: None where it is undefined.
        low: lower end of the 95 % interval; None where there is none.
        high: upper end.
        n: pictures, pairs or methods behind it.
        reason: why there is no value, or no interval; "" if both are there.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    reason: str = ""

    def text(self, scale: float = 1, decimals: int = 2) -> str:
        """The cell as printed."""
        if self.value is None:
            return f"– ({self.reason})"
        number = _number(self.value * scale, decimals)
        if self.low is None or self.high is None:
            return f"{number} [{self.reason}]"
        return f"{number} [{_number(self.low * scale, decimals)}, {_number(self.high * scale, decimals)}]"


def _number(value: float, decimals: int) -> str:
    return f"{round(value, decimals) + 0.0:.{decimals}f}"


def missing(reason: str, n: int = 0) -> Cell:
    """A cell without a value."""
    return Cell(None, None, None, n, reason)


def estimated(draws: Floats, n: int, examples: Examples, positions: Sequence[int], reason: str) -> Cell:
    """A cell from a number's replicates.

    Args:
        draws: [1 + R], the observed number first; nan where undefined.
        n: what is behind it.
        examples: all examples.
        positions: those behind this number.
        reason: what is said if the observed number is undefined.
    """
    if not np.isfinite(draws[0]):
        return missing(reason, n)
    value, others = float(draws[0]), draws[1:]
    groups: dict[str, set[str]] = {}
    for index in positions:
        groups.setdefault(examples.categories[index], set()).add(examples.clusters[index])
    if min((len(found) for found in groups.values()), default=0) < 2:
        return Cell(value, None, None, n, FEW)
    ends = interval(others)
    if ends is None or np.isfinite(others).mean() < MIN_DEFINED:
        return Cell(value, None, None, n, RARE)
    return Cell(value, *ends, n)


def ratio(numerators: Floats, denominators: Floats) -> Floats:
    """Quotients of replicates; nan where the denominator is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(denominators > 0, numerators / denominators, np.nan)
