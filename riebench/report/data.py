"""What the page is made from: the run folders of each suite and model, each file read once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from riebench.analysis.configurations import EVERYTHING, Configuration, configurations, present_categories
from riebench.analysis.stats import estimate
from riebench.store.folder import RunFolder, ScoreKey, SharedFolder, run_folders
from riebench.store.records import EditRecord, RunSpec, ScoreRecord

EFFECT, DISTANCE = "clip_gain", "lpips"
"""Alignment and preservation: the two axes of the page."""


class ReadOnce(RunFolder):
    """A run folder that nobody writes while it is looked at, so that each of its files is parsed once."""

    def __init__(self, path: Path, spec: RunSpec | None = None) -> None:
        super().__init__(path, spec)
        self._records: list[EditRecord] | None = None
        self._scores: dict[ScoreKey, ScoreRecord] | None = None

    def records(self) -> list[EditRecord]:
        """As in `RunFolder`."""
        if self._records is None:
            self._records = super().records()
        return self._records

    def scores(self) -> dict[ScoreKey, ScoreRecord]:
        """As in `RunFolder`."""
        if self._scores is None:
            self._scores = super().scores()
        return self._scores


@dataclass
class Group:
    """All runs of one suite on one model: nothing on the page mixes two of them."""

    path: Path
    folders: list[ReadOnce]

    @property
    def suite(self) -> str:
        """Name of the suite, as the results folder has it."""
        return self.path.parent.name

    @property
    def model(self) -> str:
        """Name of the model, as the results folder has it."""
        return self.path.name

    @property
    def name(self) -> str:
        """What links and choices on the page say."""
        return f"{self.suite}/{self.model}"

    @property
    def shared(self) -> SharedFolder:
        """Source and target pictures and masks."""
        return self.folders[0].shared

    @cached_property
    def configurations(self) -> list[Configuration]:
        """Of all its runs, with the numbers of the default profile."""
        return [c for folder in self.folders for c in configurations(folder)]

    @property
    def categories(self) -> list[str]:
        """Categories that were planned, by their number."""
        return present_categories(self.configurations)


def read_groups(results: Path) -> list[Group]:
    """Everything below a results folder, by suite and model."""
    found: dict[Path, list[ReadOnce]] = {}
    for folder in run_folders(results):
        found.setdefault(folder.path.parent, []).append(ReadOnce(folder.path))
    return [Group(path, folders) for path, folders in sorted(found.items())]


def mean(configuration: Configuration, metric: str, categories: Sequence[str] | None = None) -> float | None:
    """Mean over seeds, examples and categories, without the interval that a table would have.

    Args:
        configuration: whose numbers.
        metric: of what.
        categories: only these; None for all.
    """
    values = configuration.values.get(metric, {})
    if categories is not None:
        values = {name: values[name] for name in categories if name in values}
    return estimate(values, replicates=1).mean


def counts(configuration: Configuration, metric: str, categories: Sequence[str] | None = None) -> str:
    """How many units have a value, of how many that should: "scored/expected"."""
    counted = [configuration.counts(metric, name) for name in categories or [EVERYTHING]]
    return f"{sum(scored for scored, _ in counted)}/{sum(expected for _, expected in counted)}"
