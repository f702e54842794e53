"""Metrics of raw pixels over the background: squared error, PSNR and SSIM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from riebench.errors import MetricError
from riebench.scoring.metrics.base import (
    Bool,
    Float,
    Reason,
    Sample,
    Value,
    check_shapes,
    group_by_size,
    metric,
    unit_range,
)

if TYPE_CHECKING:
    from riebench.scoring.metrics.networks import Networks

WINDOW = 11
"""Side of SSIM's Gaussian window in pixels."""
RADIUS = WINDOW // 2
BAND = 18
"""Windows along an axis that are summed by one product of matrices."""
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
    check_shapes(first, second)
    if where.shape != first.shape[:3] or not where.any(axis=(1, 2)).all():
        raise MetricError(f"where: expected bool {first.shape[:3]} with a true pixel in each picture")
    found = [_squared_error(*one) for one in zip(first, second, where, strict=True)]
    return np.array(found, dtype=np.float64)


def _squared_error(first: npt.NDArray[Any], second: npt.NDArray[Any], where: Bool) -> float:
    # Picture by picture, in place: its numbers stay in the processor's cache.
    difference = _planes(first)
    difference -= _planes(second)
    difference *= difference
    return float((_channel_mean(difference) * where).sum() / where.sum())


def _planes(picture: npt.NDArray[Any]) -> Float:
    """Return a picture [H, W, 3] in [0, 1] as planes [3, H, W], contiguous in memory."""
    planes = np.ascontiguousarray(picture.transpose(2, 0, 1))
    # Numbers are converted where they lie.
    return unit_range(planes.transpose(1, 2, 0)[None])[0].transpose(2, 0, 1)


def _channel_mean(planes: Float) -> Float:
    """Return the mean of three planes [3, H, W].

    NumPy's mean over an axis as short as this takes several times longer.
    """
    total = planes[0] + planes[1]
    total += planes[2]
    total /= len(planes)
    return total


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


def _blur(planes: Float) -> Float:
    """Blur planes [N, H, W] along both axes; only windows that lie inside are kept.

    A band of windows is a product with a small matrix, which takes less than half the time of shifted sums.
    """
    count, height, width = planes.shape
    rows, columns = height - WINDOW + 1, width - WINDOW + 1
    down, blurred = np.empty((count, rows, width)), np.empty((count, rows, columns))
    for start in range(0, rows, BAND):
        stop = min(start + BAND, rows)
        np.matmul(_windows(stop - start), planes[:, start : stop + WINDOW - 1], out=down[:, start:stop])
    for start in range(0, columns, BAND):
        stop = min(start + BAND, columns)
        np.matmul(down[:, :, start : stop + WINDOW - 1], _windows(stop - start).T, out=blurred[:, :, start:stop])
    return blurred


@lru_cache(maxsize=BAND)
def _windows(count: int) -> Float:
    """Return the weights of `count` windows, a matrix [count, count + 10]."""
    matrix = np.zeros((count, count + WINDOW - 1))
    for i in range(count):
        matrix[i, i : i + WINDOW] = WEIGHTS
    return matrix


@dataclass(frozen=True)
class _Moments:
    """Planes of one picture: pixels, local means, their squares, variances."""

    pixels: Float
    mean: Float
    squared_mean: Float
    variance: Float

    @classmethod
    def of(cls, pixels: Float) -> _Moments:
        mean = _blur(pixels)
        squared_mean = mean * mean
        variance = _blur(pixels * pixels)
        variance -= squared_mean
        return cls(pixels, mean, squared_mean, variance)


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
    check_shapes(first, second)
    if min(first.shape[1:3]) < WINDOW:
        raise MetricError(f"SSIM needs pictures of at least {WINDOW} pixels a side, got {first.shape[1:3]}")
    found = np.zeros((len(first), first.shape[1] - WINDOW + 1, first.shape[2] - WINDOW + 1))
    for i, (one, other) in enumerate(zip(first, second, strict=True)):
        # Edits of one source picture follow one another.
        if i == 0 or not np.array_equal(other, second[i - 1]):
            moments = _Moments.of(_planes(other))
        found[i] = _similarity(_Moments.of(_planes(one)), moments)
    return found


def _similarity(a: _Moments, b: _Moments) -> Float:
    # In place, as in `_squared_error`.
    means = a.mean * b.mean
    covariance = _blur(a.pixels * b.pixels)
    covariance -= means
    luminance = 2 * means
    luminance += C1
    luminance /= a.squared_mean + b.squared_mean + C1
    structure = 2 * covariance
    structure += C2
    structure /= a.variance + b.variance + C2
    luminance *= structure
    return _channel_mean(luminance)


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


_ERRORS: WeakKeyDictionary[Sample, Value] = WeakKeyDictionary()
"""Squared errors of samples that are in memory, which two metrics need."""


def _error(sample: Sample) -> Value:
    if sample not in _ERRORS:
        where = sample.background
        _ERRORS[sample] = (
            float(mean_squared_error(sample.edited[None], sample.source[None], where[None])[0])
            if sample.has_background
            else Reason.NO_BACKGROUND
        )
    return _ERRORS[sample]


@metric(direction="lower", low=0, high=1)
def mse_bg(samples: Sequence[Sample], networks: Networks) -> list[Value]:
    """Compute the mean squared error to the source over the background.

    Pixels are in [0, 1].
    """
    return [_error(sample) for sample in samples]


@metric(direction="higher", low=0, high=None)
def psnr_bg(samples: Sequence[Sample], networks: Networks) -> list[Value]:
    """Compute the PSNR of `mse_bg` in dB; missing for an untouched background.

    The reason is then `identical`.
    """
    return [
        value if isinstance(value, Reason) else Reason.IDENTICAL if value == 0 else float(psnr(np.array(value)))
        for value in map(_error, samples)
    ]


@metric(direction="higher", low=-1, high=1)
def ssim_bg(samples: Sequence[Sample], networks: Networks) -> list[Value]:
    """Compute the mean SSIM to the source over windows inside the background."""
    values: list[Value] = [Reason.NO_BACKGROUND] * len(samples)
    for group in group_by_size(samples):
        chosen = [samples[position] for position in group]
        similarity = ssim_map(np.stack([s.edited for s in chosen]), np.stack([s.source for s in chosen]))
        inside = whole_windows(np.stack([s.background for s in chosen]))
        for position, windows, picture in zip(group, inside, similarity, strict=True):
            if samples[position].has_background and windows.any():
                values[position] = float(picture[windows].mean())
    return values
