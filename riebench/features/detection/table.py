"""Areas under the ROC curves of detectors, and the files that hold them.

The area is the share of pairs of a run with and a run without a concept in which the detector's number of the first is
larger; equal numbers count half. Only runs of one category, fold, seed and concept are compared, since each has a
detector of its own. Of pairs the mean is taken within a category, and then over categories. Intervals of 95 % are
percentiles over replicates that draw examples, or clusters of them, inside each category.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from riebench.analysis.stats import BOOTSTRAP_SEED, cluster_counts, percentile_interval
from riebench.errors import RiebenchError
from riebench.features.detection.detectors import DETECTORS
from riebench.features.detection.readings import Reading
from riebench.utils.files import update_file
from riebench.utils.markup import csv_rows, markdown_table

Floats = NDArray[np.float64]

REPLICATES = 2_000
"""Replicates of each interval."""
ALL = "all"
"""Name of the mean over categories."""
CSV_FILE, MARKDOWN_FILE = "detection.csv", "detection.md"

POOLS = ("largest", "mean")
"""Ways to make one number of a run: the largest over positions, or their mean."""


@dataclass(frozen=True)
class Steering:
    """Mean gain of the method that steers by a detector's direction or feature.

    Attributes:
        gain: mean gain over LPIPS budgets.
        low: lower end of its interval; None if there is none.
        high: upper end.
    """

    gain: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Area:
    """Area under the ROC curve of one detector at one block.

    Attributes:
        detector: its name.
        block: short name.
        category: edit category, or `ALL`.
        pool: see `POOLS`.
        value: the area, 0 to 1; 0.5 tells nothing.
        low: lower end of the interval; None if there is none.
        high: upper end.
        concepts: concepts tested, each in its fold and seed.
        present: runs that show the concept tested.
        absent: runs that do not.
    """

    detector: str
    block: str
    category: str
    pool: str
    value: float
    low: float | None
    high: float | None
    concepts: int
    present: int
    absent: int


@dataclass(frozen=True)
class _Pairs:
    """Pairs of runs with and without a concept in one category.

    Attributes:
        units: what is resampled.
        first: [n], index among `units` of the run with the concept.
        second: [n], that of the run without.
        wins: [n], 1 where the run with it has the larger number, 0.5 where they are equal.
        counts: concepts, runs with and runs without.
    """

    units: tuple[str, ...]
    first: NDArray[np.int64]
    second: NDArray[np.int64]
    wins: Floats
    counts: tuple[int, int, int]

    def areas(self, category: str) -> Floats:
        """Compute the area as observed and in each replicate, [1 + R]; nan without pairs."""
        drawn = cluster_counts(category, self.units, REPLICATES, BOOTSTRAP_SEED)
        drawn = np.concatenate([np.ones((1, len(self.units))), drawn])
        same = self.first == self.second
        weights = drawn[:, self.first] * np.where(same, 1.0, drawn[:, self.second])
        total = weights.sum(1)
        found: Floats = np.divide(weights @ self.wins, total, out=np.full(len(total), np.nan), where=total > 0)
        return found


def areas(readings: Sequence[Reading]) -> list[Area]:
    """Compute the areas of all detectors and blocks, by category and over all.

    Args:
        readings: numbers of detectors.
    """
    found: list[Area] = []
    groups: dict[tuple[str, str], list[Reading]] = {}
    for one in readings:
        groups.setdefault((one.detector, one.block), []).append(one)
    for (detector, block), some in groups.items():
        for pool in POOLS:
            by_category = {
                category: _pairs([one for one in some if one.category == category], pool)
                for category in dict.fromkeys(one.category for one in some)
            }
            draws = {category: pairs.areas(category) for category, pairs in by_category.items()}
            for category, pairs in by_category.items():
                found.append(_area((detector, block, category, pool), draws[category], pairs.counts))
            table = np.stack(list(draws.values()))
            # A replicate without pairs in a category has no mean over categories.
            counts = tuple(sum(pairs.counts[i] for pairs in by_category.values()) for i in range(3))
            found.append(_area((detector, block, ALL, pool), table.mean(0), counts))
    return found


def _area(place: tuple[str, str, str, str], draws: Floats, counts: Sequence[int]) -> Area:
    interval = percentile_interval(draws[1:]) or (None, None)
    return Area(*place, float(draws[0]), *interval, *counts)


def _pairs(readings: Sequence[Reading], pool: str) -> _Pairs:
    groups: dict[tuple[int, int, str], list[Reading]] = {}
    for one in readings:
        groups.setdefault((one.seed, one.fold, one.concept), []).append(one)
    units = tuple(sorted({one.unit for one in readings}))
    place = {unit: index for index, unit in enumerate(units)}
    rows: list[tuple[int, int, float]] = []
    for some in groups.values():
        for there in (one for one in some if one.present):
            for lacking in (one for one in some if not one.present):
                one, other = getattr(there, pool), getattr(lacking, pool)
                rows.append((place[there.unit], place[lacking.unit], 0.5 if one == other else float(one > other)))
    present = sum(one.present for one in readings)
    table = np.array(rows, dtype=np.float64).reshape(-1, 3)
    whole = table[:, :2].astype(np.int64)
    return _Pairs(units, whole[:, 0], whole[:, 1], table[:, 2], (len(groups), present, len(readings) - present))


def read_steering(file: Path, suite: str, model: str) -> dict[str, Steering]:
    """Read the mean gains of methods off a leaderboard: entry -> how well it steers.

    Args:
        file: leaderboard.csv; none is read if it is missing.
        suite: of the entries.
        model: likewise.
    """
    if not file.is_file():
        return {}
    wanted = {"suite": suite, "model": model, "profile": "default", "metric": "mean_gain"}
    with file.open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if all(row.get(key) == value for key, value in wanted.items())]
    return {
        row["method"]: Steering(float(row["score"]), _number(row["score_low"]), _number(row["score_high"]))
        for row in rows
        if row.get("score")
    }


def _number(text: str) -> float | None:
    return float(text) if text else None


def csv_text(found: Sequence[Area], steering: Mapping[str, Steering]) -> str:
    """Return the areas as CSV, a row for each detector, block, category and pool."""
    stream = io.StringIO()
    names = ("detector", "block", "category", "pool", "area", "area_low", "area_high", "concepts", "present", "absent",
             "steered_by", "mean_gain", "mean_gain_low", "mean_gain_high")  # fmt: skip
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(names)
    for one in found:
        entry = DETECTORS[one.detector].configuration
        gain = steering.get(entry)
        numbers = (one.value, one.low, one.high)
        gains = (None, None, None) if gain is None else (gain.gain, gain.low, gain.high)
        writer.writerow(
            [one.detector, one.block, one.category, one.pool, *map(_cell, numbers), one.concepts, one.present,
             one.absent, entry, *map(_cell, gains)]
        )  # fmt: skip
    return stream.getvalue()


def _cell(value: float | None) -> str:
    return "" if value is None or not np.isfinite(value) else f"{value:.9g}"


def document(found: Sequence[Area], steering: Mapping[str, Steering], *, suite: str, model: str) -> str:
    """Return the areas as a Markdown document, conclusion first."""
    whole = [one for one in found if one.category == ALL and np.isfinite(one.value)]
    rows = []
    for detector in dict.fromkeys(one.detector for one in whole):
        for block in dict.fromkeys(one.block for one in whole if one.detector == detector):
            cells = {one.pool: one for one in whole if (one.detector, one.block) == (detector, block)}
            some = next(iter(cells.values()))
            gain = steering.get(DETECTORS[detector].configuration)
            rows.append(
                [detector, block, *(_with_interval(cells.get(pool)) for pool in POOLS), str(some.concepts),
                 f"{some.present} / {some.absent}", _gain_text(gain)]
            )  # fmt: skip
    header = ("detector", "block", "AUC, largest position", "AUC, mean position", "concepts", "runs with / without",
              "steers: mean gain x100")  # fmt: skip
    parts = [
        f"# Concept detection: {suite} on {model}",
        _conclusion(whole, steering),
        "AUC is the area under the ROC curve on runs of examples that nothing was learned from: 1 tells every run with "
        "a concept from every run without it, 0.5 tells nothing. A run's number is the largest over its positions or "
        "their mean. The last column is what the leaderboard says of the method that steers by the same direction or "
        "feature on all blocks together; a dash where it has not been run. Text directions and LoRA sliders have no "
        "direction at a block, so that they detect nothing.",
        markdown_table(header, rows).strip(),
        *_by_category(found),
        "Made by `riebench detect`.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _by_category(found: Sequence[Area]) -> list[str]:
    """Return each detector's best block in each category, as a paragraph and a table."""
    best: dict[tuple[str, str], Area] = {}
    for one in found:
        place = (one.category, one.detector)
        if one.category != ALL and np.isfinite(one.value) and (place not in best or one.value > best[place].value):
            best[place] = one
    categories, detectors = (list(dict.fromkeys(names)) for names in ([c for c, _ in best], [d for _, d in best]))
    rows = [[category, *(_best_text(best.get((category, name))) for name in detectors)] for category in categories]
    return [
        "Largest area in each category, over blocks and both ways to make one number of a run. It was chosen on the "
        "same runs, so that it is a little too good; the random direction shows by how much.",
        markdown_table(("category", *detectors), rows).strip(),
    ]


def _best_text(one: Area | None) -> str:
    return "-" if one is None else f"{_with_interval(one)} ({one.block})"


def _conclusion(whole: Sequence[Area], steering: Mapping[str, Steering]) -> str:
    """Return a sentence on each detector's best block, and on steering."""
    best: dict[str, Area] = {}
    for one in whole:
        if one.detector not in best or one.value > best[one.detector].value:
            best[one.detector] = one
    order = sorted(best.values(), key=lambda one: -one.value)
    said = [f"{one.detector} {one.value:.2f} ({one.block}, {one.pool} position)" for one in order]
    sentence = f"Best area of each detector over its blocks: {'; '.join(said)}. The block was chosen on the same runs."
    steered = [one for one in order if DETECTORS[one.detector].configuration in steering]
    if len(steered) < 2:
        return sentence
    first = max(steered, key=lambda one: steering[DETECTORS[one.detector].configuration].gain)
    same = "also" if first is steered[0] else "not"
    return (
        f"{sentence} Of those that were run, {first.detector} steers best, which is {same} the one that detects best."
    )


def _with_interval(one: Area | None) -> str:
    if one is None:
        return "-"
    return f"{one.value:.2f}" + ("" if one.low is None else f" [{one.low:.2f}, {one.high:.2f}]")


def _gain_text(one: Steering | None) -> str:
    if one is None:
        return "-"
    interval = "" if one.low is None or one.high is None else f" [{100 * one.low:.1f}, {100 * one.high:.1f}]"
    return f"{100 * one.gain:.1f}{interval}"


def write(
    folder: Path, found: Sequence[Area], steering: Mapping[str, Steering], *, suite: str, model: str,
    check: bool = False,
) -> list[Path]:  # fmt: skip
    """Write the table as CSV and as Markdown, or only check that both are up to date.

    Args:
        folder: is made if it is missing.
        found: the areas.
        steering: entry of the leaderboard -> how well it steers.
        suite: for the title.
        model: likewise.
        check: only looks.

    Returns:
        The files.

    Raises:
        RiebenchError: with `check`, if a file is out of date.
    """
    numbers = csv_text(found, steering)
    # Of the numbers as they are stored, so that the document can be made of them again.
    text = document(_areas(numbers), steering, suite=suite, model=model)
    command = f"riebench detect --stored --suite {suite} --model {model} --out {folder}"
    files = {folder / CSV_FILE: numbers, folder / MARKDOWN_FILE: text}
    for path, content in files.items():
        update_file(path, content.encode(), command, check=check)
    return [*files]


def read_areas(folder: Path) -> list[Area]:
    """Read the areas that `write` has stored.

    Args:
        folder: that holds `detection.csv`.

    Raises:
        RiebenchError: if it is missing or no such table; the message says how to make it.
    """
    file = folder / CSV_FILE
    try:
        found = _areas(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise RiebenchError(f"{file} is missing; leave --stored out to measure") from error
    except (KeyError, TypeError, ValueError) as error:
        raise RiebenchError(f"{file} is no table of `riebench detect`; leave --stored out to measure anew") from error
    unknown = sorted({one.detector for one in found} - {*DETECTORS})
    if unknown or not found:
        raise RiebenchError(f"{file} has no row of a known detector; leave --stored out to measure anew")
    return found


def _areas(text: str) -> list[Area]:
    return [
        Area(
            row["detector"], row["block"], row["category"], row["pool"], float(row["area"] or "nan"),
            _number(row["area_low"]), _number(row["area_high"]), int(row["concepts"]), int(row["present"]),
            int(row["absent"]),
        )
        for row in csv_rows(text.splitlines())
    ]  # fmt: skip
