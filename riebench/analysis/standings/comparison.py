"""Comparison of methods: mean gains, ranks and differences on shared examples.

`MethodComparison` takes all methods of one suite, model and profile and computes a `Standing` for each: what the
leaderboard prints of it.

A rank takes two scorers where a second one has measured: what counts of a method is the smaller of the shares of the
target prompt's gain that it reaches by each of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from riebench.analysis.configurations import (
    Origin,
    majority_model,
    majority_origins,
    model_gap,
    origin_gap,
)
from riebench.analysis.multiple import rank_groups, step_down
from riebench.analysis.standings.entries import (
    BEST_STRENGTH,
    CONTROLLED,
    DISTANCE,
    ENDS,
    GAIN,
    KNOB_ENDS,
    MIN_EXAMPLES,
    MIN_LEVELS,
    REFERENCE,
    SCORE_CONTROLS,
    SECOND,
    Entry,
    Floats,
)
from riebench.analysis.stats import BOOTSTRAP_SEED, POWER_FACTOR, REPLICATES, Estimate, Replicates, seed_correlation
from riebench.analysis.tradeoff import (
    Examples,
    SampleMean,
    TradeOff,
    along_curves,
    best_per_example,
    cross_fit,
    paired_differences,
)
from riebench.tasks.schema import sorted_access

LOOKS_AT_SCORER = "looks at the scorer, which no ranked method may"
"""Why the control that chooses its edit strengths by the scorer has no rank: two scorers do not see through it."""


@dataclass(frozen=True)
class Standing:
    """One method with its results in a comparison.

    Numbers are None where they cannot be computed; `note` gives the reason.

    Attributes:
        entry: the method.
        group: rank among entries that use the same inputs; None for ends, gaps, methods with few edit strengths, and
            too few examples.
        area: mean cross-fitted gain over the LPIPS budgets, with its interval.
        micro: its micro-average: every example weighs the same.
        completion: mean gain as a share of the gain of the target prompt's own pictures, with its interval.
        realised: mean LPIPS at which the gains were read.
        second: mean gain by the second, independent scorer at the strengths that the first one chose, with its
            interval.
        confirmed: the smaller of its shares of the target prompt's gain by both scorers, by which it is ranked; None
            where no second scorer has measured.
        decided_by: the scorer of that share, "first" or "second"; "" for none.
        ranks: rank by each scorer alone, the first one's first; empty for what is unranked.
        versus: mean gain minus that of the reference (`MethodComparison.reference`), and its p-value, adjusted over
            all methods.
        detectable: difference to the reference that 80 % of such experiments would find.
        note: why there is no rank.
        ranked_among: letters of the methods that the rank is among: the entry's own, or those of the method that it is
            a control of.
    """

    entry: Entry
    group: int | None = None
    area: Estimate | None = None
    micro: float | None = None
    completion: Estimate | None = None
    realised: float | None = None
    second: Estimate | None = None
    confirmed: Estimate | None = None
    decided_by: str = ""
    ranks: tuple[int, ...] = ()
    versus: tuple[float, float] | None = None
    detectable: float | None = None
    note: str = ""
    ranked_among: str = ""


@dataclass(frozen=True)
class MethodComparison:
    """All methods of one suite, model and profile, on the examples they share.

    Attributes:
        entries: in any order.
        replicates: of the bootstrap.
        seed: of its generator.
    """

    entries: tuple[Entry, ...]
    replicates: int = REPLICATES
    seed: int = BOOTSTRAP_SEED

    @cached_property
    def examples(self) -> Examples:
        """Examples that any entry has a value for, in the version that counts."""
        categories: dict[str, str] = {}
        clusters: dict[str, str] = {}
        for entry in self.entries:
            categories |= {example: c for example, c in entry.categories.items() if example in self.origins}
            for configuration in entry.configurations:
                clusters |= configuration.clusters
        return Examples.of(categories, clusters)

    @cached_property
    def origins(self) -> dict[str, Origin | None]:
        """Version that counts of each example (`majority_origins`)."""
        return majority_origins(entry.origins for entry in self._measured)

    @property
    def _measured(self) -> list[Entry]:
        """Entries that are not made of another's numbers."""
        return [entry for entry in self.entries if entry.method != BEST_STRENGTH]

    @cached_property
    def model_identity(self) -> str | None:
        """Identity of the model of most entries; None where two are equally frequent."""
        return majority_model({c.model_identity for c in entry.configurations} for entry in self._measured)

    @cached_property
    def seeds(self) -> int:
        """Largest number of seeds that an example has."""
        return max((entry.seeds for entry in self.entries), default=0)

    @cached_property
    def seed_correlation(self) -> float | None:
        """Correlation of the gains of two seeds of one example, or None below two seeds.

        It is the median of the methods, each at the level that gains most.
        """
        found = []
        for entry in self._measured:
            levels = [c for c in entry.configurations if entry.method not in ENDS and c.example_means(GAIN)]
            if levels:
                best = max(levels, key=lambda c: float(np.mean(list(c.example_means(GAIN).values()))))
                found.append(seed_correlation(best.units.get(GAIN, {})))
        known = [one for one in found if one is not None]
        return float(np.median(known)) if known else None

    @cached_property
    def weights(self) -> Floats:
        """Weights [1 + R, E]: every example once, then the bootstrap's draws."""
        return np.vstack([np.ones((1, len(self.examples.ids))), self.examples.draws(self.replicates, self.seed)])

    def gap(self, entry: Entry) -> str | None:
        """Return the reason why an entry cannot be compared, or None."""
        other = model_gap((c.model_identity for c in entry.configurations), self.model_identity)
        other = other or origin_gap(entry.origins, self.origins)
        if other is not None:
            return other
        if self.least_examples < 2:
            return "fewer than 2 independent examples in a category"
        return entry.gap(self.examples, self.seeds)

    @cached_property
    def least_examples(self) -> int:
        """Number of independent examples in the category that has fewest."""
        pairs = {(c, k) for c, k in zip(self.examples.categories, self.examples.clusters, strict=True)}
        return min(Counter(category for category, _ in pairs).values(), default=0)

    def trade_off(
        self, entry: Entry, read: str = GAIN, category: str | None = None, choice: NDArray[np.intp] | None = None
    ) -> TradeOff | None:
        """Compute an entry's trade-off in every replicate; None if it lacks a number.

        Args:
            entry: the method.
            read: the metric that is read where `GAIN` has chosen.
            category: reads this one alone, at what was chosen on all.
            choice: what `GAIN` has chosen, if that is known (`TradeOff.choice`).
        """
        gains = entry.values(GAIN, self.examples)
        other = gains if read == GAIN else entry.values(read, self.examples)
        return None if gains is None or other is None else self.cross_fit(entry, gains, other, category, choice)

    def cross_fit(
        self, entry: Entry, gains: Floats, read: Floats | None = None, category: str | None = None,
        choice: NDArray[np.intp] | None = None,
    ) -> TradeOff | None:  # fmt: skip
        """Compute an entry's trade-off by numbers of another kind; None without LPIPS.

        Args:
            entry: the method.
            gains: [E, configurations], by which the level is chosen.
            read: what is read there, if not `gains`.
            category: reads this one alone.
            choice: see `trade_off`.
        """
        distances = entry.values(DISTANCE, self.examples)
        if distances is None:
            return None
        curves = along_curves(distances, [configuration.setting for configuration in entry.configurations])
        if entry.method == BEST_STRENGTH:
            return best_per_example(distances, gains, self.examples, self.weights, curves, read=read)
        return cross_fit(
            distances, gains, self.examples, self.weights, curves, read=read, category=category, choice=choice
        )

    def estimate(self, found: Replicates) -> Estimate:
        """Return a number with its interval."""
        low, high = found.interval() or (None, None)
        return Estimate(found.mean, low, high, len(self.examples.ids))

    @cached_property
    def trade_offs(self) -> dict[Entry, TradeOff]:
        """Trade-offs of all entries that can be compared."""
        found = {entry: self.trade_off(entry) for entry in self.entries if self.gap(entry) is None}
        return {entry: one for entry, one in found.items() if one is not None}

    @cached_property
    def has_second(self) -> bool:
        """True if a second scorer measured any method: then a rank takes its numbers too."""
        return any(entry.has_second for entry in self.entries if entry.method not in ENDS)

    @cached_property
    def second_trade_offs(self) -> dict[Entry, TradeOff]:
        """Trade-offs read by the second scorer where the first one chose.

        They are there for all entries that it measured whole.
        """
        choices = {entry: one.choice for entry, one in self.trade_offs.items() if entry.has_second}
        found = {entry: self.trade_off(entry, SECOND, choice=choice) for entry, choice in choices.items()}
        return {entry: one for entry, one in found.items() if one is not None}

    def standings(self) -> list[Standing]:
        """Compute everything that the leaderboard prints.

        The best come first among those that use the same inputs; ends of the scale and entries with gaps come last.
        """
        areas = self.trade_offs
        far_end = self._far_end(areas)
        versus = self._versus()
        made = [
            self._standing(entry, areas.get(entry), self.gap(entry), versus.get(entry), far_end)
            for entry in self.entries
        ]
        return sorted(made, key=_order)

    def _standing(
        self, entry: Entry, found: TradeOff | None, gap: str | None,
        versus: tuple[float, float, float] | None, far_end: SampleMean | None,
    ) -> Standing:  # fmt: skip
        if found is None:
            return Standing(entry, note=gap or "not scored", ranked_among=self._rank_class(entry))
        second = self.second_trade_offs.get(entry)
        confirmed = self.shares[entry].replicates if second is not None and self.has_second else None
        return Standing(
            entry,
            group=self._ranks.get(entry),
            area=self.estimate(found.area.replicates),
            micro=float(found.area.observed.mean()),
            completion=None if far_end is None else self.estimate(found.area.over(far_end)),
            realised=found.realised,
            second=None if second is None else self.estimate(second.area.replicates),
            confirmed=None if confirmed is None else self.estimate(confirmed),
            decided_by="" if confirmed is None else ("first", "second")[self._least_share(entry)],
            ranks=tuple(found[entry] for found in self._ranks_by_scorer if entry in found),
            versus=None if versus is None else (versus[0], versus[1]),
            detectable=None if versus is None else versus[2],
            note=self._note(entry),
            ranked_among=self._rank_class(entry),
        )

    def _far_end(self, areas: Mapping[Entry, TradeOff]) -> SampleMean | None:
        """Compute the gain of the target prompt in every replicate.

        Returns None if there is none or if its interval holds 0.
        """
        for entry in areas:
            gains = entry.values(GAIN, self.examples) if entry.method == "target_prompt" else None
            if gains is not None:
                found = SampleMean.of(gains[:, 0], self.examples, self.weights)
                ends = found.replicates.interval()
                return found if ends is not None and not ends[0] <= 0 <= ends[1] else None
        return None

    @cached_property
    def _rank_classes(self) -> list[list[Entry]]:
        """Entries that are ranked together: equal inputs, the same scorers."""
        ranked: dict[tuple[str, ...], dict[str, Entry]] = {}
        for entry in self.trade_offs:
            if not self._note(entry):
                scorers = (entry.scorer, entry.second_scorer) if self.has_second else (entry.scorer,)
                ranked.setdefault((self._rank_class(entry), *scorers), {})[entry.place] = entry
        return [[*members.values()] for members in ranked.values()]

    @cached_property
    def _scales(self) -> tuple[float, float]:
        """Gain of the target prompt's own pictures by each scorer.

        Gains of two scorers are compared as shares of it. Where it is not there it is the largest gain of a method.
        """
        found = []
        for metric, areas in ((GAIN, self.trade_offs), (SECOND, self.second_trade_offs)):
            ends = [entry.values(metric, self.examples) for entry in self.trade_offs if entry.method == "target_prompt"]
            gains = [
                SampleMean.of(one[:, 0], self.examples, self.weights[:1]).values[0] for one in ends if one is not None
            ]
            others = [one.area.values[0] for entry, one in areas.items() if entry.method not in (*ENDS, *CONTROLLED)]
            found.append(next((float(gain) for gain in (*gains, max(others, default=0.0)) if gain > 0), 1.0))
        return found[0], found[1]

    def _least_share(self, entry: Entry) -> int:
        """Return the scorer of an entry's smaller share: 0 the first, 1 the second."""
        areas = (self.trade_offs[entry].area, self.second_trade_offs[entry].area)
        first, second = (area.values[0] / scale for area, scale in zip(areas, self._scales, strict=True))
        return int(second < first)

    @cached_property
    def shares(self) -> dict[Entry, SampleMean]:
        """Numbers that entries are ranked by.

        The smaller of the shares that both scorers see, or the first one's gain where no second scorer has measured it.
        Which share is the smaller one is taken as observed.
        """
        found = {}
        for entry, one in self.trade_offs.items():
            if entry in self.second_trade_offs:
                least = self._least_share(entry)
                area = (one, self.second_trade_offs[entry])[least].area
                found[entry] = area.scaled(1 / self._scales[least])
            else:
                found[entry] = one.area
        return found

    @cached_property
    def pair_tests(self) -> dict[tuple[Entry, Entry], float]:
        """p-value of each pair of entries that are ranked together.

        It is adjusted over all pairs of the same inputs and scorers. Every pair is there once, in either order.
        """
        return self._tests(self.shares)

    def _tests(self, means: Mapping[Entry, SampleMean]) -> dict[tuple[Entry, Entry], float]:
        """Test the means of all pairs that are ranked together; see `pair_tests`."""
        found: dict[tuple[Entry, Entry], float] = {}
        for members in self._rank_classes:
            by_place = {entry.place: entry for entry in members}
            differences = paired_differences({place: means[entry] for place, entry in by_place.items()})
            adjusted = step_down({"\t".join(pair): one for pair, one in differences.items()})
            for (one, other), p in zip(differences, adjusted.values(), strict=True):
                found[by_place[one], by_place[other]] = p
        return found

    def _groups(
        self, means: Mapping[Entry, SampleMean], tests: Mapping[tuple[Entry, Entry], float]
    ) -> dict[Entry, int]:
        """Return the rank of each entry that has one, by some means and their tests."""
        found: dict[Entry, int] = {}
        for members in self._rank_classes:
            by_place = {entry.place: entry for entry in members}
            values = {place: means[entry].replicates.mean for place, entry in by_place.items()}
            p_values = {(a.place, b.place): p for (a, b), p in tests.items() if by_place.get(a.place) is a}
            found |= {by_place[place]: group for place, group in rank_groups(values, p_values).items()}
        return found

    @cached_property
    def _ranks(self) -> dict[Entry, int]:
        """Rank of each entry that has one."""
        return self._groups(self.shares, self.pair_tests)

    @cached_property
    def _ranks_by_scorer(self) -> list[dict[Entry, int]]:
        """Ranks by each scorer alone; none where one has measured."""
        found = []
        for areas in (self.trade_offs, self.second_trade_offs) if self.has_second else ():
            means = {entry: one.area for entry, one in areas.items()}
            found.append(self._groups(means, self._tests(means)))
        return found

    def _rank_class(self, entry: Entry) -> str:
        """Return the letters of the methods that an entry is ranked among."""
        method = CONTROLLED.get(entry.method)
        beside = [other for other in self.entries if other.method == method]
        return sorted_access((beside[0] if beside else entry).access)

    @cached_property
    def reference(self) -> Entry | None:
        """The entry that all others are compared with, or None.

        Of several entries of the method `REFERENCE` it is one that can be ranked, with most levels.
        """
        found = [e for e in self.entries if e.method == REFERENCE and self.gap(e) is None]
        return min(found, key=lambda entry: (bool(self._note(entry)), -entry.levels, entry.place), default=None)

    def _versus(self) -> dict[Entry, tuple[float, float, float]]:
        """Compare each entry with the reference; see `differences`."""
        reference = self.reference
        if reference is None or reference not in self.trade_offs:
            return {}
        return self.differences(reference, (e for e in self.trade_offs if e.method not in ENDS))

    def differences(
        self, reference: Entry, others: Iterable[Entry], *, confirmed: bool = False
    ) -> dict[Entry, tuple[float, float, float]]:
        """Compare entries with one of them, all tested together.

        Args:
            reference: an entry of `trade_offs`.
            others: entries of `trade_offs`; the reference itself and those that another network measured are left out.
            confirmed: compares `shares`, what both scorers see, and not the gain by the first.

        Returns:
            Entry -> its mean gain minus the reference's, its adjusted p, and the detectable difference.
        """
        areas = self.shares if confirmed else {entry: one.area for entry, one in self.trade_offs.items()}
        known = {
            e.place: e
            for e in others
            if e is not reference and e.scorer == reference.scorer
            and not (confirmed and e.second_scorer != reference.second_scorer)
        }  # fmt: skip
        compared = {reference.place: reference, **known}
        paired = paired_differences({place: areas[entry] for place, entry in compared.items()}, reference.place)
        found = {place: difference for (place, _), difference in paired.items()}
        adjusted = step_down(found)
        return {
            known[place]: (one.mean, adjusted[place], POWER_FACTOR * float(one.errors[0]))
            for place, one in found.items()
        }

    def _note(self, entry: Entry) -> str:
        """Return the reason why a complete entry has no rank; "" if it has one."""
        if entry.method in ENDS:
            return "end of the scale"
        if entry.levels < MIN_LEVELS:
            return f"{entry.levels} of {MIN_LEVELS} edit strengths tested"
        end = KNOB_ENDS.get(entry.method)
        if end is not None and all(configuration.strength != end for configuration in entry.configurations):
            return f"its last edit strength, {end:g}, was not tested"
        if self.least_examples < MIN_EXAMPLES:
            return f"{self.least_examples} of {MIN_EXAMPLES} examples in a category"
        if entry.method == BEST_STRENGTH:
            return LOOKS_AT_SCORER
        if self.has_second and entry not in self.second_trade_offs:
            return "not measured by the second scorer, which a rank needs"
        if not self.has_second and entry.method in SCORE_CONTROLS:
            return "ranked only where a second scorer has measured"
        return ""


def _order(standing: Standing) -> tuple[bool, str, int, float, str]:
    """Return the sort key of a standing: ranked first, by inputs, rank and score."""
    ranked_by = standing.confirmed or standing.area
    score = ranked_by.mean if ranked_by is not None and ranked_by.mean is not None else 0.0
    return standing.group is None, standing.ranked_among, standing.group or 0, -score, standing.entry.name
