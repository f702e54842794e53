"""Engines: different ways to run a benchmark.

Every engine takes the arguments of `runner.run_benchmark` and returns the same folders.

Engines with workers in other processes take a `ModelRecipe` in place of the loaded model, and more options.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from riebench.errors import RiebenchError, near_match
from riebench.runs.engines.processes import run_in_processes
from riebench.runs.engines.ray import run_on_ray
from riebench.runs.runner import run_benchmark
from riebench.store.folder import RunFolder

ENGINES: dict[str, Callable[..., list[RunFolder]]] = {
    "local": run_benchmark, "processes": run_in_processes, "ray": run_on_ray,
}  # fmt: skip
"""Engine name -> function that runs a benchmark there."""


def run(engine: str, *args: Any, **options: Any) -> list[RunFolder]:
    """Run a benchmark on an engine.

    Args:
        engine: a key of `ENGINES`.
        args: arguments of `riebench.runs.runner.run_benchmark`.
        options: its keyword arguments, and those of the engine.

    Raises:
        RiebenchError: if there is no such engine.
    """
    if engine not in ENGINES:
        raise RiebenchError(f"unknown engine {engine!r}{near_match(engine, ENGINES)}")
    return ENGINES[engine](*args, **options)
