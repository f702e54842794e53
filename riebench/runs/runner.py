"""The main loop of a run: skip finished units, make and record the rest.

Source and target runs, their traces and masks are made once per example and seed and serve all settings. Rows of one
batch may belong to different examples, configurations, block sets and strengths. At most a few examples' traces are in
memory at a time, however many there are.

`run_benchmark` prepares a run and starts the `Runner`. That one leaves units of editors to an `EditorRunner`, collects
the rows of all other units in `PendingRows` until a batch is full, and stores everything through a `Recorder`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from riebench.errors import DeviceLostError, RiebenchError, reason
from riebench.generation.edits import Edit
from riebench.generation.generator import GenerationResult, Generator
from riebench.generation.memory import BatchSize, automatic_batch_size, examples_together
from riebench.generation.prefix import Prefix
from riebench.generation.regions.options import DEFAULT_REGIONS, RegionSpec, parse_regions
from riebench.generation.units import UnitRecorder
from riebench.methods.base import ROLES, EditContext, ExampleRuns, OtherExamples, Reuse, Role
from riebench.methods.editors import Editor, EditorContext
from riebench.models.loading import LoadedModel
from riebench.runs.capture import CapturePlan
from riebench.runs.distribution import (
    Before,
    DistributionWatch,
    ExampleWatch,
    prepare_watch,
    store_watch,
    stored_files,
    watched_blocks,
)
from riebench.runs.failures import STOP_AFTER, FailureWatch
from riebench.runs.masks import MaskMaker
from riebench.runs.plan import ExampleWork, Unit, check_request, checked_works, plan
from riebench.runs.prepare import (
    PreparedSetting,
    environment_notes,
    open_folders,
    prepare_all,
    usual_blocks_of_model,
)
from riebench.runs.recorder import Pixels, Recorder
from riebench.runs.references import References
from riebench.runs.sae_check import Say, check_saes, known_saes, measure_saes
from riebench.store.folder import Redo, RunFolder
from riebench.store.records import BlockFeatures
from riebench.tasks.masks import RegionMasks
from riebench.tasks.schema import EditTask, Setting
from riebench.utils.terminal import ProgressBar

NO_REGION = "no_region"
"""Reason of a unit whose example's region was not found."""
MAX_PENDING_CHUNKS = 2
"""Chunks of examples whose rows may wait, and with them the activations they share; one more is being made."""


@dataclass(frozen=True)
class Row:
    """One row of a coming batch.

    Attributes:
        unit: the unit that it makes.
        edit: the unit's edit, at its strength.
        prompt: the source prompt.
        noise: the noise seed.
        details: further fields of its record.
        prefix: its source run, if that was kept.
        places: block -> positions at which its edited activations are measured, int64 [P]; empty for none.
        before: what the source run gives there.
    """

    unit: Unit
    edit: Edit
    prompt: str
    noise: int
    details: Mapping[str, Any]
    prefix: Prefix | None
    places: Mapping[str, Tensor] = field(default_factory=dict)
    before: Before = field(default_factory=dict)

    @property
    def rank(self) -> tuple[int, int]:
        """The place where the row leaves its source run, for sorting.

        Rows that leave at the same place have the same rank.
        """
        if self.prefix is None:
            return 0, -1
        return self.prefix.rank(self.prefix.cut(self.edit))


@dataclass(frozen=True)
class PairBatch:
    """The source and target runs of some examples.

    Attributes:
        result: pictures, traces and what edited runs can share.
        units: feed-forward units that are too many for the traces, if they are kept.
    """

    result: GenerationResult
    units: UnitRecorder | None


def distinct_prefixes(rows: Sequence[Row]) -> list[Prefix]:
    """Return the distinct source runs of some rows."""
    return list({id(row.prefix): row.prefix for row in rows if row.prefix is not None}.values())


@dataclass
class PendingRows:
    """Rows that wait for a batch, by the place where they leave their source runs."""

    _rows: dict[tuple[int, int], list[Row]] = field(default_factory=dict)

    def add(self, row: Row, size: int) -> list[Row]:
        """Add a row; return a batch once one of that size is full, else nothing."""
        rank = row.rank
        rows = self._rows.setdefault(rank, [])
        rows.append(row)
        return self._rows.pop(rank) if len(rows) >= size else []

    def take(self, size: int) -> list[Row]:
        """Take a last batch of at most that size.

        The rows that leave their source runs first go together with those that leave next.
        """
        rows = [row for rank in sorted(self._rows) for row in self._rows[rank]]
        self._rows.clear()
        for row in rows[size:]:
            self._rows.setdefault(row.rank, []).append(row)
        return rows[:size]

    @property
    def over_limit(self) -> bool:
        """True if rows of more than `MAX_PENDING_CHUNKS` chunks of examples wait."""
        return len(distinct_prefixes([row for rows in self._rows.values() for row in rows])) > MAX_PENDING_CHUNKS


class EditorRunner:
    """Runner of the units of editors.

    Each configuration has a batch size of its own, since editors differ in the memory they need: one that runs short
    of it makes no other configuration's batches smaller.

    Args:
        generator: the loaded model.
        batches: the run's batch size, which no editor exceeds; a source run may go along with each batch.
    """

    def __init__(self, generator: Generator, batches: BatchSize) -> None:
        self.generator = generator
        self.batches = batches
        self._sizes: dict[str, BatchSize] = {}

    def run(
        self, editor: Editor, units: Sequence[Unit], work: ExampleWork, pictures: Mapping[Role, Pixels],
        others: OtherExamples | None, save: Callable[[Unit, Pixels, Mapping[str, Any]], None],
        fail: Callable[[Unit, str], None],
    ) -> None:  # fmt: skip
        """Make some units of one example and one setting.

        Args:
            editor: the configuration's method.
            units: units that differ in strength alone.
            work: their example.
            pictures: the source and the target picture as stored.
            others: the other examples of the category, if any method needs them.
            save: function that gets a unit with its picture and further fields of its record.
            fail: function that gets a unit that cannot be made, and the reason.
        """
        setting = units[0].setting
        most = max(1, self.batches.size - 1)
        sizes = self._sizes.setdefault(setting.name, BatchSize(most, f"pictures of {setting.name}", proven=True))
        sizes.size = min(sizes.size, most)

        def make(some: Sequence[Unit]) -> tuple[NDArray[np.uint8], dict[str, Any]]:
            strengths = tuple(unit.key.strength for unit in some)
            context = EditorContext(
                self.generator, work.plain, work.noise, pictures, strengths, others=others, seed=work.seed
            )
            start = time.perf_counter()
            made = editor.edit_pictures(context, setting.params)
            took = {"seconds": (time.perf_counter() - start) / len(some), "batch_size": len(some)}
            return made, {**took, "training": next(iter(context.training), None)}

        def keep(some: Sequence[Unit], made: tuple[NDArray[np.uint8], dict[str, Any]]) -> None:
            for unit, picture in zip(some, made[0], strict=True):
                save(unit, picture, made[1])

        sizes.each(units, 1, make, keep, fail)


def run_benchmark(
    tasks: Sequence[EditTask], settings: Sequence[Setting], model: LoadedModel, *, results_root: Path,
    saes_source: str | None = None, seeds: Sequence[int] = (0,), limit: int | None = None,
    batch_size: int | None = None, regions: str = DEFAULT_REGIONS, redo: Redo = "missing",
    shard: tuple[int, int] = (1, 1), offline: bool = False, progress: bool = True,
    provenance: Mapping[str, Any] | None = None, pool: Sequence[EditTask] | None = None,
    stop_after: int = STOP_AFTER, accept_sae: bool = False, say: Say = lambda _: None,
) -> list[RunFolder]:  # fmt: skip
    """Make all edited pictures of some tasks with some configurations on one model.

    The SAEs are measured first (`riebench.runs.sae_check`). An error in one unit is recorded with its reason, and the
    others go on.

    Args:
        tasks: tasks of one suite.
        settings: configurations with different names.
        model: the loaded model, which runs on the device that it was loaded on.
        results_root: results folder; gets `<suite>/<model>/<setting>/` and `<suite>/<model>/shared/`.
        saes_source: SAEs for all configurations; None for each configuration's own, or else the model's.
        seeds: indices of the seeds of each example.
        limit: largest number of examples of each task.
        batch_size: pictures generated at once; None for as many as device and free memory allow.
        regions: the region provider, as `--regions` writes it.
        redo: "missing", "errors" (repeats failed units too), or "all".
        shard: (i, n) to make the i-th of n parts, from 1; the others may run at the same time.
        offline: True to fetch nothing.
        progress: True to show a bar with rate and time left.
        provenance: more entries for run.json (the command, for instance).
        pool: whole tasks, whose examples methods may look at as references; None if `tasks` are whole.
        stop_after: ends the run if that many units, the first ones, all fail with the same error; 0 for never.
        accept_sae: runs SAEs that explain nothing of the activations, too.
        say: function that prints a line for people.

    Returns:
        One folder per configuration, in their order.

    Raises:
        NothingMadeError: as `stop_after` says; what is recorded is kept.
        RiebenchError: before anything is edited, if a configuration, block, SAE or folder cannot be used.
    """
    check_request(tasks, settings, redo, shard)
    spec = parse_regions(regions)
    prepared = prepare_all(settings, tasks[0].suite, model, results_root, saes_source, spec.identity, offline)
    folders = {name: one.folder for name, one in prepared.items()}
    units = plan(tasks, settings, seeds, limit, usual=usual_blocks_of_model(model))
    size = batch_size or automatic_batch_size(model)
    notes = {**environment_notes(model), "batch_size": size, **(provenance or {})}
    looked = checked_works(units, fixed_noise=model.spec.fixed_noise)
    found = measure_saes(prepared, looked, model, known_saes(results_root / tasks[0].suite), progress=progress)
    checked = check_saes(found, folders, units, accept=accept_sae, redo=redo, say=say)
    with open_folders(folders, units, model.spec, spec.identity, notes, redo=redo, shard=shard) as works:
        for name, saes in checked.items():
            folders[name].write_sae_figures(saes)
        whole = pool or tasks
        watch = _watch(prepared, units, model, whole, say) if works else DistributionWatch()
        total = sum(len(work.units) for work in works)
        with ProgressBar[None](title=model.spec.name, unit="image", total=total, shown=progress) as bar:
            runner = Runner(model, prepared, spec, size, bar, offline=offline, pool=whole, watch=watch)
            runner.run(works, stop_after)
    return list(folders.values())


def _watch(
    prepared: Mapping[str, PreparedSetting], units: Sequence[Unit], model: LoadedModel, pool: Sequence[EditTask],
    say: Say,
) -> DistributionWatch:  # fmt: skip
    """Return the run's reference activations, stored ones first."""
    shared = next(iter(prepared.values())).folder.shared
    stored = stored_files(shared, watched_blocks(prepared))
    return store_watch(prepare_watch(prepared, units, model, pool, stored, say), shared, model.spec)


class Runner:
    """Maker of the units of a plan.

    Args:
        model: the generating model.
        prepared: configuration name -> configuration, ready to run; their folders are being written.
        regions: the region provider.
        batch_size: pictures generated at once.
        bar: progress bar that counts units.
        offline: True to fetch nothing.
        pool: see `run_benchmark`.
        watch: against what edited activations are measured; None to measure none.
    """

    def __init__(
        self, model: LoadedModel, prepared: Mapping[str, PreparedSetting], regions: RegionSpec, batch_size: int,
        bar: Any, *, offline: bool = False, pool: Sequence[EditTask] = (), watch: DistributionWatch | None = None,
    ) -> None:  # fmt: skip
        self.generator = Generator(model)
        self.model = model
        self.prepared = prepared
        self.batches = BatchSize(batch_size)
        self.watch = watch or DistributionWatch()
        self.recorder = Recorder(prepared, bar)
        self.editors = EditorRunner(self.generator, self.batches)
        self.masks = MaskMaker(
            regions, self.recorder.shared, self.generator, batches=self.batches, offline=offline,
            progress=bar.shown,
        )  # fmt: skip
        self.captures = CapturePlan(self.generator, prepared, self.masks.uses_attention)
        self.references = References(pool, self.generator, self.masks, self.captures)
        self.pending = PendingRows()

    def run(self, works: Sequence[ExampleWork], stop_after: int = 0) -> None:
        """Make everything, a few examples at a time.

        Args:
            works: what to make.
            stop_after: see `run_benchmark`.

        Raises:
            NothingMadeError: likewise.
        """
        self.recorder.failures = FailureWatch(stop_after, works)
        self.masks.prepare([*works, *self.references.works(works)])
        nbytes = self.captures.bytes_held(works)
        start = 0
        with self.recorder:
            while start < len(works):
                chunk = works[start : start + examples_together(nbytes, self.batches.size)]
                chunk = chunk[: self.captures.examples_at_once(chunk)]
                self.batches.each(chunk, len(ROLES), self._generate_pairs, self._run_examples, self._fail_work)
                start += len(chunk)
            self._flush()

    def _generate_pairs(self, works: Sequence[ExampleWork]) -> PairBatch:
        """Generate the source pictures of all examples, then their target pictures.

        All are of one batch, and both pictures of an example have the same noise.
        """
        prompts = [work.plain.source for work in works] + [work.plain.target for work in works]
        units = self.captures.units_to_keep(works)
        captures = self.captures.captures(works, units)
        result = self.generator.generate(
            prompts, [work.noise for work in works] * 2, capture=captures, keep_latents=self.captures.needs_latents,
            keep_prefix=self.captures.prefix(works),
        )  # fmt: skip
        # What takes the units leaves no trace.
        return PairBatch(replace(result, traces=result.traces[:2]), units)

    def _fail_work(self, work: ExampleWork, why: str) -> None:
        self.recorder.finish(work.units, "error", why)
        self._stop_if_all_fail()

    def _stop_if_all_fail(self) -> None:
        if self.recorder.failures.due:
            # What waits for its batch may yet succeed.
            self._flush()
            self.recorder.wait()
            self.recorder.failures.check()

    def _run_examples(self, works: Sequence[ExampleWork], made: PairBatch) -> None:
        pair = made.result
        for index, work in enumerate(works):
            self._run_example(work, made, index, len(works))
            self._stop_if_all_fail()
        # Edits of long runs read this trace: it can be freed only when they are done.
        if pair.traces[0].long or self.pending.over_limit:
            self._flush()

    def _run_example(self, work: ExampleWork, batch: PairBatch, index: int, count: int) -> None:
        pair = batch.result
        rows: dict[Role, int] = {"source": index, "target": index + count}
        pictures = {role: self.recorder.shared_image(work, role, pair.images[row]) for role, row in rows.items()}
        try:
            masks = self.masks.masks(work, pair, index, count)
        except RiebenchError as error:
            self.recorder.finish(work.units, "error", reason(error))
            return
        if masks.empty:
            self.recorder.finish(work.units, "skipped", NO_REGION)
            return
        latents = {} if pair.latents is None else {role: pair.latents[row] for role, row in rows.items()}
        runs = ExampleRuns(
            work.plain, work.seed, pair.traces[0], rows, masks, self.captures.unit_layers, self.captures.measure(work),
            rule=work.task.region_rule, latents=latents, others=self.references.others(work), noise=work.noise,
        )  # fmt: skip
        if batch.units is not None and batch.units.holds(index):
            runs.units = {role: batch.units.take(row, partial(runs.positions, role)) for role, row in rows.items()}
        seen = self.watch.of_example(runs)
        made: dict[tuple[str, tuple[str, ...]], Edit | Reuse | str] = {}
        for unit in self._run_editors(work, masks, pictures):
            place = (unit.setting.name, unit.blocks)
            if place not in made:
                made[place] = self._edit(unit, runs)
            self._save_or_queue(unit, made[place], work, seen, pictures, pair.prefix)

    def _run_editors(self, work: ExampleWork, masks: RegionMasks, pictures: Mapping[Role, Pixels]) -> list[Unit]:
        """Make the units of editors; return the others."""

        def save(unit: Unit, picture: Pixels, more: Mapping[str, Any]) -> None:
            self.recorder.save(unit, picture, {**self.recorder.details(unit, masks), **more})

        others = self.references.others(work)

        for name in dict.fromkeys(unit.setting.name for unit in work.units):
            method = self.prepared[name].method
            if isinstance(method, Editor):
                units = [unit for unit in work.units if unit.setting.name == name]
                self.editors.run(method, units, work, pictures, others, save, self._fail_unit)
        return [unit for unit in work.units if not isinstance(self.prepared[unit.setting.name].method, Editor)]

    def _fail_unit(self, unit: Unit, why: str) -> None:
        self.recorder.finish([unit], "error", why)

    def _edit(self, unit: Unit, runs: ExampleRuns) -> Edit | Reuse | str:
        """Return the unit's edit at strength 1, or the reason that there is none."""
        one = self.prepared[unit.setting.name]
        try:
            return one.method.edit(EditContext(runs, unit.blocks, one.saes), unit.setting.params)
        except DeviceLostError:
            raise
        except Exception as error:
            return reason(error)

    def _save_or_queue(
        self, unit: Unit, made: Edit | Reuse | str, work: ExampleWork, seen: ExampleWatch,
        pictures: Mapping[Role, Pixels], prefix: Prefix | None,
    ) -> None:  # fmt: skip
        """Record a unit whose picture is known already, or queue its row."""
        if isinstance(made, str):
            self._fail_unit(unit, made)
            return
        details = self.recorder.details(unit, seen.runs.masks)
        if isinstance(made, Reuse):
            self.recorder.save(unit, pictures[made.picture], details)
            return
        details["features"] = {
            block: BlockFeatures(add=add, remove=remove) for block, (add, remove) in made.features.items()
        }
        details["neurons"], details["training"] = made.neurons, made.training
        edit = replace(made, strength=unit.key.strength, window=self.prepared[unit.setting.name].window)
        known = edit.picture(self.model.spec.steps)
        if known is not None:
            # Generating it would give the known picture again, bit for bit.
            self.recorder.save(unit, pictures[known], details)
            return
        places = seen.places(edit)
        row = Row(unit, edit, work.plain.source, work.noise, details, prefix, places, seen.before(places))
        full = self.pending.add(row, self.batches.size)
        if full:
            self._make(full)

    def _flush(self) -> None:
        while rows := self.pending.take(self.batches.size):
            self._make(rows)

    def _make(self, rows: Sequence[Row]) -> None:
        """Generate and store some rows."""
        self.batches.each(rows, 1, self._generate_rows, self._save_rows, self._fail_row)

    def _fail_row(self, row: Row, why: str) -> None:
        self._fail_unit(row.unit, why)

    def _generate_rows(self, rows: Sequence[Row]) -> tuple[NDArray[np.uint8], list[dict[str, Any]]]:
        """Generate one batch; return its pictures and further fields of their records.

        These are each one's share of the wall time, in seconds, and how far its activations lie from unedited ones.
        """
        start = time.perf_counter()
        meter = self.watch.meter([row.places for row in rows])
        result = self.generator.generate(
            [row.prompt for row in rows], [row.noise for row in rows], edits=[row.edit for row in rows],
            prefixes=distinct_prefixes(rows), meter=meter,
        )  # fmt: skip
        found = [{} if meter is None else meter.result(index, row.before) for index, row in enumerate(rows)]
        seconds = (time.perf_counter() - start) / len(rows)
        took = {"seconds": seconds, "batch_size": len(rows)}
        return result.images, [{**took, "distribution": one or None} for one in found]

    def _save_rows(self, rows: Sequence[Row], made: tuple[NDArray[np.uint8], list[dict[str, Any]]]) -> None:
        self.recorder.save_all(
            [(row.unit, picture, {**row.details, **more}) for row, picture, more in zip(rows, *made, strict=True)]
        )
