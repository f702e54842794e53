"""Scoring of stored records, which computes each metric of each unit once.

From top to bottom: the scores that a folder has already (`FolderScores`), the pictures that metrics are given
(`SampleReader`), the summary of a call (`ScoreReport`), and `score`, which computes the missing scores in batches and
in float32.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from riebench.errors import RiebenchError, StoreError
from riebench.models.presets import is_shipped, judge_for, scorer_for, second_scorer_for
from riebench.registry import METRICS
from riebench.scoring.metrics.base import Bool, Metric, Reason, Sample, UInt8, Value
from riebench.scoring.metrics.judge import SIDE
from riebench.scoring.metrics.networks import Networks
from riebench.scoring.profiles import BY_SECOND, DEFAULT, OPTIONAL_METRICS, is_left_to_request, profile_metrics
from riebench.scoring.scorers import ON_REQUEST
from riebench.store.folder import RunFolder
from riebench.store.invocations import invocation_notes
from riebench.store.records import RAW_OUTPUTS_FILE, EditRecord, RawOutputs, ScoreRecord, UnitKey
from riebench.store.shared import SharedFolder
from riebench.tasks.schema import EditExample, EditTask
from riebench.tasks.suites import load_suite, shipped_suites
from riebench.utils.files import append_lines, parse_json, write_atomic
from riebench.utils.images import read_image
from riebench.utils.machine import keep_freed_memory
from riebench.utils.terminal import ProgressBar

SCORING_FILE = "scoring.json"
"""The networks that measured, and the prompts that were too long for them."""

STORE_EVERY = 1.0
"""Seconds of scoring after which new scores are stored; waiting for the disk after every batch would take longer than
some networks do."""

SWITCH_AFTER = 1e-4
"""Seconds after which a thread gives way to another while scoring."""

CACHED_PICTURES = 64
"""Source pictures and masks kept in memory; units are scored in the order of their source pictures."""


class FolderScores:
    """Scores of one run folder: stored ones are read once, new ones are appended.

    Args:
        folder: the run folder, locked.
        networks: the networks that measure.
    """

    def __init__(self, folder: RunFolder, networks: Networks) -> None:
        self.folder, self.networks = folder, networks
        self.path = folder.path / SCORING_FILE
        self.stored = folder.scores()
        provenance = self._read_provenance()
        self.details: dict[str, dict[str, str]] = dict(provenance.get("networks", {}))
        self.cut: set[str] = set(provenance.get("cut_prompts", ()))
        self._new: list[ScoreRecord] = []
        self._raw: list[RawOutputs] = []

    def _read_provenance(self) -> dict[str, Any]:
        try:
            provenance = parse_json(self.path.read_bytes())
        except (FileNotFoundError, ValueError):
            return {}
        is_valid = isinstance(provenance, dict) and isinstance(provenance.get("networks", {}), dict)
        cut = provenance.get("cut_prompts", []) if is_valid else None
        return provenance if isinstance(cut, list) and all(isinstance(prompt, str) for prompt in cut) else {}

    def missing(self, record: EditRecord, example: EditExample, metrics: Sequence[Metric]) -> tuple[Metric, ...]:
        """Return the metrics that a unit still needs, for the picture it has now."""
        has_judge = example.attributes is not None and self.folder.spec.model.size == SIDE
        applicable = [metric for metric in metrics if has_judge or not metric.needs_attributes]
        unit = record.key.digest
        return tuple(metric for metric in applicable if not self._has(unit, record, metric))

    def _has(self, unit: str, record: EditRecord, metric: Metric) -> bool:
        found = self.stored.get((unit, metric.name, self.networks.identity(metric.backbone)))
        if found is None or (found.version, found.picture) != (metric.version, record.picture_id):
            return False
        # A metric whose network was missing is measured as soon as the network is there.
        return found.reason != Reason.NO_WEIGHTS or self.networks.missing(metric.backbone, fetch=True) is not None

    def release(self) -> None:
        """Release the stored scores from memory.

        They are not needed after the last call of `missing`, and those of all folders together may be large.
        """
        self.stored.clear()

    def add(self, scores: list[ScoreRecord], sample: Sample | None) -> None:
        """Keep a unit's new scores, and what networks said of it, until `flush`.

        Args:
            scores: of one unit.
            sample: its pictures and prompts; None without a picture.
        """
        self._new += scores
        raw = self.networks.raw_outputs(sample) if sample is not None and scores else {}
        self._raw += [
            RawOutputs(unit=scores[0].unit, picture=scores[0].picture, backbone=backbone, outputs=outputs)
            for backbone, outputs in raw.items()
        ]

    def flush(self) -> None:
        """Store the scores that were added since the last call.

        The networks that measured them are written first, so that no score is stored without its provenance.
        """
        if self._new:
            self._write_provenance()
        if self._raw:
            append_lines(self.folder.path / RAW_OUTPUTS_FILE, [one.model_dump_json() for one in self._raw])
            self._raw.clear()
        self.folder.append_scores(self._new)
        self._new.clear()

    def close(self) -> None:
        """Write `scoring.json` if it changed."""
        self._write_provenance()

    def _write_provenance(self) -> None:
        self.details |= self.networks.details
        self.cut |= set(self.networks.cut_prompts)
        provenance = {"networks": self.details, "cut_prompts": sorted(self.cut)}
        if provenance != self._read_provenance() and self.details:
            text = json.dumps(provenance, indent=0, sort_keys=True, ensure_ascii=False) + "\n"
            write_atomic(self.path, text.encode())


@contextmanager
def open_scores(folder: RunFolder, networks: Networks) -> Iterator[FolderScores]:
    """Open a folder's scores.

    New ones and `scoring.json` are stored at the end or on an error.
    """
    scores = FolderScores(folder, networks)
    try:
        yield scores
    finally:
        scores.flush()
        scores.close()


class SampleReader:
    """Reader of samples that caches the pictures and masks shared by all settings."""

    def __init__(self) -> None:
        self._read_shared = lru_cache(maxsize=CACHED_PICTURES)(read_image)
        self._read_mask = lru_cache(maxsize=CACHED_PICTURES)(_read_mask)

    def read(self, folder: RunFolder, record: EditRecord, example: EditExample, *, target: bool) -> Sample:
        """Read the sample of a finished unit.

        Args:
            folder: the folder that holds it.
            record: the unit's record.
            example: the example it was made from.
            target: whether to read the target picture too.

        Raises:
            StoreError: if a picture or mask is missing, or the edited picture is not the one that was recorded.
        """
        attributes = example.attributes
        return Sample(
            edited=read_image(folder.pictures, str(record.image), record.image_sha256),
            source=self._shared_picture(folder, record, record.source_image, "source"),
            mask=self._read_mask(folder.shared.path, folder.shared.mask_name(record.key)),
            source_prompt=example.source,
            target_prompt=example.target,
            source_attributes=None if attributes is None else attributes.source,
            target_attributes=None if attributes is None else attributes.target,
            target=self._shared_picture(folder, record, record.target_image, "target") if target else None,
            category=record.key.category,
        )

    def _shared_picture(self, folder: RunFolder, record: EditRecord, name: str | None, role: str) -> UInt8:
        if name is None:
            raise StoreError(f"{folder.path}: unit {record.key.digest} names no {role} picture; run it again")
        return self._read_shared(folder.shared.path, name)


def _read_mask(shared: Path, name: str) -> Bool:
    from riebench.tasks.masks import RegionMasks

    stored = SharedFolder(shared).read_json(name)
    if stored is None:
        raise StoreError(f"{shared / name} is missing; make it again with the same `riebench run`")
    return RegionMasks.from_json(stored).editable


@dataclass(frozen=True)
class ScoreReport:
    """Summary of one call of `score`.

    Attributes:
        units: number of units looked at.
        computed: number of scores added, by metric.
        missing: number of scores added without a value, by reason.
        stale: number of units whose example is no longer in the suite; they are left alone.
        cut_prompts: prompts that CLIP saw without their end.
        notes: one line on each metric left out for want of a network, with the way to get it.
    """

    units: int = 0
    computed: Counter[str] = field(default_factory=Counter)
    missing: Counter[str] = field(default_factory=Counter)
    stale: int = 0
    cut_prompts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """The report as printed: one line, then the notes, one line each."""
        parts = [f"{sum(self.computed.values())} scores added for {self.units} units"]
        if self.missing:
            parts.append("without value: " + ", ".join(f"{n} {reason}" for reason, n in sorted(self.missing.items())))
        if self.stale:
            parts.append(f"{self.stale} units of examples that have changed since left out")
        if self.cut_prompts:
            parts.append(f"{len(self.cut_prompts)} prompts too long for CLIP, e.g. {self.cut_prompts[0]!r}")
        return "\n".join(["; ".join(parts), *self.notes])


def score(
    folders: Sequence[RunFolder],
    tasks: Iterable[EditTask] | None = None,
    *,
    scorer: str | None = None,
    second: str | None = None,
    metrics: Sequence[str] | None = None,
    beside: Sequence[str] = (),
    profile: str = DEFAULT,
    weights: Mapping[str, Path] | None = None,
    offline: bool = False,
    device: str = "cpu",
    batch_size: int = 32,
    progress: bool = True,
    networks: Networks | None = None,
) -> ScoreReport:
    """Compute the missing scores and append them to each folder's scores.jsonl.

    Args:
        folders: run folders; none of them may be open for writing.
        tasks: whole suites, for the prompts; folders of other suites get those that ship under the suite's name.
        scorer: CLIP to use (see `ClipSpec.parse`); by default the one that belongs to each folder's model.
        second: independent CLIP that gives those of `BY_SECOND`; by default the model's, if it is on this machine.
        metrics: registered names; by default all of the profile that the examples allow.
        beside: metrics to compute beside these, such as those of scorers that have to be asked for.
        profile: a name of `PROFILES`.
        weights: paths of networks that do not ship (see `Networks`).
        offline: whether nothing may be fetched.
        device: torch device of CLIP and LPIPS.
        batch_size: units in memory at a time.
        progress: whether to show a progress bar.
        networks: loaded networks to use; all options that choose networks are then ignored.

    Returns:
        A summary of the scores that were added.

    Raises:
        RiebenchError: unknown metric, scorer or suite, a missing or changed picture, a folder in use. Scores that were
            computed before the error are kept.
    """
    if device == "cpu":
        keep_freed_memory()
    # Functions of the running process are measured on request only: every run would else differ by them.
    registered = (name for name in METRICS.usable() if name not in METRICS.defined())
    names = tuple(dict.fromkeys([*(profile_metrics(profile, registered) if metrics is None else metrics), *beside]))
    broken = METRICS.failures() if metrics is None and profile == DEFAULT else {}
    # Metrics of installed packages come unrequested; they must not stop what would be scored without them.
    optional = {*OPTIONAL_METRICS, *METRICS.from_packages()}
    requested = {*(metrics or ()), *beside, *(names if profile != DEFAULT else [])}
    requested |= {*BY_SECOND} if second else set()
    suites = _Suites(tasks or ())
    total = ScoreReport(notes=tuple(f"{name} left out: {why}" for name, why in broken.items()))
    for (first, other, judge, shipped), group in _group_by_networks(folders, scorer, second, networks).items():
        used = networks or Networks(first, device=device, second=other, weights=weights, offline=offline, judge=judge)
        unasked = [name for name in names if shipped and is_left_to_request(name, used.options.second)]
        kept = [METRICS.get(name) for name in names if name in requested or name not in unasked]
        chosen, notes = select_measurable(kept, optional - requested, used)
        report = _score_group(group, suites, used, chosen, batch_size, progress)
        total = _merge_reports(_merge_reports(total, report), ScoreReport(notes=notes))
    return total


def _group_by_networks(
    folders: Sequence[RunFolder], scorer: str | None, second: str | None, networks: Networks | None
) -> dict[tuple[str, str | None, str, bool], list[RunFolder]]:
    """Group folders by the networks that measure them.

    Returns:
        (scorer, second scorer, judge, whether the folders' model is shipped) -> folders.
    """
    groups: dict[tuple[str, str | None, str, bool], list[RunFolder]] = {}
    for folder in folders:
        model = folder.spec.model
        pair = ("", None) if networks else (scorer or scorer_for(model), second or second_scorer_for(model))
        groups.setdefault((*pair, judge_for(model), is_shipped(model)), []).append(folder)
    return groups


def select_measurable(
    metrics: Sequence[Metric], optional: Collection[str], networks: Networks
) -> tuple[tuple[Metric, ...], tuple[str, ...]]:
    """Leave out optional metrics whose network is not on this machine.

    Args:
        metrics: the metrics of the call.
        optional: names of those that were not requested by name.
        networks: the networks.

    Returns:
        The metrics to measure, and one line on each metric left out.
    """
    chosen, notes = [], []
    for metric in metrics:
        if metric.name in ON_REQUEST:
            # Fetched before its identity, which holds the commit, is asked for.
            networks.missing(metric.backbone, fetch=True)
        problem = networks.missing(metric.backbone, fetch=False) if metric.name in optional else None
        if problem is None:
            chosen.append(metric)
        else:
            notes.append(f"{metric.name} left out: {problem}")
    return tuple(chosen), tuple(notes)


def _merge_reports(first: ScoreReport, second: ScoreReport) -> ScoreReport:
    return ScoreReport(
        first.units + second.units,
        first.computed + second.computed,
        first.missing + second.missing,
        first.stale + second.stale,
        tuple(sorted({*first.cut_prompts, *second.cut_prompts})),
        tuple(dict.fromkeys([*first.notes, *second.notes])),
    )


class _Suites:
    """Examples of the given suites, and of shipped ones, which are read on first use."""

    def __init__(self, tasks: Iterable[EditTask]) -> None:
        self._examples: dict[str, dict[tuple[str, str, str], EditExample]] = {}
        for task in tasks:
            self._add(task)

    def _add(self, task: EditTask) -> None:
        known = self._examples.setdefault(task.suite, {})
        known |= {(task.name, example.id, example.content_hash): example for example in task.examples}

    def find(self, folder: RunFolder, key: UnitKey) -> EditExample | None:
        """Return the example that a unit was made from, or None if it has changed since.

        Raises:
            RiebenchError: if the folder's suite is neither given nor shipped.
        """
        suite = folder.spec.suite
        if suite not in self._examples:
            if suite not in shipped_suites():
                raise RiebenchError(
                    f"{folder.path} was made from a suite of your own, {suite!r}; name its folder: --suite FOLDER"
                )
            for task in load_suite(suite):
                self._add(task)
        return self._examples[suite].get((key.task, key.example_id, key.example_hash))


@dataclass(frozen=True, eq=False)
class _WorkItem:
    """A unit and the metrics that it still lacks."""

    folder: RunFolder
    record: EditRecord
    example: EditExample
    metrics: tuple[Metric, ...]

    @property
    def order(self) -> tuple[str, ...]:
        # Down to the unit, so that batches are the same in whatever order units were made.
        unit = self.record.key.digest
        return str(self.folder.shared.path), self.record.source_image or "", str(self.folder.path), unit

    def sample(self, reader: SampleReader) -> Sample:
        """Read the sample that its metrics are given."""
        needs_target = any(metric.needs_target for metric in self.metrics)
        return reader.read(self.folder, self.record, self.example, target=needs_target)


def _score_group(
    folders: Sequence[RunFolder],
    suites: _Suites,
    networks: Networks,
    metrics: Sequence[Metric],
    batch_size: int,
    progress: bool,
) -> ScoreReport:
    report = ScoreReport()
    process = invocation_notes(device=networks.options.device)
    with ExitStack() as stack:
        opened: dict[Path, FolderScores] = {}
        items: list[_WorkItem] = []
        units = stale = 0
        for folder in folders:
            stack.enter_context(folder.lock(process))
            opened[folder.path] = scores = stack.enter_context(open_scores(folder, networks))
            for record in folder.records():
                units += 1
                example = suites.find(folder, record.key)
                if example is None:
                    stale += 1
                elif missing := scores.missing(record, example, metrics):
                    items.append(_WorkItem(folder, record, example, missing))
            scores.release()
        items.sort(key=lambda item: item.order)
        with ProgressBar[None](title="scoring", unit="unit", total=len(items), shown=progress and bool(items)) as bar:
            stored = time.monotonic()
            batches = [items[start : start + batch_size] for start in range(0, len(items), batch_size)]
            stack.enter_context(_prompt_threads())
            for batch, samples, known in stack.enter_context(closing(_read_ahead(batches, networks))):
                for item, sample, new in zip(
                    batch, samples, _score_batch(batch, samples, known, networks), strict=True
                ):
                    opened[item.folder.path].add(new, sample)
                    report.computed.update(one.metric for one in new)
                    report.missing.update(one.reason for one in new if one.reason is not None)
                if time.monotonic() - stored >= STORE_EVERY:
                    for scores in opened.values():
                        scores.flush()
                    stored = time.monotonic()
                bar.update(len(batch))
    notes = tuple(
        f"{metric.name} not measured: {problem}"
        for metric in metrics
        if (problem := networks.known_missing(metric.backbone))
    )
    return _merge_reports(report, ScoreReport(units, stale=stale, cut_prompts=networks.cut_prompts, notes=notes))


@contextmanager
def _prompt_threads() -> Iterator[None]:
    """Let threads take turns after a tenth of a millisecond, not after five.

    A small network makes thousands of short calls, each of which would else wait so long for the reading thread.
    """
    usual = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_AFTER)
    try:
        yield
    finally:
        sys.setswitchinterval(usual)


Measured = dict[tuple[int, str], Value]
"""(Place in the batch, metric) -> value."""


def _read_ahead(
    batches: Sequence[Sequence[_WorkItem]], networks: Networks
) -> Generator[tuple[Sequence[_WorkItem], list[Sample | None], Measured], None, None]:
    """Yield each batch with its samples and the values that need no network.

    The sample of a unit without a picture is None. The next batch is read and measured while the caller's networks work
    on one. An error comes with the batch whose files are at fault, when those before it are done.
    """
    reader = SampleReader()

    def read(batch: Sequence[_WorkItem]) -> tuple[list[Sample | None], Measured]:
        samples = [item.sample(reader) if item.record.status == "ok" else None for item in batch]
        return samples, _measured(batch, samples, networks, ahead=True)

    with ThreadPoolExecutor(1, "riebench-read") as thread:
        coming = [thread.submit(read, batch) for batch in batches[:1]]
        for number, batch in enumerate(batches, start=1):
            samples, known = coming.pop().result()
            coming += [thread.submit(read, following) for following in batches[number : number + 1]]
            yield batch, samples, known


def _measured(
    batch: Sequence[_WorkItem], samples: Sequence[Sample | None], networks: Networks, *, ahead: bool
) -> Measured:
    """Return the values of the metrics that are computed ahead, or of the others.

    Metric by metric over the whole batch; units without a picture have none.
    """
    values: Measured = {}
    for metric in dict.fromkeys(metric for item in batch for metric in item.metrics):
        # Ahead, in another thread, comes what needs no network; code of users and packages stays in this one.
        if ahead == bool(metric.backbone or not metric.compute.__module__.startswith("riebench.")):
            continue
        inputs = {i: sample for i, sample in enumerate(samples) if sample is not None and metric in batch[i].metrics}
        if inputs and networks.missing(metric.backbone, fetch=True):
            values |= {(position, metric.name): Reason.NO_WEIGHTS for position in inputs}
            continue
        for position, value in zip(inputs, metric(list(inputs.values()), networks), strict=True):
            values[position, metric.name] = value
    return values


def _score_batch(
    batch: Sequence[_WorkItem], samples: Sequence[Sample | None], known: Measured, networks: Networks
) -> list[list[ScoreRecord]]:
    # Units without a picture get their reason without being opened.
    values = known | _measured(batch, samples, networks, ahead=False)
    return [
        [
            _score_record(unit, item.record, metric, networks, values.get((position, metric.name), Reason.NOT_RUN))
            for metric in item.metrics
        ]
        for position, (item, unit) in enumerate((item, item.record.key.digest) for item in batch)
    ]


def _score_record(unit: str, record: EditRecord, metric: Metric, networks: Networks, value: Value) -> ScoreRecord:
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
