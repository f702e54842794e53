"""Export of results for other programs and for the Hugging Face hub.

Units, configurations and methods are written as CSV, LaTeX and Parquet, tables as LaTeX, figures as SVG and PNG. The
second half makes a Hugging Face dataset with the pictures inside.

Everything but the dataset has the same bytes whenever the same results are exported again by the same versions of
pandas, pyarrow and matplotlib; Parquet and Arrow files name the version that wrote them.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from riebench.analysis.configurations import (
    EVERYTHING,
    Configuration,
    configurations,
    present_categories,
    present_metrics,
    scored_profiles,
)
from riebench.analysis.leaderboard.methods import method_columns
from riebench.analysis.leaderboard.sae_scores import GROUPS
from riebench.analysis.standings import MethodComparison, entries, with_score_controls
from riebench.analysis.tables import model_tables
from riebench.errors import RiebenchError, near_match
from riebench.scoring.profiles import DEFAULT
from riebench.store.folder import RunFolder, group_by_model
from riebench.tasks.schema import EditTask
from riebench.tasks.suites import load_suite, shipped_suites
from riebench.utils.files import file_inside, is_stale, temporary_path, write_atomic
from riebench.utils.hub import upload_error
from riebench.utils.markup import csv_text, latex_table

if TYPE_CHECKING:
    from datasets import Dataset
    from pandas import DataFrame


Row = dict[str, Any]
Groups = Mapping[tuple[str, str], Sequence[RunFolder]]
"""(Suite, model) -> its run folders."""
CSV, LATEX, PARQUET, FIGURES, DATASET = "csv", "latex", "parquet", "figures", "dataset"
FORMATS = (CSV, LATEX, PARQUET, FIGURES, DATASET)
DEFAULT_FORMATS = (CSV, LATEX, PARQUET, FIGURES)
"""Formats that are written by default; pictures are copied only on request."""
TEXT_COLUMNS = frozenset(
    {
        "cluster", "reason", "picture", "sae", "notes", "scorer", "control_of", "reference", "source_prompt",
        "target_prompt",
    }
)  # fmt: skip
"""Columns of text that may be missing in every row."""
PICTURES = ("source_picture", "target_picture", "edited_picture")
DATASET_INFO = "dataset_info.json"
"""File by which a dataset folder is known."""
LOOKS = 5
"""How often a folder is looked at before it counts as something else."""
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def check_formats(names: Sequence[str]) -> tuple[str, ...]:
    """Check the names of formats and return them; the default ones if none is given.

    Raises:
        RiebenchError: if one is unknown.
    """
    for name in names:
        if name not in FORMATS:
            raise RiebenchError(f"no format {name!r}{near_match(name, FORMATS)}")
    return tuple(names) or DEFAULT_FORMATS


def unit_rows(folders: Iterable[RunFolder]) -> list[Row]:
    """Return every unit as a row.

    A row holds the unit's key, its status, its features and every score of the picture that it has now.

    A metric's column is named `METRIC` or, with a network behind it, `METRIC:NETWORK`; numbers of two never share one.
    """
    rows = []
    for folder in folders:
        scores: dict[str, Row] = {}
        for (unit, metric, backbone), score in folder.scores().items():
            column = f"{metric}:{backbone}" if backbone else metric
            scores.setdefault(unit, {})[column] = score.value, score.picture
        for record in folder.records():
            key, spec = record.key, folder.spec
            row = {
                "suite": spec.suite, "model": spec.model.name, "setting": spec.setting.name,
                "method": spec.setting.method, "run": spec.run_id[:8], "unit": key.digest, **key.model_dump(),
                "cluster": record.cluster, "status": record.status, "reason": record.reason,
                "picture": record.image_sha256,
                "features_added": sum(len(chosen.add) for chosen in record.features.values()),
                "features_removed": sum(len(chosen.remove) for chosen in record.features.values()),
            }  # fmt: skip
            # A score counts only for the picture that is stored now.
            found = sorted(scores.get(key.digest, {}).items())
            rows.append(row | {column: value for column, (value, of) in found if of == record.picture_id})
    return rows


def configuration_rows(groups: Groups) -> list[Row]:
    """Return every cell of every table as a row.

    A cell is a configuration, a category and a metric, with its interval.
    """
    rows: list[Row] = []
    for (suite, _), folders in groups.items():
        for profile in scored_profiles(folders):
            found = [c for folder in folders for c in configurations(folder, profile)]
            categories = [*present_categories(found), EVERYTHING]
            rows += [
                {
                    "suite": suite, "profile": profile, **c.row(metric, category).model_dump(), "method": c.method,
                    "access": c.access, "network": c.backbones.get(metric, ""), "failed": c.failed,
                    "skipped": c.skipped, "run": c.run_id[:8],
                }
                for c in found for metric in present_metrics(found) for category in categories
            ]  # fmt: skip
    return rows


def method_rows(groups: Groups) -> list[Row]:
    """Return the methods as the leaderboard compares them, in the columns of its CSV."""
    rows: list[Row] = []
    for (suite, model), every in groups.items():
        folders = [folder for folder in every if folder.spec.setting.group not in GROUPS]
        if DEFAULT in scored_profiles(folders):
            comparison = MethodComparison(with_score_controls(entries(folders)))
            reference = "" if comparison.reference is None else comparison.reference.name
            rows += [
                {"suite": suite, "model": model, **method_columns(standing, reference)}
                for standing in comparison.standings()
            ]
    return rows


def data_frame(rows: Sequence[Row]) -> DataFrame:
    """Return rows as a data frame with types that allow missing values.

    Columns are in the order in which they first appear.

    Args:
        rows: dictionaries; a key that one lacks is missing there.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    return column_frame({name: [row.get(name) for row in rows] for name in names})


def column_frame(columns: Mapping[str, Sequence[Any]]) -> DataFrame:
    """Return columns of equal length as a data frame; see `data_frame`.

    Args:
        columns: name -> values, None for a missing one.
    """
    import pandas as pd

    return pd.DataFrame({name: pd.array(values, dtype=_dtype(name, values)) for name, values in columns.items()})


def _dtype(name: str, values: Sequence[Any]) -> Any:
    """Return the type of a column, the same whichever of its values are missing."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {str} and (kinds or name in TEXT_COLUMNS):
        return "string"
    return "Int64" if kinds == {int} else "Float64"


def export(folders: Sequence[RunFolder], out: Path, formats: Sequence[str] = DEFAULT_FORMATS) -> list[Path]:
    """Write units, configurations, methods, tables and figures.

    Args:
        folders: run folders of any suites and models.
        out: the folder they go to; made if missing.
        formats: of `FORMATS`; `dataset` is written by `save_dataset`.

    Returns:
        The files.

    Raises:
        RiebenchError: if a model's name leads out of that folder.
    """
    groups = group_by_model(folders)
    tables: dict[str, Callable[[], list[Row]]] = {
        "units": lambda: unit_rows(folders),
        "configurations": lambda: configuration_rows(groups),
        "methods": lambda: method_rows(groups),
    }
    written: list[Path] = []

    def write(path: Path, data: bytes) -> None:
        write_atomic(path, data)
        written.append(path)

    if {CSV, LATEX, PARQUET} & {*formats}:
        for name, make_rows in tables.items():
            _write_rows(out / name, make_rows(), formats, write)
    for (suite, model), its in groups.items():
        place = file_inside(out / suite, model, "the model's name", "the folder of exports")
        if LATEX in formats:
            for stem, (document, _) in model_tables(its).items():
                write((place / stem).with_suffix(".tex"), document.latex().encode())
        if FIGURES in formats:
            from riebench.analysis.export.figures import figure_files

            found: list[Configuration] = [c for folder in its for c in configurations(folder)]
            for name, data in figure_files(found).items():
                write(place / "figures" / name, data)
    return written


def _write_rows(stem: Path, rows: list[Row], formats: Sequence[str], write: Callable[[Path, bytes], None]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    if CSV in formats:
        text = csv_text(names, ([row.get(name) for name in names] for row in rows))
        write(stem.with_suffix(".csv"), text.encode())
    if LATEX in formats:
        write(stem.with_suffix(".tex"), latex_table(names, [[row.get(n) for n in names] for row in rows]).encode())
    if PARQUET in formats:
        write(stem.with_suffix(".parquet"), data_frame(rows).to_parquet(engine="pyarrow", index=False))


def check_hub_name(name: str) -> str:
    """Check the name of a dataset on the hub and return it.

    Raises:
        RiebenchError: if it is none.
    """
    if not HUB_NAME.fullmatch(name):
        raise RiebenchError(f"--push-to {name!r}: write OWNER/NAME, such as my-group/riebench-toy")
    return name


def to_dataset(folders: Sequence[RunFolder], tasks: Iterable[EditTask] = ()) -> Dataset:
    """Return all units as a dataset.

    Pictures that are not on this machine are missing values.

    Args:
        folders: run folders.
        tasks: suites of one's own, for the prompts; shipped ones are known.

    Raises:
        StoreError: if a record names a file outside its folder, one that is no picture, or another picture.
    """
    from datasets import Dataset, Image
    from datasets.utils.logging import disable_progress_bar

    disable_progress_bar()
    rows = _with_prompts(folders, unit_rows(folders), tasks)
    table = data_frame(rows)
    dataset = Dataset.from_pandas(table, preserve_index=False)
    paths = dict(zip(PICTURES, zip(*_pictures(folders), strict=True), strict=True)) if rows else {}
    for name in PICTURES:
        dataset = dataset.add_column(name, [*paths.get(name, ())]).cast_column(name, Image())
    return dataset


def _pictures(folders: Sequence[RunFolder]) -> Iterable[tuple[str | None, str | None, str | None]]:
    """Return the paths of each unit's source, target and edited picture.

    The order is that of `unit_rows`.
    """
    for folder in folders:
        shared = cache(folder.shared.picture)
        for record in folder.records():
            source, target = shared(record.source_image), shared(record.target_image)
            yield _text(source), _text(target), _text(folder.picture(record))


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _with_prompts(
    folders: Sequence[RunFolder], rows: list[dict[str, Any]], tasks: Iterable[EditTask]
) -> list[dict[str, Any]]:
    """Add the source and target prompt to each row whose example is known."""
    shipped = {folder.spec.suite for folder in folders} & {*shipped_suites()}
    known = {
        (task.suite, task.name, example.id, example.content_hash): example.plain
        for task in [*(task for name in sorted(shipped) for task in load_suite(name)), *tasks]
        for example in task.examples
    }
    completed = []
    for row in rows:
        example = known.get((row["suite"], row["task"], row["example_id"], row["example_hash"]))
        prompts = {"source_prompt": example and example.source, "target_prompt": example and example.target}
        completed.append(row | prompts)
    return completed


def save_dataset(dataset: Dataset, place: Path) -> Path:
    """Write a dataset folder with the pictures inside.

    A dataset that is there is replaced when the new one is complete. Of two exports at once the later one stays.

    Args:
        dataset: what to write.
        place: the folder.

    Raises:
        RiebenchError: if something else is there.
    """
    if _holds_something_else(place):
        raise RiebenchError(f"{place} is there and no dataset; use another --out folder")
    if place.parent.is_dir():
        for one in place.parent.iterdir():
            if is_stale(one.name):
                shutil.rmtree(one, ignore_errors=True)
    new, old = temporary_path(place), temporary_path(place)
    try:
        dataset.save_to_disk(str(new))
        _put_in_place(new, place, old)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return place


def _holds_something_else(place: Path) -> bool:
    """Return whether a path is taken by what is no dataset.

    Another export may move its dataset away between two looks, so that the first of them proves nothing.
    """
    for _ in range(LOOKS):
        try:
            if DATASET_INFO in os.listdir(place):
                return False
        except FileNotFoundError:
            return False
        except NotADirectoryError:
            return True
        time.sleep(0.01)
    return True


def _put_in_place(new: Path, place: Path, old: Path) -> None:
    """Give a folder its final name; what has that name is moved into the folder `old`.

    Another process may do the same at any moment, so each step is one that the file system takes whole.
    """
    old.mkdir()
    for turn in itertools.count():
        try:
            new.rename(place)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            with suppress(FileNotFoundError):
                place.rename(old / str(turn))
        else:
            return


def push(dataset: Dataset, name: str) -> None:
    """Upload a dataset, as a private one if it is new.

    Raises:
        RiebenchError: with the hub's own first line, if it cannot.
    """
    try:
        dataset.push_to_hub(check_hub_name(name), private=True)
    # The hub's client raises errors of many libraries, none of which can be handled here.
    except Exception as error:
        raise upload_error(name, error) from error
