"""PIE-Bench's metrics as its published script computes them, weaknesses included.

The background is compared with the region set to 0 and averaged over the whole frame, so that large regions score
better; the outermost pixels always count as region; the region's CLIP score is that of the picture with everything
else black. These numbers never share a column with those of the default profile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from riebench.scoring.metrics.base import Bool, Float, MetricFormat, Reason, Sample, Value, metric
from riebench.scoring.metrics.lpips import SQUEEZENET
from riebench.scoring.metrics.pixel import mean_squared_error_zeroed, psnr, ssim_map
from riebench.scoring.metrics.structure import structure_values

if TYPE_CHECKING:
    from riebench.scoring.metrics.networks import Networks

FRAME = 512
"""Side in pixels of the part that is used of a picture that is not square."""


def frame_sample(sample: Sample) -> Sample:
    """Crop a sample and extend its mask as the published script does.

    A picture that is not square is cut to its last 512 x 512 pixels; a mask's outermost pixels are all region.
    """
    height, width = sample.mask.shape
    if height != width:
        last = slice(max(0, height - FRAME), None), slice(max(0, width - FRAME), None)
        sample = replace(
            sample,
            edited=sample.edited[last],
            source=sample.source[last],
            target=None if sample.target is None else sample.target[last],
            mask=sample.mask[last],
        )
    return replace(sample, mask=add_border(sample.mask))


def add_border(mask: Bool) -> Bool:
    """Return a copy of a mask [H, W] whose outermost pixels are all region."""
    result = mask.copy()
    result[[0, -1], :] = True
    result[:, [0, -1]] = True
    return result


def zero_outside(picture: npt.NDArray[Any], where: Bool) -> npt.NDArray[Any]:
    """Set all pixels of a picture [H, W, 3] outside `where`, bool [H, W], to 0."""
    return np.where(where[:, :, None], picture, np.zeros_like(picture))


Compare = Callable[[Float, Float, Bool], Float]
"""Two pictures [1, H, W, 3] with the region set to 0, in [0, 1], and the background [1, H, W] -> [1]."""


def _compare_background(samples: Sequence[Sample], compare: Compare) -> list[Value]:
    values: list[Value] = []
    for sample in map(frame_sample, samples):
        where = sample.background
        if where.any():
            edited, source = (zero_outside(picture, where)[None] / 255 for picture in (sample.edited, sample.source))
            values.append(float(compare(edited, source, where[None])[0]))
        else:
            values.append(Reason.NO_BACKGROUND)
    return values


@metric(
    direction="lower",
    low=0,
    high=1,
    format=MetricFormat("background MSE x10000, region zeroed (lower is better)", 10_000, 2),
)
def pie_mse(samples: Sequence[Sample], networks: Networks) -> list[Value]:
    """Compute the mean squared difference over the whole frame, the region set to 0."""
    return _compare_background(samples, mean_squared_error_zeroed)


@metric(
    direction="higher",
    low=0,
    high=None,
    format=MetricFormat("background PSNR in dB, region zeroed (higher is better)", 1, 2),
)
def pie_psnr(samples: Sequence[Sample], networks: Networks) -> list[Value]:
    """Compute the PSNR of `pie_mse` in dB; missing for an untouched background.

    The reason is then `identical`.
    """
    return [
        value if isinstance(value, Reason) else Reason.IDENTICAL if value == 0 else float(psnr(np.array(value)))
        for value in _compare_background(samples, mean_squared_error_zeroed)
    ]


@metric(
    direction="higher",
    low=-1,
    high=1,
    format=MetricFormat("background SSIM x100, region zeroed (higher is better)", 100, 2),
)
def pie_ssim(samples: Sequence[Sample], networks: Networks) -> list[Value]:
    """Compute the mean SSIM over the whole frame, the region set to 0."""
    return _compare_background(samples, lambda a, b, where: np.asarray(ssim_map(a, b).mean(axis=(1, 2))))


@metric(
    direction="lower",
    low=0,
    high=None,
    backbone=SQUEEZENET,
    format=MetricFormat("background LPIPS x1000, region zeroed (lower is better)", 1000, 2),
)
def pie_lpips(samples: Sequence[Sample], networks: Networks) -> list[Value]:
    """Compute LPIPS on SqueezeNet, the region set to 0."""
    return _compare_background(samples, lambda a, b, where: networks.get(SQUEEZENET).distance(a, b))


@metric(
    direction="lower",
    low=0,
    high=4,
    backbone="dino",
    format=MetricFormat("structure distance x1000 (lower is better)", 1000, 2),
)
def pie_structure(samples: Sequence[Sample], networks: Networks) -> list[Value]:
    """Compute the structure distance of the whole frame, with unscaled pixels.

    ImageNet's mean and deviation are applied to pixels in 0 to 255, as in the published script.
    """
    return structure_values([frame_sample(sample) for sample in samples], networks, 255.0)


@metric(
    direction="higher",
    low=0,
    high=100,
    backbone="clip",
    format=MetricFormat("CLIP similarity, whole picture (higher is better)", 1, 2),
)
def pie_clip_target(samples: Sequence[Sample], networks: Networks) -> list[Value]:
    """Compute 100 times the cosine of edited picture and target prompt, at least 0."""
    return _clip([frame_sample(sample).edited for sample in samples], samples, networks)


@metric(
    direction="higher",
    low=0,
    high=100,
    backbone="clip",
    format=MetricFormat("CLIP similarity, edited region (higher is better)", 1, 2),
)
def pie_clip_region(samples: Sequence[Sample], networks: Networks) -> list[Value]:
    """Compute `pie_clip_target` of the picture that is black outside the region."""
    frames = [frame_sample(sample) for sample in samples]
    return _clip([zero_outside(frame.edited, frame.mask) for frame in frames], samples, networks)


def _clip(pictures: Sequence[npt.NDArray[np.uint8]], samples: Sequence[Sample], networks: Networks) -> list[Value]:
    cosines = (
        networks.get("clip").pictures(pictures) * networks.get("clip").texts(s.target_prompt for s in samples)
    ).sum(axis=1)
    return [float(value) for value in np.maximum(100 * cosines, 0)]
