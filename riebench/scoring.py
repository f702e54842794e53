"""Records -> scores: every metric of every unit, computed once, in batches, in float32."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from tqdm import tqdm

from riebench.errors import RiebenchError, StoreError
from riebench.files import file_sha256
from riebench.metrics.base import Bool, Metric, Reason, Sample, UInt8, Value
from riebench.metrics.tools import Tools
from riebench.presets import scorer_for
from riebench.registry import METRICS
from riebench.schema import EditExample, EditRecord, EditTask, ScoreRecord, UnitKey
from riebench.scorebook import ScoreBook, opened
from riebench.store import RunFolder, SharedFolder, read_image
from riebench.suites import load_suite, suite_names

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
        tasks: whole suites, for the prompts; folders of other suites get those that ship under the suite's name.
        scorer: CLIP to use (see `ClipSpec.parse`); by default the one that belongs to each folder's model.
        metrics: registered names; by default all that the examples allow.
        device: torch device of CLIP and LPIPS.
        batch_size: units in memory at a time.
        progress: show a bar.
        tools: ready networks, instead of `scorer` and `device`.

    Returns:
        What was done.

    Raises:
        RiebenchError: unknown metric, scorer or suite, a missing or changed picture, a folder in use. What was
            computed before is kept.
    """
    chosen = tuple(METRICS.get(name) for name in (METRICS.names() if metrics is None else metrics))
    groups: dict[str, list[RunFolder]] = {}
    for folder in folders:
        groups.setdefault("" if tools else scorer or scorer_for(folder.spec.model), []).append(folder)
    suites = _Suites(tasks or ())
    total = ScoreReport()
    for name, group in groups.items():
        networks = tools or Tools(name, device=device)
        total = _add(total, _score_group(group, suites, networks, chosen, batch_size, progress))
    return total


def _add(first: ScoreReport, second: ScoreReport) -> ScoreReport:
    return ScoreReport(
        first.units + second.units,
        first.computed + second.computed,
        first.missing + second.missing,
        first.stale + second.stale,
        tuple(sorted({*first.cut_prompts, *second.cut_prompts})),
    )


class _Suites:
    """Examples of suites: those given, and shipped ones read when they are asked for."""

    def __init__(self, tasks: Iterable[EditTask]) -> None:
        self._examples: dict[str, dict[tuple[str, str, str], EditExample]] = {}
        for task in tasks:
            self._add(task)

    def _add(self, task: EditTask) -> None:
        known = self._examples.setdefault(task.suite, {})
        known |= {(task.name, example.id, example.content_hash): example for example in task.examples}

    def find(self, folder: RunFolder, key: UnitKey) -> EditExample | None:
        """The example that a unit was made from, or None if it has changed since.

        Raises:
            RiebenchError: if the folder's suite is neither given nor shipped.
        """
        suite = folder.spec.suite
        if suite not in self._examples:
            if suite not in suite_names():
                raise RiebenchError(
                    f"{folder.path} was made from a suite of your own, {suite!r}; name its folder: --suite FOLDER"
                )
            for task in load_suite(suite):
                self._add(task)
        return self._examples[suite].get((key.task, key.example_id, key.example_hash))


def _score_group(
    folders: Sequence[RunFolder],
    suites: _Suites,
    tools: Tools,
    metrics: Sequence[Metric],
    batch_size: int,
    progress: bool,
) -> ScoreReport:
    report = ScoreReport()
    with ExitStack() as stack:
        books: dict[Path, ScoreBook] = {}
        jobs: list[_Job] = []
        units = stale = 0
        for folder in folders:
            stack.enter_context(folder.locked())
            books[folder.path] = book = stack.enter_context(opened(folder, tools))
            for record in folder.records():
                units += 1
                example = suites.find(folder, record.key)
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
                    books[job.folder.path].add(scores)
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
            _line(job.record, metric, tools, values.get((position, metric.name), Reason.NOT_RUN))
            for metric in job.metrics
        ]
        for position, job in enumerate(batch)
    ]


def _line(record: EditRecord, metric: Metric, tools: Tools, value: Value) -> ScoreRecord:
    number, reason = (None, value.value) if isinstance(value, Reason) else (value, None)
    return ScoreRecord(
        unit=record.key.digest,
        metric=metric.name,
        version=metric.version,
        backbone=tools.backbone(metric),
        picture=record.picture_id,
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
