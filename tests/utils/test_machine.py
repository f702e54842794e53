"""Tests of the memory that a process is reported to have taken."""

from __future__ import annotations

import subprocess
import sys

MB = 2**20
CODE = """
from riebench.utils.machine import peak_ram
before = peak_ram()
held = b"x" * (100 * 2**20)
del held
print(before, peak_ram())
"""


def test_peak_memory_is_that_of_this_program_alone() -> None:
    large = bytearray(b"x") * (600 * MB)
    numbers = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True).stdout.split()
    before, after = (int(number) for number in numbers)
    assert len(large) > before > 5 * MB
    assert 90 * MB < after - before < 150 * MB
