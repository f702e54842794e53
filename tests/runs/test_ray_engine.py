"""Workers in other processes: the same numbers, one writer, lost workers replaced; in threads, and with Ray itself."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from small_suite import run_arguments, write_suite
from thread_workers import (
    EXAMPLES,
    RECIPE,
    SETTINGS,
    DyingWorker,
    ThreadWorker,
    assert_same,
    assignment,
    by_unit,
    node,
    run_in_threads,
    run_locally,
)
from thread_workers import expected as expected
from thread_workers import loaded_models as loaded_models
from tiny import tiny_folder, tiny_model, tiny_saes
from tiny_runs import NO_EDIT, PATCH, SAE, task
from typer.testing import CliRunner

from riebench.cli.main import app
from riebench.errors import RiebenchError
from riebench.jobs.request import EngineOptions
from riebench.models.lookup import ModelRecipe
from riebench.runs import engines
from riebench.runs.engines.coordinator import MAX_LOSSES, START_ATTEMPTS, Worker, WorkerLostError
from riebench.runs.engines.ray import RayWorker, WorkerResources, cluster, split_cluster
from riebench.runs.engines.worker import (
    Message,
    RunFailure,
    UnitResult,
    WorkerInfo,
    WorkItem,
    sweep_scratch,
    work_items,
)
from riebench.runs.plan import plan, works_of
from riebench.runs.runner import Runner, run_benchmark
from riebench.store.folder import RunFolder
from riebench.store.records import EditRecord

UNITS = EXAMPLES * (1 + 1 + 3 * 2)


def test_workers_make_what_one_process_makes_and_nothing_twice(
    tmp_path: Path, expected: list[RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = run_in_threads(tmp_path, lambda: ThreadWorker(assignment()))
    assert_same(made, expected)
    assert made[0].provenance["workers"] == 2 and made[0].provenance["device"] == "cpu"
    written: list[EditRecord] = []
    monkeypatch.setattr(RunFolder, "append", lambda self, record: written.append(record))
    run_in_threads(tmp_path, lambda: ThreadWorker(assignment()), count=1)
    assert written == []


def test_what_a_lost_worker_had_left_is_made_by_another(tmp_path: Path, expected: list[RunFolder]) -> None:
    DyingWorker.fatal, DyingWorker.lives = ("e1", "e2"), 3
    lines: list[str] = []
    assert_same(run_in_threads(tmp_path, lambda: DyingWorker(assignment()), lines=lines), expected)
    assert DyingWorker.lives == 0
    assert sum("a worker was lost (process 7 ended); another one takes over" in line for line in lines) == 3


def test_an_example_that_takes_its_workers_along_is_recorded_as_failed(
    tmp_path: Path, expected: list[RunFolder]
) -> None:
    DyingWorker.fatal, DyingWorker.lives, DyingWorker.after = ("e1",), 10**6, 0
    try:
        made = run_in_threads(tmp_path, lambda: DyingWorker(assignment()))
    finally:
        lives, DyingWorker.lives, DyingWorker.after = DyingWorker.lives, 0, 2
    assert lives == 10**6 - MAX_LOSSES
    for folder in made:
        records = by_unit(folder).values()
        assert {(r.key.example_id, r.status) for r in records} == {
            ("e0", "ok"), ("e1", "error"), ("e2", "ok"), ("e3", "ok"),
        }  # fmt: skip
        reasons = {record.reason or "" for record in records if record.status == "error"}
        assert len(reasons) == 1 and "3 workers were lost while this example was made" in reasons.pop()
    again = run_in_threads(tmp_path, lambda: ThreadWorker(assignment()), redo="errors")
    assert [by_unit(one).keys() for one in again] == [by_unit(one).keys() for one in expected]
    assert {record.status for one in again for record in one.records()} == {"ok"}


def test_stored_masks_and_pictures_are_used_and_not_made_again(tmp_path: Path, expected: list[RunFolder]) -> None:
    (folder,) = engines.run(
        "local", [task(EXAMPLES)], [PATCH], tiny_model(), results_root=tmp_path, batch_size=2, progress=False
    )
    record = folder.records()[0]
    assert record.source_image is not None
    stored = folder.shared.path / record.source_image
    stored.write_bytes((folder.shared.path / str(folder.records()[-1].source_image)).read_bytes())
    before = stored.read_bytes()
    made = run_in_threads(tmp_path, lambda: ThreadWorker(assignment()))
    assert stored.read_bytes() == before
    same = next(r for r in made[0].records() if r.key.example_id == record.key.example_id)
    assert (made[0].path / str(same.image)).read_bytes() == before
    assert made[0].spec.run_id == expected[0].spec.run_id


def test_stopping_leaves_a_folder_that_one_process_completes(
    tmp_path: Path, expected: list[RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = RunFolder.append
    kept: list[EditRecord] = []

    def stop(self: RunFolder, record: EditRecord) -> None:
        if len(kept) == 5:
            raise KeyboardInterrupt
        original(self, record)
        # As it is stored: it names the command that made it.
        kept.append(record.model_copy(update={"invocation": 0}))

    monkeypatch.setattr(RunFolder, "append", stop)
    with pytest.raises(KeyboardInterrupt):
        run_in_threads(tmp_path, lambda: ThreadWorker(assignment()))
    monkeypatch.undo()
    done = run_locally(tmp_path)
    assert_same(done, expected)
    found = {digest: record for folder in done for digest, record in by_unit(folder).items()}
    assert all(any(record == by_unit(folder).get(record.key.digest) for folder in done) for record in kept)
    assert len(found) >= 5


def test_workers_that_end_while_loading_end_the_run_only_if_all_do(tmp_path: Path, expected: list[RunFolder]) -> None:
    class Frail(ThreadWorker):
        def setup(self) -> WorkerInfo | RunFailure:
            raise WorkerLostError("its process ended")

    hired: list[ThreadWorker] = []

    def hire(*kinds: type[ThreadWorker]) -> Callable[[], Worker]:
        def one() -> Worker:
            hired.append(kinds[min(len(hired), len(kinds) - 1)](assignment()))
            return hired[-1]

        return one

    with pytest.raises(RiebenchError, match=r"workers end while they load the model .* Use fewer --workers"):
        run_in_threads(tmp_path / "none", hire(Frail), count=1)
    assert len(hired) == START_ATTEMPTS and not (tmp_path / "none").exists()
    hired.clear()
    assert_same(run_in_threads(tmp_path / "some", hire(ThreadWorker, Frail)), expected)


def test_what_no_worker_can_do_is_reported_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(ThreadWorker):
        def setup(self) -> WorkerInfo | RunFailure:
            return RunFailure("the file is not here")

    class Shifted(ThreadWorker):
        def setup(self) -> WorkerInfo | RunFailure:
            info = super().setup()
            assert isinstance(info, WorkerInfo)
            specs = {name: spec.model_copy(update={"regions": "elsewhere"}) for name, spec in info.specs.items()}
            return WorkerInfo(specs, info.notes, info.batch_size)

    class Torn(ThreadWorker):
        def make(self, item: WorkItem) -> Iterator[Message]:
            for message in super().make(item):
                yield UnitResult(message.setting, message.record, b"?") if isinstance(message, UnitResult) else message

    def shortage(*_: Any) -> None:
        raise RiebenchError("not enough memory")

    kinds = iter([ThreadWorker, Shifted])
    for hire, words in (
        (lambda: Other(assignment()), "the file is not here"),
        (lambda: Torn(assignment()), "did not arrive whole"),
    ):
        with pytest.raises(RiebenchError, match=words):
            run_in_threads(tmp_path, hire, count=1)
    with monkeypatch.context() as patch, pytest.raises(RiebenchError, match="not enough memory"):
        patch.setattr(Runner, "run", shortage)
        run_in_threads(tmp_path, lambda: ThreadWorker(assignment()), count=1)
    with pytest.raises(RiebenchError, match="workers do not agree on what 'no_edit' is"):
        run_in_threads(tmp_path / "b", lambda: next(kinds)(assignment()), count=2)


def test_the_largest_examples_go_first_and_stay_whole() -> None:
    tasks = [task(3)]
    units = [unit for unit in plan(tasks, [SAE, NO_EDIT]) if unit.example.id != "e0" or unit.setting.name == "no_edit"]
    works = works_of(units)
    assert [[work.example.id for work in item] for item in work_items(works, 1)] == [["e1"], ["e2"], ["e0"]]
    assert [[work.example.id for work in item] for item in work_items(works, 2)] == [["e1", "e2"], ["e0"]]
    assert [len(item) for item in work_items(works * 5, 4, workers=2)] == [4, 4, 4, 2, 1]
    assert sum(len(work.units) for item in work_items(works, 2) for work in item) == len(units)


def test_scratch_of_killed_workers_goes_and_that_of_living_ones_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name in ("riebench-worker-99999999-a", f"riebench-worker-{os.getpid()}-b", "riebench-worker-mine", "other-1-c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
    sweep_scratch()
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {f"riebench-worker-{os.getpid()}-b", "riebench-worker-mine", "other-1-c"}


@pytest.mark.parametrize(
    ("nodes", "device", "workers", "expected"),
    [
        ([node(8, 4), node(8, 2)], "auto", None, WorkerResources(6, 0, 1)),
        ([node(8, 4), node(8, 2, alive=False)], "cuda", 3, WorkerResources(3, 0, 1)),
        ([node(8, 4)], "cpu", 2, WorkerResources(2, 4, 0)),
        ([node(8), node(4)], "auto", None, WorkerResources(2, 4, 0)),
        ([node(2)], "auto", 2, WorkerResources(2, 1, 0)),
    ],
)
def test_a_cluster_is_parted_among_workers(
    nodes: list[dict[str, Any]], device: str, workers: int | None, expected: WorkerResources
) -> None:
    assert split_cluster(nodes, device, workers) == expected


@pytest.mark.parametrize(
    ("nodes", "device", "workers", "words"),
    [
        ([node(8)], "cuda", None, "the Ray cluster has no GPU"),
        ([node(8, 2)], "auto", 3, "the Ray cluster has 2 GPUs"),
        ([node(2)], "auto", 3, "the Ray cluster has 2 cores"),
        ([node(8, 2)], "cuda:1", None, "each worker gets its own GPU"),
    ],
)
def test_what_a_cluster_has_not_is_refused(
    nodes: list[dict[str, Any]], device: str, workers: int | None, words: str
) -> None:
    with pytest.raises(RiebenchError, match=words):
        split_cluster(nodes, device, workers)


def test_options_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(RiebenchError, match=r"--engine 'rya' \(did you mean 'ray'\?\)"):
        EngineOptions("rya")
    with pytest.raises(RiebenchError, match="--address belongs to --engine ray"):
        EngineOptions(address="auto", workers=2)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.ray
def test_a_missing_ray_and_a_bad_address_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def say(*more: str) -> str:
        line = ["run", "no_edit", "--engine", "ray", "--device", "cpu", "--results", str(tmp_path), *more]
        done = CliRunner().invoke(app, line)
        assert done.exit_code == 2 and "Traceback" not in done.stderr
        last: str = done.stderr.strip().splitlines()[-1]
        return last

    found = importlib.util.find_spec
    with monkeypatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: None if name == "ray" else found(name))
        assert say() == "riebench: --engine ray needs Ray: pip install 'riebench[ray]'"
    pytest.importorskip("ray")
    assert "write HOST:PORT of the cluster's head" in say("--address", "somewhere")
    assert "write HOST:PORT of the cluster's head" in say("--address", "ray://head:10001")
    port = free_port()
    assert f"no Ray cluster at --address 127.0.0.1:{port}: " in say("--address", f"127.0.0.1:{port}")


def test_the_command_line_gives_the_engine_what_its_workers_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_suite(tmp_path)
    asked: list[tuple[Any, ...]] = []

    def far(tasks: Any, settings: Any, recipe: ModelRecipe, *, address: Any, workers: Any, say: Any, **options: Any
            ) -> list[RunFolder]:  # fmt: skip
        asked.append((recipe, address, workers, options["shard"], options["provenance"]["engine"]))
        say("as workers do it")
        return run_benchmark(tasks, settings, recipe.load(), **options)

    monkeypatch.setitem(engines.ENGINES, "ray", far)
    options = ["--engine", "ray", "--address", "head:6379", "--workers", "3", "--shard", "2/2"]
    done = CliRunner().invoke(app, run_arguments(tmp_path, "out", *options))
    assert done.exit_code == 0, done.output
    assert asked == [(ModelRecipe(str(tiny_folder()), 2, 0.0, None, "cpu"), "head:6379", 3, (2, 2), "ray")]
    assert "as workers do it" in done.stderr and "shard 2/2 done" in done.stderr
    assert len(list((tmp_path / "out").glob("*/*/*/records.jsonl"))) == 2


@pytest.mark.ray
@pytest.mark.crash
def test_two_ray_workers_one_of_them_killed_make_what_one_process_makes(
    tmp_path: Path, expected: list[RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    hired: list[RayWorker] = []
    killed: list[int] = []
    made, setup, counting = 0, RayWorker.setup, threading.Lock()

    def hire(self: RayWorker) -> WorkerInfo | RunFailure:
        hired.append(self)
        return setup(self)

    def count(self: RayWorker, item: WorkItem) -> Iterator[Message]:
        # Killed by its number while it makes an example, as the system does when memory runs out.
        nonlocal made
        for message in original(self, item):
            yield message
            with counting:
                made += isinstance(message, UnitResult)
                if made >= UNITS // 3 and not killed and self.pid is not None:
                    killed.append(self.pid)
                    os.kill(self.pid, signal.SIGKILL)

    original = RayWorker.make
    monkeypatch.setattr(RayWorker, "setup", hire)
    monkeypatch.setattr(RayWorker, "make", count)
    lines: list[str] = []
    with cluster(None, 2):
        found = engines.run(
            "ray", [task(EXAMPLES)], SETTINGS, RECIPE, results_root=tmp_path, saes_source=str(tiny_saes()),
            batch_size=2, progress=False, workers=2, say=lines.append,
        )  # fmt: skip
    assert_same(found, expected)
    assert len(killed) == 1
    assert lines[0] == "2 workers, each with 1 cores"
    assert any(f"process {killed[0]} ended, killed or out of memory" in line for line in lines)
    assert len({worker.pid for worker in hired}) == len(hired) >= 3
