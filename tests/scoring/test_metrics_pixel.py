"""Pixel metrics against values worked out by hand and against a direct computation of each window."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from riebench.errors import MetricError
from riebench.scoring.metrics import pixel
from riebench.scoring.metrics.base import Reason, Sample
from riebench.scoring.metrics.networks import Networks
from riebench.scoring.metrics.pixel import (
    BAND,
    mean_squared_error,
    mean_squared_error_zeroed,
    mse_bg,
    psnr,
    psnr_bg,
    ssim_bg,
    ssim_map,
    whole_windows,
)

NETWORKS = Networks()


def noise(seed: int, side: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3)).astype(np.uint8)


def left(share: float, side: int = 32) -> np.ndarray:
    mask = np.zeros((side, side), bool)
    mask[:, : round(side * share)] = True
    return mask


def sample(edited: np.ndarray, source: np.ndarray, mask: np.ndarray) -> Sample:
    return Sample(edited, source, mask, "a", "b")


def test_values_by_hand() -> None:
    source = np.zeros((32, 32, 3), np.uint8)
    edited = source.copy()
    edited[:, 31] = (51, 0, 0)  # 0.2 in one of three channels, in one of the 16 background columns
    one = [sample(edited, source, left(0.5))]
    expected = 0.2**2 / 3 / 16
    assert mse_bg(one, NETWORKS) == pytest.approx([expected], rel=1e-12)
    assert psnr_bg(one, NETWORKS) == pytest.approx([-10 * np.log10(expected)], rel=1e-12)


def test_black_against_white() -> None:
    black, white = np.zeros((32, 32, 3), np.uint8), np.full((32, 32, 3), 255, np.uint8)
    one = [sample(white, black, left(0.5))]
    assert mse_bg(one, NETWORKS) == [1.0]
    assert psnr_bg(one, NETWORKS) == [0.0]
    # Constant pictures: no variance, so only the luminance term counts.
    assert ssim_bg(one, NETWORKS) == pytest.approx([1e-4 / (1 + 1e-4)], rel=1e-9)


def test_identical_pictures() -> None:
    one = [sample(noise(0), noise(0), left(0.5))]
    assert mse_bg(one, NETWORKS) == [0.0]
    assert psnr_bg(one, NETWORKS) == [Reason.IDENTICAL]
    assert ssim_bg(one, NETWORKS) == pytest.approx([1.0], abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.1, 0.5))
def test_edit_inside_the_mask_changes_nothing(seed: int, share: float) -> None:
    mask = left(share)
    source = noise(seed)
    edited = np.where(mask[:, :, None], noise(seed + 1), source)
    one = [sample(edited, source, mask)]
    assert mse_bg(one, NETWORKS) == [0.0]
    assert psnr_bg(one, NETWORKS) == [Reason.IDENTICAL]
    assert ssim_bg(one, NETWORKS) == pytest.approx([1.0], abs=1e-12)


def test_one_background_pixel_counts_fully() -> None:
    mask = left(0.5)
    source = np.zeros((32, 32, 3), np.uint8)
    edited = source.copy()
    edited[3, 16] = 255
    assert mse_bg([sample(edited, source, mask)], NETWORKS) == pytest.approx([1 / 512], rel=1e-12)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.1, 0.25, 0.5, 0.75, 0.9]))
def test_zeroing_the_region_flatters_by_the_share_of_the_background(seed: int, share: float) -> None:
    edited, source, mask = noise(seed), noise(seed + 1), left(share)
    where = ~mask[None]
    zeroed = psnr(mean_squared_error_zeroed(edited[None], source[None], where))[0]
    ours = psnr_bg([sample(edited, source, mask)], NETWORKS)[0]
    assert zeroed - ours == pytest.approx(10 * np.log10(1 / where.mean()), abs=1e-9)
    direct = (((edited / 255 - source / 255) * where[0, :, :, None]) ** 2).mean()
    assert mean_squared_error_zeroed(edited[None], source[None], where)[0] == pytest.approx(direct, rel=1e-9)


def test_no_background() -> None:
    whole = np.ones((32, 32), bool)
    one = [sample(noise(0), noise(1), whole)]
    for metric in (mse_bg, psnr_bg, ssim_bg):
        assert metric(one, NETWORKS) == [Reason.NO_BACKGROUND]


def test_ssim_needs_one_whole_window() -> None:
    thin = np.ones((32, 32), bool)
    thin[:, :10] = False  # ten columns of background: no 11-pixel window fits
    fits = np.ones((32, 32), bool)
    fits[:, :11] = False
    values = ssim_bg([sample(noise(0), noise(1), thin), sample(noise(0), noise(1), fits)], NETWORKS)
    assert values[0] == Reason.NO_BACKGROUND
    assert not isinstance(values[1], Reason)
    assert not isinstance(mse_bg([sample(noise(0), noise(1), thin)], NETWORKS)[0], Reason)


@pytest.mark.parametrize("side", [16, BAND + 10, 2 * BAND + 13])
def test_ssim_map_is_the_definition(side: int) -> None:
    # Pictures of less than one band of windows, of one, and of three, the last of them narrower.
    a, b = noise(2, side) / 255, noise(3, side) / 255
    offsets = np.arange(-5, 6)
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    y, x = side - 13, side - 12
    values = []
    for channel in range(3):
        p, q = a[y : y + 11, x : x + 11, channel], b[y : y + 11, x : x + 11, channel]
        mp, mq = (window * p).sum(), (window * q).sum()
        vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
        cov = (window * (p - mp) * (q - mq)).sum()
        values.append((2 * mp * mq + 1e-4) * (2 * cov + 9e-4) / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4)))
    result = ssim_map(a[None], b[None])
    assert result.shape == (1, side - 10, side - 10)
    assert result[0, y, x] == pytest.approx(np.mean(values), rel=1e-9)


def test_whole_windows_is_erosion_by_five_pixels() -> None:
    background = np.ones((1, 24, 24), bool)
    background[0, 12, 3] = False
    eroded = np.zeros((24, 24), bool)
    eroded[5:-5, 5:-5] = whole_windows(background)[0]
    expected = np.zeros((24, 24), bool)
    expected[5:19, 5:19] = True
    expected[7:18, :9] = False
    assert np.array_equal(eroded, expected)


def test_sizes_in_one_batch_may_differ() -> None:
    small = sample(noise(0, 24), noise(1, 24), left(0.25, 24))
    large = sample(noise(2, 40), noise(3, 40), left(0.25, 40))
    for metric in (mse_bg, psnr_bg, ssim_bg):
        assert metric([small, large, small], NETWORKS) == [metric([one], NETWORKS)[0] for one in (small, large, small)]


def test_the_error_that_two_metrics_need_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []

    def counting(*args: Any) -> Any:
        counted.append(args)
        return mean_squared_error(*args)

    monkeypatch.setattr(pixel, "mean_squared_error", counting)
    samples = [sample(noise(seed), noise(9), left(0.5)) for seed in range(3)]
    errors = mse_bg(samples, NETWORKS)
    assert psnr_bg(samples, NETWORKS) == pytest.approx([-10 * np.log10(error) for error in errors])
    assert len(counted) == 3


def test_wrong_inputs() -> None:
    with pytest.raises(MetricError, match="unequal size"):
        sample(noise(0, 24), noise(0, 32), left(0.5, 24))
    with pytest.raises(MetricError, match="uint8"):
        sample(noise(0) / 255, noise(0) / 255, left(0.5))
    with pytest.raises(MetricError, match="mask"):
        sample(noise(0), noise(1), left(0.5, 24))
    with pytest.raises(MetricError, match=r"\[0, 1\]"):
        mean_squared_error(np.full((1, 4, 4, 3), 2.0), np.zeros((1, 4, 4, 3)), np.ones((1, 4, 4), bool))
    with pytest.raises(MetricError, match="where"):
        mean_squared_error(np.zeros((1, 4, 4, 3)), np.zeros((1, 4, 4, 3)), np.zeros((1, 4, 4), bool))
    with pytest.raises(MetricError, match="11"):
        ssim_map(np.zeros((1, 8, 8, 3)), np.zeros((1, 8, 8, 3)))
