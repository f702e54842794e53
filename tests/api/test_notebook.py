"""The notebook of examples/, executed from start to end."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from paths import ROOT

NOTEBOOK = ROOT / "examples" / "first_look.ipynb"
SECONDS = 180


def outputs_of(notebook: Any, words: str) -> str:
    """Return the outputs of the cell whose code begins with some words, as one text."""
    (cell,) = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.startswith(words)]
    return "\n".join(str(output) for output in cell.outputs)


def test_the_notebook_is_stored_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code and all(not cell.outputs and cell.execution_count is None for cell in code)


def test_the_notebook_runs_from_start_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=":")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    started = time.monotonic()
    NotebookClient(notebook, timeout=SECONDS, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert time.monotonic() - started < SECONDS
    assert "image/png" in outputs_of(notebook, "best =")
    assert outputs_of(notebook, 'riebench.edit(model, "a red house').count("data:image/png") == 3
    assert "sae minus random_features" in outputs_of(notebook, "stored.compare")
    assert "half_patch-" in outputs_of(notebook, "mine =")
    assert "random_features" in outputs_of(notebook, "table =")
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
