"""The activity of features on many pictures, and the nearest features of each.

`observe` generates pictures and feeds `Activity`, in one pass whose memory does not grow with the number of pictures.
`nearest` compares a feature with the others of its block.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from riebench.errors import RiebenchError
from riebench.features.data import NearFeature, Neighbours
from riebench.generation.generator import Generator
from riebench.generation.listeners import Listeners, sae_listener
from riebench.saes.sae import SparseAutoencoder
from riebench.utils.terminal import ProgressBar

Float = NDArray[np.float32]
BINS = 64
LARGEST_SEED = 2**43
"""Of the seeds that users give; noise has seeds below 2**63."""
RANKED_BITS = 12
"""Binary digits of the values that features and pictures are ranked by, a relative precision of 1/4096 at most.

The last digits of a value depend on the machine and the batch; where two values agree in the first ones, the smaller
number or the earlier picture comes first.
"""
_CHUNK = 4096
"""Positions that are encoded at a time."""


@dataclass(frozen=True)
class Picture:
    """The prompt and noise seed of one picture."""

    prompt: str
    seed: int


@dataclass(frozen=True)
class PictureActivity:
    """The activity of one feature in one picture.

    Attributes:
        picture: its prompt and seed.
        value: its largest value, over steps and positions.
        heat: float32 [h, w], the largest value of each position over the steps.
        image: uint8 [H, W, 3].
    """

    picture: Picture
    value: float
    heat: Float
    image: NDArray[np.uint8]


def round_for_ranking(values: NDArray[Any]) -> NDArray[np.float64]:
    """Round values to `RANKED_BITS` digits, so that nearly equal ones are equal.

    Args:
        values: finite numbers, of any shape.
    """
    mantissa, exponent = np.frexp(np.asarray(values, dtype=np.float64))
    return np.asarray(np.ldexp(np.round(np.ldexp(mantissa, RANKED_BITS)), exponent - RANKED_BITS))


class Histogram:
    """Counts of positive numbers in equal bins from 0 on.

    The range grows with the numbers. The bins' width is a power of two, doubled (two bins becoming one) when a number
    does not fit, so that the counts depend neither on the order of the numbers nor on how they are cut into batches.

    Attributes:
        counts: int64 [BINS].
        width: of a bin; 0 before the first number.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(BINS, dtype=np.int64)
        self.width = 0.0

    def add(self, values: Float) -> None:
        """Count positive numbers; leave out others and infinite ones."""
        values = values[(values > 0) & np.isfinite(values)]
        if not len(values):
            return
        largest = float(values.max())
        if self.width == 0:
            self.width = 2.0 ** math.floor(math.log2(largest / BINS))
        while largest >= BINS * self.width:
            self.counts = np.concatenate([self.counts.reshape(-1, 2).sum(1), np.zeros(BINS // 2, np.int64)])
            self.width *= 2
        self.counts += np.bincount((values / self.width).astype(np.int64), minlength=BINS)


class PictureRanking:
    """The pictures with the largest keys; of nearly equal ones those that came first.

    Keys are compared as `round_for_ranking` rounds them.

    Args:
        most: number of pictures that are kept, at most.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._items: list[tuple[tuple[float, int], PictureActivity]] = []

    def accepts(self, key: float, order: int) -> bool:
        """Return whether a picture would be kept.

        Only then it is worth copying its map out of the batch.

        Args:
            key: of the picture.
            order: its number; of nearly equal keys the smallest is first.
        """
        return len(self._items) < self.most or self._place(key, order) < self._items[-1][0]

    def add(self, key: float, order: int, found: PictureActivity) -> None:
        """Add a picture; drop the one with the smallest key if there are too many."""
        bisect.insort(self._items, (self._place(key, order), found), key=lambda item: item[0])
        del self._items[self.most :]

    @property
    def items(self) -> list[PictureActivity]:
        """The kept pictures, largest key first."""
        return [found for _, found in self._items]

    @staticmethod
    def _place(key: float, order: int) -> tuple[float, int]:
        return -float(round_for_ranking(np.array(key))), order


@dataclass
class FeatureActivity:
    """The pictures and histogram of one feature, beside the block's sums."""

    strongest: PictureRanking
    weakest: PictureRanking
    histogram: Histogram = field(default_factory=Histogram)
    pictures: int = 0
    """Number of pictures in which it is active anywhere."""


class Activity:
    """Running figures of one block's features.

    Args:
        sae: encodes what it reads of the block.
        wanted: features of which pictures, histograms and coactivation are kept; sums are kept of all.
        top: number of pictures kept of each in which it is strongest.
        weak: number of pictures kept of each in which it is weakest.
    """

    def __init__(self, sae: SparseAutoencoder, wanted: Sequence[int] = (), top: int = 8, weak: int = 2) -> None:
        self.sae = sae
        self.features = {index: FeatureActivity(PictureRanking(top), PictureRanking(weak)) for index in wanted}
        self._wanted = torch.tensor(list(wanted), dtype=torch.long)
        self.pictures = self.positions = self._step = 0
        self.counts = torch.zeros(sae.n, dtype=torch.float64)
        self._sums = torch.zeros(sae.n, dtype=torch.float64)
        self._squares = torch.zeros(sae.n, dtype=torch.float64)
        self.largest = torch.zeros(sae.n)
        self.joint_counts = torch.zeros(len(wanted), sae.n, dtype=torch.float64)
        """Positions at which a wanted feature and another are not zero."""
        self._by_step: list[Tensor] = []
        self._peak: Float | None = None

    @property
    def means(self) -> Tensor:
        """Mean size of each feature where it is not zero, float64 [n].

        It is 0 for a feature that was never active.
        """
        return self._sums / self.counts.clamp(min=1)

    @property
    def stds(self) -> Tensor:
        """Standard deviation of each feature's size there, float64 [n]."""
        return (self._squares / self.counts.clamp(min=1) - self.means.square()).clamp(min=0).sqrt()

    def step_rates(self, index: int) -> tuple[float, ...]:
        """Compute the share of each step's positions at which a feature is active."""
        at_each = max(1, self.positions) / max(1, len(self._by_step))
        return tuple(float(counts[index]) / at_each for counts in self._by_step)

    def take_step(self, values: Tensor, _: Tensor, time: Tensor | None) -> None:
        """Take one step; see `riebench.generation.listeners.Take`."""
        self.add_step(values, time)

    def add_step(self, read: Tensor, time: Tensor | None = None) -> None:
        """Add one step of a batch of pictures; `finish` ends the batch.

        Args:
            read: what the SAE reads, [B, C, h, w].
            time: the denoiser's time, for SAEs that need it.
        """
        batch, _, height, width = read.shape
        flat = read.movedim(1, -1).flatten(0, 2)
        wanted = self._wanted.to(flat.device)
        maps = []
        counts = torch.zeros_like(self.counts)
        for part in flat.split(_CHUNK):
            sizes = self.sae.contributions(part, time).abs()
            active = sizes > 0
            counts += active.sum(0).cpu()
            self._sums += sizes.sum(0, dtype=torch.float64).cpu()
            self._squares += sizes.square().sum(0, dtype=torch.float64).cpu()
            self.largest = torch.maximum(self.largest, sizes.amax(0).cpu())
            self.joint_counts += (active[:, wanted].float().T @ active.float()).double().cpu()
            maps.append(sizes[:, wanted].cpu())
        values = torch.cat(maps).unflatten(0, (batch, height, width)).numpy()
        for number, one in enumerate(self.features.values()):
            one.histogram.add(values[..., number].ravel())
        self._peak = values if self._peak is None else np.maximum(self._peak, values)
        self._add_counts(counts, len(flat))

    def _add_counts(self, counts: Tensor, positions: int) -> None:
        self.counts += counts
        self.positions += positions
        if self._step == len(self._by_step):
            self._by_step.append(torch.zeros_like(counts))
        self._by_step[self._step] += counts
        self._step += 1

    def finish(self, pictures: Sequence[Picture], images: NDArray[np.uint8]) -> None:
        """End a batch whose steps were all added.

        Args:
            pictures: prompts and seeds of the batch.
            images: uint8 [B, H, W, 3].
        """
        if self._peak is None:
            raise ValueError("no step was taken in")
        for row, picture in enumerate(pictures):
            for number, one in enumerate(self.features.values()):
                heat = self._peak[row, ..., number]
                value, order = float(heat.max()), self.pictures + row
                one.pictures += value > 0
                for ranked, key in ((one.strongest, value), (one.weakest, -value)):
                    if ranked.accepts(key, order) and (value > 0 or ranked is one.weakest):
                        ranked.add(key, order, PictureActivity(picture, value, heat.copy(), images[row].copy()))
        self.pictures += len(pictures)
        self._peak, self._step = None, 0


def pictures_of(prompts: Sequence[str], seeds: Sequence[int]) -> list[Picture]:
    """Combine every prompt with every seed.

    No two prompts share their noise, which would make their pictures alike.

    Args:
        prompts: one or more.
        seeds: as users give them, from 0.

    Raises:
        RiebenchError: if a seed is too large.
    """
    if max(seeds, default=0) > LARGEST_SEED:
        raise RiebenchError(f"seeds of features go from 0 to {LARGEST_SEED}, not to {max(seeds)}")
    return [Picture(prompt, number + 1_000_000 * seed) for seed in seeds for number, prompt in enumerate(prompts)]


@torch.inference_mode()
def observe(
    generator: Generator,
    activities: Mapping[str, Activity],
    pictures: Sequence[Picture],
    *,
    batch_size: int = 4,
    progress: bool = True,
) -> None:
    """Generate pictures and record the activity of features.

    Of guided models, the conditional half is recorded.

    Args:
        generator: of the model.
        activities: block -> the figures that are updated.
        pictures: one generation each.
        batch_size: pictures at a time.
        progress: shows a bar.
    """
    if not activities:
        return
    capture = Listeners([sae_listener(block, one.sae, one.take_step) for block, one in activities.items()]).capture
    with ProgressBar[None](title="pictures", unit="picture", total=len(pictures), shown=progress) as bar:
        for start in range(0, len(pictures), batch_size):
            some = pictures[start : start + batch_size]
            images = generator.generate([p.prompt for p in some], [p.seed for p in some], capture=capture).images
            for activity in activities.values():
                activity.finish(some, images)
            bar.update(len(some))


def cosines(rows: Tensor, index: int) -> Tensor:
    """Compute the cosine of one row with every row, float32 [n].

    It is 0 where a row has length 0.
    """
    unit = torch.nn.functional.normalize(rows.float(), dim=1)
    return unit @ unit[index]


def coactivation(activity: Activity, index: int) -> Tensor:
    """Compute the Jaccard index of one feature's activity with every feature's.

    It is the share of the positions with either feature at which both are active.

    Returns:
        float64 [n].
    """
    both = activity.joint_counts[list(activity.features).index(index)]
    either = activity.counts + activity.counts[index] - both
    return both / either.clamp(min=1)


def nearest(sae: SparseAutoencoder, activity: Activity, index: int, count: int = 8) -> Neighbours:
    """Find the nearest features of one feature.

    Args:
        sae: of its block.
        activity: of its block.
        index: of the feature, one of those whose coactivation was kept.
        count: number of each kind, at most; features that are never active together are left out.
    """
    return Neighbours(
        decoder=_first(cosines(sae.directions, index), index, count),
        encoder=_first(cosines(sae.encoder, index), index, count),
        together=tuple(one for one in _first(coactivation(activity, index), index, count) if one.value > 0),
    )


def _first(values: Tensor, index: int, count: int) -> tuple[NearFeature, ...]:
    # Rounded before sorting, so that the last digits of another machine change no order; ties go by number.
    rounded = [round(value, 6) for value in values.tolist()]
    ranked = sorted((i for i in range(len(rounded)) if i != index), key=lambda i: (-rounded[i], i))
    return tuple(NearFeature(index=i, value=rounded[i]) for i in ranked[:count])
