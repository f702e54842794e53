"""The main job: plan edited images, skip those that exist, make the rest in batches, record each one.

Source and target runs, their traces and masks are made once per example and seed and serve all settings. Rows of one
batch may belong to different examples, settings, block sets and strengths. At most a few examples' traces are in
memory at a time, however many there are.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from riebench.batching import BatchSize, automatic_batch_size
from riebench.capturing import CapturePlan
from riebench.edits import Edit
from riebench.errors import MemoryShortageError, RiebenchError, reason
from riebench.generate import GenerationResult, Generator
from riebench.masking import MaskMaker
from riebench.methods.base import EditContext, ExampleRuns, Reuse, Role
from riebench.methods.foreign import Editor
from riebench.models import LoadedModel
from riebench.opening import opened
from riebench.painting import paint
from riebench.planning import (
    Prepared,
    Shelf,
    Unit,
    Work,
    check_request,
    plan,
    prepare,
    versions,
)
from riebench.prefix import Prefix
from riebench.records import BlockFeatures, EditRecord
from riebench.references import References
from riebench.region_specs import DEFAULT_REGIONS, RegionSpec, parse_regions
from riebench.regions import RegionMasks
from riebench.rows import Row, Waiting, prefixes
from riebench.schema import EditTask, Setting
from riebench.store import Redo, RunFolder

__all__ = ["Runner", "plan", "run_benchmark"]

T = TypeVar("T")

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
    with opened(folders, units, model.spec, identity, told, redo=redo, shard=shard) as works:
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
        self.bar = bar
        self.shared = next(iter(prepared.values())).folder.shared
        self.masks = MaskMaker(
            regions, self.shared, self.generator, batch_size=batch_size, offline=offline, progress=not bar.disable
        )
        self.captures = CapturePlan(self.generator, prepared, self.masks.looks_at_attention)
        self.references = References(pool, self.generator, self.masks, self.captures)
        self.waiting = Waiting()

    def run(self, works: Sequence[Work]) -> None:
        """Makes everything, a few examples at a time."""
        self.masks.prepare([*works, *self.references.works(works)])
        left = list(works)
        while left:
            chunk = self.captures.examples(works, self.batches.size)
            self._run_chunk(left[:chunk])
            del left[:chunk]
        self._flush()

    def _run_chunk(self, works: Sequence[Work]) -> None:
        parts = self._fitting(works, 2)
        if len(parts) > 1:
            for part in parts:
                self._run_chunk(part)
            return
        try:
            pair = self._generate_pairs(works)
        except Exception as error:
            if len(works) > 1:
                for part in self._parts(works, error, 2 * len(works)):
                    self._run_chunk(part)
                return
            self._refuse_shortage(error)
            self._finish(works[0].units, "error", reason(error))
            return
        self.batches.fitted()
        for index, work in enumerate(works):
            self._run_example(work, pair, index, len(works))
        # Edits of long runs read this trace: it can go only when they are done.
        if pair.traces[0].long or self.waiting.crowded:
            self._flush()

    def _parts(self, items: Sequence[T], error: Exception, pictures: int) -> list[Sequence[T]]:
        """What to try after a batch failed: smaller ones if memory was short, else one by one, to know whose it is."""
        if not isinstance(error, MemoryShortageError):
            return [[item] for item in items]
        self.batches.shrink(pictures)
        return self._fitting(items, pictures // len(items))

    def _fitting(self, items: Sequence[T], pictures: int) -> list[Sequence[T]]:
        """Items of so many pictures each, in parts that memory is thought to suffice for."""
        size = max(1, self.batches.size // pictures)
        return [items[start : start + size] for start in range(0, len(items), size)]

    def _refuse_shortage(self, error: Exception) -> None:
        # What does not fit alone where nothing else has fitted: going on would fail every unit to come in its turn.
        if isinstance(error, MemoryShortageError) and not self.batches.proven:
            raise error

    def _generate_pairs(self, works: Sequence[Work]) -> GenerationResult:
        """Source pictures of all examples, then target pictures of all, in one batch with equal noise."""
        prompts = [work.plain.source for work in works] + [work.plain.target for work in works]
        captures = self.captures.captures(works)
        return self.generator.generate(
            prompts, [work.noise for work in works] * 2, capture=captures, keep_latents=self.captures.keeps_latents,
            keep_prefix=self.captures.prefix(works),
        )  # fmt: skip

    def _run_example(self, work: Work, pair: GenerationResult, index: int, count: int) -> None:
        source = self._shared_image(work, "source", pair.images[index])
        target = self._shared_image(work, "target", pair.images[index + count])
        try:
            masks = self.masks.masks(work, pair, index, count)
        except RiebenchError as error:
            self._finish(work.units, "error", reason(error))
            return
        if masks.empty:
            self._finish(work.units, "skipped", NO_REGION)
            return
        rows: dict[Role, int] = {"source": index, "target": index + count}
        latents = {} if pair.latents is None else {role: pair.latents[row] for role, row in rows.items()}
        runs = ExampleRuns(
            work.plain, work.seed, pair.traces[0], rows, masks, self.captures.unit_layers, self.captures.measure(work),
            work.task.region_rule, latents, self.references.others(work),
        )  # fmt: skip
        pictures: dict[Role, NDArray[np.uint8]] = {"source": source, "target": target}
        made: dict[tuple[str, tuple[str, ...]], Edit | Reuse | str] = {}
        for unit in self._paint(work, masks, pictures):
            place = (unit.setting.name, unit.blocks)
            if place not in made:
                made[place] = self._edit(unit, runs)
            self._take(unit, made[place], work, masks, pictures, pair.prefix)

    def _paint(self, work: Work, masks: RegionMasks, pictures: Mapping[Role, NDArray[np.uint8]]) -> list[Unit]:
        """Makes the units of editors; returns the others."""
        for name in dict.fromkeys(unit.setting.name for unit in work.units):
            method = self.prepared[name].method
            if isinstance(method, Editor):
                units = [unit for unit in work.units if unit.setting.name == name]
                for one in paint(self.generator, method, units, work, pictures, self.batches.size):
                    if isinstance(one.made, str):
                        self._finish([one.unit], "error", one.made)
                        continue
                    took = {"seconds": one.seconds, "batch_size": one.together}
                    self._save(one.unit, one.made, {**self._details(one.unit, masks), **took})
        return [unit for unit in work.units if not isinstance(self.prepared[unit.setting.name].method, Editor)]

    def _details(self, unit: Unit, masks: RegionMasks) -> dict[str, Any]:
        """What every record with a picture says."""
        return {
            "source_image": self.shared.image_name(unit.key, "source"),
            "target_image": self.shared.image_name(unit.key, "target"),
            "mask_share": masks.share,
        }

    def _edit(self, unit: Unit, runs: ExampleRuns) -> Edit | Reuse | str:
        """The unit's edit at strength 1, or why there is none."""
        one = self.prepared[unit.setting.name]
        try:
            return one.method.edit(EditContext(runs, unit.blocks, one.saes), unit.setting.params)
        except Exception as error:
            return reason(error)

    def _take(
        self, unit: Unit, made: Edit | Reuse | str, work: Work, masks: RegionMasks,
        pictures: Mapping[Role, NDArray[np.uint8]], prefix: Prefix | None,
    ) -> None:  # fmt: skip
        """Records a unit whose picture is known already, or puts it into the coming batch."""
        if isinstance(made, str):
            self._finish([unit], "error", made)
            return
        details = self._details(unit, masks)
        if isinstance(made, Reuse):
            self._save(unit, pictures[made.picture], details)
            return
        details["features"] = {
            block: BlockFeatures(add=add, remove=remove) for block, (add, remove) in made.features.items()
        }
        edit = replace(made, strength=unit.key.strength, window=self.prepared[unit.setting.name].window)
        known = edit.picture(self.model.spec.steps)
        if known is not None:
            # Generating it would give that picture again, bit for bit.
            self._save(unit, pictures[known], details)
            return
        row = Row(unit, edit, work.plain.source, work.noise, details, prefix)
        full = self.waiting.add(row, self.batches.size)
        if full:
            self._make(full)

    def _flush(self) -> None:
        while rows := self.waiting.take(self.batches.size):
            self._make(rows)

    def _make(self, rows: Sequence[Row]) -> None:
        """Generates and stores one batch; if it fails, parts of it are tried."""
        parts = self._fitting(rows, 1)
        if len(parts) > 1:
            for part in parts:
                self._make(part)
            return
        start = time.perf_counter()
        try:
            result = self.generator.generate(
                [row.prompt for row in rows], [row.noise for row in rows], edits=[row.edit for row in rows],
                prefixes=prefixes(rows),
            )  # fmt: skip
        except Exception as error:
            if len(rows) > 1:
                for part in self._parts(rows, error, len(rows)):
                    self._make(part)
            else:
                self._refuse_shortage(error)
                self._finish([rows[0].unit], "error", reason(error))
            return
        self.batches.fitted()
        seconds = (time.perf_counter() - start) / len(rows)
        for row, picture in zip(rows, result.images, strict=True):
            self._save(row.unit, picture, {**row.details, "seconds": seconds, "batch_size": len(rows)})

    def _save(self, unit: Unit, picture: NDArray[np.uint8], details: Mapping[str, Any]) -> None:
        folder = self.prepared[unit.setting.name].folder
        name, sha256 = folder.write_image(unit.key, picture)
        folder.append(
            EditRecord(
                key=unit.key, status="ok", image=name, image_sha256=sha256, cluster=unit.example.cluster, **details
            )
        )
        self.bar.update()

    def _finish(self, units: Sequence[Unit], status: Literal["skipped", "error"], reason: str) -> None:
        """Records units that have no picture."""
        for unit in units:
            record = EditRecord(key=unit.key, status=status, reason=reason, cluster=unit.example.cluster)
            self.prepared[unit.setting.name].folder.append(record)
            self.bar.update()

    def _shared_image(self, work: Work, role: Literal["source", "target"], fresh: NDArray[np.uint8]
                      ) -> NDArray[np.uint8]:  # fmt: skip
        """Stores a source or target picture; the one that earlier settings were compared with stays."""
        name = self.shared.image_name(work.units[0].key, role)
        if not (self.shared.path / name).exists():
            self.shared.write_image(name, fresh)
        return self.shared.read_image(name)
