"""The tables of run folders, and their files beside the runs.

What tables show of a run folder is read and computed folder by folder, if need be by several processes, and then put
together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from riebench.analysis.compare.blocks import MARGINS, per_block_share
from riebench.analysis.compare.training import TrainingCost, training_costs, training_table
from riebench.analysis.configurations import (
    EVERYTHING,
    Configuration,
    configurations,
    present_categories,
    present_metrics,
    scored_profiles,
)
from riebench.analysis.tables.by_configuration import TablePair, per_block, per_category, per_method
from riebench.analysis.tables.by_features import (
    FeatureShare,
    SwitchedCount,
    feature_share_table,
    feature_shares,
    switched_count_table,
    switched_counts,
)
from riebench.analysis.tradeoff.response.distances import DistanceRow, distance_rows, distance_table
from riebench.scoring.profiles import DEFAULT, PROFILES
from riebench.store.folder import RunFolder
from riebench.utils.files import out_of_date, write_atomic
from riebench.utils.processes.helpers import Apply, apply_here


@dataclass(frozen=True)
class RunNumbers:
    """Numbers of one run folder that its tables show.

    Attributes:
        configurations: profile -> its configurations, their cells computed.
        shares: shares of switched features by block.
        switched: numbers of features or neurons switched.
        distances: distances of edited activations from unedited ones.
        training: costs of training.
    """

    configurations: dict[str, list[Configuration]]
    shares: list[FeatureShare]
    switched: list[SwitchedCount]
    distances: list[DistanceRow]
    training: list[TrainingCost]


def read_numbers(folder: RunFolder, profiles: Sequence[str], *, of_edits: bool) -> RunNumbers:
    """Read and compute what the tables show of a run folder.

    Args:
        folder: the run folder.
        profiles: whose metrics to read.
        of_edits: also reads what no profile has: features, distances and training.
    """
    found = {name: configurations(folder, name, MARGINS if name == DEFAULT else ()) for name in profiles}
    for one in (one for some in found.values() for one in some):
        # The row over all categories comes last: it is made of theirs.
        for metric in present_metrics([one]):
            for category in (*present_categories([one]), EVERYTHING):
                one.row(metric, category)
    if not of_edits:
        return RunNumbers(found, [], [], [], [])
    known = {folder.path: found[DEFAULT]} if DEFAULT in found else {}
    return RunNumbers(
        found, feature_shares([folder]), switched_counts([folder]), distance_rows([folder], known),
        training_costs([folder]),
    )  # fmt: skip


@dataclass(frozen=True)
class ModelNumbers:
    """Numbers of one suite and model that its tables show.

    Attributes:
        folder: `results/<suite>/<model>`.
        profiles: profiles whose metrics were read.
        of_edits: whether also what no profile has was read.
        runs: one for each run folder.
    """

    folder: Path
    profiles: tuple[str, ...]
    of_edits: bool
    runs: tuple[RunNumbers, ...]

    def tables(self) -> dict[Path, TablePair]:
        """Return the tables: path below `folder`, without its suffix -> table.

        Those of profiles other than `default` have a folder of their own.
        """
        place = Path("tables")
        tables: dict[Path, TablePair] = {}
        for name in self.profiles:
            folder = place / PROFILES[name].folder
            found = [configuration for run in self.runs for configuration in run.configurations[name]]
            tables[folder / "per_block"] = per_block(found)
            tables[folder / "per_category"] = per_category(found)
            tables[folder / "per_method"] = per_method(found)
            if name == DEFAULT and (shares := per_block_share(found)) is not None:
                tables[folder / "block_shares"] = shares
        if self.of_edits:
            tables[place / "feature_share"] = feature_share_table([one for run in self.runs for one in run.shares])
            tables[place / "switched"] = switched_count_table([one for run in self.runs for one in run.switched])
            distances = distance_table([one for run in self.runs for one in run.distances])
            training = training_table([one for run in self.runs for one in run.training])
            for part, table in (("off_distribution", distances), ("training", training)):
                if table is not None:
                    tables[place / part] = table
        return tables


def read_models(
    folders: Iterable[RunFolder], profile: str | None = None, *, apply: Apply = apply_here
) -> list[ModelNumbers]:
    """Read and compute what the tables show of each suite and model.

    Args:
        folders: run folders.
        profile: only this one's tables; None for every profile that has scores.
        apply: reads the run folders.
    """
    groups: dict[Path, list[RunFolder]] = {}
    for folder in folders:
        groups.setdefault(folder.path.parent, []).append(folder)
    profiles = {place: tuple(scored_profiles(its)) if profile is None else (profile,) for place, its in groups.items()}
    of_edits = profile in (None, DEFAULT)
    asked = [(folder, profiles[place], of_edits) for place, its in groups.items() for folder in its]
    # Those of all models at once, so that no process waits between two of them.
    found = iter(apply(_read, asked, [folder.n_expected for folder, _, _ in asked]))
    return [
        ModelNumbers(place, profiles[place], of_edits, tuple(islice(found, len(groups[place])))) for place in groups
    ]


def _read(asked: tuple[RunFolder, tuple[str, ...], bool]) -> RunNumbers:
    folder, profiles, of_edits = asked
    return read_numbers(folder, profiles, of_edits=of_edits)


def model_tables(folders: Sequence[RunFolder], profile: str | None = None) -> dict[Path, TablePair]:
    """Return the tables of one suite and model; arguments as `read_models`.

    Returns:
        Path below the folder of suite and model, without its suffix -> table.
    """
    return {path: table for one in read_models(folders, profile) for path, table in one.tables().items()}


def table_texts(
    folders: Iterable[RunFolder], profile: str | None = None, *, apply: Apply = apply_here
) -> dict[Path, str]:
    """Return the table files of some run folders; arguments as `read_models`.

    Returns:
        File -> content, the Markdown file of each table before its CSV file.
    """
    texts: dict[Path, str] = {}
    for model in sorted(read_models(folders, profile, apply=apply), key=lambda one: one.folder):
        for name, (document, numbers) in model.tables().items():
            stem = model.folder / name
            texts |= {stem.with_suffix(".md"): document.markdown(), stem.with_suffix(".csv"): numbers}
    return texts


def write_tables(folders: Iterable[RunFolder], profile: str | None = None, *, apply: Apply = apply_here) -> list[Path]:
    """Write the tables of some run folders beside them; arguments as `read_models`.

    The files are `tables/*.md` and `tables/*.csv` in the folder of each suite and model.

    Returns:
        The Markdown files.
    """
    texts = table_texts(folders, profile, apply=apply)
    for path, text in texts.items():
        write_atomic(path, text.encode())
    return [path for path in texts if path.suffix == ".md"]


def check_tables(folders: Iterable[RunFolder], profile: str | None = None, *, apply: Apply = apply_here) -> list[Path]:
    """Check that stored tables are what scores give; arguments as `read_models`.

    Returns:
        The files, all of them up to date.

    Raises:
        RiebenchError: names the first file that is missing or out of date.
    """
    texts = table_texts(folders, profile, apply=apply)
    for path, text in texts.items():
        if not path.exists() or path.read_bytes() != text.encode():
            raise out_of_date(path, "riebench tables")
    return [*texts]
