"""What a process is said to have taken is its own."""

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
    told = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True).stdout.split()
    before, after = (int(number) for number in told)
    assert len(large) > before > 5 * MB
    assert 90 * MB < after - before < 150 * MB
