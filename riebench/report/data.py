"""Data of the page: the run folders of each suite and model, each file read once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from riebench.analysis.configurations import EVERYTHING, Configuration, configurations, present_categories
from riebench.analysis.standings import ENDS
from riebench.analysis.stats import estimate
from riebench.store.folder import RunFolder, find_run_folders, group_by_model
from riebench.store.records import EditRecord, RunSpec, ScoreRecord
from riebench.store.scores import ScoreKey
from riebench.store.shared import SharedFolder

EFFECT, DISTANCE = "clip_gain", "lpips"
"""Metrics of alignment and of preservation, the two axes of the page."""
SAE_METHOD = "sae"
"""The method that the page shows first, and the usual name of its configuration."""


class CachedRunFolder(RunFolder):
    """Run folder whose files are parsed only once.

    Nothing may write to the folder in the meantime.
    """

    def __init__(self, path: Path, spec: RunSpec | None = None) -> None:
        super().__init__(path, spec)
        self._records: list[EditRecord] | None = None
        self._scores: dict[ScoreKey, ScoreRecord] | None = None

    def records(self, *, features: bool = True) -> list[EditRecord]:
        """Return the records with their features, as in `RunFolder`."""
        if self._records is None:
            self._records = super().records()
        return self._records

    def scores(self) -> dict[ScoreKey, ScoreRecord]:
        """Return the scores, as in `RunFolder`."""
        if self._scores is None:
            self._scores = super().scores()
        return self._scores


@dataclass
class Group:
    """All runs of one suite on one model.

    Nothing on the page mixes two groups.

    Attributes:
        path: `results/SUITE/MODEL`.
        folders: its run folders.
    """

    path: Path
    folders: list[CachedRunFolder]

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
        """Name of the group in links and choices on the page."""
        return f"{self.suite}/{self.model}"

    @property
    def shared(self) -> SharedFolder:
        """Folder with the source and target pictures and the masks of all runs."""
        return self.folders[0].shared

    @cached_property
    def configurations(self) -> list[Configuration]:
        """Configurations of all its runs, with the numbers of the default profile."""
        return [c for folder in self.folders for c in configurations(folder)]

    @cached_property
    def leading(self) -> CachedRunFolder:
        """Run that the page shows first.

        It is the method configuration `sae`, or else the first of the method `sae`, or else the first that is no end
        of the scale; one without records comes last.
        """
        return min(self.folders, key=_leading_order)

    @property
    def categories(self) -> list[str]:
        """Planned categories, in the order of their numbers."""
        return present_categories(self.configurations)


def _leading_order(folder: CachedRunFolder) -> tuple[bool, bool, bool, bool]:
    """Return the sort key of a run: the one that is shown first has the least."""
    setting = folder.spec.setting
    return not folder.records(), setting.name != SAE_METHOD, setting.method != SAE_METHOD, setting.method in ENDS


def read_groups(results: Path) -> list[Group]:
    """Return the run folders below a results folder, grouped by suite and model."""
    found = group_by_model(CachedRunFolder(folder.path) for folder in find_run_folders(results))
    return [Group(folders[0].path.parent, folders) for folders in found.values()]


def mean(configuration: Configuration, metric: str, categories: Sequence[str] | None = None) -> float | None:
    """Compute a metric's mean over seeds, examples and categories.

    Unlike in tables, no interval is computed.

    Args:
        configuration: the configuration.
        metric: name of the metric.
        categories: the categories to average; None for all.

    Returns:
        The mean, or None if no unit was scored.
    """
    if not any(configuration.counts(metric, name)[0] for name in categories or [EVERYTHING]):
        return None
    values = configuration.values.get(metric, {})
    if categories is not None:
        values = {name: values[name] for name in categories if name in values}
    return estimate(values, replicates=1).mean


def counts(configuration: Configuration, metric: str, categories: Sequence[str] | None = None) -> str:
    """Count the units with a value and those expected, as "scored/expected"."""
    counted = [configuration.counts(metric, name) for name in categories or [EVERYTHING]]
    return f"{sum(scored for scored, _ in counted)}/{sum(expected for _, expected in counted)}"
