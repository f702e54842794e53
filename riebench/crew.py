"""Several workers that make parcels at the same time, and one place where everything they make arrives in turn.

Each worker has a thread here that waits for it; threads hand what comes to the one caller of `Crew.next` through a
short queue, so that workers are held up, and memory is not filled, if the caller cannot keep pace. A worker that is
lost is replaced; what becomes of its parcel is the caller's decision.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from queue import Empty, Full, Queue
from typing import Protocol

from riebench.errors import RiebenchError
from riebench.remote import Item, Made, Parcel, Refused, Sent, Sick, Told

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
