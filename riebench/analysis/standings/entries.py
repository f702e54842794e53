"""Methods as entries of a comparison, found in run folders.

An entry holds all edit strengths of its method. First come the names and limits that comparisons keep to; then `Entry`,
and `entries`, which finds them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from riebench.analysis.configurations import (
    Configuration,
    Origin,
    Origins,
    configurations,
    whole_configurations,
)
from riebench.analysis.tradeoff import (
    Examples,
)
from riebench.scoring.profiles import DEFAULT
from riebench.store.folder import RunFolder
from riebench.store.sae_figures import least_variance
from riebench.tasks.schema import sorted_access

Floats = NDArray[np.float64]
ReadFolder = tuple[RunFolder, Sequence[Configuration]]
"""A run folder and what was read from it."""

DISTANCE, GAIN = "lpips", "clip_gain"
ENDS = ("no_edit", "target_prompt")
"""The two ends of the scale: references that are not ranked."""
SECOND = "clip_gain_2"
"""The gain by a scorer that chose nothing."""
BEST_STRENGTH = "best_strength"
"""Control made of a stored sweep: the edit strength is chosen anew for each example, by the scorer that is read."""
SCORE_CONTROLS = ("adversarial", BEST_STRENGTH)
"""Controls of the score: they please the first scorer by what no method may do, and only a second one tells."""
SWEPT = "sae"
"""The method whose sweeps `BEST_STRENGTH` is made of."""
MIN_LEVELS = 6
"""Edit strengths that a rank takes: a method with fewer cannot use the budgets that others use."""
SAME_LEVEL = 1e-5
"""Largest difference of scores between strengths that give one and the same picture."""
MIN_EXAMPLES = 12
"""Independent examples in each category that a rank takes: with fewer, equal methods are told apart too often."""
REFERENCE = "mean_steering"
"""The method that all others are compared with: its sweep, if there are several entries of it."""
KNOB_ENDS: Mapping[str, float] = {
    "embed_lerp": 1, "prompt_switch": 1, "masked_target": 1, "img2img": 1, "p2p": 0, "replace_patches": 1,
}  # fmt: skip
"""Method whose strength has an end -> the strength of most change, which a rank takes: without, curves are cut off."""
CONTROLLED: Mapping[str, str] = {
    "random_features": "sae",
    "random_directions": "sae",
    "wrong_example": "sae",
    "adversarial": "sae",
    BEST_STRENGTH: SWEPT,
}
"""Control -> the method that it controls, beside which it is ranked whatever it looks at itself."""


@dataclass(frozen=True, eq=False)
class Entry:
    """One method: a configuration, or all those of a group, on one block set.

    Attributes:
        name: the group, or the configuration.
        method: the registered method.
        access: letters of its inputs, in the order of `riebench.tasks.schema.INPUTS`.
        sae: which SAEs: their place and the beginning of the least of their hashes; "" without.
        block_set: blocks edited together.
        configurations: one for each of its edit strengths.
        sae_variance: least explained variance of its SAEs on the activations of its runs; None if not measured.
    """

    name: str
    method: str
    access: str
    sae: str
    block_set: str
    configurations: tuple[Configuration, ...]
    sae_variance: float | None = None

    @property
    def place(self) -> str:
        """Text that tells the entry apart from others of its suite and model."""
        return "\n".join((self.name, self.sae, self.block_set))

    @property
    def control_of(self) -> str:
        """The method that the entry is a control of; "" if it is none."""
        return CONTROLLED.get(self.method, "")

    @cached_property
    def levels(self) -> int:
        """Number of edit strengths tested.

        Strengths that give one and the same picture of every example are one, and none if it is the source picture.
        Strength 0 is every method's and is not counted.
        """
        seen: list[Mapping[str, Mapping[tuple[str, int], float]]] = []
        for configuration in self.configurations:
            units = {metric: configuration.units.get(metric, {}) for metric in (DISTANCE, GAIN)}
            scored = all(units.values())
            idle = scored and all(abs(value) <= SAME_LEVEL for found in units.values() for value in found.values())
            known = scored and any(_same_numbers(units, other) for other in seen)
            if configuration.strength != 0 and not idle and not known:
                seen.append(units)
        return len(seen)

    @property
    def scorer(self) -> str:
        """The network that measured its gains."""
        return ", ".join(sorted({configuration.backbones.get(GAIN, "") for configuration in self.configurations}))

    @property
    def second_scorer(self) -> str:
        """The network that confirmed its gains; "" for none."""
        return ", ".join(sorted({c.backbones[SECOND] for c in self.configurations if SECOND in c.backbones}))

    @property
    def has_second(self) -> bool:
        """True if a second scorer measured any of its pictures."""
        return any(configuration.counts(SECOND)[0] for configuration in self.configurations)

    @property
    def n_scored(self) -> int:
        """Number of units with a value."""
        return sum(configuration.counts(GAIN)[0] for configuration in self.configurations)

    @property
    def n_expected(self) -> int:
        """Number of units that should have a value."""
        return sum(configuration.counts(GAIN)[1] for configuration in self.configurations)

    @property
    def seeds(self) -> int:
        """Largest number of seeds that an example has."""
        return max((c.seeds(GAIN) for c in self.configurations), default=0)

    @property
    def categories(self) -> dict[str, str]:
        """Category of every example with a value.

        Categories in which every unit failed are left out: values that stand in for failures are no reason to expect
        these examples of other methods.
        """
        return {
            example: category
            for configuration in self.configurations
            for category, examples in configuration.values.get(GAIN, {}).items()
            if configuration.counts(GAIN, category)[0]
            for example in examples
        }

    @property
    def origins(self) -> Origins:
        """Versions that the units of each example were made from."""
        found: dict[str, set[Origin]] = {}
        for configuration in self.configurations:
            for example, origins in configuration.origins.items():
                found.setdefault(example, set()).update(origins)
        return {example: frozenset(origins) for example, origins in found.items()}

    def gap(self, examples: Examples, seeds: int) -> str | None:
        """Return the reason why the entry cannot be compared, or None.

        Args:
            examples: those of all entries.
            seeds: of each example.
        """
        failed = sum(configuration.failed for configuration in self.configurations)
        if failed:
            return f"{failed} units failed"
        levels = Counter(configuration.label for configuration in self.configurations)
        twice = [label for label, n in levels.items() if n > 1]
        if twice:
            return f"{twice[0]} is there twice"
        for metric in (GAIN, DISTANCE):
            for configuration in self.configurations:
                n_scored, n_expected = configuration.counts(metric)
                missing = n_expected - n_scored - configuration.skipped
                if missing:
                    return f"{missing} of {n_expected} units of {configuration.label} have no {metric}"
                found = configuration.values.get(metric, {})
                scored = {example: len(s) for values in found.values() for example, s in values.items()}
                if set(scored) != set(examples.ids):
                    return f"{len(scored)} of {len(examples.ids)} examples"
                if set(scored.values()) != {seeds}:
                    return f"{min(scored.values())} of {seeds} seeds"
        return None

    def values(self, metric: str, examples: Examples) -> Floats | None:
        """Return means over seeds, float64 [E, configurations], or None with gaps."""
        columns = []
        for configuration in self.configurations:
            means = configuration.example_means(metric)
            if not set(examples.ids) <= set(means):
                return None
            columns.append([means[example] for example in examples.ids])
        return np.array(columns).T if columns else None


def _same_numbers(
    one: Mapping[str, Mapping[tuple[str, int], float]], other: Mapping[str, Mapping[tuple[str, int], float]]
) -> bool:
    """Check that two configurations have equal numbers of the same units."""
    return all(
        one[metric].keys() == other[metric].keys()
        and all(abs(value - other[metric][unit]) <= SAME_LEVEL for unit, value in one[metric].items())
        for metric in one
    )


def entries(
    folders: Iterable[RunFolder], profile: str = DEFAULT, *, single_blocks: bool = False, extra: Sequence[str] = ()
) -> list[Entry]:
    """Return the methods of some run folders of one suite and model.

    Args:
        folders: of any settings.
        profile: whose metrics to read.
        single_blocks: also block sets that are part of a setting's whole; each is a method of its own.
        extra: further metrics to read, of those that no table shows.
    """
    return group_entries(
        ((folder, configurations(folder, profile, extra)) for folder in folders), single_blocks=single_blocks
    )


def group_entries(read: Iterable[ReadFolder], *, single_blocks: bool = False) -> list[Entry]:
    """Group configurations of run folders that were read already into methods.

    Args:
        read: folders with their configurations.
        single_blocks: see `entries`.
    """
    found: dict[tuple[str, str, str], list[tuple[RunFolder, Configuration]]] = {}
    for folder, everything in read:
        for configuration in everything if single_blocks else whole_configurations(everything):
            setting = folder.spec.setting
            place = (setting.group or setting.name, sae_label(folder), configuration.block_set)
            found.setdefault(place, []).append((folder, configuration))
    return [_entry(name, sae, block_set, members) for (name, sae, block_set), members in sorted(found.items())]


def _entry(name: str, sae: str, block_set: str, members: Sequence[tuple[RunFolder, Configuration]]) -> Entry:
    letters = {letter for _, configuration in members for letter in configuration.access}
    folders = {folder.path: folder for folder, _ in members}
    return Entry(
        name, members[0][1].method, sorted_access(letters), sae, block_set,
        tuple(configuration for _, configuration in members),
        least_variance(folder.sae_figures() for folder in folders.values()),
    )  # fmt: skip


def with_score_controls(found: Sequence[Entry]) -> tuple[Entry, ...]:
    """Return methods with the controls that are made of their own numbers.

    Each sweep of the SAE gets a control whose edit strength is chosen for each example by the scorer itself. Only a
    second scorer can tell it apart, so there is none without.

    Args:
        found: methods of one suite and model.
    """
    if not any(entry.has_second for entry in found if entry.method not in ENDS):
        return tuple(found)
    made = [
        replace(entry, name=f"{entry.name}_{BEST_STRENGTH}", method=BEST_STRENGTH)
        for entry in found
        if entry.method == SWEPT and entry.levels >= MIN_LEVELS
    ]
    return (*found, *made)


def sae_label(folder: RunFolder) -> str:
    """Return a text that names a run's SAEs: their place and a hash; "" without."""
    hashes = sorted({sha[:6] for sha in folder.spec.sae_sha256.values()})
    if not hashes:
        return ""
    return f"{folder.spec.setting.sae or 'model'} {hashes[0]}"
