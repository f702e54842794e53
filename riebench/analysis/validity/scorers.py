"""Agreement of scorers with each other, as a table and a figure.

Scorers that answer the same question are compared in pairs over all edited pictures that both measured: Spearman's rank
correlation inside each category, and its mean over categories. It needs no truth, so it holds on every model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from riebench.analysis.configurations import EVERYTHING, Configuration, configurations
from riebench.analysis.stats import BOOTSTRAP_SEED, REPLICATES
from riebench.analysis.tradeoff import Examples
from riebench.analysis.validity.plots import INK, PALE, FigurePlan
from riebench.analysis.validity.units import Cell, bootstrap_cell, empty_cell, ratio
from riebench.errors import RiebenchError
from riebench.models.clip import with_revision
from riebench.registry import METRICS
from riebench.store.folder import RunFolder
from riebench.tasks.schema import ALL_CATEGORIES
from riebench.utils.files import update_file
from riebench.utils.markup import Code, Document, Heading, MarkupTable, Name, Paragraph, Piece, csv_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUESTIONS: Mapping[str, tuple[str, ...]] = {
    "Is the edit there?": ("clip_gain", "clip_gain_2", "vqa_gain", "editscore_followed", "pick_gain", "hps_gain"),
    "Is the rest as before?": (
        "lpips",
        "structure",
        "dreamsim",
        "dino_image",
        "dinov2_image",
        "dinov3_image",
        "editscore_kept",
    ),
}
"""What is asked of a picture -> the metrics that answer it, each by another network."""
COMMAND = "riebench agreement"
UNSHOWN = ("editscore_followed", "editscore_kept")
"""Those among them that no table shows."""
FEWEST = 3
"""Pictures of a category below which there is no correlation."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PairRow:
    """Agreement of two scorers.

    Attributes:
        question: what both answer.
        first: metric of one.
        second: metric of the other.
        cells: category, or "all" -> Spearman's rank correlation.
    """

    question: str
    first: str
    second: str
    cells: Mapping[str, Cell]


@dataclass(frozen=True, eq=False)
class ScoredPictures:
    """Edited pictures of one suite and model with their scores.

    Attributes:
        examples: what is resampled.
        example: position of each picture's example, int [N].
        values: metric -> float64 [N]; nan where there is none, and turned round where less is better.
        backbones: metric -> the networks that measured.
    """

    examples: Examples
    example: NDArray[np.intp]
    values: Mapping[str, Floats]
    backbones: Mapping[str, tuple[str, ...]]


def read_pictures(folders: Iterable[RunFolder]) -> ScoredPictures:
    """Read the edited pictures of one suite and model, but for strength 0."""
    found = [
        one for folder in folders for one in configurations(folder, extra=UNSHOWN, features=False) if one.strength != 0
    ]
    metrics = [metric for asked in QUESTIONS.values() for metric in asked if any(metric in one.units for one in found)]
    categories: dict[str, str] = {}
    clusters: dict[str, str] = {}
    rows: list[tuple[str, int, Configuration]] = []
    for one in sorted(found, key=lambda one: (one.setting, one.block_set, one.strength)):
        clusters |= one.clusters
        for by_category in one.values.values():
            categories |= {name: category for category, names in by_category.items() for name in names}
        units = sorted({unit for metric in metrics for unit in one.units.get(metric, {})})
        rows += [(example, seed, one) for example, seed in units]
    examples = Examples.of(categories, clusters)
    place = {name: position for position, name in enumerate(examples.ids)}
    return ScoredPictures(
        examples,
        np.array([place[example] for example, _, _ in rows], dtype=np.intp),
        {metric: _column(metric, rows) for metric in metrics},
        {metric: tuple(sorted({one.backbones[metric] for one in found if metric in one.units})) for metric in metrics},
    )


def _column(metric: str, rows: Sequence[tuple[str, int, Configuration]]) -> Floats:
    turn = 1 if METRICS.get(metric).direction == "higher" else -1
    values = [one.units.get(metric, {}).get((example, seed), np.nan) for example, seed, one in rows]
    return np.asarray(turn * np.array(values, dtype=np.float64))


def compare_scorers(pictures: ScoredPictures, replicates: int = REPLICATES) -> list[PairRow]:
    """Compute the agreement of all pairs of scorers that answer the same question.

    Args:
        pictures: edited pictures.
        replicates: of the bootstrap over examples.
    """
    drawn = pictures.examples.draws(replicates, BOOTSTRAP_SEED)
    weights = np.vstack([np.ones((1, len(pictures.examples.ids))), drawn])
    rows = []
    for question, asked in QUESTIONS.items():
        for first, second in combinations([metric for metric in asked if metric in pictures.values], 2):
            rows.append(PairRow(question, first, second, _cells(pictures, first, second, weights)))
    return rows


def _cells(pictures: ScoredPictures, first: str, second: str, weights: Floats) -> dict[str, Cell]:
    """Return the correlation of two scorers by category, and its mean."""
    x, y = pictures.values[first], pictures.values[second]
    known = np.isfinite(x) & np.isfinite(y)
    strata = pictures.examples.strata
    cells: dict[str, Cell] = {}
    draws = []
    for category in (name for name in ALL_CATEGORIES if name in strata):
        inside = np.flatnonzero(known & np.isin(pictures.example, strata[category]))
        if len(inside) < FEWEST:
            cells[category] = empty_cell("too few pictures", len(inside))
            continue
        found = _correlations(x[inside], y[inside], pictures.example[inside], weights)
        behind = np.unique(pictures.example[inside]).tolist()
        cells[category] = bootstrap_cell(found, len(inside), pictures.examples, behind, "one score is constant")
        draws.append(found)
    behind = np.unique(pictures.example[known]).tolist()
    whole = [one for one in draws if np.isfinite(one[0])]
    cells[EVERYTHING] = (
        bootstrap_cell(np.mean(whole, axis=0), int(known.sum()), pictures.examples, behind, "no category")
        if whole
        else empty_cell("no category", int(known.sum()))
    )
    return cells


def _correlations(x: Floats, y: Floats, example: NDArray[np.intp], weights: Floats) -> Floats:
    """Return Spearman's rank correlation as observed and in each replicate, [1 + R].

    Replicates weigh the observed ranks by how often each example was drawn.
    """
    from scipy.stats import rankdata

    # Centred, so that sums of squares lose no digits.
    first, second = (rankdata(one) - (len(one) + 1) / 2 for one in (x, y))
    parts = (np.ones(len(x)), first, second, first * first, second * second, first * second)
    n, a, b, aa, bb, ab = (weights @ np.bincount(example, weights=part, minlength=weights.shape[1]) for part in parts)
    spread = np.maximum(n * aa - a * a, 0) * np.maximum(n * bb - b * b, 0)
    return ratio(n * ab - a * b, np.sqrt(spread))


def agreement_document(pictures: ScoredPictures, rows: Sequence[PairRow], title: str) -> Document:
    """Return the table as a document that names every scorer and its version.

    Args:
        pictures: edited pictures.
        rows: as `compare_scorers` returns them.
        title: the suite and the model.
    """
    scorers: list[Piece] = []
    for metric, networks in pictures.backbones.items():
        version = f" (version {METRICS.get(metric).version}) by "
        measured = ", ".join(map(with_revision, networks))
        scorers += [", " if scorers else "", Code(metric), version, Name(measured)]
    about = (
        "Spearman's rank correlation of two scores over the edited pictures of a category: 1 where both order them "
        "alike, 0 where one says nothing of the other. Distances are turned round. ",
        Code(EVERYTHING),
        f" is the mean over categories. Intervals: 95 %, percentile bootstrap over examples, {REPLICATES} replicates, "
        f"seed {BOOTSTRAP_SEED}. In brackets behind them: pictures.",
    )
    blocks: list[Any] = [Heading(1, (f"Agreement of scorers: {title}",)), Paragraph((*scorers, ".")), Paragraph(about)]
    for question in dict.fromkeys(row.question for row in rows):
        chosen = [row for row in rows if row.question == question]
        header = ["scorers", *chosen[0].cells]
        table = [
            [f"{row.first}, {row.second}", *(f"{cell.text()} ({cell.n})" for cell in row.cells.values())]
            for row in chosen
        ]
        blocks += [Heading(2, (question,)), MarkupTable.of(header, table)]
    return Document(tuple(blocks))


def agreement_csv(rows: Sequence[PairRow]) -> str:
    """Return all numbers of the table as CSV."""
    header = ["question", "first", "second", "category", "rank_correlation", "low", "high", "pictures", "reason"]
    lines = [
        [row.question, row.first, row.second, category, cell.value, cell.low, cell.high, cell.n, cell.reason]
        for row in rows
        for category, cell in row.cells.items()
    ]
    return csv_text(header, lines)


def agreement_figure(rows: Sequence[PairRow]) -> FigurePlan:
    """Plan the figure: pairs of scorers by categories, the correlation as a color."""
    categories = [*rows[0].cells]
    numbers = {
        "columns": [name.removeprefix("change_").replace("_", " ") for name in categories],
        "panels": {
            question: [
                [f"{row.first}, {row.second}", *(_rounded(row.cells[name]) for name in categories)]
                for row in rows
                if row.question == question
            ]
            for question in dict.fromkeys(row.question for row in rows)
        },
    }
    alt = "Heat maps, pairs of scorers by categories: how alike two scorers order edited pictures."
    return FigurePlan(alt, numbers, _draw, (9.2, 1.8 + 0.42 * len(rows) + 0.6 * len(numbers["panels"])))


def _rounded(cell: Cell) -> float | None:
    return None if cell.value is None else round(cell.value, 2)


def _draw(figure: Figure, numbers: Any) -> None:
    import matplotlib

    colors = matplotlib.colormaps["RdBu"].with_extremes(bad=PALE)
    heights = [len(rows) for rows in numbers["panels"].values()]
    panels = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (question, rows) in zip(panels, numbers["panels"].items(), strict=True):
        values = np.array([[np.nan if one is None else one for one in row[1:]] for row in rows])
        image = axes.imshow(values, cmap=colors, vmin=-1, vmax=1, aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            text = "–" if np.isnan(value) else f"{value:.2f}"
            color = "white" if abs(value) > 0.7 else INK
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=color)
        axes.set_title(question, loc="left", fontsize=10, fontweight="bold")
        axes.set_yticks(range(len(rows)), [row[0] for row in rows], fontsize=8)
        axes.set_xticks(range(len(numbers["columns"])), [name.replace(" ", "\n") for name in numbers["columns"]])
        axes.tick_params(length=0, labelsize=8)
        axes.axvline(len(numbers["columns"]) - 1.5, color="white", linewidth=3)
        axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=list(panels), shrink=0.8, aspect=30, pad=0.015)
    bar.set_label("rank correlation")
    bar.outline.set_visible(False)


def write_agreement(folders: Sequence[RunFolder], out: Path | None = None, *, check: bool = False) -> list[Path]:
    """Write table, numbers and figure for every suite and model.

    Those in which no two scorers answer the same question are left out.

    Args:
        folders: all run folders.
        out: folder for all files; None for the folder of each model's tables.
        check: only looks.

    Returns:
        The files.

    Raises:
        RiebenchError: if no pictures were measured by two such scorers; with `check`, if a file is out of date.
    """
    groups: dict[Path, list[RunFolder]] = {}
    for folder in folders:
        groups.setdefault(folder.path.parent, []).append(folder)
    written: list[Path] = []
    for model_folder, members in sorted(groups.items()):
        pictures = read_pictures(members)
        rows = compare_scorers(pictures)
        if not rows:
            continue
        suite, model = members[0].spec.suite, members[0].spec.model.name
        place = (out or model_folder / "tables") / f"scorer_agreement{f'-{suite}-{model}' if out else ''}.md"
        document = agreement_document(pictures, rows, f"{suite} on {model}")
        for path, text in ((place, document.markdown()), (place.with_suffix(".csv"), agreement_csv(rows))):
            update_file(path, text.encode(), COMMAND, check=check)
        figure = place.with_suffix(".png")
        agreement_figure(rows).update(figure, COMMAND, check=check)
        written += [place, place.with_suffix(".csv"), figure]
    if not written:
        known = ", ".join(metric for asked in QUESTIONS.values() for metric in asked)
        raise RiebenchError(
            f"no picture was measured by two scorers that answer the same question ({known}); "
            "`riebench score --scorers NAME,NAME` measures"
        )
    return written
