"""The Ray engine: one actor per GPU, or as many processes as asked for, each with the model in memory."""

from __future__ import annotations

import importlib.util
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from riebench.errors import RiebenchError, reason
from riebench.generation.regions.options import DEFAULT_REGIONS
from riebench.models.lookup import ModelRecipe
from riebench.runs.engines.coordinator import Say, WorkerLostError, run_with_workers
from riebench.runs.engines.worker import Assignment, Item, Maker, Parcel, Refused, Told
from riebench.store.folder import Redo, RunFolder
from riebench.tasks.schema import EditTask, Setting
from riebench.utils.hub import offline_mode

BUFFERED = 8
"""Things made that may lie in the cluster's memory before this process takes them, for each worker."""
REACH_SECONDS = 5.0
AUTH = "RAY_AUTH_MODE"
"""Tells Ray whether to send a token (`disabled` or `token`)."""


def run_on_ray(
    tasks: Sequence[EditTask],
    settings: Sequence[Setting],
    model: ModelRecipe,
    *,
    results_root: Path,
    address: str | None = None,
    workers: int | None = None,
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
    say: Say = lambda _: None,
) -> list[RunFolder]:
    """As `riebench.runs.runner.run_benchmark`, on a Ray cluster.

    Args:
        tasks: of one suite.
        settings: with different names.
        model: what each worker loads.
        results_root: written by this process alone.
        address: of a running cluster ("HOST:PORT", or "auto" for one that this machine is part of); None to start one
            on this machine for as long as this takes.
        workers: how many; None for one per GPU, or one per machine without GPUs.
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
        say: receives lines for people.

    Raises:
        RiebenchError: if Ray is missing or cannot be reached, and as `run_benchmark`.
    """
    assignment = Assignment(
        tuple(tasks), tuple(settings), model, saes_source, batch_size, regions, offline, tuple(pool or tasks)
    )
    with cluster(address, workers) as ray:
        crew = places(ray.nodes(), model.device, workers)
        # What was counted is what is used: Ray may have been told of fewer GPUs than PyTorch would see.
        assignment = replace(assignment, recipe=replace(model, device="cuda" if crew.gpus else "cpu"))
        say(f"{crew.count} workers, each with {crew.words}")
        return run_with_workers(
            assignment, hiring(ray, assignment, crew), crew.count, results_root=results_root, seeds=seeds, limit=limit,
            redo=redo, shard=shard, progress=progress, provenance=provenance or {}, say=say,
        )  # fmt: skip


@contextmanager
def cluster(address: str | None, workers: int | None = None) -> Iterator[Any]:
    """Ray, connected; a cluster that was started here is ended.

    Args:
        address: see `run_on_ray`.
        workers: how many a cluster that is started here must have room for.

    Raises:
        RiebenchError: if it is not installed or cannot be reached.
    """
    if importlib.util.find_spec("ray") is None:
        raise RiebenchError("--engine ray needs Ray: pip install 'riebench[ray]'")
    _reach(address)
    # Ray tells its makers about every use unless it is told not to.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if ray.is_initialized():
        yield ray
        return
    own = {"include_dashboard": False, "num_cpus": max(os.cpu_count() or 1, workers or 1)} if address is None else {}
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level="ERROR", **own)
    except Exception as error:
        # Of any kind: what Ray raises when its processes do not start in time is a bare Exception.
        where = f"no Ray cluster at --address {address}" if address else "Ray cannot be started here"
        # Where Ray finds a token its heads ask for it, but it sends none to an address that is named.
        token = "; if it asks for a token, set RAY_AUTH_MODE=token" if address and not os.environ.get(AUTH) else ""
        raise RiebenchError(f"{where}: {reason(error)}{token}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _reach(address: str | None) -> None:
    """Refuses an address at which nobody listens, at once and in one line."""
    if address is None or address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        raise RiebenchError(
            f"--address {address!r}: write HOST:PORT of the cluster's head (usually port 6379), or auto on one of its "
            "machines"
        )
    try:
        socket.create_connection((host, int(port)), REACH_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise RiebenchError(f"no Ray cluster at --address {address}: {error}; `ray start --head` starts one") from error


@dataclass(frozen=True)
class Places:
    """What workers get.

    Attributes:
        count: how many workers.
        cpus: each one's.
        gpus: each one's, 0 or 1.
    """

    count: int
    cpus: int
    gpus: int

    @property
    def words(self) -> str:
        """For people."""
        return "a GPU" if self.gpus else f"{self.cpus} cores"


def places(nodes: Sequence[Mapping[str, Any]], device: str, workers: int | None) -> Places:
    """Parts a cluster among workers.

    Args:
        nodes: as Ray describes them.
        device: "auto", "cuda" or "cpu".
        workers: how many; None for one per GPU, or one per machine without GPUs.

    Raises:
        RiebenchError: if the cluster has not what is asked for.
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
        return Places(workers or gpus, 0, 1)
    cores = [int(one.get("CPU", 0)) for one in alive if one.get("CPU", 0) >= 1]
    count = workers or len(cores)
    if count > sum(cores) or not count:
        raise RiebenchError(f"--workers {count}: the Ray cluster has {sum(cores)} cores, at least one for each worker")
    each = max(1, sum(cores) // count)
    while sum(one // each for one in cores) < count:
        each -= 1
    return Places(count, each, 0)


class RayWorker:
    """An actor, seen from here.

    Args:
        ray: connected.
        assignment: the run, in the cluster's memory.
        places: what the actor gets.
    """

    def __init__(self, ray: Any, assignment: Any, places: Places) -> None:
        self._ray = ray
        self._lost = (
            ray.exceptions.RayActorError, ray.exceptions.WorkerCrashedError, ray.exceptions.ObjectLostError,
            ray.exceptions.OutOfMemoryError, ray.exceptions.NodeDiedError,
        )  # fmt: skip
        options = {"num_cpus": places.cpus, "num_gpus": places.gpus, "max_restarts": 0, "max_concurrency": 1}
        self._actor = ray.remote(RayMaker).options(**options).remote(os.getcwd())
        self._assignment = assignment
        self.pid: int | None = None

    def setup(self) -> Told | Refused:
        """As in `riebench.runs.engines.coordinator.Worker`."""
        with self._watched():
            self.pid, answer = self._ray.get(self._actor.setup.remote(self._assignment))
        told: Told | Refused = answer
        return told

    def make(self, parcel: Parcel) -> Iterator[Item]:
        """As in `riebench.runs.engines.coordinator.Worker`."""
        with self._watched():
            options = {"num_returns": "streaming", "_generator_backpressure_num_objects": BUFFERED}
            for reference in self._actor.make.options(**options).remote(parcel):
                yield self._ray.get(reference)

    def stop(self) -> None:
        """As in `riebench.runs.engines.coordinator.Worker`."""
        with suppress(Exception):
            self._ray.kill(self._actor)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except self._lost as error:
            if getattr(error, "actor_init_failed", False):
                why = str(error).strip().splitlines()[-1]
                raise RiebenchError(f"a worker cannot start: {why}; all machines need the same riebench") from error
            where = f"process {self.pid}" if self.pid else "its process"
            raise WorkerLostError(f"{where} ended, killed or out of memory") from error
        except self._ray.exceptions.RayError as error:
            # Of a task that failed, what failed in it; else what failed is Ray itself, its head for instance.
            why = reason(getattr(error, "cause", None) or error)
            raise RiebenchError(f"Ray: {why}; what has arrived is kept, and the same command goes on") from error


class RayMaker:
    """The actor: a `Maker` in a process of its own.

    Args:
        folder: the working directory that names of files are relative to; another one where it does not exist.
    """

    def __init__(self, folder: str) -> None:
        with suppress(OSError):
            os.chdir(folder)
        self._maker: Maker | None = None
        self._offline = False

    def setup(self, assignment: Assignment) -> tuple[int, Told | Refused]:
        """Loads the model; gives the number of this process and what the `Maker` tells."""
        # Nothing of the caller's environment comes along to another machine.
        self._offline = assignment.offline
        try:
            with offline_mode(self._offline):
                self._maker = Maker(assignment)
        except Exception as error:
            return os.getpid(), Refused(reason(error))
        return os.getpid(), self._maker.told

    def make(self, parcel: Parcel) -> Iterator[Item]:
        """As `Maker.make`."""
        assert self._maker is not None
        with offline_mode(self._offline):
            yield from self._maker.make(parcel)


def hiring(ray: Any, assignment: Assignment, crew: Places) -> Callable[[], RayWorker]:
    """What starts a worker on a cluster.

    Args:
        ray: connected.
        assignment: the run.
        crew: what each worker gets.
    """
    reference = ray.put(assignment)
    return lambda: RayWorker(ray, reference, crew)
