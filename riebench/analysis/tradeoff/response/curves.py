"""Curves of stored results over the edit strength.

There is one for each method configuration with several strengths.

A curve begins at no edit, where gain and distance are 0, and goes through the tested strengths in the order of growing
change. `read_curves` finds the curves of one suite and model and gives each its numbers, picture by picture and example
by example, and a rule for what counts as an artifact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from riebench.analysis.configurations import Configuration
from riebench.analysis.standings import DISTANCE, ENDS, GAIN, SAME_LEVEL, Entry, MethodComparison, entries
from riebench.analysis.stats import BOOTSTRAP_SEED, REPLICATES, mean_over_seeds
from riebench.registry import METRICS
from riebench.store.folder import RunFolder

Floats = NDArray[np.float64]
Units = Mapping[tuple[str, int], float]
"""(Example id, seed) -> a number of its picture."""

MIN_STRENGTHS = 3
"""Tested strengths, beside no edit, that make a curve."""
READABLE, KEPT = "judge_artifact", "judge_kept"
UNREADABLE_BOUND = 0.25
"""A picture is an artifact if this share of the attributes that were readable in the source is not any more."""
KEPT_BOUND = 0.5
"""Without a verdict on readability, a picture that keeps less than this share of what should stay is an artifact."""
DISTANCE_BOUND = 0.5
"""Without any verdict, a picture at a larger LPIPS is an artifact: it is the largest budget of the leaderboard."""


@dataclass(frozen=True)
class ArtifactRule:
    """A rule for artifacts, by what was scored.

    Attributes:
        metric: that is read.
        words: the rule for people, the end of "a picture is an artifact if".
        broken: whether a picture with that number is one.
    """

    metric: str
    words: str
    broken: Callable[[float], bool]


RULES: tuple[ArtifactRule, ...] = (
    ArtifactRule(
        READABLE,
        f"the judge cannot read {100 * UNREADABLE_BOUND:g} % of what it read in the source (`judge_artifact`)",
        lambda value: value >= UNREADABLE_BOUND,
    ),
    ArtifactRule(
        KEPT, f"it keeps less than {100 * KEPT_BOUND:g} % of the attributes that should stay (`judge_kept`)",
        lambda value: value < KEPT_BOUND,
    ),
    ArtifactRule(DISTANCE, f"its LPIPS to the source exceeds {DISTANCE_BOUND:g}", lambda value: value > DISTANCE_BOUND),
)  # fmt: skip
"""Rules in the order in which they are preferred; the first whose metric every curve has is used for all."""


@dataclass(frozen=True, eq=False)
class ResponseCurve:
    """One method configuration at several strengths, ordered by growing change.

    Attributes:
        name: the configuration, or the method if it has no other curve.
        entry: the method that it belongs to.
        configurations: one for each strength; those that change no picture are left out.
        starts_at_zero: whether strength 0 is no edit, so that the curve begins there.
    """

    name: str
    entry: Entry
    configurations: tuple[Configuration, ...]
    starts_at_zero: bool = True

    @property
    def strengths(self) -> tuple[float, ...]:
        """Tested strengths along the curve."""
        return tuple(one.strength for one in self.configurations)

    @cached_property
    def places(self) -> Floats:
        """Strengths along the curve, [levels]; with no edit first if that is strength 0."""
        return np.array([0.0, *self.strengths] if self.starts_at_zero else self.strengths)

    def units(self, metric: str) -> list[Units]:
        """Return a metric of every picture, strength by strength along `places`."""
        found: list[Units] = [one.units.get(metric, {}) for one in self.configurations]
        return [dict.fromkeys(found[0], 0.0), *found] if self.starts_at_zero else found

    def has(self, metric: str) -> bool:
        """Return whether every picture with a gain has a number of another metric."""
        return all(set(one.units.get(metric, {})) >= set(one.units.get(GAIN, {})) for one in self.configurations)

    def table(self, metric: str, ids: Sequence[str], change: Callable[[float], float] = float) -> Floats:
        """Return means over seeds, float64 [E, strengths]; no edit is not among them.

        Args:
            metric: what is read.
            ids: of the examples, in order.
            change: of each picture's number, before means are taken.
        """
        columns = []
        for one in self.configurations:
            seeds: dict[str, list[float]] = {}
            for (example, _), value in sorted(one.units[metric].items()):
                seeds.setdefault(example, []).append(change(value))
            columns.append([mean_over_seeds(seeds[example]) for example in ids])
        return np.array(columns).T


@dataclass(frozen=True, eq=False)
class CurveSet:
    """All curves of one suite and model, on the examples that their methods share.

    Attributes:
        suite: its name.
        model: its name.
        comparison: of all methods; decides on examples, seeds and resampling.
        curves: by name.
        left_out: name -> why it has no curve.
        rule: what counts as an artifact.
    """

    suite: str
    model: str
    comparison: MethodComparison
    curves: tuple[ResponseCurve, ...]
    left_out: Mapping[str, str]
    rule: ArtifactRule

    @property
    def place(self) -> str:
        """Suite and model, as part of a file's name."""
        return f"{self.suite}-{self.model}"


def read_curves(
    suite: str, model: str, folders: Iterable[RunFolder], replicates: int = REPLICATES, seed: int = BOOTSTRAP_SEED
) -> CurveSet:
    """Read the curves of one suite and model.

    Args:
        suite: its name.
        model: its name.
        folders: its run folders.
        replicates: of the bootstrap.
        seed: of its generator.
    """
    extra = tuple(rule.metric for rule in RULES if rule.metric in METRICS.names())
    comparison = MethodComparison(tuple(entries(folders, extra=extra)), replicates, seed)
    return curve_set(suite, model, comparison)


def curve_set(suite: str, model: str, comparison: MethodComparison) -> CurveSet:
    """Return the curves of methods that were read already; see `read_curves`."""
    curves: list[ResponseCurve] = []
    left_out: dict[str, str] = {}
    for entry in comparison.entries:
        if entry.method in ENDS:
            continue
        gap = comparison.gap(entry)
        found = [] if gap else _curves_of(entry, comparison)
        curves += found
        if not found:
            left_out[entry.name] = gap or f"fewer than {MIN_STRENGTHS} strengths that change pictures"
    ordered = tuple(sorted(curves, key=lambda curve: curve.name))
    rule = next(rule for rule in RULES if rule is RULES[-1] or (ordered and all(c.has(rule.metric) for c in ordered)))
    return CurveSet(suite, model, comparison, ordered, left_out, rule)


def _curves_of(entry: Entry, comparison: MethodComparison) -> list[ResponseCurve]:
    """Return the curves of a method, one for each setting with enough strengths."""
    members: dict[str, list[Configuration]] = {}
    for one in entry.configurations:
        if any(abs(value) > SAME_LEVEL for value in one.units.get(DISTANCE, {}).values()):
            members.setdefault(one.setting, []).append(one)
    found = []
    for setting, some in members.items():
        ordered = sorted(some, key=lambda one: one.strength)
        if len(ordered) < MIN_STRENGTHS:
            continue
        means = [_mean(one, comparison) for one in ordered]
        falling = means[-1] < means[0]
        name = entry.name if len(members) == 1 else setting
        saes = {other.sae for other in comparison.entries if other.name == entry.name}
        name = f"{name} ({entry.sae})" if len(saes) > 1 else name
        found.append(ResponseCurve(name, entry, tuple(ordered[::-1] if falling else ordered), not falling))
    return found


def _mean(one: Configuration, comparison: MethodComparison) -> float:
    means = one.example_means(DISTANCE)
    return float(np.mean([means[example] for example in comparison.examples.ids]))
