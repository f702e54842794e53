"""Entry point of `python -m benchmarks.sdxl`."""

from benchmarks.sdxl.measure import app

app()
