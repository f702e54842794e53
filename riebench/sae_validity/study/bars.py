"""The study: every measure held against the ladder, and the bars to pass.

`Study` computes each measure's statistics once. A bar is passed by the observed numbers and fails where they are
missing; nothing here rounds before it compares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from riebench.analysis.sae_score.effects import TOGETHER
from riebench.analysis.validity.units import Cell, empty_cell
from riebench.sae_validity.measures import JUDGE, TRUTH, LadderMeasure, all_measures
from riebench.sae_validity.results import LadderResults
from riebench.sae_validity.rungs import Rung
from riebench.sae_validity.study.means import REPLICATES, MeasureTable, SaeMeans
from riebench.sae_validity.study.statistics import (
    TRAINED,
    TRUE,
    UNTRAINED,
    Noise,
    RungComparison,
    compare_rungs,
    first_rank_group,
    kendall,
    known_pairs,
    neighbours,
    noise,
    rank_correlation,
    training_order,
    training_pairs,
    twins,
)

if TYPE_CHECKING:
    import pandas as pd

LEAST_TAU = 0.8
"""Bar: Kendall's tau with the known order."""
MOST_NOISE = 1 / 3
"""Bar: noise over seeds as a part of the gap between neighbouring rungs."""


@dataclass(frozen=True)
class Bars:
    """The bars of one measure; None where it was not measured.

    Attributes:
        order: Kendall's tau with the known order is at least `LEAST_TAU`.
        twins: the trained SAE is above each frozen twin in every block, with an interval above 0.
        noise: the noise over seeds is at most `MOST_NOISE` of every gap between neighbouring rungs.
        ranks: no random or untrained rung is in the first rank group.
    """

    order: bool | None
    twins: bool | None
    noise: bool | None
    ranks: bool | None

    @property
    def passed(self) -> bool:
        """True if all four are passed."""
        return all(one is True for one in (self.order, self.twins, self.noise, self.ranks))


@dataclass(frozen=True)
class MeasureStudy:
    """One measure held against the ladder.

    Attributes:
        key: its name in the table of values.
        measure: what it is.
        means: by rung, of all blocks together.
        order: Kendall's tau over all pairs of known order.
        training: the same over the family "training" alone.
        truth: Kendall's tau-b with the match of single features with known values, over all rungs.
        judge: likewise with the wished attributes reached with few features.
        noise: of one SAE's mean.
        neighbours: neighbouring rungs of the family "training", least trained first.
        twins: (twin, block) -> difference of the trained SAE from it; `TOGETHER` is a block, too.
        group: rungs that cannot be told from the best.
    """

    key: str
    measure: LadderMeasure
    means: Mapping[str, Cell]
    order: Cell
    training: Cell
    truth: Cell
    judge: Cell
    noise: Noise
    neighbours: tuple[RungComparison, ...]
    twins: Mapping[tuple[str, str], Cell]
    group: tuple[str, ...]

    @property
    def failing_twins(self) -> list[tuple[str, str]]:
        """(Twin, block) whose difference is not above 0 with its whole interval."""
        return [place for place, cell in self.twins.items() if not above_zero(cell)]

    @property
    def noisy(self) -> list[RungComparison]:
        """Neighbouring rungs whose gap is less than the noise allows."""
        return [one for one in self.neighbours if not self._is_wide(one)]

    def _is_wide(self, one: RungComparison) -> bool:
        gap, total = one.gap.value, self.noise.total
        return gap is not None and total is not None and gap > 0 and total <= MOST_NOISE * gap

    @property
    def untrained_first(self) -> list[str]:
        """Random and untrained rungs in the first rank group."""
        return [name for name in self.group if name in UNTRAINED]

    @cached_property
    def bars(self) -> Bars:
        """The bars that the measure passes."""
        blocks = {block for _, block in self.twins if block != TOGETHER}
        return Bars(
            order=None if self.order.value is None else self.order.value >= LEAST_TAU,
            twins=not self.failing_twins if blocks else None,
            noise=not self.noisy if self.neighbours and self.noise.training.value is not None else None,
            ranks=not self.untrained_first if self.group else None,
        )


def above_zero(cell: Cell) -> bool:
    """Return whether a number's whole interval is above 0."""
    return cell.low is not None and cell.low > 0


class Study:
    """All measures held against the ladder.

    Args:
        results: the stored values.
        replicates: of the bootstrap; None for `REPLICATES`.
    """

    def __init__(self, results: LadderResults, replicates: int | None = None) -> None:
        self.results = results
        self.replicates = REPLICATES if replicates is None else replicates

    @cached_property
    def rungs(self) -> tuple[Rung, ...]:
        """Rungs that were measured, in the order in which they were made."""
        return tuple(Rung(r.name, r.family, r.order, len(r.training_seeds)) for r in self.results.about.rungs)

    @cached_property
    def blocks(self) -> tuple[str, ...]:
        """Blocks that were edited alone."""
        found = self.results.values["block"].unique().tolist()
        return tuple(sorted(block for block in found if block != TOGETHER))

    @cached_property
    def _groups(self) -> Mapping[tuple[str, str], pd.DataFrame]:
        frame = self.results.values
        return {(str(m), str(b)): rows for (m, b), rows in frame.groupby(["measure", "block"], sort=False)}

    def table(self, key: str, block: str = TOGETHER) -> MeasureTable | None:
        """Return the values of a measure in a block; None if there are none."""
        rows = self._groups.get((key, block))
        return None if rows is None else MeasureTable.of(rows, all_measures()[key].sign)

    def means(self, key: str, block: str = TOGETHER) -> SaeMeans | None:
        """Return a measure's means, more being better; None if there are none."""
        if (key, block) not in self._means:
            found = self.table(key, block)
            self._means[key, block] = None if found is None else SaeMeans.of(found, self.replicates)
        return self._means[key, block]

    @cached_property
    def _means(self) -> dict[tuple[str, str], SaeMeans | None]:
        return {}

    @cached_property
    def measures(self) -> tuple[MeasureStudy, ...]:
        """All measures with values, in the order of the registry."""
        found = [self._study(key, measure) for key, measure in all_measures().items()]
        return tuple(one for one in found if one is not None)

    @property
    def official(self) -> tuple[MeasureStudy, ...]:
        """The measures that stand in the leaderboard's table of SAEs."""
        return tuple(one for one in self.measures if one.measure.official)

    @property
    def passing(self) -> tuple[MeasureStudy, ...]:
        """The measures that pass all bars."""
        return tuple(one for one in self.measures if one.bars.passed)

    def _study(self, key: str, measure: LadderMeasure) -> MeasureStudy | None:
        table, means = self.table(key), self.means(key)
        if table is None or means is None:
            return None
        names = [rung.name for rung in self.rungs]
        moved = noise(table, means, training_order(self.rungs))
        ranked = [name for name in names if name != TRUE]
        return MeasureStudy(
            key, measure,
            means={name: _mean(means, name, measure.sign) for name in names},
            order=kendall(means, known_pairs(self.rungs)),
            training=kendall(means, training_pairs(self.rungs)),
            truth=self._correlation(means, TRUTH, names),
            judge=self._correlation(means, JUDGE, names),
            noise=moved,
            neighbours=tuple(compare_rungs(means, pair, moved.total) for pair in neighbours(self.rungs)),
            twins=self._twins(key),
            group=tuple(first_rank_group(means, ranked)),
        )  # fmt: skip

    def _correlation(self, means: SaeMeans, truth: str, names: Sequence[str]) -> Cell:
        known = self.means(truth)
        return empty_cell("no value") if known is None else rank_correlation(means, known, names)

    def _twins(self, key: str) -> dict[tuple[str, str], Cell]:
        found = {}
        for block in (TOGETHER, *self.blocks):
            means = self.means(key, block)
            for twin in twins(self.rungs) if means is not None else ():
                if means is not None and {TRAINED, twin} <= set(means.places):
                    found[twin, block] = means.difference(TRAINED, twin)
        return found


def _mean(means: SaeMeans, name: str, sign: int) -> Cell:
    """Return a rung's mean as it is printed.

    A measure of which less is better is turned back.
    """
    from riebench.sae_validity.study.means import cell

    found = means.rung(name)
    return empty_cell("not measured") if found is None else cell(sign * found, len(means.places[name]))
