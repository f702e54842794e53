"""Effects of an SAE's features, read from stored runs.

`read_effects` collects what a number of features does to each example: one `Effects` for each SAE and for each block
that it was tested on. The runs are recognised by what they are, not by their names: method `sae` with its usual
parameters at strength 1 and one of `FEATURE_COUNTS` features, `sae_fixed` and `random_features` likewise, and
`activation_patch` at strength 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from riebench.analysis.configurations import Configuration, comparison_gaps, configurations
from riebench.analysis.standings import sae_label
from riebench.analysis.tradeoff import Examples, budget_means
from riebench.blocks import ALL_BLOCKS
from riebench.store.folder import RunFolder
from riebench.tasks.schema import Setting
from riebench.utils.processes.helpers import Apply, apply_here

Floats = NDArray[np.float64]

FEATURE_COUNTS = (1, 2, 3, 5, 10, 20)
"""Numbers of features that are switched on, and as many off."""
FEW = (1, 2, 3, 5)
"""Those at which features are told apart: with more, any dictionary can carry the whole change."""
TOGETHER = "together"
"""Name of all blocks edited together, among the names of blocks."""

Kind = Literal["sae", "sae_fixed", "random_features", "activation_patch"]
"""Method of a run that the score reads."""
COUNTED: tuple[Kind, ...] = ("sae", "sae_fixed", "random_features")
"""Methods that switch a number of features."""
PATCH: Kind = "activation_patch"
"""Method that hands over the whole update, which features stand for a part of."""
DEFAULT_COUNT = 20
"""Value of `n_features` where a configuration states none."""

GAIN, DISTANCE, JUDGED, KEPT = "clip_gain", "lpips", "judge_target", "judge_kept"
SELECTIVITY = "clip_selectivity"
SECOND = "clip_gain_2"
"""The gain by a second, independent scorer."""
METRICS = (GAIN, SECOND, DISTANCE, JUDGED, KEPT, SELECTIVITY)

Unit = tuple[str, str, int]
"""Category, example id and seed."""


@dataclass
class Cells:
    """Numbers of one method, SAE, block and number of features.

    Attributes:
        values: metric -> unit -> its number.
        configurations: what they were read from.
    """

    values: dict[str, dict[Unit, float]] = field(default_factory=dict)
    configurations: list[Configuration] = field(default_factory=list)

    def add(self, configuration: Configuration) -> None:
        """Add the numbers of a configuration."""
        self.configurations.append(configuration)
        for metric in METRICS:
            categories = {e: c for c, examples in configuration.values.get(metric, {}).items() for e in examples}
            known = self.values.setdefault(metric, {})
            for (example, seed), value in configuration.units.get(metric, {}).items():
                known[categories[example], example, seed] = value


@dataclass(frozen=True, eq=False)
class Effects:
    """Gains and verdicts of an SAE's features, unit by unit.

    Arrays are [U, counts] in the order of `FEATURE_COUNTS`, NaN where a number is missing.

    Attributes:
        sae: where the SAE comes from, and the beginning of the least of its hashes.
        block: the block, or `TOGETHER`.
        units: category, example and seed of each row: those with a gain at every number of features that was tested.
        cells: method -> number of features -> its numbers; `PATCH` has them under 0.
    """

    sae: str
    block: str
    units: tuple[Unit, ...]
    cells: Mapping[Kind, Mapping[int, Cells]]

    @property
    def configurations(self) -> list[Configuration]:
        """Configurations of the SAE's own edits."""
        return [one for cells in self.cells.get("sae", {}).values() for one in cells.configurations]

    @property
    def clusters(self) -> dict[str, str]:
        """Example id -> what it is resampled with, for examples that share something."""
        found: dict[str, str] = {}
        for one in self.configurations:
            found |= one.clusters
        return found

    def numbers(self, kind: Kind, metric: str) -> Floats:
        """Return a metric's numbers, [U, counts]."""
        columns = [self._column(kind, count, metric) for count in FEATURE_COUNTS]
        return np.stack(columns, axis=1) if self.units else np.empty((0, len(FEATURE_COUNTS)))

    def _column(self, kind: Kind, count: int, metric: str) -> Floats:
        cells = self.cells.get(kind, {}).get(count)
        known = {} if cells is None else cells.values.get(metric, {})
        return np.array([known.get(unit, np.nan) for unit in self.units])

    def at_budgets(self, kind: Kind, metric: str = GAIN) -> Floats:
        """Return gains within LPIPS budgets, [U, counts]; see `gains_at_budgets`."""
        gains, distances = self.numbers(kind, metric), self.numbers(kind, DISTANCE)
        return np.stack(
            [gains_at_budgets(gains[:, column], distances[:, column]) for column in range(gains.shape[1])], axis=1
        )

    @cached_property
    def gain(self) -> Floats:
        """The SAE's gains within LPIPS budgets, [U, counts]."""
        return self.at_budgets("sae")

    def patch(self, *, budgets: bool) -> Floats:
        """Return the gains of activation patching, [U].

        Args:
            budgets: within LPIPS budgets, instead of as they are.
        """
        gains = self._column(PATCH, 0, GAIN)
        return gains_at_budgets(gains, self._column(PATCH, 0, DISTANCE)) if budgets else gains

    def mean(self, values: Floats) -> float:
        """Return a mean over seeds, then examples, then categories; NaN for nothing.

        Args:
            values: [U]; units without a number are left out.
        """
        examples: dict[tuple[str, str], list[float]] = {}
        for (category, example, _), value in zip(self.units, values, strict=True):
            if np.isfinite(value):
                examples.setdefault((category, example), []).append(float(value))
        categories: dict[str, list[float]] = {}
        for (category, _), seeds in examples.items():
            categories.setdefault(category, []).append(float(np.mean(seeds)))
        return float(np.mean([np.mean(means) for means in categories.values()])) if categories else float("nan")


def gains_at_budgets(gains: Floats, distances: Floats) -> Floats:
    """Compute the mean gain of single edits over LPIPS budgets.

    An edit within a budget counts in full; one that costs more is read on the straight line from no edit to it, where
    it reaches the budget. See `riebench.analysis.tradeoff`.

    Args:
        gains: [U].
        distances: [U], LPIPS.

    Returns:
        [U]; NaN where either is missing.
    """
    found = np.full(len(gains), np.nan)
    known = np.isfinite(gains) & np.isfinite(distances)
    if known.any():
        found[known] = budget_means(distances[known, None], gains[known, None], [0])[:, 0]
    return found


def read_effects(
    runs: Iterable[RunFolder], patch: Iterable[RunFolder] = (), *, apply: Apply = apply_here
) -> list[Effects]:
    """Read the effects of features from runs of one suite and model.

    Args:
        runs: folders of any methods; those that the score does not read are left out.
        patch: further folders with runs of activation patching.
        apply: reads the folders.

    Returns:
        One for each SAE and block, all blocks together first.
    """
    cells: dict[tuple[str, str], dict[Kind, dict[int, Cells]]] = {}
    patches: dict[str, Cells] = {}
    folders = {folder.path: folder for folder in (*runs, *patch) if counted(folder.spec.setting)[0] is not None}
    read = partial(configurations, extra=(SELECTIVITY,), features=False)
    sizes = [folder.n_expected for folder in folders.values()]
    for folder, of_run in zip(folders.values(), apply(read, [*folders.values()], sizes), strict=True):
        kind, count = counted(folder.spec.setting)
        for configuration in of_run:
            if kind is None or configuration.strength != 1:
                continue
            block = block_name(folder, configuration)
            if kind == PATCH:
                patches.setdefault(block, Cells()).add(configuration)
            else:
                place = cells.setdefault((sae_label(folder), block), {})
                place.setdefault(kind, {}).setdefault(count, Cells()).add(configuration)
    found = []
    for (sae, block), kinds in sorted(cells.items(), key=lambda one: (one[0][0], one[0][1] != TOGETHER, one[0][1])):
        if "sae" in kinds:
            whole: dict[Kind, Mapping[int, Cells]] = {**kinds, PATCH: {0: patches.get(block, Cells())}}
            found.append(Effects(sae, block, _shared_units(kinds["sae"]), whole))
    return found


def counted(setting: Setting) -> tuple[Kind | None, int]:
    """Return the kind of run that a setting makes, and its number of features.

    Returns:
        None for a run that it does not read; the number is 0 for activation patching.
    """
    params: Mapping[str, Any] = setting.params
    if setting.edit_steps is not None or 1 not in setting.strengths:
        return None, 0
    if setting.method == PATCH and not params:
        return PATCH, 0
    count = params.get("n_features", DEFAULT_COUNT)
    usual = not set(params) - {"n_features"} and count in FEATURE_COUNTS
    kind = next((kind for kind in COUNTED if kind == setting.method), None)
    return (kind, int(count)) if usual and kind is not None else (None, 0)


def block_name(folder: RunFolder, configuration: Configuration) -> str:
    """Return the block of a configuration; `TOGETHER` for all of its setting's."""
    single = configuration.block_set in folder.spec.setting.blocks
    return configuration.block_set if single and configuration.block_set != ALL_BLOCKS else TOGETHER


def _shared_units(counts: Mapping[int, Cells]) -> tuple[Unit, ...]:
    """Return the units that have a gain and an LPIPS at every number of features."""
    found = [set(cells.values.get(metric, {})) for cells in counts.values() for metric in (GAIN, DISTANCE)]
    return tuple(sorted(set.intersection(*found))) if found else ()


def effect_gaps(effects: Sequence[Effects]) -> list[str | None]:
    """Return for each SAE why it may not be compared with the others, or None.

    The reason is another version of an example or another model than the others have.
    """
    all_configurations = [one for found in effects for one in found.configurations]
    gaps = dict(zip(map(id, all_configurations), comparison_gaps(all_configurations), strict=True))
    return [
        next((why for one in found.configurations if (why := gaps[id(one)]) is not None), None) for found in effects
    ]


def shared_examples(effects: Sequence[Effects]) -> Examples:
    """Return all examples that any of some SAEs was tested on."""
    categories = {example: category for found in effects for category, example, _ in found.units}
    clusters: dict[str, str] = {}
    for found in effects:
        clusters |= found.clusters
    return Examples.of(categories, clusters)
