"""Types of metrics, of the samples that they measure, and of their values.

Also the helpers that several metrics share.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from riebench.scoring.metrics.networks import Networks
from riebench.errors import MetricError, foreign_code

UInt8 = npt.NDArray[np.uint8]
Float = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

MIN_BACKGROUND = 0.01
"""Smallest share of the picture that counts as a background to measure."""

UNREADABLE = "unreadable"
"""The judge's answer for an attribute whose value cannot be told: of a ghost, a blend, a color between two."""

LONGEST = 1e9
"""Printed numbers from here on are written by their size alone."""


class Reason(StrEnum):
    """Reason for a missing value.

    The first four depend on example, mask and source picture only, so they apply to every method alike.
    """

    NO_BACKGROUND = "no_background"
    """The mask leaves less than `MIN_BACKGROUND` of the picture (for SSIM: no whole window) untouched."""
    NO_REGION = "no_region"
    """The mask is empty."""
    SAME_PROMPTS = "same_prompts"
    """Source and target prompt are equal, or CLIP cannot distinguish them."""
    UNREADABLE = "unreadable"
    """The judge can read none of the attributes in the source picture that the edit should keep."""
    IDENTICAL = "identical"
    """No squared error, so no PSNR; counts as mse 0 in means."""
    ZERO_EDIT = "zero_edit"
    """The picture's embedding did not move, so the change has no direction."""
    NOT_RUN = "not_run"
    """There is no picture: the unit was skipped or failed."""
    UNUSABLE_ANSWER = "unusable_answer"
    """A model that answers in words gave an answer that cannot be read; it is stored, and not asked for again."""
    NO_WEIGHTS = "no_weights"
    """The metric's network was asked for and is not on this machine; measured as soon as it is."""


Value = float | Reason
"""A finite number, or the reason why there is none."""


@dataclass(frozen=True, eq=False)
class Sample:
    """One edited picture and everything it is compared with.

    Attributes:
        edited: the method's picture, uint8 [H, W, 3].
        source: the picture before the edit, same shape.
        mask: bool [H, W], true where the edit may change pixels.
        source_prompt: prompt of `source`, verbatim.
        target_prompt: prompt of the desired result, verbatim.
        source_attributes: attributes that the source picture should show (toy world only), else None.
        target_attributes: attributes that the result should show (toy world only), else None.
        target: picture that the model makes of the target prompt with the same seed, same shape; read only for metrics
            that compare with it.
        category: the edit's category; "" if it is not known.

    Raises:
        MetricError: if sizes or types do not fit.
    """

    edited: UInt8
    source: UInt8
    mask: Bool
    source_prompt: str
    target_prompt: str
    source_attributes: dict[str, str] | None = None
    target_attributes: dict[str, str] | None = None
    target: UInt8 | None = None
    category: str = ""

    def __post_init__(self) -> None:
        for name, picture in (("edited", self.edited), ("source", self.source), ("target", self.target)):
            if picture is None:
                continue
            if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
                raise MetricError(f"{name} picture: expected uint8 [H, W, 3], got {picture.dtype} {picture.shape}")
            if picture.shape != self.edited.shape:
                raise MetricError(
                    f"pictures of unequal size cannot be compared: {self.edited.shape[:2]} and {picture.shape[:2]}"
                )
        if self.mask.dtype != np.bool_ or self.mask.shape != self.edited.shape[:2]:
            raise MetricError(f"mask: expected bool {self.edited.shape[:2]}, got {self.mask.dtype} {self.mask.shape}")

    @property
    def required_target(self) -> UInt8:
        """The target picture, for metrics that cannot do without it.

        Raises:
            MetricError: if it was not read.
        """
        if self.target is None:
            raise MetricError("the sample has no target picture")
        return self.target

    @cached_property
    def background(self) -> Bool:
        """Inverse of the mask, bool [H, W]: true where the edit must not change pixels."""
        return ~self.mask

    @cached_property
    def has_background(self) -> bool:
        """True if the background is large enough to be measured."""
        return bool(self.background.mean() >= MIN_BACKGROUND)


@dataclass(frozen=True)
class MetricFormat:
    """Format in which tables print a metric.

    Attributes:
        title: heading, with the factor and the better direction.
        scale: factor between the stored and the printed number.
        decimals: number of decimals of the printed number.
        signed: whether positive numbers carry a plus.
    """

    title: str
    scale: float
    decimals: int
    signed: bool = False

    def number(self, value: float) -> str:
        """Return the value as printed; a zero never carries a minus.

        Numbers of more than nine digits are printed by their size alone: 1.20e+15.
        """
        if abs(value * self.scale) >= LONGEST:
            size = Decimal(value) * Decimal(self.scale)
            return f"{size:+.2e}" if self.signed else f"{size:.2e}"
        rounded = round(value * self.scale, self.decimals) + 0.0
        return f"{rounded:+.{self.decimals}f}" if self.signed and rounded else f"{rounded:.{self.decimals}f}"


MetricFunction = Callable[[Sequence[Sample], "Networks"], list[Value]]
"""Batch of samples and the loaded networks -> one value per sample, in order."""


@dataclass(frozen=True, eq=False)
class Metric:
    """One metric, callable on a batch.

    Attributes:
        name: as registered, and as stored with every value.
        direction: the better direction.
        low: smallest possible value.
        high: largest possible value, or None if unbounded.
        version: raised whenever the same pictures would give another number.
        backbone: name of the network it needs, as registered with `@network`; empty for none.
        needs_attributes: only defined for examples whose attributes are known.
        needs_target: compares with the target picture.
        compute: the function itself.
        format: how tables print it; None for metrics that no table shows.
    """

    name: str
    direction: Literal["higher", "lower"]
    low: float
    high: float | None
    version: int
    backbone: str
    compute: MetricFunction
    needs_attributes: bool = False
    needs_target: bool = False
    format: MetricFormat | None = None

    @property
    def is_share(self) -> bool:
        """True for a share of all there is, 0 to 1, that tables print in %."""
        return (self.low, self.high) == (0, 1) and self.format is not None and self.format.scale == 100

    def __call__(self, samples: Sequence[Sample], networks: Networks) -> list[Value]:
        """Compute one value per sample.

        Raises:
            MetricError: if a value is not finite or out of range, which means damaged weights or a fault in the metric.
        """
        if not samples:
            return []
        with foreign_code(f"metric {self.name!r}"):
            values = self.compute(samples, networks)
        if len(values) != len(samples):
            raise MetricError(f"{self.name}: {len(values)} values for {len(samples)} samples")
        for value in values:
            if not isinstance(value, Reason):
                self._check(value)
        return values

    def _check(self, value: float) -> None:
        # Cosines and SSIM reach their bounds up to rounding.
        slack = 1e-6
        high = math.inf if self.high is None else self.high + slack
        if not math.isfinite(value) or not self.low - slack <= value <= high:
            raise MetricError(
                f"{self.name} gave {value}, outside {self.low} to {self.high}: check the weights with `riebench doctor`"
            )


def metric(
    *,
    direction: Literal["higher", "lower"],
    low: float,
    high: float | None,
    version: int = 1,
    backbone: str = "",
    needs_attributes: bool = False,
    needs_target: bool = False,
    format: MetricFormat | None = None,
) -> Callable[[MetricFunction], Metric]:
    """Turn a batch function into a `Metric` of the same name.

    Arguments are those attributes of `Metric` that the function itself does not give.
    """

    def wrap(function: MetricFunction) -> Metric:
        name: str = function.__name__
        return Metric(name, direction, low, high, version, backbone, function, needs_attributes, needs_target, format)

    return wrap


def unit_range(pictures: npt.NDArray[Any]) -> Float:
    """Convert pictures to float64 in [0, 1].

    Args:
        pictures: [N, H, W, 3], uint8, or floating point already in [0, 1].

    Raises:
        MetricError: for any other type, shape or range (in particular [-1, 1] and floats up to 255).
    """
    check_shapes(pictures, pictures)
    if pictures.dtype == np.uint8:
        return pictures.astype(np.float64) / 255
    if not np.issubdtype(pictures.dtype, np.floating):
        raise MetricError(f"pictures: expected uint8 or floats in [0, 1], got {pictures.dtype}")
    if pictures.size and not (pictures.min() >= 0 and pictures.max() <= 1):
        raise MetricError(
            f"float pictures must lie in [0, 1], found {pictures.min():.4g} to {pictures.max():.4g}; "
            "convert [-1, 1] with (x + 1) / 2 and 0 to 255 by passing uint8"
        )
    return pictures.astype(np.float64)


def check_pair(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> tuple[Float, Float]:
    """Check that two batches have equal shapes, and convert both to [0, 1].

    Raises:
        MetricError: as `unit_range`, or if the shapes differ.
    """
    check_shapes(first, second)
    return unit_range(first), unit_range(second)


def check_shapes(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> None:
    """Check that two batches of pictures have equal shapes, [N, H, W, 3].

    Raises:
        MetricError: if not.
    """
    if first.shape != second.shape:
        raise MetricError(f"pictures of unequal size cannot be compared: {first.shape} and {second.shape}")
    if first.ndim != 4 or first.shape[3] != 3:
        raise MetricError(f"pictures: expected [N, H, W, 3], got {first.shape}")


_KEYS: dict[int, tuple[weakref.ref[npt.NDArray[Any]], bytes]] = {}
"""Keys of read-only pictures that are in memory, by their addresses."""


def picture_key(picture: npt.NDArray[Any]) -> bytes:
    """Compute a hash of shape and pixels, equal for equal pictures.

    A picture as it was read, which nothing can change, is hashed once.
    """
    if picture.flags.writeable or isinstance(picture.base, np.ndarray):
        return _hash_pixels(picture)
    address = id(picture)
    if address not in _KEYS:
        # The entry goes with its picture, before the address can belong to another one.
        _KEYS[address] = weakref.ref(picture, lambda _: _KEYS.pop(address, None)), _hash_pixels(picture)
    return _KEYS[address][1]


def _hash_pixels(picture: npt.NDArray[Any]) -> bytes:
    digest = hashlib.blake2b(repr(picture.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(picture).data)
    return digest.digest()


def group_by_size(samples: Sequence[Sample]) -> Iterator[list[int]]:
    """Yield the positions of samples of equal size, so that they can be stacked."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for position, sample in enumerate(samples):
        groups.setdefault(sample.edited.shape, []).append(position)
    yield from groups.values()


@contextlib.contextmanager
def strict_float32(device: str) -> Iterator[None]:
    """Run networks in true float32 and without gradients inside the context.

    Autocast and TF32 are off there, also if the caller has turned them on.
    Half precision has steps of 2.4e-4 near 0.25, the size of the effects that CLIP gains measure; TF32 has 1e-3 of
    relative rounding and is on by default for convolutions on NVIDIA GPUs.
    """
    import torch

    kind = torch.device(device).type
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.inference_mode(), torch.autocast(kind, enabled=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = matmul
        torch.backends.cudnn.allow_tf32 = cudnn
