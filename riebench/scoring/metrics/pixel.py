"""Metrics of raw pixels over the background: squared error, PSNR and SSIM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from riebench.errors import MetricError
from riebench.scoring.metrics.base import (
    Bool,
    Float,
    Reason,
    Sample,
    UInt8,
    Value,
    check_pair,
    group_by_size,
    metric,
)

if TYPE_CHECKING:
    from riebench.scoring.metrics.networks import Networks

WINDOW = 11
"""Side of SSIM's Gaussian window in pixels."""
RADIUS = WINDOW // 2
SMALL_SIDE = 128
"""Side in pixels up to which a picture is blurred by a product of matrices."""
SIGMA = 1.5
C1, C2 = 0.01**2, 0.03**2
"""SSIM's stabilisers for a data range of 1."""


def mean_squared_error(first: npt.NDArray[Any], second: npt.NDArray[Any], where: Bool) -> Float:
    """Compute the mean squared difference over chosen pixels and all channels.

    Args:
        first: [N, H, W, 3], uint8 or floats in [0, 1].
        second: the same shape.
        where: [N, H, W], the pixels that count; at least one per picture.

    Returns:
        [N], 0 to 1.

    Raises:
        MetricError: for a wrong shape, type or range, or a picture without a chosen pixel.
    """
    first, second = check_pair(first, second)
    if where.shape != first.shape[:3] or not where.any(axis=(1, 2)).all():
        raise MetricError(f"where: expected bool {first.shape[:3]} with a true pixel in each picture")
    per_pixel = ((first - second) ** 2).mean(axis=3)
    return np.asarray((per_pixel * where).sum(axis=(1, 2)) / where.sum(axis=(1, 2)))


def mean_squared_error_zeroed(first: npt.NDArray[Any], second: npt.NDArray[Any], where: Bool) -> Float:
    """Compute the mean squared difference with all other pixels set to 0.

    The mean is over the whole frame (profile `piebench`). It is `mean_squared_error` times the share of chosen pixels,
    so it rewards large regions, and serves only to compare with published tables. Arguments, result and errors are as
    in `mean_squared_error`.
    """
    return mean_squared_error(first, second, where) * where.mean(axis=(1, 2))


def psnr(squared_error: Float) -> Float:
    """Compute the peak signal-to-noise ratio in dB of mean squared errors.

    The errors are of pictures in [0, 1]; the ratio is infinite for an error of 0.
    """
    with np.errstate(divide="ignore"):
        return np.asarray(-10 * np.log10(squared_error))


def _gaussian() -> Float:
    offsets = np.arange(WINDOW) - RADIUS
    weights = np.exp(-(offsets**2) / (2 * SIGMA**2))
    return np.asarray(weights / weights.sum())


WEIGHTS = _gaussian()
"""SSIM's window along one axis, [11], with a sum of 1."""


def _blur(picture: Float) -> Float:
    """Blur one picture [H, W, 3] along both axes.

    Only windows that lie inside it are kept. Small pictures are multiplied by the windows as a matrix, which takes half
    the time of shifted sums; for large ones it would take longer.
    """
    rows, columns = picture.shape[0] - WINDOW + 1, picture.shape[1] - WINDOW + 1
    if max(picture.shape[:2]) <= SMALL_SIDE:
        down = (_windows(rows) @ picture.reshape(len(picture), -1)).reshape(rows, *picture.shape[1:])
        return np.asarray(_windows(columns) @ down)
    down = _weighted_sum([picture[i : i + rows] for i in range(WINDOW)])
    return _weighted_sum([down[:, i : i + columns] for i in range(WINDOW)])


@lru_cache(maxsize=4)
def _windows(count: int) -> Float:
    """Return the weights of `count` windows, a matrix [count, count + 10]."""
    matrix = np.zeros((count, count + WINDOW - 1))
    for i in range(count):
        matrix[i, i : i + WINDOW] = WEIGHTS
    return matrix


def _weighted_sum(parts: Sequence[Float]) -> Float:
    # In place: a picture's sums stay in the processor's cache.
    total = parts[0] * WEIGHTS[0]
    weighted = np.empty_like(total)
    for part, weight in zip(parts[1:], WEIGHTS[1:], strict=True):
        np.multiply(part, weight, out=weighted)
        total += weighted
    return total


@dataclass(frozen=True)
class _Moments:
    """One picture's pixels, local means and local variances."""

    pixels: Float
    mean: Float
    variance: Float

    @classmethod
    def of(cls, pixels: Float) -> _Moments:
        mean = _blur(pixels)
        return cls(pixels, mean, _blur(pixels * pixels) - mean**2)


def ssim_map(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> Float:
    """Compute the structural similarity of every whole window, averaged over channels.

    Args:
        first: [N, H, W, 3], uint8 or floats in [0, 1]; sides of at least 11 pixels.
        second: the same shape.

    Returns:
        [N, H - 10, W - 10], -1 to 1; entry (y, x) is the window centred on pixel (y + 5, x + 5).

    Raises:
        MetricError: for a wrong shape, type or range, or pictures that are too small.
    """
    a, b = check_pair(first, second)
    if min(a.shape[1:3]) < WINDOW:
        raise MetricError(f"SSIM needs pictures of at least {WINDOW} pixels a side, got {a.shape[1:3]}")
    found, moments = [], None
    for one, other in zip(a, b, strict=True):
        # Edits of one source picture follow one another.
        if moments is None or not np.array_equal(other, moments.pixels):
            moments = _Moments.of(other)
        found.append(_similarity(_Moments.of(one), moments))
    return np.stack(found) if found else np.zeros((0, a.shape[1] - WINDOW + 1, a.shape[2] - WINDOW + 1))


def _similarity(a: _Moments, b: _Moments) -> Float:
    covariance = _blur(a.pixels * b.pixels) - a.mean * b.mean
    luminance = (2 * a.mean * b.mean + C1) / (a.mean**2 + b.mean**2 + C1)
    structure = (2 * covariance + C2) / (a.variance + b.variance + C2)
    return np.asarray((luminance * structure).mean(axis=2))


def whole_windows(background: Bool) -> Bool:
    """Find the windows that lie in the background entirely.

    This is the background eroded by 5 pixels.

    Args:
        background: bool [N, H, W].

    Returns:
        bool [N, H - 10, W - 10], aligned with `ssim_map`; pixels outside the frame do not count as background.
    """
    rows, columns = background.shape[1] - WINDOW + 1, background.shape[2] - WINDOW + 1
    down = reduce(np.logical_and, (background[:, i : i + rows] for i in range(WINDOW)))
    return np.asarray(reduce(np.logical_and, (down[:, :, i : i + columns] for i in range(WINDOW))))


def _stack(samples: Sequence[Sample], positions: list[int]) -> tuple[UInt8, UInt8, Bool]:
    chosen = [samples[position] for position in positions]
    return (
        np.stack([s.edited for s in chosen]), np.stack([s.source for s in chosen]),
        np.stack([s.background for s in chosen]),
    )  # fmt: skip


def _errors(samples: Sequence[Sample]) -> list[Value]:
    values: list[Value] = [Reason.NO_BACKGROUND] * len(samples)
    for group in group_by_size(samples):
        positions = [position for position in group if samples[position].has_background]
        if positions:
            edited, source, background = _stack(samples, positions)
            for position, value in zip(positions, mean_squared_error(edited, source, background), strict=True):
                values[position] = float(value)
    return values


@metric(direction="lower", low=0, high=1)
def mse_bg(samples: Sequence[Sample], networks: Networks) -> list[Value]:
    """Compute the mean squared error to the source over the background.

    Pixels are in [0, 1].
    """
    return _errors(samples)


@metric(direction="higher", low=0, high=None)
def psnr_bg(samples: Sequence[Sample], networks: Networks) -> list[Value]:
    """Compute the PSNR of `mse_bg` in dB; missing for an untouched background.

    The reason is then `identical`.
    """
    return [
        value if isinstance(value, Reason) else Reason.IDENTICAL if value == 0 else float(psnr(np.array(value)))
        for value in _errors(samples)
    ]


@metric(direction="higher", low=-1, high=1)
def ssim_bg(samples: Sequence[Sample], networks: Networks) -> list[Value]:
    """Compute the mean SSIM to the source over windows inside the background."""
    values: list[Value] = [Reason.NO_BACKGROUND] * len(samples)
    for group in group_by_size(samples):
        edited, source, background = _stack(samples, group)
        inside = whole_windows(background)
        similarity = ssim_map(edited, source)
        for position, chosen, picture in zip(group, inside, similarity, strict=True):
            if samples[position].has_background and chosen.any():
                values[position] = float(picture[chosen].mean())
    return values
