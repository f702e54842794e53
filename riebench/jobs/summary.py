"""Print-out at the end of a run: the table of what the command was about.

It shows the units that the command planned and no others, however much the results folder holds. The module also says
which files of a results folder are small enough to be rebuilt for one command.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from riebench.analysis.configurations import (
    EVERYTHING,
    Configuration,
    configurations,
    present_categories,
    present_metrics,
)
from riebench.runs.plan import Unit
from riebench.scoring.profiles import DEFAULT, PROFILES, metric_format
from riebench.store.folder import RunFolder
from riebench.store.records import EditRecord
from riebench.store.run_file import CellKey
from riebench.utils.terminal import add_row, print_table, table_width, window_width

if TYPE_CHECKING:
    from rich.table import Table

MOST_OTHERS = 20
"""Most units of other runs, for each unit of the command, that a file may show to be rebuilt at the end of the command.

Rebuilding then takes a small part of the time that making the command's own units takes.
"""


class PlannedPart(RunFolder):
    """Part of a run folder that one command planned.

    Args:
        folder: the run folder.
        units: the units of the command; those of other settings are left out.
    """

    def __init__(self, folder: RunFolder, units: Iterable[Unit]) -> None:
        super().__init__(folder.path)
        name = self.spec.setting.name
        self._keys = {unit.key.digest: unit.key for unit in units if unit.setting.name == name}

    @property
    def expected(self) -> dict[CellKey, int]:
        """Category, block set and strength -> number of units that the command planned."""
        return dict(Counter((key.category, key.block_set, key.strength) for key in self._keys.values()))

    def records(self, *, features: bool = True) -> list[EditRecord]:
        """Return the latest record of every planned unit, as in `RunFolder`."""
        return [record for record in super().records(features=features) if record.key.digest in self._keys]


def may_rebuild(shown: Iterable[RunFolder], touched: Collection[Path], units: int) -> bool:
    """Return whether a file is to be rebuilt at the end of a command.

    The work after a command must not grow with runs that it did not touch, so a file that shows far more of them than
    of the command is left to a command of its own.

    Args:
        shown: all run folders that the file shows.
        touched: paths of those that the command wrote to.
        units: number of the command's units.
    """
    others = sum(folder.n_expected for folder in shown if folder.path not in touched)
    return others <= MOST_OTHERS * units


def print_per_block(folders: Sequence[RunFolder], profile: str = DEFAULT) -> None:
    """Print the per-block table to standard output.

    It shows the ranking metric by category, and all other metrics over all categories.

    Where the terminal is too narrow for all categories, none is shown: a number is never cut.

    Args:
        folders: run folders of one suite and model.
        profile: name of the profile whose metrics are shown.
    """
    found = [configuration for folder in folders for configuration in configurations(folder, profile)]
    categories = present_categories(found)
    table = _per_block(found, categories, profile)
    width = window_width()
    if width is not None and table_width(table) > width:
        table = _per_block(found, [], profile)
    print_table(table)


def _per_block(found: Sequence[Configuration], categories: Sequence[str], profile: str) -> Table:
    from rich.table import Table

    rank = PROFILES[profile].rank
    others = [metric for metric in present_metrics(found) if metric != rank]
    ranked = metric_format(rank).title.partition(" (")[0]
    table = Table(
        title=f"{ranked} by category; over all categories: the other metrics" if categories
        else f"Over all categories; {ranked} by category: see the tables, or widen the window"
    )  # fmt: skip
    for heading in ("configuration", "blocks"):
        table.add_column(heading, no_wrap=True)
    short = [category.removeprefix("change_").removesuffix("_object") for category in categories]
    whole = EVERYTHING if categories else ranked
    for heading in [*short, whole, *(metric.replace("_", " ") for metric in others), "scored"]:
        table.add_column(heading, justify="right")
    for configuration in found:
        rows = [configuration.row(rank, category) for category in (*categories, EVERYTHING)]
        cells = [("–" if row.mean is None else metric_format(rank).number(row.mean)) for row in rows]
        for metric in others:
            mean = configuration.row(metric, EVERYTHING).mean
            cells.append("–" if mean is None else metric_format(metric).number(mean))
        scored = f"{rows[-1].n_scored}/{rows[-1].n_expected}"
        add_row(table, configuration.label, configuration.block_set, *cells, scored)
    return table
