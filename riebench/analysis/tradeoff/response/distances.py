"""Distances of edited activations from unedited ones, beside gain.

They are a table of every configuration that has some.

Numbers are means over seeds, then examples, then categories, as in every table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import compress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from riebench.analysis.configurations import FAR, FAR_BEFORE, Configuration, configurations
from riebench.analysis.stats import Floats, estimate, macro_mean
from riebench.store.folder import RunFolder
from riebench.store.records import BlockDistribution, EditRecord
from riebench.utils.markup import Block, Code, Document, Heading, MarkupTable, Paragraph, csv_text

NONE = "–"
ALL_STEPS = "all"
NUMBERS = ("norm", "distance", "far", "far_before")
"""Fields of `BlockDistribution` with a number for each step."""
Values = dict[str, dict[str, list[float]]]
"""Category -> example id -> values of its seeds."""


@dataclass(frozen=True)
class DistanceRow:
    """One block of one configuration, at one step or over all of them.

    Attributes:
        setting: name of the method configuration.
        block_set: blocks edited together.
        strength: edit strength.
        block: whose updates are measured.
        step: from 0, or "all" for the mean over steps.
        reference: beginning of the hash of the unedited activations' statistics.
        norm: mean quantile of the norms among unedited norms.
        distance: mean Mahalanobis distance; 1 is usual.
        far: share of positions farther than 99 % of unedited ones.
        far_low: lower end of its 95 % interval.
        far_high: upper end.
        far_before: the same share before the edit, at the same positions.
        clip_gain: mean gain of the configuration; None if not scored.
        lpips: mean LPIPS of the configuration; None if not scored.
        units: edits behind the row.
    """

    setting: str
    block_set: str
    strength: float
    block: str
    step: int | str
    reference: str
    norm: float
    distance: float
    far: float
    far_low: float | None
    far_high: float | None
    far_before: float
    clip_gain: float | None
    lpips: float | None
    units: int


def _order(record: EditRecord) -> tuple[str, str, int]:
    return record.key.category, record.key.example_id, record.key.seed


def distance_rows(
    folders: Iterable[RunFolder], known: Mapping[Path, Sequence[Configuration]] | None = None
) -> list[DistanceRow]:
    """Collect the distances of all configurations, over all steps first.

    Args:
        folders: the run folders.
        known: path of a run folder -> its configurations with the usual metrics, where they were read already.
    """
    rows: list[DistanceRow] = []
    for folder in folders:
        groups: dict[tuple[str, float, str, str], list[tuple[EditRecord, BlockDistribution]]] = {}
        for record in sorted(folder.records(), key=_order):
            for block, one in (record.distribution or {}).items():
                if not one.steps:
                    continue
                place = (record.key.block_set, record.key.strength, block, one.reference)
                groups.setdefault(place, []).append((record, one))
        if not groups:
            continue
        of_run = (known or {}).get(folder.path) or configurations(folder)
        found = {(one.block_set, one.strength): one for one in of_run}
        for (block_set, strength, block, reference), members in sorted(groups.items()):
            rows += _rows(folder.spec.setting.name, found[block_set, strength], (block, reference), members)
    return rows


def _rows(
    setting: str, configuration: Configuration, place: tuple[str, str],
    members: Sequence[tuple[EditRecord, BlockDistribution]],
) -> list[DistanceRow]:  # fmt: skip
    """Return the row of one block over all steps, then those of each step."""
    block, reference = place
    gain, lpips = _mean(configuration, "clip_gain"), _mean(configuration, "lpips")
    steps = sorted({step for _, one in members for step in one.steps})
    numbers = _numbers(members, steps)
    means = np.nanmean(numbers, axis=2)
    values: Values = {}
    for (record, _), far in zip(members, means[:, NUMBERS.index("far")].tolist(), strict=True):
        values.setdefault(record.key.category, {}).setdefault(record.key.example_id, []).append(far)
    far_share = estimate(values, configuration.clusters, bounds=(0.0, None))
    rows, whole = [], _Grouping.of(members)
    tables: list[tuple[int | str, Floats]] = [(ALL_STEPS, means), *zip(steps, np.moveaxis(numbers, 2, 0), strict=True)]
    for at, (step, of_step) in enumerate(tables):
        if at != 1 or len(steps) > 1:  # a single step is all steps
            there = ~np.isnan(of_step[:, 0])
            grouping = whole if there.all() else _Grouping.of(compress(members, there))
            norm, distance, far, before = grouping.macro_means(of_step[there])
        ends = (far_share.low, far_share.high) if step == ALL_STEPS else (None, None)
        rows.append(DistanceRow(
            setting, configuration.block_set, configuration.strength, block, step, reference,
            norm, distance, far, *ends, before, gain, lpips, len(members),
        ))  # fmt: skip
    return rows


def _mean(configuration: Configuration, metric: str) -> float | None:
    return macro_mean(configuration.values.get(metric, {}))


def _numbers(members: Sequence[tuple[EditRecord, BlockDistribution]], steps: Sequence[int]) -> Floats:
    """Return each edit's `NUMBERS` at each step.

    They are [edits, numbers, steps], nan where a step is not edited.
    """
    if all(one.steps == (*steps,) for _, one in members):
        return np.array([[getattr(one, number) for number in NUMBERS] for _, one in members])
    found = np.full((len(members), len(NUMBERS), len(steps)), np.nan)
    for at, (_, one) in enumerate(members):
        columns = [steps.index(step) for step in one.steps]
        found[at][:, columns] = [getattr(one, number) for number in NUMBERS]
    return found


class _Grouping(NamedTuple):
    """Edits of one example, and examples of one category, beside each other.

    Attributes:
        starts: place of the first edit of each example.
        sizes: edits of each example.
        ends: of each category, how many examples it and those before have.
    """

    starts: list[int]
    sizes: NDArray[np.intp]
    ends: list[int]

    @classmethod
    def of(cls, members: Iterable[tuple[EditRecord, BlockDistribution]]) -> _Grouping:
        """Group edits, those of one category and of one example beside each other."""
        places = [(record.key.category, record.key.example_id) for record, _ in members]
        starts = [at for at, place in enumerate(places) if at == 0 or place != places[at - 1]]
        names = [places[start][0] for start in starts]
        ends = [at for at, name in enumerate(names, 1) if at == len(names) or name != names[at]]
        return cls(starts, np.diff([*starts, len(places)]), ends)

    def macro_means(self, numbers: Floats) -> list[float]:
        """Compute `macro_mean` of several numbers at once.

        Args:
            numbers: [edits, numbers].
        """
        # One row for each number, so that a category's examples are added as those of a single number are.
        examples = np.ascontiguousarray((np.add.reduceat(numbers, self.starts, axis=0) / self.sizes[:, None]).T)
        first = [0, *self.ends[:-1]]
        categories = [examples[:, start:end].mean(axis=1) for start, end in zip(first, self.ends, strict=True)]
        return np.stack(categories, axis=1).mean(axis=1).tolist()


def distance_table(rows: Sequence[DistanceRow]) -> tuple[Document, str] | None:
    """Tabulate the distances of some runs; None if nothing was measured.

    Returns:
        The table for people, and its CSV file with every step.
    """
    if not rows:
        return None
    names = [field.name for field in fields(DistanceRow)]
    whole = [one for one in rows if one.step == ALL_STEPS]
    note = (
        "How far the block updates of edited runs lie from those of unedited source pictures, over the positions of "
        "both regions, after the edit, mean over steps. ", Code("far"), ": share of positions farther than 99 % of "
        "unedited ones; ", Code("before"), ": the same share of the unedited source run at the same positions; ",
        Code("distance"), ": Mahalanobis distance, 1 is usual; ", Code("norm"), ": quantile among unedited norms, 0.5 "
        "is usual. A block behind another edited one carries the effect of both edits. The CSV file has every step.",
    )  # fmt: skip
    header = ["configuration", "strength", "blocks", "measured at", "far %", "before %", "distance", "norm",
              "clip_gain x100", "lpips", "edits"]  # fmt: skip
    blocks: list[Block] = [Heading(1, ("Off the distribution",)), Paragraph(note)]
    several = _mixed(whole)
    if several:
        names_of = ", ".join(sorted(several))
        blocks.append(Paragraph((f"Measured against different references, not to be compared: {names_of}.",)))
    table = MarkupTable.of(header, (_cells(one) for one in whole))
    return Document((*blocks, table)), csv_text(names, ([getattr(one, name) for name in names] for one in rows))


def _mixed(rows: Sequence[DistanceRow]) -> set[str]:
    references: dict[str, set[str]] = {}
    for one in rows:
        references.setdefault(one.block, set()).add(one.reference)
    return {block for block, found in references.items() if len(found) > 1}


def _cells(one: DistanceRow) -> list[str]:
    ends = "" if one.far_low is None else f" [{100 * one.far_low:.0f}, {100 * (one.far_high or 0.0):.0f}]"
    gain = NONE if one.clip_gain is None else f"{100 * one.clip_gain + 0.0:.2f}"
    return [
        one.setting, f"{one.strength:g}", one.block_set, one.block, f"{100 * one.far:.0f}{ends}",
        f"{100 * one.far_before:.0f}", f"{one.distance:.2f}", f"{one.norm:.2f}", gain,
        NONE if one.lpips is None else f"{one.lpips:.3f}", str(one.units),
    ]  # fmt: skip


def off_distribution_columns(found: Sequence[Configuration], gain: str) -> Mapping[str, float | None]:
    """Return the shares of far positions of a method, by columns of leaderboard.csv.

    They are those of the strength with the largest mean gain, over all blocks and steps.

    Args:
        found: configurations of one method.
        gain: the metric that chooses.
    """
    measured = [one for one in found if one.values.get(FAR)]
    best = max(measured, key=lambda one: _mean(one, gain) or 0.0, default=None)
    if best is None:
        return {FAR: None, FAR_BEFORE: None}
    return {name: _mean(best, name) for name in (FAR, FAR_BEFORE)}
