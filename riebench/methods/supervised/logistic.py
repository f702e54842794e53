"""Logistic regression with two classes of equal weight."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

PENALTY = 1.0
"""Weight of half the squared length of the coefficients beside the sum of losses; inputs have unit deviation."""
ITERATIONS = 200
"""Most steps of the optimiser."""


def fit_logistic(present: Floats, absent: Floats) -> Floats:
    """Fit a linear probe that tells two sets of samples apart.

    The samples are centred and divided by their root mean squared deviation over all coordinates. The loss is the sum
    of the samples' logistic losses, each class weighted to half of the samples, plus an L2 penalty; it is convex, and
    L-BFGS starts from zero, so that the result depends on the samples alone.

    Args:
        present: [n, d], samples with the concept.
        absent: [m, d], samples without.

    Returns:
        The direction of the probe, float64 [d], of any length; zero if there is nothing to tell apart.
    """
    from scipy.optimize import minimize

    samples = np.concatenate([present, absent]).astype(np.float64)
    samples = samples - samples.mean(0)
    spread = float(np.sqrt(np.square(samples).mean()))
    if not len(present) or not len(absent) or spread == 0:
        return np.zeros(samples.shape[1])
    samples /= spread
    signs = np.concatenate([np.ones(len(present)), -np.ones(len(absent))])
    counts = np.where(signs > 0, len(present), len(absent))
    weights = len(samples) / (2 * counts)

    def loss(parameters: Floats) -> tuple[float, Floats]:
        direction, offset = parameters[:-1], parameters[-1]
        margins = signs * (samples @ direction + offset)
        value = float(weights @ np.logaddexp(0, -margins) + PENALTY / 2 * direction @ direction)
        slopes = -signs * weights * np.exp(-np.logaddexp(0, margins))
        return value, np.append(samples.T @ slopes + PENALTY * direction, slopes.sum())

    start = np.zeros(samples.shape[1] + 1)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": ITERATIONS})
    return np.asarray(found.x[:-1], dtype=np.float64)
