"""The working side of an engine, which makes pictures in another process.

It sends what it makes and writes to no results folder: a `WorkerRunner` runs the same `Runner` as a single process
does, on a scratch folder whose records, pictures and masks are sent to the one writer instead of being kept. How
processes are started and messages are sent is the engine's part.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import Queue
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
from numpy.typing import NDArray

from riebench.errors import DeviceLostError, reason
from riebench.generation.memory import automatic_batch_size
from riebench.generation.regions.options import parse_regions
from riebench.models.lookup import ModelRecipe
from riebench.runs.distribution import prepare_watch
from riebench.runs.plan import ExampleWork, checked_works, plan
from riebench.runs.prepare import check_prompts, environment_notes, prepare_all, usual_blocks_of_model
from riebench.runs.sae_check import KnownSaes, SaeMeasurement, measure_saes
from riebench.store.folder import RunFolder
from riebench.store.records import EditRecord, RunSpec, UnitKey
from riebench.store.shared import SharedFolder
from riebench.tasks.schema import EditTask, Setting
from riebench.utils.images import encode_png
from riebench.utils.terminal import ProgressBar

if TYPE_CHECKING:
    from riebench.runs.runner import Runner

SCRATCH_PREFIX = "riebench-worker-"
"""Prefix of the names of scratch folders; the number of the process follows."""
MAX_MESSAGES = 8
"""Messages that may wait to be sent; then the making waits."""


@dataclass(frozen=True)
class Assignment:
    """Everything that a worker must know of a run before it makes anything.

    See `riebench.runs.runner.run_benchmark`.
    """

    tasks: tuple[EditTask, ...]
    settings: tuple[Setting, ...]
    recipe: ModelRecipe
    saes_source: str | None
    batch_size: int | None
    regions: str
    offline: bool
    pool: tuple[EditTask, ...]
    seeds: tuple[int, ...] = (0,)
    limit: int | None = None
    known: KnownSaes = field(default_factory=dict)
    """Figures of SAEs that are stored already."""
    references: Mapping[str, Mapping[str, bytes]] = field(default_factory=dict)
    """Model -> relative path -> file with reference activations that is stored already."""


@dataclass(frozen=True)
class WorkerInfo:
    """Report of a worker on itself once its model is loaded.

    Attributes:
        specs: configuration name -> its run, with the hashes of what was loaded here.
        notes: versions and device, for run.json.
        batch_size: pictures generated at once.
        saes: figures of the SAEs, which each worker measures on the same pictures.
        usual: blocks of the model that together are called "all".
    """

    specs: dict[str, RunSpec]
    notes: dict[str, Any]
    batch_size: int
    saes: SaeMeasurement = field(default_factory=SaeMeasurement)
    usual: tuple[str, ...] = ()


@dataclass(frozen=True)
class SharedFile:
    """A shared file: a source or target picture, or masks."""

    name: str
    data: bytes


@dataclass(frozen=True)
class UnitResult:
    """A unit's record, with its picture's file if it has one."""

    setting: str
    record: EditRecord
    picture: bytes | None


@dataclass(frozen=True)
class RunFailure:
    """The reason, in one line, that this worker and every other cannot go on."""

    text: str


@dataclass(frozen=True)
class WorkerFailure:
    """The reason that this worker cannot go on, though another one can.

    Its device computes no more.
    """

    text: str


Message = SharedFile | UnitResult | RunFailure | WorkerFailure


@dataclass(frozen=True)
class WorkItem:
    """Examples with their units that one worker makes in one go.

    Attributes:
        works: the examples, each with a seed.
        shared: files of these examples that are stored already, which are used and not made again.
    """

    works: tuple[ExampleWork, ...]
    shared: tuple[SharedFile, ...] = ()


class WorkerRunner:
    """A loaded model that makes work items.

    Args:
        assignment: the run.

    Raises:
        RiebenchError: if something does not fit together.
    """

    def __init__(self, assignment: Assignment) -> None:
        from riebench.runs.runner import Runner

        sweep_scratch()
        self._scratch = tempfile.TemporaryDirectory(prefix=f"{SCRATCH_PREFIX}{os.getpid()}-")
        self._send: Callable[[Message], None] = _discard
        model = assignment.recipe.load()
        check_prompts(model, assignment.tasks)
        regions = parse_regions(assignment.regions)
        prepared = {
            name: replace(one, folder=OutgoingRunFolder(one.folder, name, self.send))
            for name, one in prepare_all(
                assignment.settings, assignment.tasks[0].suite, model, Path(self._scratch.name),
                assignment.saes_source, regions.identity, assignment.offline,
            ).items()
        }  # fmt: skip
        size = assignment.batch_size or automatic_batch_size(model)
        specs = {name: one.folder.spec for name, one in prepared.items()}
        usual = usual_blocks_of_model(model)
        units = plan(assignment.tasks, assignment.settings, assignment.seeds, assignment.limit, usual=usual)
        saes = measure_saes(prepared, checked_works(units, fixed_noise=model.spec.fixed_noise), model, assignment.known)
        self.info = WorkerInfo(specs, environment_notes(model), size, saes, usual)
        # Each worker measures on the same pictures; the first file that arrives is kept.
        watch = prepare_watch(prepared, units, model, assignment.pool, assignment.references.get(model.spec.name, {}))
        self._to_send = dict(watch.files)
        self._shared = next(iter(prepared.values())).folder.shared
        self._runner: Runner = Runner(
            model,
            prepared,
            regions,
            size,
            ProgressBar(title="", shown=False),
            offline=assignment.offline,
            pool=assignment.pool,
            watch=watch,
        )

    def send(self, message: Message) -> None:
        """Send something that was made."""
        self._send(message)

    def make(self, item: WorkItem) -> Iterator[Message]:
        """Make a work item; yield its results as they come.

        Shared files come before the records that name them.
        """
        queue: Queue[Message | None] = Queue(MAX_MESSAGES)
        self._send = queue.put
        thread = threading.Thread(target=self._work, args=(item, queue), daemon=True)
        thread.start()
        while (message := queue.get()) is not None:
            yield message
        thread.join()

    def _work(self, item: WorkItem, queue: Queue[Message | None]) -> None:
        try:
            for file in item.shared:
                SharedFolder(self._shared.path).write(file.name, file.data)
            while self._to_send:
                name, data = self._to_send.popitem()
                self.send(SharedFile(name, data))
            self._runner.run(item.works)
        except DeviceLostError as error:
            queue.put(WorkerFailure(reason(error)))
        except BaseException as error:
            # An error of one unit alone is in its record; one that gets here would meet every unit. No error may end
            # this thread silently: an item that seems finished is not made again.
            queue.put(RunFailure(reason(error)))
        finally:
            shutil.rmtree(self._shared.path, ignore_errors=True)
            queue.put(None)


class OutgoingSharedFolder(SharedFolder):
    """A scratch folder of shared files that sends each file it stores.

    Args:
        path: the folder.
        send: function that sends a message.
    """

    def __init__(self, path: Path, send: Callable[[Message], None]) -> None:
        super().__init__(path)
        self._send = send

    def write(self, name: str, data: bytes) -> None:
        """Store and send a file; see `SharedFolder`."""
        super().write(name, data)
        self._send(SharedFile(name, data))


class OutgoingRunFolder(RunFolder):
    """A run folder that sends its records and pictures and keeps none.

    Args:
        scratch: the run folder with the scratch path and the run's identity.
        setting: name of the setting.
        send: function that sends a message.
    """

    def __init__(self, scratch: RunFolder, setting: str, send: Callable[[Message], None]) -> None:
        super().__init__(scratch.path, scratch.spec)
        self.shared = OutgoingSharedFolder(scratch.shared.path, send)
        self._setting, self._send = setting, send
        self._pictures: dict[str, bytes] = {}

    def write_image(self, key: UnitKey, pixels: NDArray[np.uint8]) -> tuple[str, str]:
        """Encode a picture and keep it until its record is sent; see `RunFolder`."""
        name, data = self.image_name(key), encode_png(pixels)
        self._pictures[name] = data
        return name, hashlib.sha256(data).hexdigest()

    def append_many(self, records: Iterable[EditRecord]) -> None:
        """Send records, each with its picture; see `RunFolder`."""
        for record in records:
            self._send(UnitResult(self._setting, record, self._pictures.pop(record.image or "", None)))


def work_items(works: Sequence[ExampleWork], together: int, workers: int = 1) -> list[tuple[ExampleWork, ...]]:
    """Group works into items, in the order in which workers take them.

    What takes longest comes first, and the last items are smaller ones, so that all workers end at about the same time.

    Args:
        works: works of a plan.
        together: largest number of works in an item.
        workers: number of workers, each of which gets its share of what is left at most.
    """
    ordered = sorted(works, key=lambda work: -len(work.units))
    items: list[tuple[ExampleWork, ...]] = []
    while ordered:
        size = min(together, math.ceil(len(ordered) / workers))
        items.append(tuple(ordered[:size]))
        del ordered[:size]
    return items


def sweep_scratch() -> None:
    """Delete the scratch folders of killed workers of this machine."""
    for folder in Path(tempfile.gettempdir()).glob(f"{SCRATCH_PREFIX}*-*"):
        process = folder.name.removeprefix(SCRATCH_PREFIX).partition("-")[0]
        if process.isdecimal() and not psutil.pid_exists(int(process)):
            shutil.rmtree(folder, ignore_errors=True)


def _discard(_: Message) -> None:
    """Discard a message; between work items nothing is made."""
