"""Methods held against each other on the same examples and seeds, by the score and by the truth."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from riebench.analysis.configurations import EVERYTHING, present_categories
from riebench.analysis.standings import DISTANCE, ENDS, GAIN, Entry, Field, entries
from riebench.analysis.stats import REPLICATES, Estimate, interval
from riebench.analysis.tradeoff import category_means, cross_fit, macro_means
from riebench.analysis.validity.units import SUCCESS, add_success
from riebench.store.folder import RunFolder

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Contest:
    """Entries with equally many seeds of each example.

    Attributes:
        rivals: what is compared.
        ends: no edit and the target prompt on the same seeds, as far as they are there.
        replicates: of the bootstrap.
    """

    rivals: tuple[Entry, ...]
    ends: tuple[Entry, ...] = ()
    replicates: int = REPLICATES

    @cached_property
    def field(self) -> Field:
        """The entries as the leaderboard compares them."""
        return Field((*self.rivals, *self.ends), self.replicates)

    @property
    def seeds(self) -> int:
        """Of each example."""
        return self.field.seeds

    @property
    def categories(self) -> tuple[str, ...]:
        """All together first, then each by its number."""
        found = present_categories(c for entry in self.rivals for c in entry.configurations)
        return (EVERYTHING, *(category for category in found if category in self.field.examples.strata))

    def n_examples(self, category: str) -> int:
        """Examples behind a number."""
        strata = self.field.examples.strata
        return len(self.field.examples.ids) if category == EVERYTHING else len(strata[category])

    @cached_property
    def _gaps(self) -> dict[Entry, str | None]:
        return {entry: self.field.gap(entry) for entry in self.field.entries}

    def gap(self, entry: Entry) -> str | None:
        """Why an entry has no area, or None."""
        return self._gaps[entry]

    def area(self, entry: Entry, category: str = EVERYTHING) -> Floats | None:
        """Mean gain over the budgets in every replicate, chosen on all categories, or None if the entry has a gap."""
        if self.gap(entry) is not None:
            return None
        found = self.field.trade_off(entry, category=None if category == EVERYTHING else category)
        return None if found is None else found.area

    def realised(self, entry: Entry, category: str = EVERYTHING) -> float | None:
        """Mean LPIPS at which the area was read, or None."""
        field = Field(self.field.entries, replicates=0)
        found = field.trade_off(entry, category=None if category == EVERYTHING else category)
        return None if found is None or self.gap(entry) is not None else float(found.realised[0])

    def true_area(self, entry: Entry, category: str = EVERYTHING) -> Floats | None:
        """The same of true success instead of the score, levels chosen by it; None without verdicts or with a gap."""
        success = self._success(entry)
        return None if success is None else self._cross_fit(entry, success, None, category)

    def truth_at_choice(self, entry: Entry, category: str = EVERYTHING) -> Floats | None:
        """True success where the score has chosen the level; None without verdicts or with a gap."""
        gains, success = entry.values(GAIN, self.field.examples), self._success(entry)
        return None if gains is None or success is None else self._cross_fit(entry, gains, success, category)

    def far_end(self, category: str = EVERYTHING) -> Floats | None:
        """Gain of the target prompt's own pictures in every replicate; None if it is not there or may be 0."""
        for entry in (one for one in self.ends if one.method == "target_prompt"):
            gains = entry.values(GAIN, self.field.examples)
            if gains is None or self.gap(entry) is not None:
                continue
            place = (gains[:, :1], self.field.weights, self.field.examples)
            draws = macro_means(*place) if category == EVERYTHING else category_means(*place, None, category)
            found = interval(draws[1:, 0])
            return draws[:, 0] if found is not None and not found[0] <= 0 <= found[1] else None
        return None

    def estimate(self, draws: Floats | None, category: str = EVERYTHING) -> Estimate:
        """The observed value with its interval; nothing for None."""
        if draws is None or not np.isfinite(draws[0]):
            return Estimate(None, None, None, 0)
        low, high = interval(draws[1:]) or (None, None)
        return Estimate(float(draws[0]), low, high, self.n_examples(category))

    def _cross_fit(self, entry: Entry, gains: Floats, read: Floats | None, category: str) -> Floats | None:
        distances = entry.values(DISTANCE, self.field.examples)
        if distances is None or self.gap(entry) is not None:
            return None
        some = None if category == EVERYTHING else category
        examples, weights = self.field.examples, self.field.weights
        return cross_fit(distances, gains, examples, weights, read=read, category=some).area

    def _success(self, entry: Entry) -> Floats | None:
        """True success less what unedited pictures have of it, [E, configurations]."""
        found = entry.values(SUCCESS, self.field.examples)
        return None if found is None else found - self._unedited[:, None]

    @cached_property
    def _unedited(self) -> Floats:
        for entry in (one for one in self.ends if one.method == "no_edit"):
            found = entry.values(SUCCESS, self.field.examples)
            if found is not None:
                return found[:, 0]
        # Nobody looked at them: an unedited picture is taken to lack what is asked for.
        return np.zeros(len(self.field.examples.ids))


def contests(everything: Sequence[Entry], replicates: int = REPLICATES) -> list[Contest]:
    """Entries sorted by their number of seeds, most seeds first; seeds that only ends have are left out.

    Args:
        everything: of one suite and model.
        replicates: of the bootstrap.
    """
    found = []
    counted = {entry: entry.seeds for entry in everything}
    for seeds in sorted({*counted.values()} - {0}, reverse=True):
        members = [entry for entry in everything if counted[entry] == seeds]
        rivals = tuple(entry for entry in members if entry.method not in ENDS)
        if rivals:
            ends = tuple(entry for entry in members if entry.method in ENDS)
            found.append(Contest(rivals, ends, replicates))
    return found


def read_entries(folders: Iterable[RunFolder], *, single_blocks: bool = False) -> list[Entry]:
    """The methods of some run folders, with the truth that is made of both verdicts; each place and seeds once.

    Args:
        folders: of one suite and model; where two hold the same method at as many seeds, the first one counts.
        single_blocks: also block sets that are part of a setting's whole.
    """
    found: dict[tuple[str, str, str, int], Entry] = {}
    for folder in folders:
        for entry in entries([folder], single_blocks=single_blocks):
            for configuration in entry.configurations:
                add_success(configuration)
            place = (folder.spec.setting.name, entry.sae, entry.block_set, entry.seeds)
            found.setdefault(place, entry)
    return list(found.values())


def joined(everything: Iterable[Entry], groups: dict[str, str]) -> list[Entry]:
    """Settings of one group as one method, whose levels are all of theirs.

    Args:
        everything: one entry a setting.
        groups: setting -> its group, for those that have one.
    """
    members: dict[tuple[str, str, str, int], list[Entry]] = {}
    for entry in everything:
        name = groups.get(setting_of(entry), setting_of(entry))
        members.setdefault((name, entry.sae, entry.block_set, entry.seeds), []).append(entry)
    return [
        Entry(name, its[0].method, its[0].access, sae, block_set, tuple(c for one in its for c in one.configurations))
        for (name, sae, block_set, _), its in members.items()
    ]


def setting_of(entry: Entry) -> str:
    """The setting of an entry that is a single one's."""
    return entry.configurations[0].setting


def counts(entry: Entry, category: str, metric: str = GAIN) -> tuple[int, int]:
    """Units of an entry with a number, and units that should have one; a failed one's stand-in is no number."""
    counted = [c.counts(metric, category) for c in entry.configurations]
    return sum(scored for scored, _ in counted), sum(expected for _, expected in counted)
