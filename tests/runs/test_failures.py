"""Runs in which everything fails: they stop early, keep what they have, go on when repeated, and are no success."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
from thread_workers import ThreadWorker, assignment
from thread_workers import loaded_models as loaded_models
from tiny import tiny_model, tiny_saes
from tiny_runs import NO_EDIT, PATCH, task

from riebench.cli.run import request_from_options
from riebench.errors import NothingMadeError
from riebench.generation.edits import Edit
from riebench.generation.generator import Generator
from riebench.methods.base import EditContext, get_method, method
from riebench.runs import engines
from riebench.runs.engines.coordinator import run_with_workers
from riebench.runs.failures import STOP_AFTER, FailureWatch, check_success, error_kind
from riebench.runs.plan import plan, shard_units, works_of
from riebench.store.folder import RunFolder
from riebench.store.records import EditRecord
from riebench.tasks.schema import Setting

FAILS = Setting(name="fails", method="fails_here", blocks=("mid.0",), strengths=(1.0, 2.0), access="P")
EXAMPLES = 6
UNITS = 2 * EXAMPLES


@method("fails_here", access="PAM", needs=("updates",))
def fails_here(ctx: EditContext, *, only: str = "") -> Edit:
    """Fail on every example, or on those that are named, saying which one."""
    if not only or ctx.runs.example.id in only:
        raise ValueError(f"no way with {ctx.runs.example.id}")
    made = get_method("activation_patch").edit(ctx, {})
    assert isinstance(made, Edit)
    return made


def run(place: Path, *settings: Setting, count: int = EXAMPLES, **options: Any) -> list[RunFolder]:
    """Run settings on the tiny model."""
    given = {"results_root": place, "saes_source": str(tiny_saes()), "progress": False, "batch_size": 64, **options}
    return engines.run("local", [task(count)], settings, tiny_model(), **given)


def recorded(place: Path) -> list[EditRecord]:
    """Return the records of the failing setting."""
    return RunFolder(next(place.glob("*/*/fails"))).records()


def test_a_run_whose_first_units_all_fail_alike_stops_and_goes_on_when_repeated(tmp_path: Path) -> None:
    with pytest.raises(NothingMadeError) as stopped:
        run(tmp_path, FAILS, stop_after=5)
    line = str(stopped.value)
    assert "the first 6 units all failed with: ValueError: no way with e2; they are recorded" in line
    assert "--redo errors" in line and "--stop-after 0" in line and "\n" not in line
    first = recorded(tmp_path)
    assert len(first) == 6 and {record.status for record in first} == {"error"}
    # The same command leaves what is recorded and goes on; what is left over is less than makes it stop again.
    (folder,) = run(tmp_path, FAILS, stop_after=7)
    assert recorded(tmp_path)[:6] == first and len(recorded(tmp_path)) == UNITS
    assert folder.finished_units() == {unit.key.digest for unit in plan([task(EXAMPLES)], [FAILS])}
    mended = FAILS.model_copy(update={"params": {"only": "nothing"}})
    run(tmp_path / "mended", mended, stop_after=1)


def test_no_limit_records_everything(tmp_path: Path) -> None:
    run(tmp_path, FAILS, stop_after=0)
    assert len(recorded(tmp_path)) == UNITS


def test_the_default_is_the_command_lines_too() -> None:
    assert inspect.signature(request_from_options).parameters["stop_after"].default == STOP_AFTER


@pytest.mark.parametrize(
    "settings",
    [
        (FAILS, PATCH),
        (FAILS.model_copy(update={"params": {"only": "e0 e1 e2"}}),),
    ],
    ids=["another setting succeeds", "later examples succeed"],
)
def test_a_run_in_which_something_succeeds_goes_on(tmp_path: Path, settings: tuple[Setting, ...]) -> None:
    # With a batch of 64 no picture is made before the failures are many.
    run(tmp_path, *settings, stop_after=8)
    assert len(recorded(tmp_path)) == UNITS


def test_copies_of_known_pictures_prove_nothing(tmp_path: Path) -> None:
    with pytest.raises(NothingMadeError):
        run(tmp_path, NO_EDIT, FAILS, stop_after=5)
    assert len(recorded(tmp_path)) == 6


def test_one_example_alone_may_be_at_fault(tmp_path: Path) -> None:
    many = FAILS.model_copy(update={"strengths": tuple(float(n) for n in range(1, 11))})
    with pytest.raises(NothingMadeError, match="the first 30 units"):
        run(tmp_path, many, stop_after=10)
    with pytest.raises(NothingMadeError, match="the first 10 units"):
        run(tmp_path / "single", many, count=1, stop_after=10)


def test_pictures_that_cannot_be_generated_stop_a_run_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def generate(self: Generator, *args: Any, **options: Any) -> Any:
        raise ValueError("pixels of 512 are not finite")

    monkeypatch.setattr(Generator, "generate", generate)
    with pytest.raises(NothingMadeError, match="pixels of 512 are not finite"):
        run(tmp_path, NO_EDIT, FAILS, stop_after=5)
    assert 0 < len(recorded(tmp_path)) < UNITS


def test_shards_stop_by_themselves(tmp_path: Path) -> None:
    for part in (1, 2):
        mine = shard_units(plan([task(12)], [FAILS]), (part, 2))
        with pytest.raises(NothingMadeError, match="the first 6 units"):
            run(tmp_path, FAILS, count=12, stop_after=5, shard=(part, 2))
        made = {record.key.digest for record in recorded(tmp_path)} & {unit.key.digest for unit in mine}
        assert len(made) == 6 < len(mine)
    for part in (1, 2):
        run(tmp_path, FAILS, count=12, stop_after=0, shard=(part, 2))
    assert len(recorded(tmp_path)) == 24


def test_workers_stop_and_keep_what_has_arrived(tmp_path: Path) -> None:
    def work(settings: tuple[Setting, ...], limit: int) -> list[RunFolder]:
        given = assignment(settings, tasks=(task(EXAMPLES),), pool=(task(EXAMPLES),))
        return run_with_workers(
            given, lambda: ThreadWorker(given), 2, results_root=tmp_path, seeds=(0,), limit=None, redo="missing",
            shard=(1, 1), progress=False, provenance={}, say=lambda _: None, stop_after=limit,
        )  # fmt: skip

    with pytest.raises(NothingMadeError, match="no way with e"):
        work((FAILS,), 5)
    arrived = recorded(tmp_path)
    assert 6 <= len(arrived) < UNITS
    work((FAILS, PATCH), 4)
    assert len(recorded(tmp_path)) == UNITS and recorded(tmp_path)[: len(arrived)] == arrived


def outcome(index: int, status: str, reason: str | None = None, seconds: float = 0) -> EditRecord:
    """Return the record of a unit of one of six examples."""
    unit = plan([task(EXAMPLES)], [FAILS])[index]
    return EditRecord.model_construct(key=unit.key, status=status, reason=reason, seconds=seconds)


@pytest.mark.parametrize(
    ("outcomes", "stops"),
    [
        ([("error", "out of 3 GB")] * 6, True),
        ([("error", f"step {n} of 'e{n}' gave nan") for n in range(6)], True),
        ([("skipped", "no_region"), *[("error", "x")] * 6], True),
        ([("ok", None), *[("error", "x")] * 6], True),
        ([("made", None), *[("error", "x")] * 6], False),
        ([*[("error", "x")] * 5, ("error", "y")], False),
        ([("error", "x")] * 4, False),
        ([("skipped", "no_region")] * 8, False),
    ],
)
def test_what_stops_a_run(outcomes: list[tuple[str, str | None]], stops: bool) -> None:
    watch = FailureWatch(5, works_of(plan([task(EXAMPLES)], [FAILS])))
    for index, (status, reason) in enumerate(outcomes):
        made = status == "made"
        watch.note(outcome(index, "ok" if made else status, reason, 0.1 * made))
    assert watch.due is stops


def test_messages_of_one_cause_are_of_one_kind() -> None:
    assert error_kind("strength 1e+300 on 'up.0.1' gave inf") == error_kind('strength 3 on "mid.0" gave inf')
    assert error_kind("no SAE for block") != error_kind("no mask for block")


def test_a_configuration_without_a_picture_is_no_success(tmp_path: Path) -> None:
    folders = run(tmp_path, NO_EDIT, FAILS, count=2, stop_after=0)
    units = plan([task(2)], [NO_EDIT, FAILS])
    with pytest.raises(NothingMadeError) as refused:
        check_success(folders, lambda: units)
    line = str(refused.value)
    assert line.startswith("2 of 3 configurations have no edited picture, e.g. fails x1 on mid.0: 2 failed (ValueError")
    assert line.endswith("`--redo errors` tries failed units again") and refused.value.exit_status == 3
    # Other runs' failures in the folder are no concern of a run that succeeds.
    check_success(folders, lambda: [unit for unit in units if unit.setting.name == "no_edit"])
    partly = FAILS.model_copy(update={"name": "partly", "params": {"only": "e0"}})
    check_success(run(tmp_path, partly, count=2), lambda: plan([task(2)], [partly]))


def test_skipped_units_are_no_success_but_a_shard_may_have_nothing_else(tmp_path: Path) -> None:
    tasks = [task(2, region="a boat")]
    folders = engines.run("local", tasks, [PATCH], tiny_model(), results_root=tmp_path, progress=False, batch_size=8)
    units = plan(tasks, [PATCH])
    folders[0].append_many([EditRecord(key=unit.key, status="skipped", reason="no_region") for unit in units])
    with pytest.raises(NothingMadeError, match=r"2 of 2 .* 2 skipped \(no_region\)$"):
        check_success(folders, lambda: units)
    check_success(folders, lambda: units, part=True)
