"""What switching a feature on and off does to a few pictures, over a range of strengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from riebench.features.activity import FeatureActivity, Picture
from riebench.features.data import Means
from riebench.features.switching import Feature, switch
from riebench.generation.generator import Generator
from riebench.registry import METRICS
from riebench.saes.sae import SparseAutoencoder
from riebench.scoring.metrics.base import Sample

if TYPE_CHECKING:
    from riebench.generation.edits import Edit
    from riebench.scoring.metrics.networks import Networks

ROWS = 4
"""Pictures that are changed: half of them show the feature, half do not."""
SOURCE = 0.0
"""The strength of the picture that nobody changed."""


@dataclass(frozen=True)
class Changed:
    """One picture at one strength.

    Attributes:
        strength: above 0 the feature is added everywhere, below 0 that share of it is taken away.
        image: uint8 [H, W, 3].
        scores: metric -> value.
    """

    strength: float
    image: NDArray[np.uint8]
    scores: Mapping[str, float]


@dataclass(frozen=True)
class ChangedRow:
    """One picture at every strength, in their order."""

    picture: Picture
    active: bool
    cells: tuple[Changed, ...]


def choose_rows(activity: FeatureActivity, count: int = ROWS) -> list[tuple[Picture, bool]]:
    """Pictures to change: those in which the feature is strongest, of different prompts, then those it is weakest in.

    Args:
        activity: what was seen of the feature.
        count: how many; half of each where there are enough.

    Returns:
        Pictures, each with whether it shows the feature.
    """
    strong = {seen.picture.prompt: seen.picture for seen in reversed(activity.strongest.items)}
    first = list(reversed(strong.values()))[: count - count // 2]
    weak = [seen.picture for seen in activity.weakest.items if seen.picture not in first]
    return [(one, True) for one in first] + [(one, False) for one in weak[: count // 2]]


def strip(
    generator: Generator, sae: SparseAutoencoder, feature: Feature, unit: float, rows: Sequence[tuple[Picture, bool]],
    strengths: Sequence[float], networks: Networks, *, with_clip: bool, batch_size: int = 4,
) -> list[ChangedRow]:  # fmt: skip
    """Generates and measures one feature's strip.

    Args:
        generator: of the model.
        sae: the feature's.
        feature: block and index.
        unit: how far strength 1 moves the update: the feature's mean where it is active.
        rows: see `choose_rows`.
        strengths: not 0; the unchanged picture comes along.
        networks: the networks that measure.
        with_clip: whether CLIP measures, too.
        batch_size: pictures at a time.
    """
    order = sorted({SOURCE, *strengths})
    saes = {feature[0]: sae}
    edits = {strength: _edit(saes, feature, unit, strength) for strength in order}
    jobs = [(picture, strength) for picture, _ in rows for strength in order]
    images: list[NDArray[np.uint8]] = []
    for start in range(0, len(jobs), batch_size):
        some = jobs[start : start + batch_size]
        made = generator.generate(
            [p.prompt for p, _ in some], [p.seed for p, _ in some], edits=[edits[strength] for _, strength in some]
        )
        images.extend(made.images)
    found = []
    for number, (picture, active) in enumerate(rows):
        own = images[number * len(order) : (number + 1) * len(order)]
        scores = _scores(picture.prompt, own, own[order.index(SOURCE)], networks, with_clip)
        cells = tuple(Changed(*cell) for cell in zip(order, own, scores, strict=True))
        found.append(ChangedRow(picture, active, cells))
    return found


def _edit(saes: Mapping[str, SparseAutoencoder], feature: Feature, unit: float, strength: float) -> Edit | None:
    if strength == SOURCE:
        return None
    on = {feature: strength * unit} if strength > 0 else {}
    return switch(saes, on, {feature: -strength} if strength < 0 else {})


def _scores(
    prompt: str, images: Sequence[NDArray[np.uint8]], source: NDArray[np.uint8], networks: Networks, with_clip: bool
) -> list[dict[str, float]]:
    everywhere = np.ones(source.shape[:2], dtype=bool)
    samples = [Sample(image, source, everywhere, prompt, prompt) for image in images]
    names = ("lpips", "clip_gain", "clip_image") if with_clip else ("lpips",)
    columns = {name: METRICS.get(name)(samples, networks) for name in names}
    return [{name: round(float(column[i]), 6) + 0.0 for name, column in columns.items()} for i in range(len(samples))]


def means(rows: Sequence[ChangedRow]) -> tuple[Means, ...]:
    """Each strength's scores, mean over the rows."""
    if not rows:
        return ()
    found = []
    for number, cell in enumerate(rows[0].cells):
        columns = {name: [row.cells[number].scores[name] for row in rows] for name in cell.scores}
        found.append(
            Means(strength=cell.strength, **{name: round(sum(some) / len(some), 6) for name, some in columns.items()})
        )
    return tuple(found)
