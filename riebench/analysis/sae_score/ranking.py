"""Comparison of SAEs: the score with its interval, the other measures, and ranks.

The statistics are those of methods: examples are resampled inside categories, all SAEs alike, and the rank of an SAE is
1 + the number of SAEs whose score is significantly better, corrected over all pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from riebench.analysis.multiple import rank_groups, step_down
from riebench.analysis.sae_score.effects import (
    FEW,
    GAIN,
    SELECTIVITY,
    TOGETHER,
    Effects,
    Floats,
    counted,
    effect_gaps,
    read_effects,
    shared_examples,
)
from riebench.analysis.sae_score.measures import MEASURES, SCORE, Measure, least_whole
from riebench.analysis.standings import MIN_EXAMPLES, sae_label
from riebench.analysis.stats import BOOTSTRAP_SEED, REPLICATES, Estimate, estimate
from riebench.analysis.tradeoff import Examples, SampleMean, paired_differences
from riebench.store.folder import RunFolder
from riebench.store.sae_figures import least_variance
from riebench.utils.processes.helpers import Apply, apply_here


@dataclass(frozen=True)
class SaeStanding:
    """One SAE with its results in a comparison.

    Attributes:
        effects: what its features do, all blocks together.
        rank: 1 + the number of SAEs that are significantly better; None for what is unranked.
        measures: measure -> its mean with an interval, for those that there are numbers for.
        note: why it is unranked; "" if it has a rank.
        variance: least explained variance of its SAEs on the activations of its runs; None if not measured.
    """

    effects: Effects
    rank: int | None
    measures: Mapping[str, Estimate]
    note: str = ""
    variance: float | None = None

    @property
    def score(self) -> Estimate | None:
        """The measure that ranks; None without numbers."""
        return self.measures.get(SCORE)

    @property
    def scorer(self) -> str:
        """The network that measured its gains."""
        return _scorer(self.effects)


@dataclass(frozen=True)
class SaeComparison:
    """SAEs of one suite and model, on the examples that they share.

    Attributes:
        effects: of each SAE on all blocks together.
        variances: SAE -> least explained variance of its blocks, where it was measured.
        replicates: of the bootstrap.
        seed: of its generator.
    """

    effects: tuple[Effects, ...]
    variances: Mapping[str, float | None] = field(default_factory=dict)
    replicates: int = REPLICATES
    seed: int = BOOTSTRAP_SEED

    @classmethod
    def of(
        cls, folders: Iterable[RunFolder], replicates: int = REPLICATES, *, apply: Apply = apply_here
    ) -> SaeComparison:
        """Read the SAEs that were tested at the numbers of features that the score needs.

        Args:
            folders: run folders of one suite and model.
            replicates: of the bootstrap.
            apply: reads the folders.
        """
        found = list(folders)
        if not has_scores(found):
            return cls((), replicates=replicates)
        effects = [
            one
            for one in read_effects(found, apply=apply)
            if one.block == TOGETHER and set(FEW) <= set(one.cells["sae"])
        ]
        members: dict[str, list[RunFolder]] = {}
        for folder in found:
            members.setdefault(sae_label(folder), []).append(folder)
        variances = {one.sae: least_variance(f.sae_figures() for f in members[one.sae]) for one in effects}
        return cls(tuple(effects), variances, replicates)

    @cached_property
    def examples(self) -> Examples:
        """Examples that any of the SAEs has a gain for."""
        return shared_examples(self.effects)

    @cached_property
    def weights(self) -> Floats:
        """Weights [1 + R, E]: every example once, then the bootstrap's draws."""
        return np.vstack([np.ones((1, len(self.examples.ids))), self.examples.draws(self.replicates, self.seed)])

    @cached_property
    def means(self) -> dict[str, SampleMean]:
        """Scores of the SAEs that can be compared, in every replicate."""
        found = {}
        for one, note in zip(self.effects, self._notes, strict=True):
            values = self._by_example(one, MEASURES[SCORE].of(one))
            if not note and values is not None:
                found[one.sae] = SampleMean.of(values, self.examples, self.weights)
        return found

    @cached_property
    def pair_tests(self) -> dict[tuple[str, str], float]:
        """p-value of each pair of SAEs, corrected over all pairs that one scorer measured."""
        scorers = {one.sae: _scorer(one) for one in self.effects}
        found: dict[tuple[str, str], float] = {}
        for scorer in sorted({scorers[sae] for sae in self.means}):
            members = {sae: mean for sae, mean in self.means.items() if scorers[sae] == scorer}
            differences = paired_differences(members)
            adjusted = step_down({"\t".join(pair): one for pair, one in differences.items()})
            found |= dict(zip(differences, adjusted.values(), strict=True))
        return found

    def standings(self) -> list[SaeStanding]:
        """Return all SAEs: ranked ones first, the best first."""
        values = {sae: mean.replicates.mean for sae, mean in self.means.items()}
        groups = rank_groups(values, self.pair_tests)
        made = [
            SaeStanding(one, groups.get(one.sae), self.estimates(one), note, self.variances.get(one.sae))
            for one, note in zip(self.effects, self._notes, strict=True)
        ]
        return sorted(made, key=_order)

    def estimates(self, effects: Effects) -> dict[str, Estimate]:
        """Return measure -> its mean with an interval, for those with numbers."""
        found = {name: self._estimate(effects, measure) for name, measure in MEASURES.items()}
        return {name: one for name, one in found.items() if one.mean is not None}

    def _estimate(self, effects: Effects, measure: Measure) -> Estimate:
        if measure.whole is not None:
            whole = measure.whole(effects)
            parts = [self._by_example(effects, one) for one in (measure.values(effects), whole)]
            if effects.mean(whole) >= least_whole(effects) and parts[0] is not None and parts[1] is not None:
                part, other = (SampleMean.of(one, self.examples, self.weights) for one in parts if one is not None)
                ratio = part.over(other)
                low, high = ratio.interval() or (None, None)
                return Estimate(ratio.mean, low, high, len(self.examples.ids))
        values: dict[str, dict[str, list[float]]] = {}
        for (category, example, _), value in zip(effects.units, measure.of(effects), strict=True):
            if np.isfinite(value):
                values.setdefault(category, {}).setdefault(example, []).append(float(value))
        return estimate(values, effects.clusters, replicates=self.replicates, seed=self.seed)

    def _by_example(self, effects: Effects, values: Floats) -> Floats | None:
        """Return means over seeds, [E]; None if an example has no number."""
        seeds: dict[str, list[float]] = {}
        for (_, example, _), value in zip(effects.units, values, strict=True):
            seeds.setdefault(example, []).append(float(value))
        if set(seeds) != set(self.examples.ids):
            return None
        means = np.array([np.mean(seeds[example]) for example in self.examples.ids])
        return means if np.isfinite(means).all() else None

    @cached_property
    def _notes(self) -> list[str]:
        """Return for each SAE why it is unranked; "" for those that have a rank."""
        return [
            gap or self._incomplete(one) or self._few_examples
            for one, gap in zip(self.effects, effect_gaps(self.effects), strict=True)
        ]

    def _incomplete(self, effects: Effects) -> str:
        failed = sum(one.failed for one in effects.configurations)
        if failed:
            return f"{failed} units failed"
        found, seeds = {example for _, example, _ in effects.units}, {seed for _, _, seed in effects.units}
        if found != set(self.examples.ids):
            return f"{len(found)} of {len(self.examples.ids)} examples"
        if len(effects.units) != len(found) * len(seeds):
            return "some seeds are missing"
        measured = self._by_example(effects, MEASURES[SCORE].of(effects)) is not None
        return "" if measured else f"pictures without `{SELECTIVITY}`, which `riebench score` adds"

    @cached_property
    def _few_examples(self) -> str:
        least = min(len(first) for first, _ in self.examples.independent.values())
        return "" if least >= MIN_EXAMPLES else f"{least} of {MIN_EXAMPLES} examples in a category"


def has_scores(folders: Iterable[RunFolder]) -> bool:
    """Check whether an SAE was tested at all numbers of features that the score needs.

    Nothing but the runs' identities is read.
    """
    tested: dict[str, set[int]] = {}
    for folder in folders:
        kind, count = counted(folder.spec.setting)
        if kind == "sae":
            tested.setdefault(sae_label(folder), set()).add(count)
    return any(set(FEW) <= counts for counts in tested.values())


def _scorer(effects: Effects) -> str:
    return ", ".join(sorted({one.backbones.get(GAIN, "") for one in effects.configurations}))


def _order(standing: SaeStanding) -> tuple[bool, float, str]:
    """Return the sort key in a table: ranked first, then by score and name."""
    score = None if standing.score is None else standing.score.mean
    return standing.rank is None, -(score if score is not None else -np.inf), standing.effects.sae
