"""Records -> scores: every metric of every unit, computed once, in batches, in float32.

A unit's scores belong to the picture they were computed from. `scoring.json` in the run folder remembers that
picture's hash, so a unit that is generated again is scored again; it also says which networks measured.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from tqdm import tqdm

from riebench.errors import FolderInUseError, StoreError
from riebench.files import file_sha256, repair_last_line, write_atomic
from riebench.metrics.base import Bool, Metric, Reason, Sample, UInt8, Value
from riebench.metrics.judge import SIDE
from riebench.metrics.tools import Tools
from riebench.registry import METRICS
from riebench.schema import EditExample, EditRecord, EditTask, ModelSpec, ScoreRecord
from riebench.store import SCORES_FILE, RunFolder, SharedFolder, read_image
from riebench.suites import load_suite

SCORING_FILE = "scoring.json"
"""Beside scores.jsonl: unit digest -> hash of the picture its scores belong to, and what measured."""

DEFAULT_SCORER = "clip-l14"
"""The CLIP for weights that no preset names."""

CACHED_PICTURES = 64
"""Source pictures and masks kept in memory; units are scored in the order of their source pictures."""


@dataclass(frozen=True)
class ScoreReport:
    """What one call did.

    Attributes:
        units: units looked at.
        computed: scores added, by metric.
        missing: scores added without a value, by reason.
        stale: units whose example is no longer in the suite; left alone.
        cut_prompts: prompts that CLIP saw without their end.
    """

    units: int = 0
    computed: Counter[str] = field(default_factory=Counter)
    missing: Counter[str] = field(default_factory=Counter)
    stale: int = 0
    cut_prompts: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """One line for people."""
        parts = [f"{sum(self.computed.values())} scores added for {self.units} units"]
        if self.missing:
            parts.append("without value: " + ", ".join(f"{n} {reason}" for reason, n in sorted(self.missing.items())))
        if self.stale:
            parts.append(f"{self.stale} units of examples that have changed since left out")
        if self.cut_prompts:
            parts.append(f"{len(self.cut_prompts)} prompts too long for CLIP, e.g. {self.cut_prompts[0]!r}")
        return "; ".join(parts)


@dataclass(frozen=True, eq=False)
class _Job:
    """A unit and the metrics it still lacks."""

    folder: RunFolder
    record: EditRecord
    example: EditExample
    metrics: tuple[Metric, ...]

    @property
    def order(self) -> tuple[str, str]:
        return str(self.folder.shared.path), self.record.source_image or ""


def score(
    folders: Sequence[RunFolder],
    tasks: Iterable[EditTask] | None = None,
    *,
    scorer: str | None = None,
    metrics: Sequence[str] | None = None,
    device: str = "cpu",
    batch_size: int = 32,
    progress: bool = True,
    tools: Tools | None = None,
) -> ScoreReport:
    """Compute what is missing and append it to each folder's scores.jsonl.

    Args:
        folders: run folders; none of them may be open for writing.
        tasks: the suite's tasks, for the prompts; by default those of each folder's suite.
        scorer: CLIP to use (see `ClipSpec.parse`); by default the one that belongs to each folder's model.
        metrics: registered names; by default all that the examples allow.
        device: torch device of CLIP and LPIPS.
        batch_size: units in memory at a time.
        progress: show a bar.
        tools: ready networks, instead of `scorer` and `device`.

    Returns:
        What was done.

    Raises:
        RiebenchError: unknown metric or scorer, a missing or changed picture, a folder in use. What was computed
            before is kept.
    """
    chosen = tuple(METRICS.get(name) for name in (METRICS.names() if metrics is None else metrics))
    groups: dict[str, list[RunFolder]] = {}
    for folder in folders:
        groups.setdefault("" if tools else scorer or scorer_for(folder.spec.model), []).append(folder)
    known = None if tasks is None else _examples(tasks)
    total = ScoreReport()
    for name, group in groups.items():
        networks = tools or Tools(name, device=device)
        total = _add(total, _score_group(group, known, networks, chosen, batch_size, progress))
    return total


def scorer_for(model: ModelSpec) -> str:
    """The CLIP that scores a model's pictures: that of the preset with the same weights, or `DEFAULT_SCORER`.

    The name is no guide: other steps or sizes than the preset's give the run another one.
    """
    from riebench.models import PRESETS

    scorers = {preset.source: preset.scorer for preset in PRESETS.values()}
    return scorers.get(model.source, DEFAULT_SCORER)


def _add(first: ScoreReport, second: ScoreReport) -> ScoreReport:
    return ScoreReport(
        first.units + second.units,
        first.computed + second.computed,
        first.missing + second.missing,
        first.stale + second.stale,
        tuple(sorted({*first.cut_prompts, *second.cut_prompts})),
    )


_Examples = dict[tuple[str, str, str], EditExample]


def _examples(tasks: Iterable[EditTask]) -> _Examples:
    return {(task.name, example.id, example.content_hash): example for task in tasks for example in task.examples}


def _score_group(
    folders: Sequence[RunFolder],
    known: _Examples | None,
    tools: Tools,
    metrics: Sequence[Metric],
    batch_size: int,
    progress: bool,
) -> ScoreReport:
    report = ScoreReport()
    with ExitStack() as stack:
        books: dict[Path, _Book] = {}
        jobs: list[_Job] = []
        units = stale = 0
        for folder in folders:
            stack.enter_context(_locked(folder))
            books[folder.path] = book = stack.enter_context(_opened(folder, tools))
            examples = _examples(load_suite(folder.spec.suite)) if known is None else known
            for record in folder.records():
                units += 1
                key = record.key
                example = examples.get((key.task, key.example_id, key.example_hash))
                if example is None:
                    stale += 1
                elif missing := book.missing(record, example, metrics):
                    jobs.append(_Job(folder, record, example, missing))
        jobs.sort(key=lambda job: job.order)
        pictures = _Pictures()
        with tqdm(total=len(jobs), desc="scoring", unit="unit", disable=not progress or not jobs) as bar:
            for start in range(0, len(jobs), batch_size):
                batch = jobs[start : start + batch_size]
                for job, scores in zip(batch, _score_batch(batch, tools, pictures), strict=True):
                    books[job.folder.path].add(job.record, scores)
                    report.computed.update(one.metric for one in scores)
                    report.missing.update(one.reason for one in scores if one.reason is not None)
                for book in books.values():
                    book.flush()
                bar.update(len(batch))
    return _add(report, ScoreReport(units, stale=stale, cut_prompts=tools.cut_prompts))


def _score_batch(batch: Sequence[_Job], tools: Tools, pictures: _Pictures) -> list[list[ScoreRecord]]:
    # Metric by metric over the whole batch; units without a picture get their reason without being opened.
    samples = [pictures.sample(job) if job.record.status == "ok" else None for job in batch]
    values: dict[tuple[int, str], Value] = {}
    for metric in dict.fromkeys(metric for job in batch for metric in job.metrics):
        inputs = {i: sample for i, sample in enumerate(samples) if sample is not None and metric in batch[i].metrics}
        for position, value in zip(inputs, metric(list(inputs.values()), tools), strict=True):
            values[position, metric.name] = value
    return [
        [
            _line(job.record.key.digest, metric, tools, values.get((position, metric.name), Reason.NOT_RUN))
            for metric in job.metrics
        ]
        for position, job in enumerate(batch)
    ]


def _line(unit: str, metric: Metric, tools: Tools, value: Value) -> ScoreRecord:
    number, reason = (None, value.value) if isinstance(value, Reason) else (value, None)
    return ScoreRecord(
        unit=unit,
        metric=metric.name,
        version=metric.version,
        backbone=tools.backbone(metric),
        value=number,
        reason=reason,
    )


class _Pictures:
    """Reads what a sample needs; source pictures and masks, shared by all settings, only once."""

    def __init__(self) -> None:
        self._source = lru_cache(maxsize=CACHED_PICTURES)(read_image)
        self._mask = lru_cache(maxsize=CACHED_PICTURES)(_read_mask)

    def sample(self, job: _Job) -> Sample:
        """The unit's pictures, mask and prompts.

        Raises:
            StoreError: if a picture or mask is missing, or the edited picture is not the one that was recorded.
        """
        record, shared, example = job.record, job.folder.shared, job.example
        if record.source_image is None:
            raise StoreError(f"{job.folder.path}: unit {record.key.digest} names no source picture; run it again")
        attributes = example.attributes
        return Sample(
            edited=_edited(job.folder, record),
            source=self._source(shared.path / record.source_image),
            mask=self._mask(job.folder.shared.path, shared.mask_name(record.key)),
            source_prompt=example.source,
            target_prompt=example.target,
            source_attributes=None if attributes is None else attributes.source,
            target_attributes=None if attributes is None else attributes.target,
        )


def _edited(folder: RunFolder, record: EditRecord) -> UInt8:
    path = folder.path / str(record.image)
    picture = read_image(path)
    if file_sha256(path) != record.image_sha256:
        raise StoreError(f"{path} is not the picture that was recorded; repeat `riebench run` to make it again")
    return picture


def _read_mask(shared: Path, name: str) -> Bool:
    from riebench.regions import RegionMasks

    stored = SharedFolder(shared).read_json(name)
    if stored is None:
        raise StoreError(f"{shared / name} is missing; make it again with the same `riebench run`")
    return RegionMasks.from_json(stored).editable


class _Book:
    """One folder's scores: what is there, what is missing, what is new."""

    def __init__(self, folder: RunFolder, tools: Tools) -> None:
        self.folder, self.tools = folder, tools
        self.path = folder.path / SCORING_FILE
        self.stored = folder.scores()
        meta = self._read()
        self.pictures: dict[str, str] = dict(meta.get("pictures", {}))
        self.networks: dict[str, dict[str, str]] = dict(meta.get("networks", {}))
        self.cut: set[str] = set(meta.get("cut_prompts", ()))
        self._new: list[tuple[EditRecord, list[ScoreRecord]]] = []

    def _read(self) -> dict[str, Any]:
        # Losing this file costs time only: everything is scored again.
        try:
            meta = json.loads(self.path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}
        return meta if isinstance(meta, dict) else {}

    def missing(self, record: EditRecord, example: EditExample, metrics: Sequence[Metric]) -> tuple[Metric, ...]:
        """The metrics that this unit still needs, for the picture it has now."""
        judged = example.attributes is not None and self.folder.spec.model.size == SIDE
        wanted = [metric for metric in metrics if judged or not metric.needs_attributes]
        if self.pictures.get(record.key.digest) != _picture_id(record):
            return tuple(wanted)
        return tuple(metric for metric in wanted if not self._has(record.key.digest, metric))

    def _has(self, unit: str, metric: Metric) -> bool:
        found = self.stored.get((unit, metric.name))
        return found is not None and (found.version, found.backbone) == (metric.version, self.tools.backbone(metric))

    def add(self, record: EditRecord, scores: list[ScoreRecord]) -> None:
        """Keeps a unit's new scores until `flush`."""
        self._new.append((record, scores))

    def flush(self) -> None:
        """Stores what was added since the last call."""
        self.folder.append_scores(line for _, scores in self._new for line in scores)
        self.pictures.update((record.key.digest, _picture_id(record)) for record, _ in self._new)
        self._new.clear()

    def close(self) -> None:
        """Writes `scoring.json` if it changed.

        It comes after the scores: a crash in between repeats work, and never leaves old scores for a new picture.
        """
        self.networks |= self.tools.details
        self.cut |= set(self.tools.cut_prompts)
        meta = {"networks": self.networks, "cut_prompts": sorted(self.cut), "pictures": self.pictures}
        if meta != self._read() and (self.pictures or self.path.exists()):
            write_atomic(self.path, (json.dumps(meta, indent=0, sort_keys=True, ensure_ascii=False) + "\n").encode())


def _picture_id(record: EditRecord) -> str:
    return (record.image_sha256 or "")[:16] if record.status == "ok" else record.status


@contextmanager
def _opened(folder: RunFolder, tools: Tools) -> Iterator[_Book]:
    book = _Book(folder, tools)
    try:
        yield book
    finally:
        book.close()


@contextmanager
def _locked(folder: RunFolder) -> Iterator[None]:
    # The writer's own lock: scores of a picture that is being replaced would be nobody's.
    lock = FileLock(str(folder.path / ".lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise FolderInUseError(f"{folder.path} is being written by another riebench; wait for it to end") from error
    try:
        repair_last_line(folder.path / SCORES_FILE)
        yield
    finally:
        lock.release()
