"""The layouts that the tests write themselves, against what libraries computed, and the table made of all of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from format_table import DOCUMENT, LARGEST, VALUES, Row, read_rows, relative, stored_table, table, tensors
from library_layouts import ALL_LAYOUTS, ALL_WRITERS, COMPARED, row_names
from sae_files import f64
from safetensors.torch import load_file

from riebench.saes.formats import load_sae


@pytest.mark.parametrize("name", list(ALL_WRITERS))
def test_a_layout_written_here_computes_what_its_library_computes(
    tmp_path: Path, name: str, measured: dict[str, Row]
) -> None:
    p, x = tensors()
    sae_format, write = ALL_WRITERS[name]
    truth = write(tmp_path, p)
    sae = load_sae(tmp_path)
    codes = sae.encode(x)
    pairs = ((codes, truth.unit_codes(f64(x))), (sae.decode(codes, x), truth.reconstruction(f64(x))))
    largest = max(relative(one, torch.from_numpy(expected)) for one, expected in pairs)
    assert largest <= LARGEST
    if name not in COMPARED:
        _, _, kind = name.partition(" ")
        measured[f"own {name}"] = Row(library=sae_format, version=None, architecture=kind or "topk",
                                      signal=sae.signal or "not stated", how="read", difference=largest)  # fmt: skip


@pytest.mark.usefixtures("stored")
@pytest.mark.parametrize("name", [name for name, layout in ALL_LAYOUTS.items() if layout.own is not None])
def test_a_layout_written_here_gives_the_stored_values_of_its_library(tmp_path: Path, name: str) -> None:
    layout = ALL_LAYOUTS[name]
    p, x = tensors()
    assert layout.own is not None
    ALL_WRITERS[layout.own][1](tmp_path, p)
    sae = load_sae(tmp_path, layout.options)
    stored = load_file(VALUES)
    codes = sae.encode(x)
    torch.testing.assert_close(codes, stored[f"{name}/codes"], atol=LARGEST, rtol=0)
    torch.testing.assert_close(sae.decode(codes, x), stored[f"{name}/reconstruction"], atol=LARGEST, rtol=0)


@pytest.mark.usefixtures("stored")
def test_the_document_shows_what_was_measured() -> None:
    rows = read_rows()
    assert stored_table() == table(rows), f"{DOCUMENT.name} is stale; see CONTRIBUTING.md"
    # A layout that is added is measured, and one that is dropped leaves no row behind.
    assert set(rows) == row_names()
    assert all(row.difference is None or row.difference <= LARGEST for row in rows.values())
    assert {name for name, row in rows.items() if row.how == "refused"} == {
        name for name, layout in ALL_LAYOUTS.items() if layout.how == "refused"
    }
