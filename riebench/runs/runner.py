"""The main job: plan edited images, skip those that exist, make the rest in batches, record each one.

Source and target runs, their traces and masks are made once per example and seed and serve all settings. Rows of one
batch may belong to different examples, settings, block sets and strengths. At most a few examples' traces are in
memory at a time, however many there are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from riebench.errors import DeviceLostError, RiebenchError, reason
from riebench.generation.edits import Edit
from riebench.generation.generator import GenerationResult, Generator
from riebench.generation.memory import BatchSize, automatic_batch_size, examples_together
from riebench.generation.prefix import Prefix
from riebench.generation.regions.options import DEFAULT_REGIONS, RegionSpec, parse_regions
from riebench.methods.base import ROLES, EditContext, ExampleRuns, Reuse, Role
from riebench.methods.editors import Editor, EditorContext
from riebench.models.loading import LoadedModel
from riebench.runs.capture import CapturePlan
from riebench.runs.masks import MaskMaker
from riebench.runs.plan import Unit, Work, check_request, plan
from riebench.runs.prepare import Prepared, Shelf, open_folders, prepare, versions
from riebench.runs.references import References
from riebench.store.folder import Redo, RunFolder
from riebench.store.records import BlockFeatures, EditRecord
from riebench.tasks.masks import RegionMasks
from riebench.tasks.schema import EditTask, Setting

HELD = 2
"""Chunks of examples whose rows, and with them shared activations, may wait; those of one more are being made."""


@dataclass(frozen=True)
class Row:
    """One row of a coming batch.

    Attributes:
        unit: what it will be.
        edit: at the unit's strength.
        prompt: the source prompt.
        noise: the noise seed.
        details: what its record will say.
        prefix: holds its source run, if that was kept.
    """

    unit: Unit
    edit: Edit
    prompt: str
    noise: int
    details: Mapping[str, Any]
    prefix: Prefix | None

    @property
    def rank(self) -> tuple[int, int]:
        """Where it leaves its source run; the same for rows that leave at the same place."""
        if self.prefix is None:
            return 0, -1
        return self.prefix.rank(self.prefix.cut(self.edit))


def prefixes(rows: Sequence[Row]) -> list[Prefix]:
    """The source runs of some rows, each batch of them once."""
    return list({id(row.prefix): row.prefix for row in rows if row.prefix is not None}.values())


@dataclass
class Waiting:
    """Rows by the place where they leave their source runs."""

    _rows: dict[tuple[int, int], list[Row]] = field(default_factory=dict)

    def add(self, row: Row, size: int) -> list[Row]:
        """Takes a row; returns a batch as soon as one of that size is full, else nothing."""
        rank = row.rank
        rows = self._rows.setdefault(rank, [])
        rows.append(row)
        return self._rows.pop(rank) if len(rows) >= size else []

    def take(self, size: int) -> list[Row]:
        """A last batch of at most that size: the rows that leave first, with those that leave next."""
        rows = [row for rank in sorted(self._rows) for row in self._rows[rank]]
        self._rows.clear()
        for row in rows[size:]:
            self._rows.setdefault(row.rank, []).append(row)
        return rows[:size]

    @property
    def crowded(self) -> bool:
        """Whether rows of more than `HELD` chunks of examples wait."""
        return len(prefixes([row for rows in self._rows.values() for row in rows])) > HELD


Pixels = NDArray[np.uint8]


class Painter:
    """Makes the units of editors.

    What editors need of memory is their own affair, so each setting has a batch size of its own: an editor that is
    short of memory makes nobody else's batches smaller.

    Args:
        generator: the loaded model.
        batches: the run's batch size, which no editor exceeds; a source run may go along with each batch.
    """

    def __init__(self, generator: Generator, batches: BatchSize) -> None:
        self.generator = generator
        self.batches = batches
        self._sizes: dict[str, BatchSize] = {}

    def paint(
        self, editor: Editor, units: Sequence[Unit], work: Work, pictures: Mapping[Role, Pixels],
        save: Callable[[Unit, Pixels, float, int], None], fail: Callable[[Unit, str], None],
    ) -> None:  # fmt: skip
        """Makes some units of one example and one setting.

        Args:
            editor: the setting's method.
            units: differ in strength alone.
            work: their example.
            pictures: the source and the target picture as stored.
            save: gets a unit with its picture, its share of the wall time, and how many were made in the same call.
            fail: gets a unit that cannot be made, and why.
        """
        setting = units[0].setting
        most = max(1, self.batches.size - 1)
        sizes = self._sizes.setdefault(setting.name, BatchSize(most, f"pictures of {setting.name}", proven=True))
        sizes.size = min(sizes.size, most)

        def make(some: Sequence[Unit]) -> tuple[NDArray[np.uint8], float]:
            strengths = tuple(unit.key.strength for unit in some)
            start = time.perf_counter()
            made = editor.paint(
                EditorContext(self.generator, work.plain, work.noise, pictures, strengths), setting.params
            )
            return made, (time.perf_counter() - start) / len(some)

        def keep(some: Sequence[Unit], made: tuple[NDArray[np.uint8], float]) -> None:
            for unit, picture in zip(some, made[0], strict=True):
                save(unit, picture, made[1], len(some))

        sizes.each(units, 1, make, keep, fail)


class Recorder:
    """Writes what the runner makes.

    Args:
        prepared: setting name -> setting; their folders are being written.
        bar: counts units.
    """

    def __init__(self, prepared: Mapping[str, Prepared], bar: Any) -> None:
        self.prepared = prepared
        self.bar = bar
        self.shared = next(iter(prepared.values())).folder.shared

    def shared_image(self, work: Work, role: Role, fresh: Pixels) -> Pixels:
        """Stores a source or target picture; the one that earlier settings were compared with stays."""
        name = self.shared.image_name(work.units[0].key, role)
        if not (self.shared.path / name).exists():
            self.shared.write_image(name, fresh)
        return self.shared.read_image(name)

    def details(self, unit: Unit, masks: RegionMasks) -> dict[str, Any]:
        """What every record with a picture says."""
        return {
            "source_image": self.shared.image_name(unit.key, "source"),
            "target_image": self.shared.image_name(unit.key, "target"),
            "mask_share": masks.share,
        }

    def save(self, unit: Unit, picture: Pixels, details: Mapping[str, Any]) -> None:
        """Stores a unit's picture and then its record."""
        folder = self.prepared[unit.setting.name].folder
        name, sha256 = folder.write_image(unit.key, picture)
        folder.append(
            EditRecord(
                key=unit.key, status="ok", image=name, image_sha256=sha256, cluster=unit.example.cluster, **details
            )
        )
        self.bar.update()

    def finish(self, units: Sequence[Unit], status: Literal["skipped", "error"], reason: str) -> None:
        """Records units that have no picture."""
        for unit in units:
            record = EditRecord(key=unit.key, status=status, reason=reason, cluster=unit.example.cluster)
            self.prepared[unit.setting.name].folder.append(record)
            self.bar.update()


NO_REGION = "no_region"
"""Reason of a unit whose example's region was not found."""


def run_benchmark(
    tasks: Sequence[EditTask],
    settings: Sequence[Setting],
    model: LoadedModel,
    *,
    results_root: Path,
    saes_source: str | None = None,
    seeds: Sequence[int] = (0,),
    limit: int | None = None,
    batch_size: int | None = None,
    regions: str = DEFAULT_REGIONS,
    redo: Redo = "missing",
    shard: tuple[int, int] = (1, 1),
    offline: bool = False,
    progress: bool = True,
    provenance: Mapping[str, Any] | None = None,
    pool: Sequence[EditTask] | None = None,
) -> list[RunFolder]:
    """Makes all edited images of some tasks with some settings on one model.

    An error in one unit is recorded with its reason, and the others go on.

    Args:
        tasks: of one suite.
        settings: with different names.
        model: where it was loaded is where it runs.
        results_root: gets `<suite>/<model>/<setting>/` and `<suite>/<model>/shared/`.
        saes_source: SAEs for all settings; None for each setting's own, or else the model's.
        seeds: indices of the seeds of each example.
        limit: at most this many examples of each task.
        batch_size: pictures generated at once; None for what device and free memory allow.
        regions: who finds words in pictures, as `--regions` writes it.
        redo: "missing", "errors" (repeats failed units too), or "all".
        shard: (i, n) does the i-th of n parts, from 1; the others may run at the same time.
        offline: fetches nothing.
        progress: shows a bar with rate and time left.
        provenance: more entries for run.json (the command, for instance).
        pool: the whole tasks, whose examples methods may look at beside the one they edit; None if `tasks` are whole.

    Returns:
        One folder per setting, in their order.

    Raises:
        RiebenchError: before anything is generated, if a setting, block, SAE or folder cannot be used.
    """
    check_request(tasks, settings, redo, shard)
    suite = tasks[0].suite
    spec = parse_regions(regions)
    identity = spec.identity
    shelf: Shelf = {}
    prepared = {
        setting.name: prepare(setting, suite, model, results_root, saes_source, identity, offline, shelf)
        for setting in settings
    }
    folders = {name: one.folder for name, one in prepared.items()}
    units = plan(tasks, settings, seeds, limit)
    size = batch_size or automatic_batch_size(model)
    told = {**versions(model), "batch_size": size, **(provenance or {})}
    with open_folders(folders, units, model.spec, identity, told, redo=redo, shard=shard) as works:
        total = sum(len(work.units) for work in works)
        with tqdm(total=total, unit="image", desc=model.spec.name, disable=not progress) as bar:
            Runner(model, prepared, spec, size, bar, offline=offline, pool=pool or tasks).run(works)
    return list(folders.values())


class Runner:
    """Makes the units of a plan.

    Args:
        model: generates.
        prepared: setting name -> setting, ready to run; their folders are being written.
        regions: who finds words in pictures.
        batch_size: pictures generated at once.
        bar: counts units.
        offline: fetches nothing.
        pool: see `run_benchmark`.
    """

    def __init__(
        self, model: LoadedModel, prepared: Mapping[str, Prepared], regions: RegionSpec, batch_size: int, bar: Any,
        *, offline: bool = False, pool: Sequence[EditTask] = (),
    ) -> None:  # fmt: skip
        self.generator = Generator(model)
        self.model = model
        self.prepared = prepared
        self.batches = BatchSize(batch_size)
        self.recorder = Recorder(prepared, bar)
        self.painter = Painter(self.generator, self.batches)
        self.masks = MaskMaker(
            regions, self.recorder.shared, self.generator, batches=self.batches, offline=offline,
            progress=not bar.disable,
        )  # fmt: skip
        self.captures = CapturePlan(self.generator, prepared, self.masks.looks_at_attention)
        self.references = References(pool, self.generator, self.masks, self.captures)
        self.waiting = Waiting()

    def run(self, works: Sequence[Work]) -> None:
        """Makes everything, a few examples at a time."""
        self.masks.prepare([*works, *self.references.works(works)])
        nbytes = self.captures.bytes_held(works)
        start = 0
        while start < len(works):
            chunk = works[start : start + examples_together(nbytes, self.batches.size)]
            self.batches.each(chunk, len(ROLES), self._generate_pairs, self._run_examples, self._fail_work)
            start += len(chunk)
        self._flush()

    def _generate_pairs(self, works: Sequence[Work]) -> GenerationResult:
        """Source pictures of all examples, then target pictures of all, in one batch with equal noise."""
        prompts = [work.plain.source for work in works] + [work.plain.target for work in works]
        captures = self.captures.captures(works)
        return self.generator.generate(
            prompts, [work.noise for work in works] * 2, capture=captures, keep_latents=self.captures.keeps_latents,
            keep_prefix=self.captures.prefix(works),
        )  # fmt: skip

    def _fail_work(self, work: Work, why: str) -> None:
        self.recorder.finish(work.units, "error", why)

    def _run_examples(self, works: Sequence[Work], pair: GenerationResult) -> None:
        for index, work in enumerate(works):
            self._run_example(work, pair, index, len(works))
        # Edits of long runs read this trace: it can go only when they are done.
        if pair.traces[0].long or self.waiting.crowded:
            self._flush()

    def _run_example(self, work: Work, pair: GenerationResult, index: int, count: int) -> None:
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
            work.task.region_rule, latents, self.references.others(work),
        )  # fmt: skip
        made: dict[tuple[str, tuple[str, ...]], Edit | Reuse | str] = {}
        for unit in self._paint(work, masks, pictures):
            place = (unit.setting.name, unit.blocks)
            if place not in made:
                made[place] = self._edit(unit, runs)
            self._take(unit, made[place], work, masks, pictures, pair.prefix)

    def _paint(self, work: Work, masks: RegionMasks, pictures: Mapping[Role, NDArray[np.uint8]]) -> list[Unit]:
        """Makes the units of editors; returns the others."""

        def save(unit: Unit, picture: NDArray[np.uint8], seconds: float, together: int) -> None:
            took = {"seconds": seconds, "batch_size": together}
            self.recorder.save(unit, picture, {**self.recorder.details(unit, masks), **took})

        for name in dict.fromkeys(unit.setting.name for unit in work.units):
            method = self.prepared[name].method
            if isinstance(method, Editor):
                units = [unit for unit in work.units if unit.setting.name == name]
                self.painter.paint(method, units, work, pictures, save, self._fail_unit)
        return [unit for unit in work.units if not isinstance(self.prepared[unit.setting.name].method, Editor)]

    def _fail_unit(self, unit: Unit, why: str) -> None:
        self.recorder.finish([unit], "error", why)

    def _edit(self, unit: Unit, runs: ExampleRuns) -> Edit | Reuse | str:
        """The unit's edit at strength 1, or why there is none."""
        one = self.prepared[unit.setting.name]
        try:
            return one.method.edit(EditContext(runs, unit.blocks, one.saes), unit.setting.params)
        except DeviceLostError:
            raise
        except Exception as error:
            return reason(error)

    def _take(
        self, unit: Unit, made: Edit | Reuse | str, work: Work, masks: RegionMasks,
        pictures: Mapping[Role, NDArray[np.uint8]], prefix: Prefix | None,
    ) -> None:  # fmt: skip
        """Records a unit whose picture is known already, or puts it into the coming batch."""
        if isinstance(made, str):
            self._fail_unit(unit, made)
            return
        details = self.recorder.details(unit, masks)
        if isinstance(made, Reuse):
            self.recorder.save(unit, pictures[made.picture], details)
            return
        details["features"] = {
            block: BlockFeatures(add=add, remove=remove) for block, (add, remove) in made.features.items()
        }
        edit = replace(made, strength=unit.key.strength, window=self.prepared[unit.setting.name].window)
        known = edit.picture(self.model.spec.steps)
        if known is not None:
            # Generating it would give that picture again, bit for bit.
            self.recorder.save(unit, pictures[known], details)
            return
        full = self.waiting.add(Row(unit, edit, work.plain.source, work.noise, details, prefix), self.batches.size)
        if full:
            self._make(full)

    def _flush(self) -> None:
        while rows := self.waiting.take(self.batches.size):
            self._make(rows)

    def _make(self, rows: Sequence[Row]) -> None:
        """Generates and stores some rows."""
        self.batches.each(rows, 1, self._generate_rows, self._save_rows, self._fail_row)

    def _fail_row(self, row: Row, why: str) -> None:
        self._fail_unit(row.unit, why)

    def _generate_rows(self, rows: Sequence[Row]) -> tuple[NDArray[np.uint8], float]:
        """Pictures of one batch, and each one's share of the wall time."""
        start = time.perf_counter()
        result = self.generator.generate(
            [row.prompt for row in rows], [row.noise for row in rows], edits=[row.edit for row in rows],
            prefixes=prefixes(rows),
        )  # fmt: skip
        return result.images, (time.perf_counter() - start) / len(rows)

    def _save_rows(self, rows: Sequence[Row], made: tuple[NDArray[np.uint8], float]) -> None:
        images, seconds = made
        for row, picture in zip(rows, images, strict=True):
            self.recorder.save(row.unit, picture, {**row.details, "seconds": seconds, "batch_size": len(rows)})
