"""Results as people expect them elsewhere: data frames as CSV, LaTeX and Parquet, figures, a Hugging Face dataset.

Everything but the dataset has the same bytes whenever the same results are exported again by the same versions of
pandas, pyarrow and matplotlib; Parquet and Arrow files name the version that wrote them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from riebench.configurations import (
    EVERYTHING,
    Configuration,
    configurations,
    present_categories,
    present_metrics,
    scored_profiles,
)
from riebench.entries import entries
from riebench.errors import RiebenchError, near_match
from riebench.scoring.profiles import DEFAULT
from riebench.standings import Field, Standing
from riebench.stats import Estimate
from riebench.store.folder import RunFolder
from riebench.tables import table_texts
from riebench.utils.files import file_inside, write_atomic
from riebench.utils.markup import csv_text, latex_table, latex_tables

if TYPE_CHECKING:
    from pandas import DataFrame

Row = dict[str, Any]
Groups = Mapping[tuple[str, str], Sequence[RunFolder]]
"""(Suite, model) -> its run folders."""
CSV, LATEX, PARQUET, FIGURES, DATASET = "csv", "latex", "parquet", "figures", "dataset"
FORMATS = (CSV, LATEX, PARQUET, FIGURES, DATASET)
USUAL = (CSV, LATEX, PARQUET, FIGURES)
"""Without being asked, pictures are not copied."""
TEXTS = frozenset({"cluster", "reason", "picture", "sae", "note", "scorer", "source_prompt", "target_prompt"})
"""Columns of words that may be missing in every row."""


def check_formats(names: Sequence[str]) -> tuple[str, ...]:
    """Formats that were asked for; the usual ones if none was.

    Raises:
        RiebenchError: if one is unknown.
    """
    for name in names:
        if name not in FORMATS:
            raise RiebenchError(f"no format {name!r}{near_match(name, FORMATS)}")
    return tuple(names) or USUAL


def grouped(folders: Iterable[RunFolder]) -> Groups:
    """Run folders by suite and model, in order."""
    found: dict[tuple[str, str], list[RunFolder]] = {}
    for folder in folders:
        found.setdefault((folder.spec.suite, folder.spec.model.name), []).append(folder)
    return dict(sorted(found.items()))


def unit_rows(folders: Iterable[RunFolder]) -> list[Row]:
    """Every unit with its key, what became of it, its features and every score of the picture it has now.

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
            # A score of a picture that has been made again since is nobody's.
            found = sorted(scores.get(key.digest, {}).items())
            rows.append(row | {column: value for column, (value, of) in found if of == record.picture_id})
    return rows


def configuration_rows(groups: Groups) -> list[Row]:
    """Every cell of every table: a configuration, a category and a metric, with its interval."""
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
    """The methods as the leaderboard compares them, in its order."""
    return [
        {"suite": suite, "model": model, **_standing_row(standing)}
        for (suite, model), folders in groups.items() if DEFAULT in scored_profiles(folders)
        for standing in Field(tuple(entries(folders))).standings()
    ]  # fmt: skip


def _standing_row(standing: Standing) -> Row:
    entry = standing.entry
    return {
        "group": standing.group, "method": entry.name, "sae": entry.sae, "access": entry.access,
        "block_set": entry.block_set, "levels": entry.levels, **_ends("area", standing.area),
        "area_micro": standing.micro, **_ends("completion", standing.completion), "lpips": standing.realised,
        "area_second": standing.second, "scorer": entry.scorer,
        "minus_reference": None if standing.versus is None else standing.versus[0],
        "p": None if standing.versus is None else standing.versus[1],
        "detectable": standing.detectable, "n_scored": entry.n_scored, "n_expected": entry.n_expected,
        "note": standing.note,
    }  # fmt: skip


def _ends(name: str, value: Estimate | None) -> Row:
    told = (None, None, None) if value is None else (value.mean, value.low, value.high)
    return dict(zip((name, f"{name}_low", f"{name}_high"), told, strict=True))


def frame(rows: Sequence[Row]) -> DataFrame:
    """Rows as a data frame, columns in the order they first appear, with types that know a missing value.

    Args:
        rows: dictionaries; a key that one lacks is missing there.
    """
    import pandas as pd

    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: [row.get(name) for row in rows] for name in names}
    return pd.DataFrame({name: pd.array(its, dtype=_dtype(name, its)) for name, its in columns.items()})


def _dtype(name: str, values: Sequence[Any]) -> Any:
    """The type of a column, the same whatever of it is missing."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {str} and (kinds or name in TEXTS):
        return "string"
    return "Int64" if kinds == {int} else "Float64"


def export(folders: Sequence[RunFolder], out: Path, formats: Sequence[str] = USUAL) -> list[Path]:
    """Writes units, configurations, methods, tables and figures.

    Args:
        folders: run folders of any suites and models.
        out: the folder they go to; made if missing.
        formats: of `FORMATS`; `dataset` is written by `riebench.datasets_export`.

    Returns:
        The files.

    Raises:
        RiebenchError: if a model is called what leads out of that folder.
    """
    groups = grouped(folders)
    tables: dict[str, Callable[[], list[Row]]] = {
        "units": lambda: unit_rows(folders),
        "configurations": lambda: configuration_rows(groups),
        "methods": lambda: method_rows(groups),
    }
    written: list[Path] = []

    def keep(path: Path, data: bytes) -> None:
        write_atomic(path, data)
        written.append(path)

    if {CSV, LATEX, PARQUET} & {*formats}:
        for name, made in tables.items():
            _write_rows(out / name, made(), formats, keep)
    for (suite, model), its in groups.items():
        place = file_inside(out / suite, model, "the model's name", "the folder of exports")
        if LATEX in formats:
            for path, text in table_texts(place, its).items():
                if path.suffix == ".md":
                    keep(path.with_suffix(".tex"), latex_tables(text).encode())
        if FIGURES in formats:
            from riebench.figures import figure_files

            found: list[Configuration] = [c for folder in its for c in configurations(folder)]
            for name, data in figure_files(found).items():
                keep(place / "figures" / name, data)
    return written


def _write_rows(stem: Path, rows: list[Row], formats: Sequence[str], keep: Callable[[Path, bytes], None]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    if CSV in formats:
        text = csv_text(names, ([row.get(name) for name in names] for row in rows))
        keep(stem.with_suffix(".csv"), text.encode())
    if LATEX in formats:
        keep(stem.with_suffix(".tex"), latex_table(names, [[row.get(n) for n in names] for row in rows]).encode())
    if PARQUET in formats:
        keep(stem.with_suffix(".parquet"), frame(rows).to_parquet(engine="pyarrow", index=False))
