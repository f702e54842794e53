"""The coordinating side of a run with workers in other processes.

`run_with_workers` plans the run and starts a `WorkerPool`; a `Writer` hands out the work items and is the only one that
writes to the results folder.

A work item holds all configurations, blocks and strengths of an example and seed, whose source and target runs are
expensive to make twice. What a lost worker had not sent is made by another one; an example whose workers are lost
again and again is recorded as failed, and the others go on.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty, Full, Queue
from typing import Any, Protocol

from riebench.errors import RiebenchError, StoreError
from riebench.generation.regions.options import parse_regions
from riebench.methods.base import get_method
from riebench.runs.engines.worker import (
    Assignment,
    Message,
    RunFailure,
    SharedFile,
    UnitResult,
    WorkerFailure,
    WorkerInfo,
    WorkItem,
    work_items,
)
from riebench.runs.failures import STOP_AFTER, FailureWatch
from riebench.runs.plan import ExampleWork, check_request, plan, reference_work
from riebench.runs.prepare import open_folders
from riebench.runs.sae_check import check_saes
from riebench.store.folder import Redo, RunFolder, run_path
from riebench.store.records import EditRecord
from riebench.tasks.schema import EditTask
from riebench.utils.files import write_atomic
from riebench.utils.images import picture_path
from riebench.utils.terminal import ProgressBar

MAX_EVENTS = 16
"""Events of a pool that may wait for the caller; then the workers' threads wait."""
START_ATTEMPTS = 3
"""Workers that may be lost in a row while they load their model, before their slot is closed."""
POLL_SECONDS = 0.2
"""Seconds between two checks of whether the pool stops."""
JOIN_SECONDS = 10.0
"""Seconds that all threads of a pool together have to end."""
MAX_LOSSES = 3
"""Workers that may be lost over one example; times the number of slots plus one, those that may be lost in a row."""
ITEMS_PER_WORKER = 2
"""Items handed out for each worker: with one that waits it is never idle, and more would only fill the memory."""
EXAMPLES_PER_ITEM = 8
"""Examples in an item if region models look at them: these are loaded anew for every item."""
NOTICE_SECONDS = 30.0
"""Seconds without an event after which a line for people names what is being waited for."""

Say = Callable[[str], None]
"""Function that prints a line for people."""


class WorkerLostError(Exception):
    """Loss of a worker: its process, its machine or its device is gone."""


class Worker(Protocol):
    """One process with a loaded model, as the coordinator sees it."""

    def setup(self) -> WorkerInfo | RunFailure:
        """Wait until the model is loaded; return what the worker reports of itself."""
        ...

    def make(self, item: WorkItem) -> Iterator[Message]:
        """Make a work item in the worker; yield its messages as they arrive."""
        ...

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        ...


@dataclass(frozen=True)
class WorkerReady:
    """Event: a worker has loaded its model."""

    info: WorkerInfo


@dataclass(frozen=True)
class MessageReceived:
    """Event: a worker has sent something that it made."""

    message: SharedFile | UnitResult | RunFailure


@dataclass(frozen=True)
class ItemFinished:
    """Event: a work item was made to the end."""

    item: WorkItem


@dataclass(frozen=True)
class ItemLost:
    """Event: a worker was lost while it made a work item.

    What it had made of the item has arrived before.
    """

    item: WorkItem
    why: str


@dataclass(frozen=True)
class SlotClosed:
    """Event: a place for workers was closed, since they fail there; others go on."""

    why: str


@dataclass(frozen=True)
class PoolFailure:
    """Event: an error that no other worker would avoid."""

    error: Exception


Event = WorkerReady | MessageReceived | ItemFinished | ItemLost | SlotClosed | PoolFailure


class WorkerPool:
    """Workers, and the queue of work items that they take from.

    There is a thread for each slot, that is, for each worker that may run at the same time. It starts a worker, passes
    it one work item after the other, and starts another worker when one is lost. Ray's own pool of actors cannot do
    this: `ray.util.ActorPool` drops an actor that died and does not replace it, gives out an item's result only as a
    whole, and does not tell which item was lost.

    Args:
        start_worker: function that starts a worker.
        size: number of slots, that is, of workers at the same time.

    Attributes:
        size: number of slots.
    """

    def __init__(self, start_worker: Callable[[], Worker], size: int) -> None:
        self.size = size
        self._start_worker = start_worker
        self._events: Queue[Event] = Queue(MAX_EVENTS)
        self._items: Queue[WorkItem] = Queue()
        self._stopping = threading.Event()
        self._open_slots = size
        self._ready = 0
        self._count_lock = threading.Lock()
        self._workers: dict[int, Worker] = {}
        self._threads = [threading.Thread(target=self._run_slot, args=(slot,), daemon=True) for slot in range(size)]

    @property
    def ready(self) -> int:
        """The number of workers that have loaded their model and are not lost."""
        return self._ready

    def start(self) -> None:
        """Start all workers."""
        for thread in self._threads:
            thread.start()

    def submit(self, item: WorkItem) -> None:
        """Add a work item; the next free worker takes it."""
        self._items.put(item)

    def next_event(self, seconds: float) -> Event | None:
        """Wait for the next event; return None if there is none in that time."""
        try:
            return self._events.get(timeout=seconds)
        except Empty:
            return None

    def stop(self) -> None:
        """End all workers and threads; events that were not taken are dropped."""
        self._stopping.set()
        for worker in list(self._workers.values()):
            worker.stop()
        end = time.monotonic() + JOIN_SECONDS
        for thread in self._threads:
            thread.join(timeout=max(0.0, end - time.monotonic()))

    def _run_slot(self, slot: int) -> None:
        failed, worked = 0, False
        try:
            while not self._stopping.is_set():
                worker = self._workers[slot] = self._start_worker()
                try:
                    info = self._set_up(worker, worked)
                    failed, worked = 0, True
                    self._emit(WorkerReady(info))
                    self._work(worker)
                except WorkerLostError as error:
                    failed += 1
                    if failed >= START_ATTEMPTS:
                        self._close_slot(error)
                        return
                finally:
                    # A worker that counts as lost may still run, out of reach, and hold the GPU that the next one
                    # needs; and `stop` does not see a worker that was started while the pool was stopping.
                    worker.stop()
        except Exception as error:
            self._emit(PoolFailure(error))

    def _set_up(self, worker: Worker, worked: bool) -> WorkerInfo:
        answer = worker.setup()
        if isinstance(answer, RunFailure) and not worked:
            raise RiebenchError(answer.text)
        if not isinstance(answer, WorkerInfo):
            # Where another worker has loaded the model, the machine has changed and not the request.
            raise WorkerLostError(answer.text)
        return answer

    def _close_slot(self, error: WorkerLostError) -> None:
        with self._count_lock:
            self._open_slots -= 1
            last = not self._open_slots
        why = f"workers end while they load the model ({error}); is there memory for another one? Use fewer --workers"
        self._emit(PoolFailure(RiebenchError(why)) if last else SlotClosed(why))

    def _work(self, worker: Worker) -> None:
        """Make work items until the pool stops or the worker is lost."""
        self._change_ready(1)
        try:
            while not self._stopping.is_set():
                try:
                    item = self._items.get(timeout=POLL_SECONDS)
                except Empty:
                    continue
                try:
                    self._make(worker, item)
                except WorkerLostError as error:
                    self._emit(ItemLost(item, str(error)))
                    return
                self._emit(ItemFinished(item))
        finally:
            self._change_ready(-1)

    def _make(self, worker: Worker, item: WorkItem) -> None:
        for message in worker.make(item):
            if isinstance(message, WorkerFailure):
                raise WorkerLostError(message.text)
            self._emit(MessageReceived(message))

    def _change_ready(self, change: int) -> None:
        with self._count_lock:
            self._ready += change

    def _emit(self, event: Event) -> None:
        while not self._stopping.is_set():
            try:
                self._events.put(event, timeout=POLL_SECONDS)
            except Full:
                continue
            return


def run_with_workers(
    assignment: Assignment, start_worker: Callable[[], Worker], count: int, *, results_root: Path,
    seeds: Sequence[int], limit: int | None, redo: Redo, shard: tuple[int, int], progress: bool,
    provenance: Mapping[str, Any], say: Say, stop_after: int = STOP_AFTER, accept_sae: bool = False,
    most_together: int = 1,
) -> list[RunFolder]:  # fmt: skip
    """Make all edited pictures of a run with several workers.

    Args:
        assignment: everything that workers must know.
        start_worker: function that starts a worker.
        count: number of workers at the same time.
        results_root: as in `riebench.runs.runner.run_benchmark`, as is what follows.
        seeds: likewise.
        limit: likewise.
        redo: likewise.
        shard: likewise.
        progress: likewise.
        provenance: likewise.
        say: function that prints a line for people.
        stop_after: as in `riebench.runs.runner.run_benchmark`.
        accept_sae: likewise.
        most_together: largest number of examples in an item.

    Returns:
        One folder per configuration, in their order.

    Raises:
        NothingMadeError: as `stop_after` says.
        RiebenchError: for an error that every worker would meet. What has arrived is kept.
    """
    tasks, settings = assignment.tasks, assignment.settings
    check_request(tasks, settings, redo, shard)
    workers = WorkerPool(start_worker, count)
    workers.start()
    try:
        info = _first_info(workers, say)
        folders = {
            name: RunFolder(run_path(results_root, spec.suite, spec.model.name, name), spec)
            for name, spec in info.specs.items()
        }
        model = next(iter(info.specs.values())).model
        units = plan(tasks, settings, seeds, limit, usual=info.usual)
        notes = {**info.notes, "batch_size": info.batch_size, "workers": count, **provenance}
        regions = parse_regions(assignment.regions)
        checked = check_saes(info.saes, folders, units, accept=accept_sae, redo=redo, say=say)
        with open_folders(folders, units, model, regions.identity, notes, redo=redo, shard=shard) as works:
            for name, saes in checked.items():
                folders[name].write_sae_figures(saes)
            total = sum(len(work.units) for work in works)
            with ProgressBar[None](title=model.name, unit="image", total=total, shown=progress) as bar:
                writer = Writer(workers, folders, info, bar, say, tasks=assignment.pool)
                if regions.models:
                    items = work_items(works, EXAMPLES_PER_ITEM)
                else:
                    items = work_items(works, most_together, count)
                writer.run(works, items, stop_after)
    finally:
        workers.stop()
    return list(folders.values())


def _first_info(workers: WorkerPool, say: Say) -> WorkerInfo:
    """Wait for the first worker that is ready; return what it reports of itself."""
    while True:
        event = workers.next_event(NOTICE_SECONDS)
        if event is None:
            say("still waiting for a first worker: for a free place in the cluster, or for its model to load")
        elif isinstance(event, WorkerReady):
            return event.info
        elif isinstance(event, SlotClosed):
            say(f"one worker less: {event.why}")
        else:
            assert isinstance(event, PoolFailure)
            raise event.error


class Writer:
    """Writer of the workers' results, which also hands out the work items.

    Args:
        workers: the pool.
        folders: configuration name -> its folder, open for writing.
        info: report of the first worker; those of the others must agree with it.
        bar: progress bar that counts units.
        say: function that prints a line for people.
        tasks: whole tasks, whose examples may serve as references.
    """

    def __init__(
        self, workers: WorkerPool, folders: Mapping[str, RunFolder], info: WorkerInfo, bar: Any, say: Say, *,
        tasks: Sequence[EditTask] = (),
    ) -> None:  # fmt: skip
        self.workers, self.folders, self.info, self.bar, self.say = workers, folders, info, bar, say
        self.shared = next(iter(folders.values())).shared
        self.tasks = {task.name: task for task in tasks}
        self.losses: Counter[tuple[str, str, int]] = Counter()
        self.losses_in_row = 0
        """Workers lost one after the other, with nothing made between."""
        self.recorded: set[tuple[str, str]] = set()
        self.pending: deque[tuple[ExampleWork, ...]] = deque()
        self.in_progress = 0
        self.failures = FailureWatch(0)

    def run(
        self, works: Sequence[ExampleWork], items: Sequence[tuple[ExampleWork, ...]], stop_after: int = 0
    ) -> None:  # fmt: skip
        """Hand out all work and write everything that is made.

        Args:
            works: the examples to make.
            items: the same in items, in the order in which workers take them.
            stop_after: see `run_with_workers`.

        Raises:
            NothingMadeError: likewise.
        """
        self.failures = FailureWatch(stop_after, works)
        self.pending.extend(items)
        self._submit_pending()
        while self.in_progress:
            event = self.workers.next_event(NOTICE_SECONDS)
            if event is not None:
                self._handle(event)
            elif not self.workers.ready:
                self.say("no worker is left; still waiting for a free place in the cluster, or for a model to load")

    def _submit_pending(self) -> None:
        while self.pending and self.in_progress < ITEMS_PER_WORKER * self.workers.size:
            works = self.pending.popleft()
            self.in_progress += 1
            self.workers.submit(WorkItem(works, self._stored_files(works)))

    def _handle(self, event: Event) -> None:
        if isinstance(event, WorkerReady):
            self._check_same_run(event.info)
        elif isinstance(event, MessageReceived):
            self._store(event.message)
        elif isinstance(event, ItemFinished | ItemLost):
            self.in_progress -= 1
            if isinstance(event, ItemLost):
                self._requeue(event)
            else:
                # Inside an item, units that fail at once come before those that are generated.
                self.failures.check()
            self._submit_pending()
        elif isinstance(event, SlotClosed):
            self.say(f"one worker less: {event.why}")
        else:
            raise event.error

    def _check_same_run(self, info: WorkerInfo) -> None:
        for name, spec in self.info.specs.items():
            if info.specs[name].run_id != spec.run_id:
                other = info.specs[name].run_id
                raise RiebenchError(
                    f"workers do not agree on what {name!r} is: run {spec.run_id[:8]} and {other[:8]}; give all "
                    "machines the same models, SAEs and version of riebench"
                )

    def _store(self, message: SharedFile | UnitResult | RunFailure) -> None:
        if isinstance(message, RunFailure):
            raise RiebenchError(message.text)
        if isinstance(message, SharedFile):
            self.shared.write(message.name, message.data)
            return
        record, folder = message.record, self.folders[message.setting]
        if record.image is not None:
            if message.picture is None or hashlib.sha256(message.picture).hexdigest() != record.image_sha256:
                raise StoreError(f"picture {record.image} did not arrive whole; repeat the same command")
            write_atomic(picture_path(folder.pictures, record.image), message.picture)
        self._record(message.setting, record)
        self.losses_in_row = 0

    def _record(self, setting: str, record: EditRecord) -> None:
        self.folders[setting].append(record)
        self.failures.note(record)
        self.recorded.add((setting, record.key.digest))
        self.bar.update()

    def _requeue(self, lost: ItemLost) -> None:
        """Queue again the units that a lost worker had not made.

        Each example becomes an item of its own: only an example that was alone in its item can be blamed for the loss.
        """
        alone = len(lost.item.works) == 1
        self.losses_in_row += 1
        if self.losses_in_row > MAX_LOSSES * (self.workers.size + 1):
            raise RiebenchError(
                f"{self.losses_in_row} workers in a row were lost before they had made anything, the last one so: "
                f"{lost.why}; a smaller --batch-size or fewer --workers need less memory"
            )
        for work in lost.item.works:
            units = [unit for unit in work.units if (unit.setting.name, unit.key.digest) not in self.recorded]
            place = (work.task.name, work.example.id, work.seed)
            self.losses[place] += alone
            if not units:
                continue
            if self.losses[place] < MAX_LOSSES:
                self.pending.appendleft((replace(work, units=units),))
                continue
            why = (
                f"{MAX_LOSSES} workers were lost while this example was made, the last one so: {lost.why}; --redo "
                "errors tries again, a smaller --batch-size needs less memory"
            )
            for unit in units:
                record = EditRecord(key=unit.key, status="error", reason=why, cluster=unit.example.cluster)
                self._record(unit.setting.name, record)
        self.say(f"a worker was lost ({lost.why}); another one takes over")

    def _stored_files(self, works: Sequence[ExampleWork]) -> tuple[SharedFile, ...]:
        """Read the files that are stored of some examples and of their references.

        Of the references, which methods look at beside the examples, these are only the masks.
        """
        names: dict[str, None] = {}
        for work in works:
            key = work.units[0].key
            names |= dict.fromkeys(self.shared.image_name(key, role) for role in ("source", "target"))
            names[self.shared.mask_name(key)] = None
            if any("others" in get_method(unit.setting.method).needs for unit in work.units):
                beside = self.tasks.get(work.task.name, work.task).examples
                keys = [reference_work(work, example).units[0].key for example in beside]
                names |= dict.fromkeys(self.shared.mask_name(one) for one in keys)
        paths = {name: picture_path(self.shared.path, name) for name in names}
        return tuple(SharedFile(name, path.read_bytes()) for name, path in paths.items() if path.is_file())
