"""The table of formats in docs/new-sae.md, and the measured differences that it is made of.

A run of the tests in tests/formats with `--write-differences` measures them and writes both again.
"""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict
from sae_files import Parts, parts
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
DIFFERENCES = ROOT / "tests" / "formats" / "differences.json"
VALUES = ROOT / "tests" / "formats" / "library_values.safetensors"
DOCUMENT = ROOT / "docs" / "new-sae.md"
BEGIN = "<!-- formats: made by `python -m pytest -n 0 tests/formats --write-differences` -->"
END = "<!-- end of formats -->"
LARGEST = 1e-5
"""Largest difference of codes and reconstructions that counts as agreement; see `relative`."""


class Row(BaseModel):
    """What was measured of one layout."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    library: str
    version: str | None
    """Of the library whose own code wrote it; None where the layout was written from its description."""
    architecture: str
    signal: str
    how: str
    difference: float | None
    """Largest difference of a code or a reconstructed value, see `relative`; None for what is refused."""


def relative(found: Tensor, expected: Tensor) -> float:
    """The largest difference of two tensors, as a share of the largest value where that is above 1."""
    return float((found.double() - expected.double()).abs().max() / expected.abs().max().clamp(min=1))


def tensors() -> tuple[Parts, Tensor]:
    """The tensors of every SAE that is written, [24, 8], and inputs [32, 8]."""
    return parts(24, 8), torch.randn(32, 8, generator=torch.Generator().manual_seed(5)) + 0.3


def installed(distribution: str) -> bool:
    """Whether a library is here."""
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True


def read_rows() -> dict[str, Row]:
    return {name: Row.model_validate(row) for name, row in json.loads(DIFFERENCES.read_text()).items()}


def write_rows(rows: dict[str, Row]) -> None:
    ordered = sorted(rows.items(), key=lambda item: (item[1].library.lower(), item[1].version is None, item[0]))
    text = json.dumps({name: row.model_dump() for name, row in ordered}, indent=2)
    DIFFERENCES.write_text(text + "\n")


def table(rows: dict[str, Row]) -> str:
    """The rows as a Markdown table."""
    cells = [("library", "version", "architecture", "signal", "here", "largest difference"), (*["---"] * 5, "---:")]
    for row in rows.values():
        measured = "" if row.difference is None else f"{row.difference:.1e}"
        written = row.version or "from its description"
        cells.append((row.library, written, row.architecture, row.signal, row.how, measured))
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def stored_table() -> str:
    """The table that stands in the document."""
    text = DOCUMENT.read_text(encoding="utf-8")
    return text.split(BEGIN)[1].split(END)[0].strip()


def write_table(rows: dict[str, Row]) -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    DOCUMENT.write_text(f"{before}{BEGIN}\n\n{table(rows)}\n\n{END}{rest.split(END)[1]}", encoding="utf-8")
