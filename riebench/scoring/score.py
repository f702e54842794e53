"""Records -> scores: every metric of every unit, computed once, in batches, in float32."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from tqdm import tqdm

from riebench.errors import RiebenchError, StoreError
from riebench.models.presets import is_shipped, scorer_for, second_scorer_for
from riebench.registry import METRICS
from riebench.scoring.metrics.base import Bool, Metric, Reason, Sample, UInt8, Value
from riebench.scoring.metrics.judge import SIDE
from riebench.scoring.metrics.networks import Networks
from riebench.scoring.profiles import DEFAULT, IF_AT_HAND, profile_metrics
from riebench.store.folder import RunFolder, SharedFolder
from riebench.store.records import EditRecord, ScoreRecord, UnitKey
from riebench.tasks.schema import EditExample, EditTask
from riebench.tasks.suites import load_suite, suite_names
from riebench.utils.files import file_sha256, parse_json, write_atomic
from riebench.utils.images import read_image
from riebench.utils.machine import keep_freed_memory

SCORING_FILE = "scoring.json"
"""What measured, and which prompts were too long for it."""


class ScoreBook:
    """Scores of one folder, read once and added to.

    Args:
        folder: the run folder, locked.
        networks: the networks that measure.
    """

    def __init__(self, folder: RunFolder, networks: Networks) -> None:
        self.folder, self.networks = folder, networks
        self.path = folder.path / SCORING_FILE
        self.stored = folder.scores()
        meta = self._read()
        self.details: dict[str, dict[str, str]] = dict(meta.get("networks", {}))
        self.cut: set[str] = set(meta.get("cut_prompts", ()))
        self._new: list[ScoreRecord] = []

    def _read(self) -> dict[str, Any]:
        try:
            meta = parse_json(self.path.read_bytes())
        except (FileNotFoundError, ValueError):
            return {}
        known = isinstance(meta, dict) and isinstance(meta.get("networks", {}), dict)
        cut = meta.get("cut_prompts", []) if known else None
        return meta if isinstance(cut, list) and all(isinstance(prompt, str) for prompt in cut) else {}

    def missing(self, record: EditRecord, example: EditExample, metrics: Sequence[Metric]) -> tuple[Metric, ...]:
        """The metrics that this unit still needs, for the picture it has now."""
        judged = example.attributes is not None and self.folder.spec.model.size == SIDE
        wanted = [metric for metric in metrics if judged or not metric.needs_attributes]
        unit = record.key.digest
        return tuple(metric for metric in wanted if not self._has(unit, record, metric))

    def _has(self, unit: str, record: EditRecord, metric: Metric) -> bool:
        found = self.stored.get((unit, metric.name, self.networks.identity(metric.backbone)))
        if found is None or (found.version, found.picture) != (metric.version, record.picture_id):
            return False
        # What lacked its network is measured as soon as that is there.
        return found.reason != Reason.NO_WEIGHTS or self.networks.missing(metric.backbone, fetch=True) is not None

    def forget(self) -> None:
        """Lets go of the scores that are there: nobody asks again, and all folders' together may be large."""
        self.stored.clear()

    def add(self, scores: list[ScoreRecord]) -> None:
        """Keeps a unit's new scores until `flush`."""
        self._new += scores

    def flush(self) -> None:
        """Stores what was added since the last call, and before it what measured: no score is there without that."""
        if self._new:
            self._remember()
        self.folder.append_scores(self._new)
        self._new.clear()

    def close(self) -> None:
        """Writes `scoring.json` if it changed."""
        self._remember()

    def _remember(self) -> None:
        self.details |= self.networks.details
        self.cut |= set(self.networks.cut_prompts)
        meta = {"networks": self.details, "cut_prompts": sorted(self.cut)}
        if meta != self._read() and self.details:
            write_atomic(self.path, (json.dumps(meta, indent=0, sort_keys=True, ensure_ascii=False) + "\n").encode())


@contextmanager
def score_book(folder: RunFolder, networks: Networks) -> Iterator[ScoreBook]:
    """A folder's book; what it remembers is written at the end, also after an error."""
    book = ScoreBook(folder, networks)
    try:
        yield book
    finally:
        book.close()


CACHED_PICTURES = 64
"""Source pictures and masks kept in memory; units are scored in the order of their source pictures."""


class Samples:
    """Reads samples; source and target pictures and masks, shared by all settings, only once."""

    def __init__(self) -> None:
        self._shared = lru_cache(maxsize=CACHED_PICTURES)(read_image)
        self._mask = lru_cache(maxsize=CACHED_PICTURES)(_read_mask)

    def read(self, folder: RunFolder, record: EditRecord, example: EditExample, *, target: bool) -> Sample:
        """A finished unit's sample.

        Args:
            folder: where it is.
            record: the unit's.
            example: what it was made from.
            target: whether the target picture is wanted too.

        Raises:
            StoreError: if a picture or mask is missing, or the edited picture is not the one that was recorded.
        """
        attributes = example.attributes
        return Sample(
            edited=_edited(folder, record),
            source=self._plain(folder, record, record.source_image, "source"),
            mask=self._mask(folder.shared.path, folder.shared.mask_name(record.key)),
            source_prompt=example.source,
            target_prompt=example.target,
            source_attributes=None if attributes is None else attributes.source,
            target_attributes=None if attributes is None else attributes.target,
            target=self._plain(folder, record, record.target_image, "target") if target else None,
        )

    def _plain(self, folder: RunFolder, record: EditRecord, name: str | None, role: str) -> UInt8:
        if name is None:
            raise StoreError(f"{folder.path}: unit {record.key.digest} names no {role} picture; run it again")
        return self._shared(folder.shared.path / name)


def _edited(folder: RunFolder, record: EditRecord) -> UInt8:
    path = folder.path / str(record.image)
    picture = read_image(path)
    if file_sha256(path) != record.image_sha256:
        raise StoreError(f"{path} is not the picture that was recorded; repeat `riebench run` to make it again")
    return picture


def _read_mask(shared: Path, name: str) -> Bool:
    from riebench.tasks.masks import RegionMasks

    stored = SharedFolder(shared).read_json(name)
    if stored is None:
        raise StoreError(f"{shared / name} is missing; make it again with the same `riebench run`")
    return RegionMasks.from_json(stored).editable


@dataclass(frozen=True)
class ScoreReport:
    """What one call did.

    Attributes:
        units: units looked at.
        computed: scores added, by metric.
        missing: scores added without a value, by reason.
        stale: units whose example is no longer in the suite; left alone.
        cut_prompts: prompts that CLIP saw without their end.
        notes: what was left out for want of a network, and how to bring it.
    """

    units: int = 0
    computed: Counter[str] = field(default_factory=Counter)
    missing: Counter[str] = field(default_factory=Counter)
    stale: int = 0
    cut_prompts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

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
        return "\n".join(["; ".join(parts), *self.notes])


@dataclass(frozen=True, eq=False)
class _Job:
    """A unit and the metrics it still lacks."""

    folder: RunFolder
    record: EditRecord
    example: EditExample
    metrics: tuple[Metric, ...]

    @property
    def order(self) -> tuple[str, ...]:
        # Down to the unit: batches are the same in whatever order units were made.
        unit = self.record.key.digest
        return str(self.folder.shared.path), self.record.source_image or "", str(self.folder.path), unit

    def sample(self, samples: Samples) -> Sample:
        """What its metrics are given."""
        wanted = any(metric.needs_target for metric in self.metrics)
        return samples.read(self.folder, self.record, self.example, target=wanted)


def score(
    folders: Sequence[RunFolder],
    tasks: Iterable[EditTask] | None = None,
    *,
    scorer: str | None = None,
    second: str | None = None,
    metrics: Sequence[str] | None = None,
    profile: str = DEFAULT,
    weights: Mapping[str, Path] | None = None,
    offline: bool = False,
    device: str = "cpu",
    batch_size: int = 32,
    progress: bool = True,
    networks: Networks | None = None,
) -> ScoreReport:
    """Compute what is missing and append it to each folder's scores.jsonl.

    Args:
        folders: run folders; none of them may be open for writing.
        tasks: whole suites, for the prompts; folders of other suites get those that ship under the suite's name.
        scorer: CLIP to use (see `ClipSpec.parse`); by default the one that belongs to each folder's model.
        second: independent CLIP that gives `clip_gain_2`; by default the model's, if it is on this machine.
        metrics: registered names; by default all of the profile that the examples allow.
        profile: a name of `PROFILES`.
        weights: where networks lie that do not ship (see `Networks`).
        offline: fetches nothing.
        device: torch device of CLIP and LPIPS.
        batch_size: units in memory at a time.
        progress: show a bar.
        networks: ready networks, instead of all options that say which and where.

    Returns:
        What was done.

    Raises:
        RiebenchError: unknown metric, scorer or suite, a missing or changed picture, a folder in use. What was
            computed before is kept.
    """
    if device == "cpu":
        keep_freed_memory()
    names = profile_metrics(profile, METRICS.names()) if metrics is None else tuple(metrics)
    asked = {*(metrics or ()), *(["clip_gain_2"] if second else []), *(names if profile != DEFAULT else [])}
    suites = _Suites(tasks or ())
    total = ScoreReport()
    for (first, other, shipped), group in _by_networks(folders, scorer, second, networks).items():
        loaded = networks or Networks(first, device=device, second=other, weights=weights, offline=offline)
        # The toy world's numbers are the same on every machine: nothing depends on what lies around there.
        usual = [METRICS.get(name) for name in names if name in asked or not (shipped and name in IF_AT_HAND)]
        chosen, notes = measurable(usual, {*IF_AT_HAND} - asked, loaded)
        report = _score_group(group, suites, loaded, chosen, batch_size, progress)
        total = _add(_add(total, report), ScoreReport(notes=notes))
    return total


def _by_networks(
    folders: Sequence[RunFolder], scorer: str | None, second: str | None, networks: Networks | None
) -> dict[tuple[str, str | None, bool], list[RunFolder]]:
    """Folders that the same networks measure: (scorer, second scorer, whether their model is shipped) -> folders."""
    groups: dict[tuple[str, str | None, bool], list[RunFolder]] = {}
    for folder in folders:
        model = folder.spec.model
        pair = ("", None) if networks else (scorer or scorer_for(model), second or second_scorer_for(model))
        groups.setdefault((*pair, is_shipped(model)), []).append(folder)
    return groups


def _add(first: ScoreReport, second: ScoreReport) -> ScoreReport:
    return ScoreReport(
        first.units + second.units,
        first.computed + second.computed,
        first.missing + second.missing,
        first.stale + second.stale,
        tuple(sorted({*first.cut_prompts, *second.cut_prompts})),
        tuple(dict.fromkeys([*first.notes, *second.notes])),
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
    networks: Networks,
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
            books[folder.path] = book = stack.enter_context(score_book(folder, networks))
            for record in folder.records():
                units += 1
                example = suites.find(folder, record.key)
                if example is None:
                    stale += 1
                elif missing := book.missing(record, example, metrics):
                    jobs.append(_Job(folder, record, example, missing))
            book.forget()
        jobs.sort(key=lambda job: job.order)
        samples = Samples()
        with tqdm(total=len(jobs), desc="scoring", unit="unit", disable=not progress or not jobs) as bar:
            for start in range(0, len(jobs), batch_size):
                batch = jobs[start : start + batch_size]
                for job, scores in zip(batch, _score_batch(batch, networks, samples), strict=True):
                    books[job.folder.path].add(scores)
                    report.computed.update(one.metric for one in scores)
                    report.missing.update(one.reason for one in scores if one.reason is not None)
                for book in books.values():
                    book.flush()
                bar.update(len(batch))
    lacking = tuple(
        f"{metric.name} not measured: {why}" for metric in metrics if (why := networks.lacking(metric.backbone))
    )
    return _add(report, ScoreReport(units, stale=stale, cut_prompts=networks.cut_prompts, notes=lacking))


def _score_batch(batch: Sequence[_Job], networks: Networks, samples: Samples) -> list[list[ScoreRecord]]:
    # Metric by metric over the whole batch; units without a picture get their reason without being opened.
    read = [job.sample(samples) if job.record.status == "ok" else None for job in batch]
    values: dict[tuple[int, str], Value] = {}
    for metric in dict.fromkeys(metric for job in batch for metric in job.metrics):
        inputs = {i: sample for i, sample in enumerate(read) if sample is not None and metric in batch[i].metrics}
        if inputs and networks.missing(metric.backbone, fetch=True):
            values |= {(position, metric.name): Reason.NO_WEIGHTS for position in inputs}
            continue
        for position, value in zip(inputs, metric(list(inputs.values()), networks), strict=True):
            values[position, metric.name] = value
    return [
        [
            _line(unit, job.record, metric, networks, values.get((position, metric.name), Reason.NOT_RUN))
            for metric in job.metrics
        ]
        for position, (job, unit) in enumerate((job, job.record.key.digest) for job in batch)
    ]


def _line(unit: str, record: EditRecord, metric: Metric, networks: Networks, value: Value) -> ScoreRecord:
    number, reason = (None, value.value) if isinstance(value, Reason) else (value, None)
    return ScoreRecord(
        unit=unit,
        metric=metric.name,
        version=metric.version,
        backbone=networks.identity(metric.backbone),
        picture=record.picture_id,
        value=number,
        reason=reason,
    )


def measurable(
    metrics: Sequence[Metric], optional: Collection[str], networks: Networks
) -> tuple[tuple[Metric, ...], tuple[str, ...]]:
    """Leaves out optional metrics whose network is not on this machine.

    Args:
        metrics: what is wanted.
        optional: names of those that nobody asked for.
        networks: the networks.

    Returns:
        What is to be measured, and one line on each metric left out.
    """
    chosen, notes = [], []
    for metric in metrics:
        why = networks.missing(metric.backbone, fetch=False) if metric.name in optional else None
        if why is None:
            chosen.append(metric)
        else:
            notes.append(f"{metric.name} left out: {why}")
    return tuple(chosen), tuple(notes)
