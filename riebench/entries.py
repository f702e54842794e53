"""Methods as the leaderboard compares them: all settings, strengths and sizes of one knob."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from riebench.configurations import Configuration, configurations, whole_configurations
from riebench.scoring.profiles import DEFAULT
from riebench.store.folder import RunFolder
from riebench.tradeoff import Examples
from riebench.versions import Origin, Origins

Floats = NDArray[np.float64]
Read = tuple[RunFolder, Sequence[Configuration]]
"""A run folder and what was read from it."""

DISTANCE, GAIN = "lpips", "clip_gain"
ENDS = ("no_edit", "target_prompt")
"""The two ends of the scale: references, not rivals."""


@dataclass(frozen=True, eq=False)
class Entry:
    """One method: a setting, or all settings of a group, on one block set.

    Attributes:
        name: the group, or the setting.
        method: the registered method.
        access: what it may look at.
        sae: which SAEs: their place and the beginning of the least of their hashes; "" without.
        block_set: blocks edited together.
        configurations: every level of its knob.
    """

    name: str
    method: str
    access: str
    sae: str
    block_set: str
    configurations: tuple[Configuration, ...]

    @property
    def place(self) -> str:
        """What tells it apart from the others of its suite and model."""
        return "\n".join((self.name, self.sae, self.block_set))

    @property
    def levels(self) -> int:
        """Levels of its knob that were planned; strength 0 is every method's and counts for none."""
        return sum(1 for configuration in self.configurations if configuration.strength != 0)

    @property
    def scorer(self) -> str:
        """The network that measured its gains."""
        return ", ".join(sorted({configuration.backbones.get(GAIN, "") for configuration in self.configurations}))

    @property
    def n_scored(self) -> int:
        """Units with a number."""
        return sum(configuration.counts(GAIN)[0] for configuration in self.configurations)

    @property
    def n_expected(self) -> int:
        """Units that should have one."""
        return sum(configuration.counts(GAIN)[1] for configuration in self.configurations)

    @property
    def seeds(self) -> int:
        """Most seeds an example has."""
        return max((c.seeds(GAIN) for c in self.configurations), default=0)

    @property
    def categories(self) -> dict[str, str]:
        """Example id -> category, of everything scored."""
        return {
            example: category
            for configuration in self.configurations
            for category, examples in configuration.values.get(GAIN, {}).items()
            for example in examples
        }

    @property
    def origins(self) -> Origins:
        """Example id -> the versions that units were made from."""
        found: dict[str, set[Origin]] = {}
        for configuration in self.configurations:
            for example, origins in configuration.origins.items():
                found.setdefault(example, set()).update(origins)
        return {example: frozenset(origins) for example, origins in found.items()}

    def gap(self, examples: Examples, seeds: int) -> str | None:
        """Why this entry cannot be compared on these examples, or None.

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
        """Means over seeds, float64 [E, configurations], or None if a number is missing."""
        columns = []
        for configuration in self.configurations:
            means = configuration.example_means(metric)
            if not set(examples.ids) <= set(means):
                return None
            columns.append([means[example] for example in examples.ids])
        return np.array(columns).T if columns else None


def entries(
    folders: Iterable[RunFolder], profile: str = DEFAULT, *, single_blocks: bool = False, extra: Sequence[str] = ()
) -> list[Entry]:
    """The methods of some run folders of one suite and model.

    Args:
        folders: of any settings.
        profile: whose metrics to read.
        single_blocks: also block sets that are part of a setting's whole; each is a method of its own.
        extra: further metrics to read, of those that no table shows.
    """
    return methods_of(
        ((folder, configurations(folder, profile, extra)) for folder in folders), single_blocks=single_blocks
    )


def methods_of(read: Iterable[Read], *, single_blocks: bool = False) -> list[Entry]:
    """As `entries`, of run folders that were read already.

    Args:
        read: folders with their configurations.
        single_blocks: see `entries`.
    """
    found: dict[tuple[str, str, str], list[tuple[RunFolder, Configuration]]] = {}
    for folder, everything in read:
        for configuration in everything if single_blocks else whole_configurations(everything):
            setting = folder.spec.setting
            place = (setting.group or setting.name, _sae(folder), configuration.block_set)
            found.setdefault(place, []).append((folder, configuration))
    return [_entry(name, sae, block_set, members) for (name, sae, block_set), members in sorted(found.items())]


def _entry(name: str, sae: str, block_set: str, members: Sequence[tuple[RunFolder, Configuration]]) -> Entry:
    settings = [folder.spec.setting for folder, _ in members]
    letters = {letter for setting in settings for letter in setting.access}
    return Entry(
        name, settings[0].method, "".join(sorted(letters, key="PAMTV".index)), sae, block_set,
        tuple(configuration for _, configuration in members),
    )  # fmt: skip


def _sae(folder: RunFolder) -> str:
    hashes = sorted({sha[:6] for sha in folder.spec.sae_sha256.values()})
    if not hashes:
        return ""
    return f"{folder.spec.setting.sae or 'model'} {hashes[0]}"
