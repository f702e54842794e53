"""The data, pictures and drawings of features, one folder each.

`Study` measures features and writes their folders; complete ones are left as they are. `strip` generates the pictures
of a feature at several strengths and scores them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from riebench.features.activity import Activity, FeatureActivity, Picture, nearest, observe, pictures_of
from riebench.features.data import (
    CURVES,
    DATA,
    HISTOGRAM,
    STRIP,
    VERSION,
    Cell,
    FeatureData,
    Means,
    Row,
    Statistics,
    TopPicture,
    feature_folder,
    is_current,
)
from riebench.features.drawings import curves_svg, heat_overlay, histogram_svg
from riebench.features.painter import Feature, switch
from riebench.generation.edits import Edit
from riebench.generation.generator import Generator
from riebench.registry import METRICS
from riebench.saes.sae import SparseAutoencoder
from riebench.scoring.metrics.base import Sample
from riebench.scoring.metrics.networks import Networks
from riebench.utils.files import content_digest, write_atomic
from riebench.utils.images import encode_png, grid
from riebench.utils.terminal import ProgressBar

ROWS = 4
"""Number of pictures that are edited: half of them show the feature, half do not."""
SOURCE = 0.0
"""The strength of the unchanged picture."""


@dataclass(frozen=True)
class StrengthPicture:
    """One picture at one strength.

    Attributes:
        strength: above 0 the feature is added everywhere, below 0 that share of it is removed.
        image: uint8 [H, W, 3].
        scores: metric -> value.
    """

    strength: float
    image: NDArray[np.uint8]
    scores: Mapping[str, float]


@dataclass(frozen=True)
class StrengthRow:
    """One picture at every strength, in ascending order."""

    picture: Picture
    active: bool
    cells: tuple[StrengthPicture, ...]


def choose_rows(activity: FeatureActivity, count: int = ROWS) -> list[tuple[Picture, bool]]:
    """Choose the pictures to edit.

    The first are those in which the feature is strongest, of different prompts, then those in which it is weakest.

    Args:
        activity: of the feature.
        count: number of pictures; half of each kind where there are enough.

    Returns:
        Pictures, each with whether it shows the feature.
    """
    strong = {one.picture.prompt: one.picture for one in reversed(activity.strongest.items)}
    first = list(reversed(strong.values()))[: count - count // 2]
    weak = [one.picture for one in activity.weakest.items if one.picture not in first]
    return [(one, True) for one in first] + [(one, False) for one in weak[: count // 2]]


def strip(
    generator: Generator, sae: SparseAutoencoder, feature: Feature, unit: float, rows: Sequence[tuple[Picture, bool]],
    strengths: Sequence[float], networks: Networks, *, with_clip: bool, batch_size: int = 4,
) -> list[StrengthRow]:  # fmt: skip
    """Generate and score one feature's pictures at several strengths.

    Args:
        generator: of the model.
        sae: the feature's.
        feature: block and index.
        unit: how far strength 1 moves the update: the feature's mean where it is active.
        rows: see `choose_rows`.
        strengths: not 0; the unchanged picture is always included.
        networks: compute the scores.
        with_clip: whether CLIP scores are computed too.
        batch_size: pictures at a time.
    """
    order = sorted({SOURCE, *strengths})
    saes = {feature[0]: sae}
    edits = {strength: _edit(saes, feature, unit, strength) for strength in order}
    generations = [(picture, strength) for picture, _ in rows for strength in order]
    images: list[NDArray[np.uint8]] = []
    for start in range(0, len(generations), batch_size):
        some = generations[start : start + batch_size]
        made = generator.generate(
            [p.prompt for p, _ in some], [p.seed for p, _ in some], edits=[edits[strength] for _, strength in some]
        )
        images.extend(made.images)
    found = []
    for number, (picture, active) in enumerate(rows):
        own = images[number * len(order) : (number + 1) * len(order)]
        scores = _scores(picture.prompt, own, own[order.index(SOURCE)], networks, with_clip)
        cells = tuple(StrengthPicture(*cell) for cell in zip(order, own, scores, strict=True))
        found.append(StrengthRow(picture, active, cells))
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


def means(rows: Sequence[StrengthRow]) -> tuple[Means, ...]:
    """Compute the mean over the rows of each strength's scores."""
    if not rows:
        return ()
    found = []
    for number, cell in enumerate(rows[0].cells):
        columns = {name: [row.cells[number].scores[name] for row in rows] for name in cell.scores}
        found.append(
            Means(strength=cell.strength, **{name: round(sum(some) / len(some), 6) for name, some in columns.items()})
        )
    return tuple(found)


@dataclass(frozen=True)
class StudyOptions:
    """Settings of a study: the pictures, strengths and scorer.

    Attributes:
        prompts: of the pictures.
        seeds: of each prompt.
        strengths: above 0 on, below 0 off; not 0.
        top: number of pictures shown in which a feature is strongest.
        scorer: the CLIP that computes scores; None for none.
        batch_size: pictures at a time.
        progress: shows bars.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    strengths: tuple[float, ...] = (-1.0, 1.0, 2.0, 4.0, 8.0)
    top: int = 8
    scorer: str | None = None
    batch_size: int = 4
    progress: bool = True


class Study:
    """The study of features of one model.

    Args:
        generator: of the model.
        options: settings.
        networks: compute the scores.
    """

    def __init__(self, generator: Generator, options: StudyOptions, networks: Networks) -> None:
        self.generator = generator
        self.options = options
        self.networks = networks
        self.scorer = "" if options.scorer is None else networks.identity("clip")

    def folder(self, out: Path, block: str, sae: SparseAutoencoder, index: int) -> Path:
        """Return a feature's folder below the folder of all pages."""
        return out / feature_folder(self.generator.model.spec.name, block, sae.sha256, index)

    def made_of(self, block: str, sae: SparseAutoencoder, index: int) -> dict[str, Any]:
        """Return all inputs that could change a number or picture of a feature."""
        options = self.options
        return {
            "version": VERSION,
            "model": self.generator.model.spec.identity,
            "sae": sae.sha256,
            "feature": [block, index],
            "prompts": content_digest(list(options.prompts))[:16],
            "seeds": list(options.seeds),
            "strengths": sorted(options.strengths),
            "top": options.top,
            "scorer": self.scorer,
        }

    def run(
        self,
        saes: Mapping[str, SparseAutoencoder],
        wanted: Mapping[str, Sequence[int]],
        out: Path,
        stored: Callable[[str, int], tuple[float | None, float | None]] = lambda block, index: (None, None),
    ) -> tuple[list[Path], list[Path]]:
        """Make the folders that are missing or out of date.

        Args:
            saes: block -> SAE.
            wanted: block -> indices of features.
            out: the folder of all pages.
            stored: (block, index) -> mean and standard deviation that the SAE's own files state.

        Returns:
            Folders of all wanted features, and those that this call made.

        Raises:
            RiebenchError: if pictures cannot be generated or measured.
        """
        places = {(block, i): self.folder(out, block, saes[block], i) for block in wanted for i in wanted[block]}
        missing = [
            (block, i)
            for (block, i), place in places.items()
            if not is_current(place, self.made_of(block, saes[block], i))
        ]
        activities = {
            block: Activity(saes[block], [i for name, i in missing if name == block], self.options.top, ROWS)
            for block in dict.fromkeys(block for block, _ in missing)
        }
        pictures = pictures_of(self.options.prompts, self.options.seeds)
        observe(
            self.generator, activities, pictures, batch_size=self.options.batch_size, progress=self.options.progress
        )
        for block, index in ProgressBar(missing, title="features", unit="feature", shown=self.options.progress):
            self._make(places[block, index], block, index, activities[block], stored(block, index))
        return list(places.values()), [places[key] for key in missing]

    def _make(
        self, folder: Path, block: str, index: int, activity: Activity, stored: tuple[float | None, float | None]
    ) -> None:
        sae, spec = activity.sae, self.generator.model.spec
        statistics = _statistics(activity, index, stored)
        rows: list[StrengthRow] = []
        if statistics.mean > 0:
            rows = strip(
                self.generator, sae, (block, index), statistics.mean, choose_rows(activity.features[index]),
                self.options.strengths, self.networks, with_clip=bool(self.scorer), batch_size=self.options.batch_size,
            )  # fmt: skip
        # Deleted first, so that the folder counts as incomplete until everything is written.
        (folder / DATA).unlink(missing_ok=True)
        data = FeatureData(
            made_of=self.made_of(block, sae, index), model=spec.name, steps=spec.steps, guidance=spec.guidance,
            size=spec.size, block=block, index=index, features=sae.n, sae_format=sae.format, sae_sha256=sae.sha256,
            sae_reads=sae.reads, scorer=self.scorer, statistics=statistics, top=_top(folder, activity, index),
            rows=_rows(folder, rows),
            means=means(rows), neighbours=nearest(sae, activity, index),
        )  # fmt: skip
        _draw(folder, data, rows)
        # Written last, so that a folder with data is complete.
        write_atomic(folder / DATA, (data.model_dump_json(indent=1) + "\n").encode())


def _number(value: float) -> float:
    return float(f"{value:.6g}")


def _statistics(activity: Activity, index: int, stored: tuple[float | None, float | None]) -> Statistics:
    one = activity.features[index]
    return Statistics(
        pictures=activity.pictures,
        positions=activity.positions,
        rate=_number(float(activity.counts[index]) / max(1, activity.positions)),
        picture_rate=_number(one.pictures / max(1, activity.pictures)),
        step_rates=tuple(map(_number, activity.step_rates(index))),
        mean=_number(float(activity.means[index])),
        std=_number(float(activity.stds[index])),
        largest=_number(float(activity.largest[index])),
        histogram=tuple(int(count) for count in one.histogram.counts),
        bin_width=one.histogram.width,
        stored_mean=None if stored[0] is None else _number(stored[0]),
        stored_std=None if stored[1] is None else _number(stored[1]),
    )


def _top(folder: Path, activity: Activity, index: int) -> tuple[TopPicture, ...]:
    found = []
    largest = float(activity.largest[index])
    for number, one in enumerate(activity.features[index].strongest.items, start=1):
        image, heat = f"top-{number}.png", f"top-{number}-heat.png"
        write_atomic(folder / image, encode_png(one.image))
        write_atomic(folder / heat, encode_png(heat_overlay(one.image, one.heat, largest)))
        found.append(
            TopPicture(
                prompt=one.picture.prompt,
                seed=one.picture.seed,
                value=_number(one.value),
                share=_number(float((one.heat > 0).mean())),
                image=image,
                heat=heat,
            )
        )
    return tuple(found)


def _rows(folder: Path, rows: Sequence[StrengthRow]) -> tuple[Row, ...]:
    found = []
    for number, row in enumerate(rows, start=1):
        cells = []
        for cell in row.cells:
            image = f"row-{number}-x{cell.strength:g}.png"
            write_atomic(folder / image, encode_png(cell.image))
            cells.append(Cell(strength=cell.strength, image=image, **cell.scores))
        picture = row.picture
        found.append(Row(prompt=picture.prompt, seed=picture.seed, active=row.active, cells=tuple(cells)))
    return tuple(found)


def _draw(folder: Path, data: FeatureData, rows: Sequence[StrengthRow]) -> None:
    name = f"feature {data.index} of {data.block}"
    write_atomic(folder / HISTOGRAM, histogram_svg(data.statistics, name).encode())
    if not rows:
        return
    write_atomic(folder / CURVES, curves_svg(data.means, name).encode())
    columns = ["source" if one.strength == SOURCE else f"{one.strength:+g}" for one in data.means]
    pictures = [
        (f"{'strongest' if row.active else 'weakest'} {n}", [cell.image for cell in row.cells])
        for n, row in enumerate(rows, start=1)
    ]
    write_atomic(folder / STRIP, encode_png(grid(columns, [(name, list(some)) for name, some in pictures])))
