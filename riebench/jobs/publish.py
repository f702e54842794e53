"""Publishing of runs in compact form.

A published run holds everything that tables, leaderboard, page and verification read, and none of the pictures.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from riebench.errors import IdentityError, RiebenchError, StoreError
from riebench.scoring.score import SCORING_FILE
from riebench.store.folder import RunFolder, run_path
from riebench.store.parquet import read_records, read_score_table, write_records, write_scores
from riebench.store.records import (
    RAW_OUTPUTS_FILE,
    RECORDS_FILE,
    RECORDS_TABLE,
    RUN_FILE,
    SCORES_FILE,
    SCORES_TABLE,
)
from riebench.store.run_file import RunFile, broken_seals, part_files, write_seal
from riebench.store.sae_figures import SAE_FIGURES_FILE
from riebench.store.scores import ScoreColumns
from riebench.store.shared import MODEL_FILE, SHARED_NAME
from riebench.utils.files import write_atomic
from riebench.utils.processes.helpers import Apply, apply_here

Say = Callable[[str], None]


@dataclass(frozen=True)
class Published:
    """One published run.

    Attributes:
        source: the run folder that was read.
        path: the published folder.
        records: number of records.
        scores: number of scores.
        bytes: size of the published files.
        missing: planned units without a record, or that failed.
    """

    source: Path
    path: Path
    records: int
    scores: int
    bytes: int
    missing: int

    @property
    def summary(self) -> str:
        """The outcome in one line."""
        gap = f"; {self.missing} planned units failed or are missing, so it has no rank" if self.missing else ""
        return f"{self.path}: {self.records} records, {self.scores} scores, {self.bytes / 1e3:.0f} kB{gap}"


def find_runs(paths: Iterable[Path]) -> list[Path]:
    """Return the run folders that some paths name.

    Args:
        paths: run folders, or folders above them (a model's, a suite's, or all of `runs/`).

    Raises:
        RiebenchError: if a path holds no run.
    """
    found: list[Path] = []
    for path in paths:
        below = [path] if (path / RUN_FILE).is_file() else []
        for depth in range(1, 4):
            below += sorted(file.parent for file in path.glob("/".join(["*"] * depth) + f"/{RUN_FILE}"))
        if not below:
            raise RiebenchError(f"{path} holds no run ({RUN_FILE} is missing); `riebench run` makes one")
        found += below
    return list(dict.fromkeys(found))


def publish(run: Path, results: Path, *, replace: bool = False) -> Published:
    """Write the compact form of a run into a results folder.

    The run folder itself may lie there: then its lines are replaced by the compact form, and its pictures stay.

    Args:
        run: the run folder, `runs/SUITE/MODEL/CONFIGURATION`.
        results: the results folder.
        replace: whether a published run may be replaced by another one, or by one with fewer units.

    Returns:
        What was written.

    Raises:
        RiebenchError: if the run cannot be trusted, its name and place do not agree, or another one is there.
    """
    source = RunFolder(run)
    spec = source.spec
    place = run_path(results, spec.suite, spec.model.name, spec.setting.name)
    if run.resolve().parts[-3:] != place.parts[-3:]:
        raise RiebenchError(
            f"{run} is a copy: its {RUN_FILE} is of {'/'.join(place.parts[-3:])}; publish the folder of that name"
        )
    findings = broken_seals(run)
    if findings:
        raise StoreError(f"{run}: {findings[0]}; `riebench run --redo all` makes it anew")
    in_place = place.exists() and os.path.samefile(run, place)
    if not in_place and not replace:
        _check_place(place, source)
    place.mkdir(parents=True, exist_ok=True)
    with source.lock() if in_place else nullcontext():
        _write(source, place)
        if in_place:
            for file in (place / RECORDS_FILE, place / SCORES_FILE, *part_files(place)):
                file.unlink(missing_ok=True)
        write_seal(place)
    return _check(source if not in_place else RunFolder(place), place, run)


def _check_place(place: Path, source: RunFolder) -> None:
    """Refuse to replace a published run by another one or by a part of it.

    Raises:
        RiebenchError: naming what would be lost.
    """
    if not (place / RUN_FILE).exists():
        return
    try:
        there = RunFolder(place, source.spec)
    except IdentityError as error:
        reason = str(error).rsplit("; ", 1)[0]
        raise IdentityError(f"{reason}; --replace puts {source.path} in its place") from error
    here = {record.key.slot for record in source.records()}
    lost = [record for record in there.records() if record.key.slot not in here]
    if lost:
        raise RiebenchError(
            f"{place} has {len(lost)} units that {source.path} lacks, e.g. {lost[0].key.example_id}; finish the run, "
            "or --replace them"
        )


def _write(source: RunFolder, place: Path) -> None:
    """Write all files of a published run but the seal."""
    records = source.records()
    known = {record.key.digest for record in records}
    scores = [score for score in source.scores().values() if score.unit in known]
    write_records(place / RECORDS_TABLE, records)
    write_scores(place / SCORES_TABLE, scores)
    _copy_run_file(source, place)
    if place.resolve() == source.path.resolve():
        return
    for name in (RECORDS_FILE, SCORES_FILE):
        (place / name).unlink(missing_ok=True)
    for name in (SCORING_FILE, RAW_OUTPUTS_FILE, SAE_FIGURES_FILE):
        if (source.path / name).is_file():
            write_atomic(place / name, (source.path / name).read_bytes())
    if not RunFolder(place).sae_figures():
        # Those of the run that was replaced.
        (place / SAE_FIGURES_FILE).unlink(missing_ok=True)
    shared = place.parent / SHARED_NAME / MODEL_FILE
    if not shared.exists() and (file := source.shared.path / MODEL_FILE).is_file():
        shared.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, shared)


def _copy_run_file(source: RunFolder, place: Path) -> None:
    """Write run.json.

    Commands keep the names of files that they were given, but not the folders above them.
    """
    if place.resolve() != source.path.resolve():
        write_atomic(place / RUN_FILE, (source.path / RUN_FILE).read_bytes())
    RunFile(place).replace_invocations(tuple(one.without_folders() for one in source.invocations))


def _check(source: RunFolder, place: Path, run: Path) -> Published:
    """Read back what was written and compare it with the run.

    Raises:
        StoreError: if they differ, which no input should bring about.
    """
    records = read_records(place / RECORDS_TABLE)
    scores = {
        (one.unit, one.metric, one.backbone): one
        for one in ScoreColumns(read_score_table(place / SCORES_TABLE)).scores()
    }
    known = {record.key.digest for record in records}
    stored = {key: score for key, score in source.scores().items() if score.unit in known}
    there, figures = RunFolder(place), source.sae_figures()
    same = there.expected == source.expected and (not figures or there.sae_figures() == figures)
    if records != source.records() or scores != stored or not same:
        raise StoreError(f"{place} does not say the same as {run}; nothing else was changed, please report this")
    made = sum(record.status != "error" for record in records)
    return Published(
        run, place, len(records), len(scores), sum(file.stat().st_size for file in place.iterdir() if file.is_file()),
        source.n_expected - made,
    )  # fmt: skip


def publish_all(
    runs: Sequence[Path],
    results: Path,
    board: Path,
    say: Say,
    *,
    replace: bool = False,
    check: Callable[[Path], None] | None = None,
    apply: Apply = apply_here,
) -> list[Published]:
    """Publish runs, and make the tables and the leaderboard anew.

    Args:
        runs: run folders (`find_runs`).
        results: the results folder.
        board: leaderboard file.
        say: function that prints a line for people.
        replace: see `publish`.
        check: raises an error if a run does not hold what it claims; nothing is written before all were checked.
        apply: reads the run folders for tables and leaderboard.

    Returns:
        What was written.
    """
    from riebench.analysis.leaderboard import write_leaderboard
    from riebench.analysis.tables import write_tables
    from riebench.store.folder import find_run_folders

    if check is not None:
        for run in runs:
            check(run)
    made = []
    for run in runs:
        made.append(publish(run, results, replace=replace))
        say(made[-1].summary)
    groups = {one.path.parent for one in made}
    write_tables((folder for folder in find_run_folders(results) if folder.path.parent in groups), apply=apply)
    write_leaderboard(results, board, apply=apply)
    return made
