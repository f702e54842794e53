"""Results as an object: records, scores, tables and pictures of some runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from riebench.analysis.configurations import Configuration, configurations
from riebench.analysis.export import data_frame, method_rows
from riebench.analysis.tables import (
    TablePair,
    per_block,
    per_category,
    per_feature_share,
    per_method,
    per_switched_count,
)
from riebench.api.comparison import Comparison
from riebench.api.display import html_table, text_table, wrapped
from riebench.api.frames import ReadRun, record_frame, score_frame, wide_frame
from riebench.api.opening import open_results, run_folders
from riebench.errors import RiebenchError, near_match
from riebench.scoring.profiles import DEFAULT, get_profile
from riebench.store.folder import RunFolder, group_by_model
from riebench.store.records import EditRecord
from riebench.tasks.schema import Setting
from riebench.utils.images import Picture, grid
from riebench.utils.markup import csv_rows

if TYPE_CHECKING:
    from pandas import DataFrame
    from PIL.Image import Image


Which = Literal["source", "target", "edited"]
"""One of the three pictures of an edit."""

PICTURES: tuple[Which, ...] = ("source", "target", "edited")
CONFIGURATION_TABLES = {"per_block": per_block, "per_category": per_category, "per_method": per_method}
"""Tables of means, one for each profile."""
RECORD_TABLES = {"feature_share": per_feature_share, "switched": per_switched_count}
"""Tables of what edits switched."""
TEXT_COLUMNS = ("suite", "model", "setting", "block_set", "category", "metric", "side", "block")
"""Columns of tables that hold no numbers."""
MAX_ROWS = 200
"""Most rows of a grid of pictures."""
SHOWN_RUNS = 40
"""Most runs that are listed where results are printed."""

Named = str | Setting | Any
"""A method configuration or group by name, or an object that has or makes one."""


class Results:
    """Runs that are stored in one folder, read when they are asked for.

    Args:
        folder: where they lie.
        runs: their folders.
        suites: folders of task files of the user's own that they were made from, by which `riebench.score` finds the
            prompts again.

    Attributes:
        folder: as given.
        suites: as given.
    """

    def __init__(self, folder: Path, runs: Iterable[RunFolder], suites: Sequence[str] = ()) -> None:
        self.folder = folder
        self.suites = tuple(suites)
        self._runs = [ReadRun(run) for run in runs]

    @property
    def run_folders(self) -> tuple[RunFolder, ...]:
        """The run folders, in order."""
        return tuple(run.folder for run in self._runs)

    @property
    def settings(self) -> tuple[str, ...]:
        """Names of the method configurations, each once."""
        return tuple(dict.fromkeys(run.place[2] for run in self._runs))

    def __len__(self) -> int:
        return len(self._runs)

    def select(
        self, *, suite: str | None = None, model: str | None = None, settings: Named | Sequence[Named] | None = None
    ) -> Results:
        """Return the results of some of the runs.

        Args:
            suite: name of the suite; None for all.
            model: name of the model, as its folder is called; None for all.
            settings: method configurations to keep; None for all.

        Raises:
            RiebenchError: if there is no such run; names the nearest match.
        """
        listed = settings if isinstance(settings, list | tuple) or settings is None else [settings]
        names = None if listed is None else [_name_of(one) for one in listed]
        wanted: tuple[tuple[str, Sequence[str] | None], ...] = (
            ("suite", None if suite is None else [suite]), ("model", None if model is None else [model]),
            ("method configuration", names),
        )  # fmt: skip
        kept = self._runs
        for place, (what, allowed) in enumerate(wanted):
            known = {run.place[place] for run in kept}
            for name in allowed or ():
                if name not in known:
                    raise RiebenchError(f"no {what} {name!r} among these results{near_match(name, known)}")
            kept = [run for run in kept if allowed is None or run.place[place] in allowed]
        return Results(self.folder, [run.folder for run in kept], self.suites)

    @property
    def records(self) -> DataFrame:
        """One row for each picture that was tried.

        Columns are its key, its status and reason, and how it was made.
        """
        return record_frame(self._runs)

    @property
    def scores(self) -> DataFrame:
        """One row for each score of the pictures that are there now.

        Beside the picture's key they hold metric, network, value and, where there is no value, the reason.
        """
        return score_frame(self._runs)

    def frame(self) -> DataFrame:
        """Return one row for each picture, one column for each metric.

        Beside them stand the picture's key, its status and its reason.
        """
        return wide_frame(self._runs)

    def table(self, name: str, *, profile: str = DEFAULT) -> DataFrame:
        """Return a table with one row for each cell, as its CSV file has it.

        Args:
            name: "per_block", "per_category", "per_method", "feature_share" or "switched".
            profile: whose metrics the tables of means show.

        Raises:
            RiebenchError: if there is no such table or profile; names the nearest match.
        """
        known = (*CONFIGURATION_TABLES, *RECORD_TABLES)
        if name not in known:
            raise RiebenchError(f"no table {name!r}{near_match(name, known)}")
        get_profile(profile)
        rows: list[dict[str, Any]] = []
        for (suite, model), folders in group_by_model(self.run_folders).items():
            _, text = _table(name, folders, profile)
            rows += [{"suite": suite, "model": model, **row} for row in csv_rows(text.splitlines())]
        return data_frame([{key: _number(key, cell) for key, cell in row.items()} for row in rows])

    def compare(self, first: Named, second: Named, *, suite: str | None = None, model: str | None = None) -> Comparison:
        """Compare two methods example by example.

        The numbers are differences of mean gains over LPIPS budgets, first minus second.

        Args:
            first: a method configuration or a group of them, by name, as an object, or a method made of a function.
            second: what it is compared with.
            suite: name of the suite, if there are results of several.
            model: name of the model, if there are results of several.

        Raises:
            RiebenchError: if one is unknown or incomplete, or they have nothing in common.
        """
        chosen = self.select(suite=suite, model=model).run_folders
        groups = list(group_by_model(chosen))
        if len(groups) != 1:
            known = ", ".join(f"suite={one!r}, model={other!r}" for one, other in groups) or "none"
            raise RiebenchError(f"one suite and model can be compared at a time; there are: {known}")
        return Comparison.of(chosen, _name_of(first), _name_of(second))

    def leaderboard(self) -> DataFrame:
        """Return the methods as the leaderboard ranks them, one row each, in its order."""
        return data_frame(method_rows(group_by_model(self.run_folders)))

    def picture(self, row: Any, which: Which = "edited") -> Image:
        """Return one of an edit's pictures.

        Args:
            row: a row of `records`, `scores` or `frame()`; or the number of a row of `frame()`; or a unit's digest.
            which: "edited", or the "source" or "target" picture that it is compared with.

        Raises:
            RiebenchError: if there is no such edit, it has no picture, or the picture is not on this machine.
        """
        from PIL import Image

        if which not in PICTURES:
            raise RiebenchError(f"no picture {which!r}{near_match(str(which), PICTURES)}")
        run, record = self._find(row)
        folder = run.folder
        name = {"source": record.source_image, "target": record.target_image, "edited": record.image}[which]
        if name is None:
            why = f"{record.status}: {record.reason}" if record.reason else "its record names none"
            raise RiebenchError(f"unit {record.key.digest} of {run.place[2]} has no {which} picture ({why})")
        path = folder.picture(record) if which == "edited" else folder.shared.picture(name)
        if path is None:
            raise RiebenchError(
                f"the {which} picture of unit {record.key.digest} of {run.place[2]} is not on this machine (published "
                "results have none); the same riebench.run makes it"
            )
        return Image.fromarray(folder.read_image(name) if which == "edited" else folder.shared.read_image(name))

    def grid(self, rows: Any, which: Sequence[Which] = PICTURES) -> Image:
        """Return the pictures of several edits as one, a row for each edit.

        Args:
            rows: a data frame of rows, or a sequence of what `picture` takes.
            which: the pictures of each row.

        Raises:
            RiebenchError: as `picture`, or if there are more than `MAX_ROWS` rows.
        """
        import numpy as np
        from PIL import Image

        listed = [row for _, row in rows.iterrows()] if hasattr(rows, "iterrows") else list(rows)
        if not 1 <= len(listed) <= MAX_ROWS:
            raise RiebenchError(f"a grid takes 1 to {MAX_ROWS} rows, not {len(listed)}; take rows.head(9)")
        lines: list[tuple[str, list[Picture | None]]] = []
        for row in listed:
            run, record = self._find(row)
            key = record.key
            label = wrapped(key.example_id, run.place[2], f"{key.block_set} x{key.strength:g}")
            lines.append((label, [np.asarray(self.picture(row, one)) for one in which]))
        return Image.fromarray(grid(list(which), lines))

    def _find(self, row: Any) -> tuple[ReadRun, EditRecord]:
        """Find the run and the record that a row, a number or a digest stands for."""
        if isinstance(row, int) and not isinstance(row, bool):
            every = [(run, record) for run in self._runs for record in run.records]
            if not 0 <= row < len(every):
                raise RiebenchError(f"there is no row {row}; these results have {len(every)} rows, from 0")
            return every[row]
        if isinstance(row, str):
            runs, unit = self._runs, row
        else:
            runs, unit = self._place(row)
        found = [(run, record) for run in runs for record in run.records if record.key.digest == unit]
        if len(found) != 1:
            names = ", ".join(run.place[2] for run, _ in found)
            raise RiebenchError(
                f"unit {unit!r} is in several runs ({names}); give a row of frame()" if found
                else f"there is no unit {unit!r} among these results; give a row of frame()"
            )  # fmt: skip
        return found[0]

    def _place(self, row: Any) -> tuple[list[ReadRun], str]:
        """Return the run that a row of a data frame names, and its unit."""
        fields = row._asdict() if hasattr(row, "_asdict") else row
        try:
            place, unit = tuple(str(fields[name]) for name in ("suite", "model", "setting")), str(fields["unit"])
        except (KeyError, TypeError, IndexError) as error:
            raise RiebenchError(
                "give a row of frame(), records or scores, such as results.frame().iloc[0]; a row has the columns "
                "suite, model, setting and unit"
            ) from error
        return [run for run in self._runs if run.place == place], unit

    def _lines(self) -> list[tuple[str, str, str, str, int]]:
        """Return what is listed of each run."""
        return [(*run.place, run.folder.spec.setting.method, run.folder.n_expected) for run in self._runs[:SHOWN_RUNS]]

    def _title(self) -> str:
        more = "" if len(self) <= SHOWN_RUNS else f", the first {SHOWN_RUNS} of them"
        return f"Results in {self.folder}: {len(self)} {'run' if len(self) == 1 else 'runs'}{more}"

    def __repr__(self) -> str:
        return f"{self._title()}\n{text_table(_LISTED, self._lines())}"

    def _repr_html_(self) -> str:
        return str(html_table(self._title(), _LISTED, self._lines()))


_LISTED = ("suite", "model", "setting", "method", "pictures planned")


def load_results(place: str | Path, *, offline: bool = False) -> Results:
    """Open stored results.

    Args:
        place: a results folder, a part of one (the folder of a suite, of a model or of one run), or a data set on the
            hub, "hf://datasets/OWNER/NAME[@REVISION]".
        offline: True to fetch nothing.

    Raises:
        RiebenchError: if there is no such place, or it holds no runs.
    """
    folder = open_results(place, offline=offline)
    return Results(folder, run_folders(folder))


def _name_of(one: Named) -> str:
    """Return the name of a method configuration that is given by name or as an object."""
    if isinstance(one, str):
        return one
    setting = one if isinstance(one, Setting) else one.setting() if hasattr(one, "setting") else None
    if not isinstance(setting, Setting):
        raise RiebenchError(f"a {type(one).__name__} names no method configuration; give its name")
    return setting.name


def _table(name: str, folders: Sequence[RunFolder], profile: str) -> TablePair:
    if name in RECORD_TABLES:
        return RECORD_TABLES[name](folders)
    found: list[Configuration] = [one for folder in folders for one in configurations(folder, profile)]
    return CONFIGURATION_TABLES[name](found)


def _number(column: str, cell: str) -> Any:
    """Return a cell of a CSV file as the number that it holds; None where it is empty."""
    if column in TEXT_COLUMNS:
        return cell
    if cell == "":
        return None
    return int(cell) if column.startswith("n_") or column in _COUNTS else float(cell)


_COUNTS = ("features", "units", "expected", "none", "edits")
