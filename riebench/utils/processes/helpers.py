"""Helper processes, which take a share of the items of some work.

Python code runs on one core at a time. Reading results and computing intervals is Python code to a large part, and the
items of it, run folders, have nothing to do with each other.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from typing import Protocol, TypeVar

import psutil

from riebench.utils.machine import usable_cores
from riebench.utils.processes.collector import pause_collector

MOST_HELPERS = 3
"""Processes that are started, at most: the one that started them puts all results together, alone."""
PARENT_SECONDS = 1.0
"""Seconds between two looks of a process at whether the one that started it still runs."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class Apply(Protocol):
    """Something that calls a function on each of several items."""

    def __call__(
        self, function: Callable[[Item], Result], items: Sequence[Item], sizes: Sequence[int]
    ) -> list[Result]:  # fmt: skip
        """Return the function's results in the order of the items.

        Args:
            function: can be imported by its name, as items and results can be pickled.
            items: what it is called on.
            sizes: how large each item is, in a unit of the caller's.

        Raises:
            Exception: that of the first item on which the function fails.
        """


def apply_here(function: Callable[[Item], Result], items: Sequence[Item], sizes: Sequence[int]) -> list[Result]:
    """Call a function on each of several items in this process; see `Apply`."""
    del sizes
    return [function(item) for item in items]


@contextmanager
def helper_processes(wanted: bool, modules: Sequence[str] = (), count: int | None = None) -> Iterator[Apply]:
    """Divide work among this process and others, which end with the block.

    They run the program's main module again, under another name, so that only programs that mind that may use them, as
    the command line does.

    Args:
        wanted: whether there is so much to do that helpers gain more time than they take to start.
        modules: names of modules that they will need.
        count: number of helpers; None for the number of cores left, at most `MOST_HELPERS`.
    """
    helpers = min(MOST_HELPERS, usable_cores() - 1) if count is None else count
    pool = _start(helpers, modules) if wanted and helpers > 0 else None
    if pool is None:
        yield apply_here
        return
    try:
        yield partial(_share, pool)
    finally:
        pool.shutdown(cancel_futures=True)


def _start(count: int, modules: Sequence[str]) -> ProcessPoolExecutor | None:
    """Start helpers; None where the system lets a process have none."""
    try:
        # Not forked: threads of libraries do not survive that.
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(count, context, initializer=_prepare, initargs=(os.getpid(),))
        # They start now, beside what this process does before it has work for them.
        pool.submit(_import, modules)
    except (OSError, ImportError, NotImplementedError):
        return None
    return pool


def _share(
    pool: ProcessPoolExecutor, function: Callable[[Item], Result], items: Sequence[Item], sizes: Sequence[int]
) -> list[Result]:
    # Large items first, so that all processes end at about the same time.
    order = sorted(range(len(items)), key=lambda at: -sizes[at])
    try:
        given = {at: pool.submit(function, items[at]) for at in order}
    except BrokenProcessPool:
        return apply_here(function, items, sizes)
    done = {at: _call(function, items[at]) for at in order if given[at].cancel()}
    return [done[at].result() if at in done else _result(given[at], function, item) for at, item in enumerate(items)]


def _import(modules: Sequence[str]) -> None:
    for name in modules:
        importlib.import_module(name)


def end_with_parent(parent: int) -> None:
    """End this process once the one that started it has ended, however that ended.

    Args:
        parent: number of that process, which may have ended already.
    """
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while psutil.pid_exists(parent) and os.getppid() == parent:
        time.sleep(PARENT_SECONDS)
    os._exit(1)


def _prepare(parent: int) -> None:
    end_with_parent(parent)
    # Ctrl-C is for the process that was started by hand, which then ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pause_collector()


def _call(function: Callable[[Item], Result], item: Item) -> Future[Result]:
    """Call a function, and keep its result or its error."""
    made: Future[Result] = Future()
    try:
        made.set_result(function(item))
    except Exception as error:
        made.set_exception(error)
    return made


def _result(given: Future[Result], function: Callable[[Item], Result], item: Item) -> Result:
    """Return what a helper found, or find it here if the helper was killed."""
    try:
        return given.result()
    except BrokenProcessPool:
        return function(item)
