"""Work divided among this process and helpers."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import psutil
import pytest

from riebench.errors import StoreError
from riebench.utils.processes import helpers
from riebench.utils.processes.helpers import apply_here, helper_processes

Item = TypeVar("Item")
LONG = 60.0
"""Seconds after which something that should end has not."""


def square(number: int) -> int:
    return number**2


def slow_place(number: int) -> tuple[int, int]:
    time.sleep(0.3)
    return number, os.getpid()


def refuse(number: int, *, bad: tuple[int, ...]) -> int:
    if number in bad:
        raise StoreError(f"number {number} is damaged")
    return number


def ignores_ctrl_c(number: int) -> tuple[bool, bool]:
    """Say whether this is the process that was started first, and whether it ignores Ctrl-C."""
    del number
    time.sleep(0.2)
    helps = multiprocessing.parent_process() is not None
    return not helps, signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def until_both_work(work: Callable[[], Iterable[Item]]) -> set[Item]:
    """Repeat some work until its results are of two kinds: on a busy machine a helper is there late."""
    found: set[Item] = set()
    end = time.monotonic() + LONG
    while len(found) < 2 and time.monotonic() < end:
        found |= {*work()}
    return found


def end_helper(number: int, *, parent: int) -> int:
    if os.getpid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
    return -number


def test_results_come_in_the_order_of_the_items() -> None:
    numbers = [3, 1, 4, 1, 5, 9, 2, 6]
    with helper_processes(True, count=1) as apply:
        assert apply(square, numbers, numbers) == apply_here(square, numbers, numbers) == [n**2 for n in numbers]
        assert apply(square, [], []) == []


def test_this_process_and_helpers_share_the_items() -> None:
    with helper_processes(True, count=1) as apply:
        found = until_both_work(lambda: [process for _, process in apply(slow_place, list(range(6)), [1] * 6)])
        assert [number for number, _ in apply(slow_place, list(range(6)), [1] * 6)] == list(range(6))
    assert len(found) == 2 and os.getpid() in found


@pytest.mark.parametrize("wanted, count", [(False, 3), (True, 0)])
def test_no_process_is_started_where_none_is_wanted(wanted: bool, count: int) -> None:
    before = psutil.Process().children()
    with helper_processes(wanted, count=count) as apply:
        assert apply is apply_here
        assert psutil.Process().children() == before


@pytest.mark.parametrize("bad", [(2, 5), (0, 7), (7,)])
def test_the_error_of_the_first_item_is_the_one_that_counts(bad: tuple[int, ...]) -> None:
    with (
        helper_processes(True, count=1) as apply,
        pytest.raises(StoreError, match=f"^number {bad[0]} is damaged$"),
    ):
        apply(partial(refuse, bad=bad), list(range(8)), [1] * 8)


def test_what_a_killed_helper_had_is_done_here() -> None:
    with helper_processes(True, count=1) as apply:
        numbers = list(range(6))
        assert apply(partial(end_helper, parent=os.getpid()), numbers, numbers) == [-number for number in numbers]
        assert apply(square, numbers, numbers) == [number**2 for number in numbers]


@pytest.mark.parametrize("error", [OSError(38, "Function not implemented"), ImportError("no _multiprocessing")])
def test_a_system_without_locks_between_processes_gets_none(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse_pool(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(helpers, "ProcessPoolExecutor", refuse_pool)
    with helper_processes(True, count=1) as apply:
        assert apply is apply_here


PROGRAM = """
import time
from riebench.utils.processes.helpers import helper_processes

if __name__ == "__main__":
    with helper_processes(True, count=1) as apply:
        apply(abs, [-1, -2], [1, 1])
        print("ready", flush=True)
        time.sleep(600)
"""


def test_helpers_end_with_a_killed_program(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
        children = psutil.Process(program.pid).children()
        assert children
        program.kill()
    _, alive = psutil.wait_procs(children, timeout=LONG)
    for one in alive:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    assert not alive


def test_helpers_leave_ctrl_c_to_the_process_that_was_started_by_hand() -> None:
    before = signal.getsignal(signal.SIGINT)
    with helper_processes(True, count=1) as apply:
        found = until_both_work(lambda: apply(ignores_ctrl_c, [1, 2, 3, 4, 5, 6], [1] * 6))
    assert found == {(True, False), (False, True)} and signal.getsignal(signal.SIGINT) is before


def test_there_are_no_more_helpers_than_cores_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(helpers, "usable_cores", lambda: 1)
    with helper_processes(True) as apply:
        assert apply is apply_here
