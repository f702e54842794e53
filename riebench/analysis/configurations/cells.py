"""A configuration with its numbers, and the cells that tables show of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from riebench.analysis.configurations.origins import Origin
from riebench.analysis.stats import CategoryReplicates, estimate, mean_over_seeds
from riebench.registry import METRICS
from riebench.scoring.profiles import DEFAULT
from riebench.store.invocations import Invocation
from riebench.tasks.schema import StoredModel

EVERYTHING = "all"
"""The category that is the mean over all categories."""
LARGEST_SCORE = 1e90
"""Scores beyond it, either way, are no measurements and are left out: sums, squares and cubes of smaller ones stay
finite."""


class TableRow(StoredModel):
    """One cell of a table, with all that is needed to print and to check it."""

    model: str
    """Model name."""
    setting: str
    """Setting name."""
    block_set: str
    """Blocks edited together."""
    strength: float | None
    """Strength, or None if the method has one only."""
    category: str
    """Edit category, or "all"."""
    metric: str
    """Metric."""
    mean: float | None
    """Mean over seeds, then examples, then categories; None if nothing was scored."""
    ci_low: float | None
    """Lower end of the 95 % interval."""
    ci_high: float | None
    """Upper end of the 95 % interval."""
    n_examples: int
    """Examples behind the mean."""
    n_seeds: int
    """Most seeds an example has."""
    n_scored: int
    """Units with a value."""
    n_expected: int
    """Units that should have one."""


@dataclass
class Configuration:
    """One setting at one strength on one block set: a row of a table."""

    model: str
    setting: str
    method: str
    access: str
    block_set: str
    strength: float
    run_id: str
    several_strengths: bool
    expected: dict[str, int] = field(default_factory=dict)
    """Category -> planned units."""
    values: dict[str, dict[str, dict[str, list[float]]]] = field(default_factory=dict)
    """Metric -> category -> example id -> values of its seeds."""
    units: dict[str, dict[tuple[str, int], float]] = field(default_factory=dict)
    """Metric -> (example id, seed) -> value: the same, seed by seed, for what is compared picture by picture."""
    backbones: dict[str, str] = field(default_factory=dict)
    """Metric -> the network whose numbers these are."""
    profile: str = DEFAULT
    """Whose metrics these are: a name of `PROFILES`."""
    clusters: dict[str, str] = field(default_factory=dict)
    """Example id -> what it is resampled with, for examples that share something."""
    origins: dict[str, set[Origin]] = field(default_factory=dict)
    """Example id -> the versions of it that units were made from; more than one if it changed between two seeds."""
    model_identity: str = ""
    """What the pictures come from (`riebench.analysis.configurations.model_identity`)."""
    failed: int = 0
    skipped: int = 0
    imputed: dict[tuple[str, str], int] = field(default_factory=dict)
    """(Metric, category) -> failed units that have the profile's `unchanged` value in means.

    It is the value of the source picture left alone, so that failing on hard edits never pays. Such a unit is not
    counted as scored, and where no unit was scored there is no mean.
    """
    makers: dict[int, Invocation] = field(default_factory=dict)
    """Commands that made its pictures, by their place in `RunFolder.invocations`."""
    measurers: dict[int, Invocation] = field(default_factory=dict)
    """Likewise, commands that measured its scores."""
    outsized: dict[str, int] = field(default_factory=dict)
    """Metric -> scores that were left out for being beyond `LARGEST_SCORE`."""
    _rows: dict[tuple[str, str], TableRow] = field(default_factory=dict, repr=False, compare=False)
    """(Metric, category) -> cell, for those asked for: several tables show the same ones."""
    _parts: dict[str, dict[str, CategoryReplicates]] = field(default_factory=dict, repr=False, compare=False)
    """Metric -> category -> its replicates, until the row over all categories is made."""

    _sizes: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict, repr=False, compare=False)
    """(Metric, category) -> its number of values, and the largest number of an example; for those asked for."""

    @property
    def label(self) -> str:
        """Setting name, with the strength where the setting has several."""
        return f"{self.setting} x{self.strength:g}" if self.several_strengths else self.setting

    def add(self, metric: str, category: str, unit: tuple[str, int], value: float) -> None:
        """Add one unit's number.

        Args:
            metric: what it is a number of.
            category: the unit's.
            unit: example id and seed; the same object for all metrics, so that it is stored once.
            value: the number.
        """
        if self._sizes:
            self._forget()
        # Hundreds of thousands of numbers come here, and nearly all find their places made.
        try:
            examples = self.values[metric][category]
            units = self.units[metric]
        except KeyError:
            examples = self.values.setdefault(metric, {}).setdefault(category, {})
            units = self.units.setdefault(metric, {})
        example = unit[0]
        if example in examples:
            examples[example].append(value)
        else:
            examples[example] = [value]
        units[unit] = value

    def _forget(self) -> None:
        """Forget all that was computed from the numbers so far."""
        self._rows.clear()
        self._parts.clear()
        self._sizes.clear()

    def row(self, metric: str, category: str) -> TableRow:
        """Return the cell of a metric and a category, with its interval."""
        known = self._rows.get((metric, category))
        if known is not None:
            return known
        about = METRICS.get(metric)
        values = self._values(metric, category)
        # The row over all categories comes last, and its parts are those of the rows before it.
        parts = self._parts.pop(metric, {}) if category == EVERYTHING else self._parts.setdefault(metric, {})
        result = estimate(values, self.clusters, share=about.is_share, bounds=(about.low, about.high), known=parts)
        scored, expected = self.counts(metric, category)
        row = self._rows[metric, category] = TableRow(
            model=self.model,
            setting=self.setting,
            block_set=self.block_set,
            strength=self.strength,
            category=category,
            metric=metric,
            mean=result.mean,
            ci_low=result.low,
            ci_high=result.high,
            n_examples=result.n_examples,
            n_seeds=self.seeds(metric, category),
            n_scored=scored,
            n_expected=expected,
        )
        return row

    def _values(self, metric: str, category: str) -> dict[str, dict[str, list[float]]]:
        """Return the values of a metric in one category or in all.

        They are category -> example id -> values of its seeds; none where no unit was scored.
        """
        return self._stored(metric, category) if self.counts(metric, category)[0] else {}

    def _stored(self, metric: str, category: str) -> dict[str, dict[str, list[float]]]:
        """Return all values of a metric in one category or in all.

        Those that stand in for failed units are among them.
        """
        values = self.values.get(metric, {})
        return values if category == EVERYTHING else {category: values.get(category, {})}

    def counts(self, metric: str, category: str = EVERYTHING) -> tuple[int, int]:
        """Return how many units have a number and how many should have one.

        The value that stands in for a failed unit is not counted.
        """
        names = self.values.get(metric, {}) if category == EVERYTHING else (category,)
        scored = sum(self._size(metric, name)[0] - self.imputed.get((metric, name), 0) for name in names)
        return scored, sum(self.expected.values()) if category == EVERYTHING else self.expected.get(category, 0)

    def _size(self, metric: str, category: str) -> tuple[int, int]:
        """Return the number of values in a category, and of an example at most."""
        known = self._sizes.get((metric, category))
        if known is None:
            seeds = [*map(len, self.values.get(metric, {}).get(category, {}).values())]
            known = self._sizes[metric, category] = sum(seeds), max(seeds, default=0)
        return known

    def seeds(self, metric: str, category: str = EVERYTHING) -> int:
        """Return the largest number of seeds that an example has a value for."""
        return max((self._size(metric, name)[1] for name in self._values(metric, category)), default=0)

    def drop_stand_ins(self, metric: str) -> None:
        """Forget the values that stand in for failed units if no unit at all was scored."""
        if metric in self.values and not self.counts(metric)[0]:
            self.values[metric] = {}
            self._forget()
            self.units.pop(metric, None)
            self.imputed = {slot: n for slot, n in self.imputed.items() if slot[0] != metric}

    def example_means(self, metric: str) -> dict[str, float]:
        """Return the mean over seeds of each example."""
        return {
            example: mean_over_seeds(seeds)
            for examples in self.values.get(metric, {}).values()
            for example, seeds in examples.items()
        }
