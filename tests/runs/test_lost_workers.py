"""What workers do to a run: lost, ill, unreachable or refused they cost time, and never a record."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from small_suite import run_arguments, write_suite
from thread_workers import (
    RECIPE,
    DyingWorker,
    LoadedRecipe,
    ThreadWorker,
    assert_same,
    assignment,
    node,
    run_in_threads,
    run_locally,
)
from thread_workers import expected as expected
from thread_workers import loaded_models as loaded_models
from tiny_jobs import fake_networks
from tiny_runs import NO_EDIT, task
from typer.testing import CliRunner

import riebench.scoring.score
from riebench.cli.main import app
from riebench.errors import DeviceLostError, RiebenchError
from riebench.generation.generator import Generator
from riebench.jobs import request
from riebench.models.lookup import ModelRecipe
from riebench.models.placement import refuse_lost
from riebench.runs import engines
from riebench.runs.engines.coordinator import ITEMS_PER_WORKER, MAX_LOSSES, Worker, WorkerLostError, WorkerPool
from riebench.runs.engines.ray import RayActor, RayWorker, WorkerResources, cluster, run_on_ray
from riebench.runs.engines.worker import Message, RunFailure, WorkerInfo, WorkItem
from riebench.runs.runner import Runner, run_benchmark
from riebench.store.folder import RunFolder
from riebench.utils.hub import is_offline


def test_a_worker_that_counts_as_lost_is_ended_before_the_next_one_begins(
    tmp_path: Path, expected: list[RunFolder]
) -> None:
    order: list[str] = []

    class Unreachable(ThreadWorker):
        def make(self, item: WorkItem) -> Iterator[Message]:
            if order.count("hired") == 1:
                raise WorkerLostError("process 7 does not answer")
            yield from super().make(item)

        def stop(self) -> None:
            order.append("stopped")
            super().stop()

    def hire() -> Worker:
        order.append("hired")
        return Unreachable(assignment())

    assert_same(run_in_threads(tmp_path, hire, count=1), expected)
    assert order[:3] == ["hired", "stopped", "hired"]


def test_a_worker_that_was_hired_while_all_was_ending_is_ended_too() -> None:
    ended: list[bool] = []

    class Late:
        def __init__(self) -> None:
            time.sleep(0.2)

        def setup(self) -> WorkerInfo | RunFailure:
            raise WorkerLostError("its process ended")

        def make(self, item: WorkItem) -> Iterator[Message]:
            yield from ()

        def stop(self) -> None:
            ended.append(True)

    pool = WorkerPool(Late, 1)
    pool.start()
    pool.stop()
    assert ended == [True]


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[set[int]], None]:
    """Lets generations of these numbers fail as a GPU does that computes no more."""

    def fail(numbers: set[int]) -> None:
        calls = 0
        original = Generator._generate

        def generate(self: Generator, *args: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls in numbers:
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            return original(self, *args)

        def lost(device: torch.device, error: Exception) -> None:
            raise DeviceLostError(f"cuda:0 computes no more ({error})")

        monkeypatch.setattr(Generator, "_generate", generate)
        monkeypatch.setattr("riebench.generation.generator.refuse_lost", lost)

    return fail


def test_a_device_that_computes_no_more_ends_the_run_and_no_unit_is_blamed(
    tmp_path: Path, expected: list[RunFolder], failing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(set(range(4, 1000)))
    with pytest.raises(DeviceLostError, match="computes no more"):
        run_locally(tmp_path)
    kept = [record.status for path in tmp_path.glob("*/*/*/run.json") for record in RunFolder(path.parent).records()]
    assert kept and set(kept) == {"ok"}
    monkeypatch.undo()
    assert_same(run_locally(tmp_path), expected)


def test_a_worker_whose_device_computes_no_more_is_replaced(
    tmp_path: Path, expected: list[RunFolder], failing: Any
) -> None:
    failing({4})
    lines: list[str] = []
    assert_same(run_in_threads(tmp_path, lambda: ThreadWorker(assignment()), lines=lines), expected)
    assert [line for line in lines if "a worker was lost (cuda:0 computes no more" in line]


def test_a_device_is_asked_whether_it_still_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    error = RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with TORCH_USE_CUDA_DSA")

    def fail(_: Any) -> None:
        raise error

    monkeypatch.setattr("torch.cuda.synchronize", lambda _: None)
    refuse_lost(torch.device("cuda:1"), error)
    monkeypatch.setattr("torch.cuda.synchronize", fail)
    refuse_lost(torch.device("cpu"), error)
    with pytest.raises(DeviceLostError, match=r"^cuda:1 computes no more \(RuntimeError: CUDA error: an illegal"):
        refuse_lost(torch.device("cuda:1"), error)


def test_a_machine_that_refuses_what_it_once_did_costs_one_place(tmp_path: Path, expected: list[RunFolder]) -> None:
    class Gone(ThreadWorker):
        def setup(self) -> WorkerInfo | RunFailure:
            return RunFailure("device 'cuda' cannot be used")

    hired: list[ThreadWorker] = []

    def hire() -> Worker:
        hired.append((DyingWorker if len(hired) < 2 else Gone)(assignment()))
        return hired[-1]

    DyingWorker.fatal, DyingWorker.lives = ("e1",), 1
    lines: list[str] = []
    try:
        assert_same(run_in_threads(tmp_path, hire, lines=lines), expected)
    finally:
        DyingWorker.lives = 0
    assert any(line.startswith("a worker was lost (process 7 ended)") for line in lines)


def test_workers_that_are_lost_one_after_the_other_end_the_run(tmp_path: Path) -> None:
    DyingWorker.fatal, DyingWorker.lives, DyingWorker.after = ("e0", "e1", "e2", "e3"), 10**6, 0
    try:
        with pytest.raises(RiebenchError, match=r"7 workers in a row were lost .* process 7 ended; a smaller"):
            run_in_threads(tmp_path, lambda: DyingWorker(assignment()), count=1)
    finally:
        lost, DyingWorker.lives, DyingWorker.after = 10**6 - DyingWorker.lives, 0, 2
    # One more may have begun before that was reported.
    assert lost - 2 * MAX_LOSSES in (1, 2)


def test_only_a_few_parcels_are_out_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, begun, waiting = 0, 0, []
    give = WorkerPool.submit

    def counted(self: WorkerPool, item: WorkItem) -> None:
        nonlocal given
        given += 1
        give(self, item)

    class Slow(ThreadWorker):
        def make(self, item: WorkItem) -> Iterator[Message]:
            nonlocal begun
            time.sleep(0.1)
            begun += 1
            waiting.append(given - begun)
            yield from super().make(item)

    monkeypatch.setattr(WorkerPool, "submit", counted)
    run_in_threads(tmp_path, lambda: Slow(assignment()), count=1)
    assert given == begun == 4 and max(waiting) == ITEMS_PER_WORKER - 1


def test_a_run_without_workers_is_reported(
    tmp_path: Path, expected: list[RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Tardy(DyingWorker):
        def setup(self) -> WorkerInfo | RunFailure:
            if not DyingWorker.lives:
                time.sleep(0.5)
            return super().setup()

    monkeypatch.setattr("riebench.runs.engines.coordinator.NOTICE_SECONDS", 0.1)
    DyingWorker.fatal, DyingWorker.lives = ("e1",), 1
    lines: list[str] = []
    assert_same(run_in_threads(tmp_path, lambda: Tardy(assignment()), count=1, lines=lines), expected)
    lost = next(number for number, line in enumerate(lines) if line.startswith("a worker was lost"))
    assert any(line.startswith("no worker is left; still waiting") for line in lines[lost:])
    assert not any(line.startswith("no worker is left") for line in lines[:lost])


def test_nothing_ends_a_parcel_unsaid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(*_: Any) -> None:
        raise SystemExit(3)

    monkeypatch.setattr(Runner, "run", leave)
    with pytest.raises(RiebenchError, match="SystemExit: 3"):
        run_in_threads(tmp_path, lambda: ThreadWorker(assignment()), count=1)


def test_workers_find_their_batch_size_as_one_process_does(monkeypatch: pytest.MonkeyPatch) -> None:
    def found() -> int:
        worker = ThreadWorker(assignment(batch_size=None))
        try:
            info = worker.setup()
        finally:
            worker.stop()
        assert isinstance(info, WorkerInfo)
        return info.batch_size

    assert found() == 32
    monkeypatch.setattr("riebench.generation.memory.free_bytes", lambda device: 0)
    assert found() == 1


def test_an_actor_says_in_plain_data_why_it_cannot_begin_and_keeps_off_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline: list[bool] = []

    class Broken(LoadedRecipe):
        def load(self) -> Any:
            offline.append(is_offline())
            raise RuntimeError("CUDA error: out of luck\nand more")

    monkeypatch.chdir(tmp_path)
    for wanted in (True, False):
        failure = RayActor(str(tmp_path)).setup(assignment(recipe=Broken(**vars(RECIPE)), offline=wanted))[1]
        assert failure == RunFailure("RuntimeError: CUDA error: out of luck")
    assert offline == [True, False]


class FakeErrors:
    """What Ray raises."""

    class RayError(Exception):
        """All of it."""

    class RayActorError(RayError):
        """An actor that is gone."""

        actor_init_failed = False

    class RayTaskError(RayError):
        """What failed in a task."""

        cause: Exception | None = None

    WorkerCrashedError = ObjectLostError = OutOfMemoryError = NodeDiedError = RayActorError


def fake_ray(error: Exception) -> Any:
    """A Ray whose every answer is an error."""

    def get(_: Any) -> None:
        raise error

    actor = SimpleNamespace(setup=SimpleNamespace(remote=lambda _: None))
    remote = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda _: actor))
    return SimpleNamespace(exceptions=FakeErrors, remote=lambda _: remote, get=get)


def test_what_ray_raises_is_a_lost_worker_or_one_line() -> None:
    def setup(error: Exception) -> None:
        RayWorker(fake_ray(error), None, WorkerResources(1, 1, 0)).setup()

    with pytest.raises(WorkerLostError, match="its process ended, killed or out of memory"):
        setup(FakeErrors.RayActorError("The actor died\nclass_name: RayActor"))
    unborn = FakeErrors.RayActorError("The actor died\n  File x\nModuleNotFoundError: No module named 'riebench'\n")
    unborn.actor_init_failed = True
    with pytest.raises(RiebenchError, match=r"^a worker cannot start: ModuleNotFoundError: No module named 'riebench'"):
        setup(unborn)
    with pytest.raises(RiebenchError, match=r"^Ray: RayError: the head is gone; what has arrived is kept"):
        setup(FakeErrors.RayError("the head is gone"))
    failed = FakeErrors.RayTaskError("ray::RayActor.setup() (pid=7)\n Traceback ...")
    failed.cause = ValueError("no such thing")
    with pytest.raises(RiebenchError, match=r"^Ray: ValueError: no such thing; what has arrived"):
        setup(failed)


def stand_in(init: Callable[..., None]) -> Any:
    """A module in the place of Ray's that is not connected yet."""
    ray: Any = ModuleType("ray")
    ray.__spec__, ray.is_initialized, ray.init = SimpleNamespace(), lambda: False, init
    return ray


@pytest.mark.parametrize("error", [ConnectionError(), Exception("The current node timed out during startup.\nThis")])
def test_a_ray_that_does_not_start_is_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(**_: Any) -> None:
        raise error

    monkeypatch.setitem(sys.modules, "ray", stand_in(fail))
    with pytest.raises(RiebenchError, match=r"^Ray cannot be started here: \w+: .") as caught, cluster(None):
        pass
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("nodes", "device", "used"),
    [([node(4, 2)], "auto", "cuda"), ([node(4)], "auto", "cpu"), ([node(4, 2)], "cpu", "cpu")],
)
def test_workers_use_what_was_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nodes: list[dict[str, Any]], device: str, used: str
) -> None:
    asked: list[str] = []

    @contextmanager
    def near(*_: Any) -> Iterator[Any]:
        yield SimpleNamespace(nodes=lambda: nodes, put=lambda one: one)

    def work(given: Any, *_: Any, **__: Any) -> list[RunFolder]:
        asked.append(given.recipe.device)
        return []

    monkeypatch.setattr("riebench.runs.engines.ray.cluster", near)
    monkeypatch.setattr("riebench.runs.engines.ray.run_with_workers", work)
    run_on_ray([task(1)], [NO_EDIT], replace(RECIPE, device=device), results_root=tmp_path)
    assert asked == [used]


def test_gpus_that_only_workers_have_are_not_asked_for_where_scores_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def far(tasks: Any, settings: Any, recipe: ModelRecipe, *, address: Any, workers: Any, say: Any, **given: Any
            ) -> list[RunFolder]:  # fmt: skip
        assert recipe.device == "cuda"
        return run_benchmark(tasks, settings, replace(recipe, device="cpu").load(), **given)

    write_suite(tmp_path)
    monkeypatch.setitem(engines.ENGINES, "ray", far)
    monkeypatch.setattr(riebench.scoring.score, "Networks", fake_networks)
    line = [part for part in run_arguments(tmp_path, "out") if not part.endswith("features.yaml")]
    done = CliRunner().invoke(app, [*line, "--engine", "ray", "--device", "cuda"])
    assert done.exit_code == 0, done.output
    assert list((tmp_path / "out").glob("*/*/*/scores.jsonl"))


def test_every_engine_that_can_be_named_is_there() -> None:
    # "local" stands for one process and for several.
    assert {*engines.ENGINES} == {*request.ENGINES, "processes"}


def test_a_head_that_asks_for_a_token_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: Any) -> None:
        raise ConnectionError("Failed to connect to Ray cluster")

    def refusal() -> str:
        with socket.create_server(("127.0.0.1", 0)) as head:
            address = f"127.0.0.1:{head.getsockname()[1]}"
            with pytest.raises(RiebenchError, match=f"^no Ray cluster at --address {address}: ") as caught:
                cluster(address).__enter__()
        return str(caught.value)

    monkeypatch.setitem(sys.modules, "ray", stand_in(fail))
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    assert refusal().endswith("; if it asks for a token, set RAY_AUTH_MODE=token")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert refusal().endswith("Failed to connect to Ray cluster")
