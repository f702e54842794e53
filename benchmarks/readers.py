"""Every reader of files that may come from strangers, with valid files to begin from."""

from __future__ import annotations

from benchmarks.given import GIVEN
from benchmarks.inputs import Reader
from benchmarks.stored import STORED

READERS: dict[str, Reader] = {reader.name: reader for reader in (*GIVEN, *STORED)}
"""Name -> reader."""
