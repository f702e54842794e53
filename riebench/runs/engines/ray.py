"""The Ray engine: workers are actors, each with the model in memory.

There is one per GPU, or as many as are asked for.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from riebench.errors import RiebenchError, reason
from riebench.generation.regions.options import DEFAULT_REGIONS
from riebench.models.lookup import ModelRecipe
from riebench.runs.distribution import suite_references
from riebench.runs.engines.coordinator import Say, WorkerLostError, run_with_workers
from riebench.runs.engines.worker import Assignment, Message, RunFailure, WorkerInfo, WorkerRunner, WorkItem
from riebench.runs.failures import STOP_AFTER
from riebench.runs.sae_check import known_saes
from riebench.store.folder import Redo, RunFolder
from riebench.tasks.schema import EditTask, Setting
from riebench.utils.hub import offline_mode

BUFFER_SIZE = 8
"""Messages of each worker that may lie in the cluster's memory before this process takes them."""
CONNECT_SECONDS = 5.0
"""Seconds to wait for a connection to the cluster's head."""
AUTH_MODE = "RAY_AUTH_MODE"
"""Environment variable that makes Ray send a token (`disabled` or `token`)."""


def run_on_ray(
    tasks: Sequence[EditTask], settings: Sequence[Setting], model: ModelRecipe, *, results_root: Path,
    address: str | None = None, workers: int | None = None, saes_source: str | None = None,
    seeds: Sequence[int] = (0,), limit: int | None = None, batch_size: int | None = None,
    regions: str = DEFAULT_REGIONS, redo: Redo = "missing", shard: tuple[int, int] = (1, 1), offline: bool = False,
    progress: bool = True, provenance: Mapping[str, Any] | None = None, pool: Sequence[EditTask] | None = None,
    say: Say = lambda _: None, stop_after: int = STOP_AFTER, accept_sae: bool = False,
) -> list[RunFolder]:  # fmt: skip
    """Run a benchmark on a Ray cluster, as `riebench.runs.runner.run_benchmark` does.

    Args:
        tasks: tasks of one suite.
        settings: configurations with different names.
        model: recipe of the model that each worker loads.
        results_root: results folder, written by this process alone.
        address: address of a running cluster ("HOST:PORT" or "auto"); None to start one on this machine for the run.
        workers: number of workers; None for one per GPU, or one per machine without GPUs.
        saes_source: as in `run_benchmark`, as is all that follows.
        seeds: likewise.
        limit: likewise.
        batch_size: likewise.
        regions: likewise.
        redo: likewise.
        shard: likewise.
        offline: likewise.
        progress: likewise.
        provenance: likewise.
        pool: likewise.
        say: function that prints a line for people.
        stop_after: as in `run_benchmark`.
        accept_sae: likewise.

    Raises:
        RiebenchError: if Ray is missing or cannot be reached, and as `run_benchmark`.
    """
    with cluster(address, workers) as ray:
        resources = split_cluster(ray.nodes(), model.device, workers)
        # Workers use the GPUs that were counted: Ray may be restricted to fewer GPUs than PyTorch would see.
        recipe = replace(model, device="cuda" if resources.gpus else "cpu")
        assignment = Assignment(
            tuple(tasks), tuple(settings), recipe, saes_source, batch_size, regions, offline, tuple(pool or tasks),
            tuple(seeds), limit, known_saes(results_root / tasks[0].suite),
            suite_references(results_root / tasks[0].suite),
        )  # fmt: skip
        say(f"{resources.count} workers, each with {resources.words}")
        start = worker_factory(ray, assignment, resources)
        return run_with_workers(
            assignment, start, resources.count, results_root=results_root, seeds=seeds, limit=limit, redo=redo,
            shard=shard, progress=progress, provenance=provenance or {}, say=say, stop_after=stop_after,
            accept_sae=accept_sae,
        )  # fmt: skip


@contextmanager
def cluster(address: str | None, workers: int | None = None) -> Iterator[Any]:
    """Connect to Ray; shut down in the end a cluster that was started here.

    Args:
        address: see `run_on_ray`.
        workers: number of workers that a cluster started here must have room for.

    Raises:
        RiebenchError: if it is not installed or cannot be reached.
    """
    if importlib.util.find_spec("ray") is None:
        raise RiebenchError("--engine ray needs Ray: pip install 'riebench[ray]'")
    _check_address(address)
    # Ray reports every use to its developers unless this is set.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if ray.is_initialized():
        yield ray
        return
    own = {"include_dashboard": False, "num_cpus": max(os.cpu_count() or 1, workers or 1)} if address is None else {}
    try:
        with _own_end_signal():
            ray.init(address=address or "local", log_to_driver=False, logging_level="ERROR", **own)
    except Exception as error:
        # Any exception: Ray raises a bare Exception when its processes do not start in time.
        where = f"no Ray cluster at --address {address}" if address else "Ray cannot be started here"
        # Where Ray finds a token, its heads ask for it, but it sends none to an address given by name.
        token = "; if it asks for a token, set RAY_AUTH_MODE=token" if address and not os.environ.get(AUTH_MODE) else ""
        raise RiebenchError(f"{where}: {reason(error)}{token}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


@contextmanager
def _own_end_signal() -> Iterator[None]:
    """Keep this process's answer to SIGTERM while Ray starts.

    Ray puts its own in that place, which would end the process as if it had failed, without a word on what is kept.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    usual = signal.getsignal(signal.SIGTERM)
    received = False
    try:
        yield
    except SystemExit:
        # Ray had set its answer already, and the signal came.
        received = True
    finally:
        signal.signal(signal.SIGTERM, usual)
    if received:
        signal.raise_signal(signal.SIGTERM)


def _check_address(address: str | None) -> None:
    """Refuse an address at which nothing listens, at once and in one line."""
    if address is None or address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        raise RiebenchError(
            f"--address {address!r}: write HOST:PORT of the cluster's head (usually port 6379), or auto on one of its "
            "machines"
        )
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise RiebenchError(f"no Ray cluster at --address {address}: {error}; `ray start --head` starts one") from error


@dataclass(frozen=True)
class WorkerResources:
    """Number of workers and the resources of each.

    Attributes:
        count: number of workers.
        cpus: cores of each worker.
        gpus: GPUs of each worker, 0 or 1.
    """

    count: int
    cpus: int
    gpus: int

    @property
    def words(self) -> str:
        """One worker's resources in words, for users."""
        return "a GPU" if self.gpus else f"{self.cpus} cores"


def split_cluster(nodes: Sequence[Mapping[str, Any]], device: str, workers: int | None) -> WorkerResources:
    """Divide the resources of a cluster among workers.

    Args:
        nodes: the machines, as Ray describes them.
        device: "auto", "cuda" or "cpu".
        workers: number of workers; None for one per GPU, or one per machine without GPUs.

    Raises:
        RiebenchError: if the cluster lacks the requested resources.
    """
    alive = [node["Resources"] for node in nodes if node.get("Alive", True)]
    gpus = sum(int(one.get("GPU", 0)) for one in alive)
    if device not in ("auto", "cuda", "cpu"):
        raise RiebenchError(f"--device {device}: with --engine ray it is cuda or cpu; each worker gets its own GPU")
    if device == "cuda" and not gpus:
        raise RiebenchError("--device cuda: the Ray cluster has no GPU; use --device cpu")
    if gpus and device != "cpu":
        if workers is not None and workers > gpus:
            raise RiebenchError(f"--workers {workers}: the Ray cluster has {gpus} GPUs, and each worker takes one")
        return WorkerResources(workers or gpus, 0, 1)
    cores = [int(one.get("CPU", 0)) for one in alive if one.get("CPU", 0) >= 1]
    count = workers or len(cores)
    if count > sum(cores) or not count:
        raise RiebenchError(f"--workers {count}: the Ray cluster has {sum(cores)} cores, at least one for each worker")
    each = max(1, sum(cores) // count)
    while sum(one // each for one in cores) < count:
        each -= 1
    return WorkerResources(count, each, 0)


class RayWorker:
    """A worker that is a Ray actor, as the coordinator sees it.

    Args:
        ray: the `ray` module, connected.
        assignment: the run, in the cluster's memory.
        resources: resources of the actor.
    """

    def __init__(self, ray: Any, assignment: Any, resources: WorkerResources) -> None:
        self._ray = ray
        self._lost = (
            ray.exceptions.RayActorError, ray.exceptions.WorkerCrashedError, ray.exceptions.ObjectLostError,
            ray.exceptions.OutOfMemoryError, ray.exceptions.NodeDiedError,
        )  # fmt: skip
        options = {"num_cpus": resources.cpus, "num_gpus": resources.gpus, "max_restarts": 0, "max_concurrency": 1}
        self._actor = ray.remote(RayActor).options(**options).remote(os.getcwd())
        self._assignment = assignment
        self.pid: int | None = None

    def setup(self) -> WorkerInfo | RunFailure:
        """Load the model; see `riebench.runs.engines.coordinator.Worker`."""
        with self._translate_errors():
            self.pid, answer = self._ray.get(self._actor.setup.remote(self._assignment))
        result: WorkerInfo | RunFailure = answer
        return result

    def make(self, item: WorkItem) -> Iterator[Message]:
        """Make a work item; see `riebench.runs.engines.coordinator.Worker`."""
        with self._translate_errors():
            options = {"num_returns": "streaming", "_generator_backpressure_num_objects": BUFFER_SIZE}
            for reference in self._actor.make.options(**options).remote(item):
                yield self._ray.get(reference)

    def stop(self) -> None:
        """Kill the actor; see `riebench.runs.engines.coordinator.Worker`."""
        with suppress(Exception):
            self._ray.kill(self._actor)

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except self._lost as error:
            if getattr(error, "actor_init_failed", False):
                why = str(error).strip().splitlines()[-1]
                raise RiebenchError(f"a worker cannot start: {why}; all machines need the same riebench") from error
            where = f"process {self.pid}" if self.pid else "its process"
            raise WorkerLostError(f"{where} ended, killed or out of memory") from error
        except self._ray.exceptions.RayError as error:
            # The cause is what failed in a task; without one, Ray itself failed, its head for instance.
            why = reason(getattr(error, "cause", None) or error)
            raise RiebenchError(f"Ray: {why}; what has arrived is kept, and the same command goes on") from error


class RayActor:
    """The actor: a `WorkerRunner` in a process of its own.

    Args:
        folder: the working directory that names of files are relative to; another one where it does not exist.
    """

    def __init__(self, folder: str) -> None:
        with suppress(OSError):
            os.chdir(folder)
        self._runner: WorkerRunner | None = None
        self._offline = False

    def setup(self, assignment: Assignment) -> tuple[int, WorkerInfo | RunFailure]:
        """Load the model; return this process's number and the runner's report.

        The report is the runner's `WorkerInfo`, or a `RunFailure`.
        """
        # The caller's environment is not passed on to other machines.
        self._offline = assignment.offline
        try:
            with offline_mode(self._offline):
                self._runner = WorkerRunner(assignment)
        except Exception as error:
            return os.getpid(), RunFailure(reason(error))
        return os.getpid(), self._runner.info

    def make(self, item: WorkItem) -> Iterator[Message]:
        """Make a work item, as `WorkerRunner.make` does."""
        assert self._runner is not None
        with offline_mode(self._offline):
            yield from self._runner.make(item)


def worker_factory(ray: Any, assignment: Assignment, resources: WorkerResources) -> Callable[[], RayWorker]:
    """Return a function that starts a worker on a cluster.

    Args:
        ray: the `ray` module, connected.
        assignment: the run.
        resources: resources of each worker.
    """
    reference = ray.put(assignment)
    return lambda: RayWorker(ray, reference, resources)
