"""Workers in threads of this process, and checks of the run folders they fill."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import pytest
from tiny import tiny_folder, tiny_model, tiny_saes
from tiny_runs import NO_EDIT, SAE, TARGET, picture, task

from riebench.models.loading import LoadedModel
from riebench.models.lookup import ModelRecipe
from riebench.runs import engines
from riebench.runs.engines.coordinator import Worker, WorkerLostError, run_with_workers
from riebench.runs.engines.worker import Assignment, Message, RunFailure, UnitResult, WorkerInfo, WorkerRunner, WorkItem
from riebench.store.folder import RunFolder
from riebench.store.records import EditRecord
from riebench.store.run_file import broken_seals, count_unsealed_lines
from riebench.tasks.schema import Setting

SETTINGS = (NO_EDIT, TARGET, SAE)
EXAMPLES = 4
RECIPE = ModelRecipe(str(tiny_folder()), steps=2, guidance=0.0, device="cpu")
MODELS: Queue[LoadedModel] = Queue()
"""Models for workers in threads: two must not be loaded at the same time in one process."""


class LoadedRecipe(ModelRecipe):
    """A recipe that takes its model from `MODELS`."""

    def load(self) -> LoadedModel:
        return MODELS.get(timeout=60)


class ThreadWorker:
    """A worker in a thread, with a model of this process."""

    def __init__(self, assignment: Assignment) -> None:
        self.assignment = assignment
        self.model: LoadedModel | None = None
        self.busy = threading.RLock()

    def setup(self) -> WorkerInfo | RunFailure:
        maker = self.maker = WorkerRunner(self.assignment)
        self.model = maker._runner.model
        return maker.info

    def make(self, item: WorkItem) -> Iterator[Message]:
        with self.busy:
            yield from self.maker.make(item)

    def stop(self) -> None:
        with self.busy:
            model, self.model = self.model, None
            if model is not None:
                MODELS.put(model)


@pytest.fixture(scope="module", autouse=True)
def loaded_models() -> None:
    """Load two models, as many as there are workers at a time."""
    for _ in range(2):
        MODELS.put(RECIPE.load())


class DyingWorker(ThreadWorker):
    """A worker that is lost while it makes an example of `fatal`.

    Attributes:
        fatal: ids of the examples at which it is lost.
        lives: number of workers that are still to be lost.
        after: number of records it makes of the example before.
    """

    fatal: tuple[str, ...] = ()
    lives = 0
    after = 2

    def make(self, item: WorkItem) -> Iterator[Message]:
        made = 0
        # Everything is made first, since the thread goes on; nobody reads the items after the loss.
        for message in list(super().make(item)):
            made += isinstance(message, UnitResult)
            if DyingWorker.lives and made > self.after and item.works[0].example.id in self.fatal:
                DyingWorker.lives -= 1
                self.stop()
                raise WorkerLostError("process 7 ended")
            yield message


def assignment(settings: Sequence[Setting] = SETTINGS, **changes: Any) -> Assignment:
    """Return the assignment of every worker, with changed fields."""
    tasks = (task(EXAMPLES),)
    recipe = LoadedRecipe(**vars(RECIPE))
    values = {"tasks": tasks, "settings": tuple(settings), "recipe": recipe, "saes_source": str(tiny_saes()),
              "batch_size": 2, "regions": "attention", "offline": True, "pool": tasks}  # fmt: skip
    return Assignment(**{**values, **changes})


def run_in_threads(
    place: Path, hire: Callable[[], Worker], count: int = 2, lines: list[str] | None = None, **changes: Any
) -> list[RunFolder]:
    """Run the benchmark with workers that `hire` makes, and add what it prints to `lines`."""
    options: dict[str, Any] = {
        "results_root": place, "seeds": (0,), "limit": None, "redo": "missing", "shard": (1, 1), "progress": False,
        "provenance": {}, "say": (lines if lines is not None else []).append,
    }  # fmt: skip
    return run_with_workers(assignment(), hire, count, **{**options, **changes})


def run_locally(place: Path, **options: Any) -> list[RunFolder]:
    """Run the same benchmark in this process, without workers."""
    return engines.run(
        "local", [task(EXAMPLES)], SETTINGS, tiny_model(), results_root=place, saes_source=str(tiny_saes()),
        batch_size=2, progress=False, **options,
    )  # fmt: skip


def by_unit(folder: RunFolder) -> dict[str, EditRecord]:
    """Return the records of a run folder by the digest of their key."""
    return {record.key.digest: record for record in folder.records()}


def assert_same(made: Sequence[RunFolder], expected: Sequence[RunFolder]) -> None:
    """Check that run folders have the same units, choices and pictures.

    Each unit is recorded once, and every seal is whole.
    """
    for one, other in zip(made, expected, strict=True):
        assert one.spec.run_id == other.spec.run_id
        assert one.expected == other.expected
        mine, theirs = by_unit(one), by_unit(other)
        assert mine.keys() == theirs.keys()
        assert len((one.path / "records.jsonl").read_text().splitlines()) == len(mine)
        assert one.finished_units() == mine.keys()
        assert broken_seals(one.path) == [] and count_unsealed_lines(one.path) == 0
        for digest, record in mine.items():
            names = ("status", "reason", "image", "source_image", "target_image", "features", "mask_share", "cluster")
            assert [getattr(record, name) for name in names] == [getattr(theirs[digest], name) for name in names]
            assert np.abs(picture(one, record) - picture(other, theirs[digest])).max() <= 1


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[RunFolder]:
    """The run folders that one process fills."""
    return run_locally(tmp_path_factory.mktemp("alone"))


def node(cpus: int, gpus: int = 0, alive: bool = True) -> dict[str, Any]:
    """Return the description of a Ray node with these resources."""
    return {"Alive": alive, "Resources": {"CPU": float(cpus), **({"GPU": float(gpus)} if gpus else {})}}
