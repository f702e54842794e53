"""Where the checkout lies."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The checkout: holds `riebench/`, `docs/`, `tests/`."""
