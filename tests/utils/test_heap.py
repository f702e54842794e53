"""Tests of keeping freed memory for the next computation.

It is kept unless the environment tunes memory itself.
"""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys

import pytest

from riebench.utils import machine
from riebench.utils.machine import MALLOC_VARIABLES

gnu = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")

FAULTS = """
import resource
from riebench.utils.machine import keep_freed_memory
print(keep_freed_memory())
import torch

def compute():
    held = [torch.ones(4 * 2**20) for _ in range(8)]

for _ in range(6):
    compute()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    compute()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run_code(code: str, **environment: str) -> list[str]:
    """Return the words that a process prints which runs some code."""
    own = {name: value for name, value in os.environ.items() if name not in MALLOC_VARIABLES}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**own, **environment}
    )
    return done.stdout.split()


@gnu
def test_no_page_is_asked_for_twice() -> None:
    result, faults = run_code(FAULTS)
    # 8 blocks of 16 MB are 32,768 pages of 4 KB.
    assert result == "True" and int(faults) < 1000


class Library:
    """C library that records the options set, up to a limit."""

    def __init__(self, most: int = 9) -> None:
        self.most = most
        self.options: dict[int, int] = {}

    gnu_get_libc_version = staticmethod(lambda: b"2.36")

    def mallopt(self, option: int, value: int) -> int:
        """Return 1 if the option is set, as the real one does."""
        if len(self.options) >= self.most:
            return 0
        self.options[option] = value
        return 1


def test_both_limits_are_set_or_a_failure_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in MALLOC_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    library = Library()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    # M_MMAP_THRESHOLD is -3 and M_TRIM_THRESHOLD -1 in malloc.h.
    assert machine.keep_freed_memory() and library.options == {-3: 32 * 2**20, -1: 2**30}
    library = Library(most=0)
    assert not machine.keep_freed_memory() and library.options == {}
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert not machine.keep_freed_memory()


@pytest.mark.parametrize("name", MALLOC_VARIABLES)
def test_a_choice_of_the_users_stays(name: str) -> None:
    value = {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=1000000", "LD_PRELOAD": " "}.get(name, "1000000")
    code = "from riebench.utils.machine import keep_freed_memory; print(keep_freed_memory())"
    assert run_code(code, **{name: value}) == ["False"]


@gnu
def test_a_model_on_the_cpu_and_scoring_ask_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from riebench.models import loading
    from riebench.scoring import score

    asked: list[str] = []
    monkeypatch.setattr(loading, "keep_freed_memory", lambda: asked.append("model"))
    monkeypatch.setattr(score, "keep_freed_memory", lambda: asked.append("scores"))
    loading.load_model("toy-turbo")
    score.score([], progress=False)
    assert asked == ["model", "scores"]
