"""Freed memory is kept for the next computation, unless the environment tunes memory itself."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from riebench.heap import OWN_CHOICE

gnu = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")

FAULTS = """
import resource
from riebench.heap import keep_freed_memory
if {keep}:
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


def told(code: str, **environment: str) -> list[str]:
    """What a process of its own prints."""
    own = {name: value for name, value in os.environ.items() if name not in OWN_CHOICE}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**own, **environment}
    )
    return done.stdout.split()


@gnu
def test_no_page_is_asked_for_twice() -> None:
    said, kept = told(FAULTS.format(keep=True))
    (given_back,) = told(FAULTS.format(keep=False))
    assert said == "True"
    # 8 blocks of 16 MB are 32,768 pages of 4 KB.
    assert int(kept) < 1000 < 10_000 < int(given_back)


@pytest.mark.parametrize("name", OWN_CHOICE)
def test_a_choice_of_the_users_stays(name: str) -> None:
    value = {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=1000000", "LD_PRELOAD": " "}.get(name, "1000000")
    code = "from riebench.heap import keep_freed_memory; print(keep_freed_memory())"
    assert told(code, **{name: value}) == ["False"]


@gnu
def test_a_model_on_the_cpu_and_scoring_ask_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from riebench import models, scoring

    asked: list[str] = []
    monkeypatch.setattr(models, "keep_freed_memory", lambda: asked.append("model"))
    monkeypatch.setattr(scoring, "keep_freed_memory", lambda: asked.append("scores"))
    models.load_model("toy-turbo")
    scoring.score([], progress=False)
    assert asked == ["model", "scores"]
