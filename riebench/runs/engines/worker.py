"""The side of an engine that makes pictures in another process: it sends what it makes and writes to no results folder.

A `Maker` runs the same `Runner` as a single process does, on a scratch folder whose records, pictures and masks are
sent to the one writer instead of being kept. Nothing here knows how processes are started or how things are sent.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Queue
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
from numpy.typing import NDArray
from tqdm import tqdm

from riebench.errors import DeviceLostError, reason
from riebench.generation.memory import automatic_batch_size
from riebench.generation.regions.options import parse_regions
from riebench.models.lookup import ModelRecipe
from riebench.runs.plan import Work
from riebench.runs.prepare import check_prompts, prepare, versions
from riebench.store.folder import RunFolder, SharedFolder
from riebench.store.records import EditRecord, RunSpec, UnitKey
from riebench.tasks.schema import EditTask, Setting
from riebench.utils.images import encode_png

if TYPE_CHECKING:
    from riebench.runs.runner import Runner

SCRATCH = "riebench-worker-"
"""What names of scratch folders begin with; the number of the process follows."""
WAITING = 8
"""Things made that may wait to be sent; then the making waits."""


@dataclass(frozen=True)
class Assignment:
    """All that a worker must know of a run before it makes anything; see `riebench.runs.runner.run_benchmark`."""

    tasks: tuple[EditTask, ...]
    settings: tuple[Setting, ...]
    recipe: ModelRecipe
    saes_source: str | None
    batch_size: int | None
    regions: str
    offline: bool
    pool: tuple[EditTask, ...]


@dataclass(frozen=True)
class Told:
    """What a worker says of itself once its model is loaded.

    Attributes:
        specs: setting name -> its run, with the hashes of what was loaded here.
        notes: versions and device, for run.json.
        batch_size: pictures generated at once.
    """

    specs: dict[str, RunSpec]
    notes: dict[str, Any]
    batch_size: int


@dataclass(frozen=True)
class Sent:
    """A shared file: a source or target picture, or masks."""

    name: str
    data: bytes


@dataclass(frozen=True)
class Made:
    """A unit's record, with its picture's file if it has one."""

    setting: str
    record: EditRecord
    picture: bytes | None


@dataclass(frozen=True)
class Refused:
    """Why this worker, and so every other, cannot go on: one line for the user."""

    text: str


@dataclass(frozen=True)
class Sick:
    """Why this worker cannot go on, though another one can: its device computes no more."""

    text: str


Item = Sent | Made | Refused | Sick


@dataclass(frozen=True)
class Parcel:
    """Works that one worker makes in one go.

    Attributes:
        works: examples with their units.
        shared: what is stored of these examples already, which is used and not made again.
    """

    works: tuple[Work, ...]
    shared: tuple[Sent, ...] = ()


class Maker:
    """A loaded model that makes parcels.

    Args:
        assignment: the run.

    Raises:
        RiebenchError: if something does not fit together.
    """

    def __init__(self, assignment: Assignment) -> None:
        from riebench.runs.runner import Runner

        sweep_scratch()
        self._scratch = tempfile.TemporaryDirectory(prefix=f"{SCRATCH}{os.getpid()}-")
        self._send: Callable[[Item], None] = _nowhere
        model = assignment.recipe.load()
        check_prompts(model, assignment.tasks)
        regions = parse_regions(assignment.regions)
        shelf: dict[Any, Any] = {}
        prepared = {}
        for setting in assignment.settings:
            one = prepare(
                setting, assignment.tasks[0].suite, model, Path(self._scratch.name), assignment.saes_source,
                regions.identity, assignment.offline, shelf,
            )  # fmt: skip
            prepared[setting.name] = replace(one, folder=SendingFolder(one.folder, setting.name, self.send))
        size = assignment.batch_size or automatic_batch_size(model)
        self.told = Told({name: one.folder.spec for name, one in prepared.items()}, versions(model), size)
        self._shared = next(iter(prepared.values())).folder.shared
        self._runner: Runner = Runner(
            model, prepared, regions, size, tqdm(disable=True), offline=assignment.offline, pool=assignment.pool
        )

    def send(self, item: Item) -> None:
        """Sends something that was made."""
        self._send(item)

    def make(self, parcel: Parcel) -> Iterator[Item]:
        """Makes a parcel and yields what comes of it as it comes; shared files come before what names them."""
        queue: Queue[Item | None] = Queue(WAITING)
        self._send = queue.put
        thread = threading.Thread(target=self._work, args=(parcel, queue), daemon=True)
        thread.start()
        while (item := queue.get()) is not None:
            yield item
        thread.join()

    def _work(self, parcel: Parcel, queue: Queue[Item | None]) -> None:
        try:
            for file in parcel.shared:
                SharedFolder(self._shared.path).write(file.name, file.data)
            self._runner.run(parcel.works)
        except DeviceLostError as error:
            queue.put(Sick(reason(error)))
        except BaseException as error:
            # What concerns a unit alone is its record; what comes out here would befall every unit. Nothing may end
            # this thread unsaid: a parcel that seems finished is not made again.
            queue.put(Refused(reason(error)))
        finally:
            shutil.rmtree(self._shared.path, ignore_errors=True)
            queue.put(None)


class SendingShared(SharedFolder):
    """A scratch folder of shared files that sends each file it stores.

    Args:
        path: where.
        send: takes them.
    """

    def __init__(self, path: Path, send: Callable[[Item], None]) -> None:
        super().__init__(path)
        self._send = send

    def write(self, name: str, data: bytes) -> None:
        """As in `SharedFolder`."""
        super().write(name, data)
        self._send(Sent(name, data))


class SendingFolder(RunFolder):
    """A run folder that sends its records and pictures and keeps none.

    Args:
        scratch: says where it would lie, and which run it is of.
        setting: what the run is called.
        send: takes what is recorded.
    """

    def __init__(self, scratch: RunFolder, setting: str, send: Callable[[Item], None]) -> None:
        super().__init__(scratch.path, scratch.spec)
        self.shared = SendingShared(scratch.shared.path, send)
        self._setting, self._send = setting, send
        self._pictures: dict[str, bytes] = {}

    def write_image(self, key: UnitKey, pixels: NDArray[np.uint8]) -> tuple[str, str]:
        """As in `RunFolder`."""
        name, data = self.image_name(key), encode_png(pixels)
        self._pictures[name] = data
        return name, hashlib.sha256(data).hexdigest()

    def append_many(self, records: Iterable[EditRecord]) -> None:
        """As in `RunFolder`; pictures go with their records."""
        for record in records:
            self._send(Made(self._setting, record, self._pictures.pop(record.image or "", None)))


def parcels(works: Sequence[Work], together: int) -> list[tuple[Work, ...]]:
    """Works in the order in which workers take them: what takes longest first, so that all end at about the same time.

    Args:
        works: of a plan.
        together: how many go in one parcel.
    """
    ordered = sorted(works, key=lambda work: -len(work.units))
    return [tuple(ordered[start : start + together]) for start in range(0, len(ordered), together)]


def sweep_scratch() -> None:
    """Deletes the scratch folders of workers of this machine that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*-*"):
        process = folder.name.removeprefix(SCRATCH).partition("-")[0]
        if process.isdecimal() and not psutil.pid_exists(int(process)):
            shutil.rmtree(folder, ignore_errors=True)


def _nowhere(_: Item) -> None:
    """Between parcels nothing is made."""
