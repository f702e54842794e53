"""A run whose pictures are made by workers in other processes: plans, hands out, and is the one writer.

Workers pull parcels: all settings, blocks and strengths of an example and seed, whose source and target runs are dear
to make twice. What a lost worker had not sent is made by another; an example that takes its worker along again and
again is recorded as failed, and the others go on.
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

from tqdm import tqdm

from riebench.errors import RiebenchError, StoreError
from riebench.generation.regions.options import parse_regions
from riebench.methods.base import get_method
from riebench.runs.engines.worker import Assignment, Item, Made, Parcel, Refused, Sent, Sick, Told, parcels
from riebench.runs.plan import Work, check_request, plan, reference_work
from riebench.runs.prepare import open_folders
from riebench.store.folder import Redo, RunFolder, run_path
from riebench.store.records import EditRecord
from riebench.utils.files import write_atomic

HANDED = 16
"""Things that wait for the caller."""
STARTS = 3
"""Times that a worker may be lost while it loads its model, one after the other."""
GLANCE = 0.2
"""Seconds between looks at whether all is over."""
ENDING = 10.0
"""Seconds that all threads together have to end."""


class WorkerLostError(Exception):
    """A worker's process, its machine or its device is gone."""


class Worker(Protocol):
    """One process with a loaded model, seen from here."""

    def setup(self) -> Told | Refused:
        """Waits until the model is loaded."""
        ...

    def make(self, parcel: Parcel) -> Iterator[Item]:
        """Has a parcel made."""
        ...

    def stop(self) -> None:
        """Ends the process, whatever it is doing."""
        ...


@dataclass(frozen=True)
class Ready:
    """A worker has loaded its model."""

    told: Told


@dataclass(frozen=True)
class Arrived:
    """Something was made."""

    item: Sent | Made | Refused


@dataclass(frozen=True)
class Finished:
    """A parcel was made to the end."""

    parcel: Parcel


@dataclass(frozen=True)
class Lost:
    """A worker was lost; what it had made of the parcel has arrived before."""

    parcel: Parcel
    why: str


@dataclass(frozen=True)
class Left:
    """A place has been given up because workers do not live there; others go on."""

    why: str


@dataclass(frozen=True)
class Broken:
    """Something that no other worker would do better."""

    error: Exception


Event = Ready | Arrived | Finished | Lost | Left | Broken


class Crew:
    """Workers and the parcels that wait for them.

    Args:
        hire: starts a worker.
        size: how many work at the same time.

    Attributes:
        size: likewise.
    """

    def __init__(self, hire: Callable[[], Worker], size: int) -> None:
        self.size = size
        self._hire = hire
        self._events: Queue[Event] = Queue(HANDED)
        self._parcels: Queue[Parcel] = Queue()
        self._over = threading.Event()
        self._seats = size
        self._ready = 0
        self._counting = threading.Lock()
        self._workers: dict[int, Worker] = {}
        self._threads = [threading.Thread(target=self._seat, args=(seat,), daemon=True) for seat in range(size)]

    @property
    def ready(self) -> int:
        """Workers that have loaded their model and are not lost."""
        return self._ready

    def start(self) -> None:
        """Starts all workers."""
        for thread in self._threads:
            thread.start()

    def give(self, parcel: Parcel) -> None:
        """Adds a parcel; whichever worker is free takes it."""
        self._parcels.put(parcel)

    def next(self, seconds: float) -> Event | None:
        """What happened next; None if nothing did for a while."""
        try:
            return self._events.get(timeout=seconds)
        except Empty:
            return None

    def stop(self) -> None:
        """Ends all workers and threads; what they have not handed over is lost."""
        self._over.set()
        for worker in list(self._workers.values()):
            worker.stop()
        end = time.monotonic() + ENDING
        for thread in self._threads:
            thread.join(timeout=max(0.0, end - time.monotonic()))

    def _seat(self, seat: int) -> None:
        failed, worked = 0, False
        try:
            while not self._over.is_set():
                worker = self._workers[seat] = self._hire()
                try:
                    told = self._set_up(worker, worked)
                    failed, worked = 0, True
                    self._hand(Ready(told))
                    self._work(worker)
                except WorkerLostError as error:
                    failed += 1
                    if failed >= STARTS:
                        self._give_up(error)
                        return
                finally:
                    # One that counts as lost may live on, out of reach, and hold the GPU that the next one needs;
                    # and what was hired while all was ending, `stop` has not seen.
                    worker.stop()
        except Exception as error:
            self._hand(Broken(error))

    def _set_up(self, worker: Worker, worked: bool) -> Told:
        told = worker.setup()
        if isinstance(told, Refused) and not worked:
            raise RiebenchError(told.text)
        if not isinstance(told, Told):
            # Where a worker has lived, it is the machine that has changed, not what was asked for.
            raise WorkerLostError(told.text)
        return told

    def _give_up(self, error: WorkerLostError) -> None:
        with self._counting:
            self._seats -= 1
            last = not self._seats
        why = f"workers end while they load the model ({error}); is there memory for another one? Use fewer --workers"
        self._hand(Broken(RiebenchError(why)) if last else Left(why))

    def _work(self, worker: Worker) -> None:
        """Takes parcels until all is over, or until the worker is lost."""
        self._count(1)
        try:
            while not self._over.is_set():
                try:
                    parcel = self._parcels.get(timeout=GLANCE)
                except Empty:
                    continue
                try:
                    self._make(worker, parcel)
                except WorkerLostError as error:
                    self._hand(Lost(parcel, str(error)))
                    return
                self._hand(Finished(parcel))
        finally:
            self._count(-1)

    def _make(self, worker: Worker, parcel: Parcel) -> None:
        for item in worker.make(parcel):
            if isinstance(item, Sick):
                raise WorkerLostError(item.text)
            self._hand(Arrived(item))

    def _count(self, change: int) -> None:
        with self._counting:
            self._ready += change

    def _hand(self, event: Event) -> None:
        while not self._over.is_set():
            try:
                self._events.put(event, timeout=GLANCE)
            except Full:
                continue
            return


LOSSES = 3
"""Workers that one example may take along; times the number of places and one more, those that may be lost in a row."""
AHEAD = 2
"""Parcels that are out for each worker: with one that waits it is never idle, and more would only fill the memory."""
LOOKED_TOGETHER = 8
"""Examples in a parcel if region models look at them: these are loaded anew for every parcel."""
PATIENCE = 30.0
"""Seconds without news after which people are told what is being waited for."""

Say = Callable[[str], None]


def run_with_workers(
    assignment: Assignment, hire: Callable[[], Worker], count: int, *, results_root: Path, seeds: Sequence[int],
    limit: int | None, redo: Redo, shard: tuple[int, int], progress: bool, provenance: Mapping[str, Any], say: Say,
) -> list[RunFolder]:  # fmt: skip
    """Makes all edited images of a run with several workers.

    Args:
        assignment: what workers must know.
        hire: starts one.
        count: how many work at the same time.
        results_root: as in `riebench.runs.runner.run_benchmark`, as is what follows.
        seeds: likewise.
        limit: likewise.
        redo: likewise.
        shard: likewise.
        progress: likewise.
        provenance: likewise.
        say: receives lines for people.

    Returns:
        One folder per setting, in their order.

    Raises:
        RiebenchError: for what no worker can do. What has arrived is kept.
    """
    tasks, settings = assignment.tasks, assignment.settings
    check_request(tasks, settings, redo, shard)
    crew = Crew(hire, count)
    crew.start()
    try:
        told = _first(crew, say)
        folders = {
            name: RunFolder(run_path(results_root, spec.suite, spec.model.name, name), spec)
            for name, spec in told.specs.items()
        }
        model = next(iter(told.specs.values())).model
        units = plan(tasks, settings, seeds, limit)
        notes = {**told.notes, "batch_size": told.batch_size, "workers": count, **provenance}
        regions = parse_regions(assignment.regions)
        with open_folders(folders, units, model, regions.identity, notes, redo=redo, shard=shard) as works:
            total = sum(len(work.units) for work in works)
            with tqdm(total=total, unit="image", desc=model.name, disable=not progress) as bar:
                writer = Writer(crew, folders, told, bar, say, pool=assignment.pool)
                writer.run(works, LOOKED_TOGETHER if regions.models else 1)
    finally:
        crew.stop()
    return list(folders.values())


def _first(crew: Crew, say: Say) -> Told:
    """What the first worker tells that is ready."""
    while True:
        event = crew.next(PATIENCE)
        if event is None:
            say("still waiting for a first worker: for a free place in the cluster, or for its model to load")
        elif isinstance(event, Ready):
            return event.told
        elif isinstance(event, Left):
            say(f"one worker less: {event.why}")
        else:
            assert isinstance(event, Broken)
            raise event.error


class Writer:
    """Writes what workers make, and gives them what is to be made.

    Args:
        crew: the workers.
        folders: setting name -> its folder, open for writing.
        told: what the first worker told.
        bar: counts units.
        say: receives lines for people.
        pool: whole tasks.
    """

    def __init__(
        self, crew: Crew, folders: Mapping[str, RunFolder], told: Told, bar: Any, say: Say, *, pool: Sequence[Any] = ()
    ) -> None:
        self.crew, self.folders, self.told, self.bar, self.say = crew, folders, told, bar, say
        self.shared = next(iter(folders.values())).shared
        self.pool = {task.name: task for task in pool}
        self.losses: Counter[tuple[str, str, int]] = Counter()
        self.barren = 0
        """Workers lost one after the other, and nothing made between."""
        self.recorded: set[tuple[str, str]] = set()
        self.waiting: deque[tuple[Work, ...]] = deque()
        self.open = 0

    def run(self, works: Sequence[Work], together: int) -> None:
        """Has everything made and written.

        Args:
            works: what to make.
            together: examples in one parcel.
        """
        self.waiting.extend(parcels(works, together))
        self._give()
        while self.open:
            event = self.crew.next(PATIENCE)
            if event is not None:
                self._take(event)
            elif not self.crew.ready:
                self.say("no worker is left; still waiting for a free place in the cluster, or for a model to load")

    def _give(self) -> None:
        while self.waiting and self.open < AHEAD * self.crew.size:
            works = self.waiting.popleft()
            self.open += 1
            self.crew.give(Parcel(works, self._stored(works)))

    def _take(self, event: Event) -> None:
        if isinstance(event, Ready):
            self._compare(event.told)
        elif isinstance(event, Arrived):
            self._write(event.item)
        elif isinstance(event, Finished | Lost):
            self.open -= 1
            if isinstance(event, Lost):
                self._again(event)
            self._give()
        elif isinstance(event, Left):
            self.say(f"one worker less: {event.why}")
        else:
            raise event.error

    def _compare(self, told: Told) -> None:
        for name, spec in self.told.specs.items():
            if told.specs[name].run_id != spec.run_id:
                other = told.specs[name].run_id
                raise RiebenchError(
                    f"workers do not agree on what {name!r} is: run {spec.run_id[:8]} and {other[:8]}; give all "
                    "machines the same models, SAEs and version of riebench"
                )

    def _write(self, item: Sent | Made | Refused) -> None:
        if isinstance(item, Refused):
            raise RiebenchError(item.text)
        if isinstance(item, Sent):
            self.shared.write(item.name, item.data)
            return
        record, folder = item.record, self.folders[item.setting]
        if record.image is not None:
            if item.picture is None or hashlib.sha256(item.picture).hexdigest() != record.image_sha256:
                raise StoreError(f"picture {record.image} did not arrive whole; repeat the same command")
            write_atomic(folder.path / record.image, item.picture)
        self._record(item.setting, record)
        self.barren = 0

    def _record(self, setting: str, record: EditRecord) -> None:
        self.folders[setting].append(record)
        self.recorded.add((setting, record.key.digest))
        self.bar.update()

    def _again(self, lost: Lost) -> None:
        """Gives what a lost worker had left to others, one example at a time: only a lone one can be blamed."""
        alone = len(lost.parcel.works) == 1
        self.barren += 1
        if self.barren > LOSSES * (self.crew.size + 1):
            raise RiebenchError(
                f"{self.barren} workers in a row were lost before they had made anything, the last one so: {lost.why}; "
                "a smaller --batch-size or fewer --workers need less memory"
            )
        for work in lost.parcel.works:
            units = [unit for unit in work.units if (unit.setting.name, unit.key.digest) not in self.recorded]
            place = (work.task.name, work.example.id, work.seed)
            self.losses[place] += alone
            if not units:
                continue
            if self.losses[place] < LOSSES:
                self.waiting.appendleft((replace(work, units=units),))
                continue
            why = (
                f"{LOSSES} workers were lost while this example was made, the last one so: {lost.why}; --redo errors "
                "tries again, a smaller --batch-size needs less memory"
            )
            for unit in units:
                record = EditRecord(key=unit.key, status="error", reason=why, cluster=unit.example.cluster)
                self._record(unit.setting.name, record)
        self.say(f"a worker was lost ({lost.why}); another one takes over")

    def _stored(self, works: Sequence[Work]) -> tuple[Sent, ...]:
        """What is stored of some examples, and the masks of those that methods look at beside them."""
        names: dict[str, None] = {}
        for work in works:
            key = work.units[0].key
            names |= dict.fromkeys(self.shared.image_name(key, role) for role in ("source", "target"))
            names[self.shared.mask_name(key)] = None
            if any("others" in get_method(unit.setting.method).needs for unit in work.units):
                beside = self.pool.get(work.task.name, work.task).examples
                keys = [reference_work(work, example).units[0].key for example in beside]
                names |= dict.fromkeys(self.shared.mask_name(one) for one in keys)
        paths = {name: self.shared.path / name for name in names}
        return tuple(Sent(name, path.read_bytes()) for name, path in paths.items() if path.is_file())
