"""Recomputes what a stored run claims: its identity, its pictures' hashes, its completeness and every score."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from riebench.errors import RiebenchError
from riebench.files import file_sha256
from riebench.schema import EditRecord, EditTask, ScoreRecord
from riebench.store import RECORDS_FILE, RUN_FILE, RunFolder

TOLERANCE = 1e-3
"""Scores may differ this much between machines: networks add up in another order there."""
SHOWN = 5
"""Examples of each kind of finding that are printed; the rest is counted."""


@dataclass(frozen=True)
class Verdict:
    """What a check of one run found.

    Attributes:
        run: the folder.
        checked: what was looked at, in words.
        findings: what does not hold, one line each.
    """

    run: Path
    checked: tuple[str, ...]
    findings: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether everything does."""
        return not self.findings


def verify(path: Path, tasks: Iterable[EditTask] = (), *, device: str = "cpu", offline: bool = False) -> Verdict:
    """Checks one run folder against itself and against scores computed afresh. Changes nothing in it.

    Args:
        path: `results/SUITE/MODEL/SETTING`.
        tasks: the suite, if it is one's own.
        device: where scores are computed.
        offline: fetches no scorer.

    Raises:
        RiebenchError: if the folder is no run at all.
    """
    if not (path / RUN_FILE).is_file():
        raise RiebenchError(f"{path} is no run folder: {RUN_FILE} is missing")
    folder = RunFolder(path)
    records = folder.records()
    pictures = _pictures(folder, records)
    findings = [*_completeness(folder, records), *pictures]
    checked = [f"{len(records)} records of run {folder.spec.run_id[:8]}"]
    if not pictures:
        checked.append(f"{sum(record.status == 'ok' for record in records)} pictures by their hashes")
        found, compared = _scores(folder, tuple(tasks), device, offline)
        findings += found
        checked.append(f"{compared} scores computed afresh")
    return Verdict(path, tuple(checked), tuple(findings))


def _completeness(folder: RunFolder, records: Sequence[EditRecord]) -> list[str]:
    findings = []
    counted: dict[tuple[str, str, float], int] = {}
    for record in records:
        place = (record.key.category, record.key.block_set, record.key.strength)
        counted[place] = counted.get(place, 0) + 1
    for place, expected in folder.expected.items():
        if counted.get(place, 0) != expected:
            findings.append(f"{' '.join(map(str, place))}: {counted.get(place, 0)} records of {expected} units")
    failed = [record for record in records if record.status == "error"]
    if failed:
        findings.append(f"{len(failed)} units failed, e.g. {failed[0].reason}")
    return _short(findings)


def _pictures(folder: RunFolder, records: Sequence[EditRecord]) -> list[str]:
    findings = []
    for record in records:
        if record.status != "ok":
            continue
        picture = folder.path / str(record.image)
        if not picture.is_file():
            findings.append(f"picture {record.image} is missing; `riebench run` makes it again")
        elif file_sha256(picture) != record.image_sha256:
            findings.append(f"picture {record.image} is not the one that was recorded")
        for name in (record.source_image, record.target_image):
            if name is not None and not (folder.shared.path / name).is_file():
                findings.append(f"picture shared/{name} is missing; `riebench run` makes it again")
    return _short(list(dict.fromkeys(findings)))


def _scores(folder: RunFolder, tasks: Sequence[EditTask], device: str, offline: bool) -> tuple[list[str], int]:
    """Compares stored scores with fresh ones, made beside a copy of the records; and how many were compared."""
    from riebench.scoring import score

    stored = folder.scores()
    if not stored:
        return ["nothing has been scored; `riebench score` does it"], 0
    metrics = sorted({metric for _, metric, _ in stored})
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / folder.path.name
        copy.mkdir()
        for name in (RUN_FILE, RECORDS_FILE):
            shutil.copy(folder.path / name, copy / name)
        for name, place in (("images", folder.path / "images"), ("../shared", folder.shared.path)):
            (copy / name).symlink_to(place.resolve(), target_is_directory=True)
        again = RunFolder(copy)
        report = score([again], tasks or None, metrics=metrics, device=device, offline=offline, progress=False)
        fresh = again.scores()
    findings, compared = [], 0
    if report.stale:
        findings.append(f"{report.stale} units belong to examples that the suite does not have, or not like this")
    for place, value in fresh.items():
        claimed = stored.get(place)
        if claimed is None:
            findings.append(f"{place[1]} of unit {place[0]} has no stored value by {place[2] or 'this metric'}")
            continue
        compared += 1
        if not _agree(claimed.value, value.value):
            findings.append(f"{place[1]} of unit {place[0]}: stored {_told(claimed)}, found {_told(value)}")
    return _short(findings), compared


def _agree(stored: float | None, fresh: float | None) -> bool:
    if stored is None or fresh is None:
        return stored is fresh
    return abs(stored - fresh) <= TOLERANCE


def _told(score: ScoreRecord) -> str:
    return str(score.reason) if score.value is None else f"{score.value:.6g}"


def _short(findings: list[str]) -> list[str]:
    if len(findings) <= SHOWN:
        return findings
    return [*findings[:SHOWN], f"... and {len(findings) - SHOWN} more like these"]
