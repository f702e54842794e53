"""Comparison of methods on the same examples and seeds, by score and by truth.

A `Comparison` computes areas, true areas and their bootstrap replicates for entries with equally many seeds. The
functions below it read entries from run folders, join the configurations of a group and sort entries by their seeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from riebench.analysis.configurations import EVERYTHING, present_categories
from riebench.analysis.standings import ENDS, GAIN, Entry, MethodComparison, entries
from riebench.analysis.stats import REPLICATES, Estimate, Replicates
from riebench.analysis.tradeoff import SampleMean
from riebench.analysis.validity.units import SUCCESS, add_success
from riebench.store.folder import RunFolder

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Comparison:
    """Entries with equally many seeds of each example.

    Attributes:
        methods: the entries that are compared.
        ends: the entries `no_edit` and `target_prompt` on the same seeds, as far as they are stored.
        replicates: of the bootstrap.
    """

    methods: tuple[Entry, ...]
    ends: tuple[Entry, ...] = ()
    replicates: int = REPLICATES

    @cached_property
    def field(self) -> MethodComparison:
        """Entries as the leaderboard compares them."""
        return MethodComparison((*self.methods, *self.ends), self.replicates)

    @property
    def seeds(self) -> int:
        """Number of seeds of each example."""
        return self.field.seeds

    @property
    def categories(self) -> tuple[str, ...]:
        """All categories together first, then each one by its number."""
        found = present_categories(c for entry in self.methods for c in entry.configurations)
        return (EVERYTHING, *(category for category in found if category in self.field.examples.strata))

    def n_examples(self, category: str) -> int:
        """Return the number of examples behind a category's numbers."""
        strata = self.field.examples.strata
        return len(self.field.examples.ids) if category == EVERYTHING else len(strata[category])

    @cached_property
    def _gaps(self) -> dict[Entry, str | None]:
        return {entry: self.field.gap(entry) for entry in self.field.entries}

    def gap(self, entry: Entry) -> str | None:
        """Return the reason for which an entry has no area; None if it has one."""
        return self._gaps[entry]

    def area(self, entry: Entry, category: str = EVERYTHING) -> SampleMean | None:
        """Compute the mean gain over the budgets in every replicate.

        Levels are chosen on all categories.

        Returns:
            None if the entry has a gap.
        """
        if self.gap(entry) is not None:
            return None
        found = self.field.trade_off(entry, category=None if category == EVERYTHING else category)
        return None if found is None else found.area

    def realised_distance(self, entry: Entry, category: str = EVERYTHING) -> float | None:
        """Compute the mean LPIPS at which the area is read; None if there is no area."""
        field = MethodComparison(self.field.entries, replicates=0)
        found = field.trade_off(entry, category=None if category == EVERYTHING else category)
        return None if found is None or self.gap(entry) is not None else found.realised

    def true_area(self, entry: Entry, category: str = EVERYTHING) -> SampleMean | None:
        """Compute the area of true success instead of the score.

        Levels are chosen by true success.

        Returns:
            As `area`; None without verdicts of the judge, or if the entry has a gap.
        """
        success = self._success(entry)
        return None if success is None else self._cross_fit(entry, success, None, category)

    def truth_at_choice(self, entry: Entry, category: str = EVERYTHING) -> SampleMean | None:
        """Compute true success at the levels that the score chooses.

        Returns:
            As `area`; None without verdicts of the judge, or if the entry has a gap.
        """
        gains, success = entry.values(GAIN, self.field.examples), self._success(entry)
        return None if gains is None or success is None else self._cross_fit(entry, gains, success, category)

    def target_prompt_gain(self, category: str = EVERYTHING) -> SampleMean | None:
        """Compute the gain of the target prompt's own pictures in every replicate.

        Returns:
            As `area`; None if they are not stored, or if the interval of the gain includes 0.
        """
        for entry in (one for one in self.ends if one.method == "target_prompt"):
            gains = entry.values(GAIN, self.field.examples)
            if gains is None or self.gap(entry) is not None:
                continue
            some = None if category == EVERYTHING else category
            found = SampleMean.of(gains[:, 0], self.field.examples, self.field.weights, some)
            ends = found.replicates.interval()
            return found if ends is not None and not ends[0] <= 0 <= ends[1] else None
        return None

    def estimate(self, found: SampleMean | Replicates | None, category: str = EVERYTHING) -> Estimate:
        """Return the observed value with its interval; an empty estimate for None."""
        replicates = found.replicates if isinstance(found, SampleMean) else found
        if replicates is None or not np.isfinite(replicates.mean):
            return Estimate(None, None, None, 0)
        low, high = replicates.interval() or (None, None)
        return Estimate(replicates.mean, low, high, self.n_examples(category))

    def _cross_fit(self, entry: Entry, gains: Floats, read: Floats | None, category: str) -> SampleMean | None:
        """Compute an area by cross-fitting, with levels chosen by the given gains."""
        if self.gap(entry) is not None:
            return None
        found = self.field.cross_fit(entry, gains, read, None if category == EVERYTHING else category)
        return None if found is None else found.area

    def _success(self, entry: Entry) -> Floats | None:
        """Return true success less that of unedited pictures, [E, configurations]."""
        found = entry.values(SUCCESS, self.field.examples)
        return None if found is None else found - self._unedited[:, None]

    @cached_property
    def _unedited(self) -> Floats:
        """True success of unedited pictures, [E]; zeros if none were judged."""
        for entry in (one for one in self.ends if one.method == "no_edit"):
            found = entry.values(SUCCESS, self.field.examples)
            if found is not None:
                return found[:, 0]
        # Without verdicts, an unedited picture is taken to lack the target.
        return np.zeros(len(self.field.examples.ids))


def comparisons_by_seeds(everything: Sequence[Entry], replicates: int = REPLICATES) -> list[Comparison]:
    """Group entries by their number of seeds, most seeds first.

    Numbers of seeds that only ends have are left out.

    Args:
        everything: entries of one suite and model.
        replicates: of the bootstrap.
    """
    found = []
    counted = {entry: entry.seeds for entry in everything}
    for seeds in sorted({*counted.values()} - {0}, reverse=True):
        members = [entry for entry in everything if counted[entry] == seeds]
        methods = tuple(entry for entry in members if entry.method not in ENDS)
        if methods:
            ends = tuple(entry for entry in members if entry.method in ENDS)
            found.append(Comparison(methods, ends, replicates))
    return found


def read_entries(folders: Iterable[RunFolder], *, single_blocks: bool = False) -> list[Entry]:
    """Read the methods of some run folders, with the truth from both verdicts.

    Args:
        folders: of one suite and model; where two hold the same method at as many seeds, the first one counts.
        single_blocks: also return block sets that are part of a configuration's whole.
    """
    found: dict[tuple[str, str, str, int], Entry] = {}
    for folder in folders:
        for entry in entries([folder], single_blocks=single_blocks):
            for configuration in entry.configurations:
                add_success(configuration)
            place = (folder.spec.setting.name, entry.sae, entry.block_set, entry.seeds)
            found.setdefault(place, entry)
    return list(found.values())


def join_groups(everything: Iterable[Entry], groups: dict[str, str]) -> list[Entry]:
    """Join the configurations of each group into one method that has all their levels.

    Args:
        everything: one entry for each setting.
        groups: configuration -> its group, for those that have one.
    """
    members: dict[tuple[str, str, str, int], list[Entry]] = {}
    for entry in everything:
        name = groups.get(setting_name(entry), setting_name(entry))
        members.setdefault((name, entry.sae, entry.block_set, entry.seeds), []).append(entry)
    return [
        Entry(
            name,
            group[0].method,
            group[0].access,
            sae,
            block_set,
            tuple(c for one in group for c in one.configurations),
        )
        for (name, sae, block_set, _), group in members.items()
    ]


def setting_name(entry: Entry) -> str:
    """Return the name of the configuration of an entry that holds a single one."""
    return entry.configurations[0].setting


def count_units(entry: Entry, category: str, metric: str = GAIN) -> tuple[int, int]:
    """Count the scored and the expected work items of an entry.

    A number that stands in for a failed item counts as missing.

    Returns:
        Items with a number, and items that should have one.
    """
    counted = [c.counts(metric, category) for c in entry.configurations]
    return sum(scored for scored, _ in counted), sum(expected for _, expected in counted)
