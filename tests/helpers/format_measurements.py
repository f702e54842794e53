"""The option with which the measured differences and the table of the formats are written again."""

from __future__ import annotations

import pytest
from format_table import VALUES, Row, read_rows, write_rows, write_table
from library_layouts import ALL_LAYOUTS, row_names
from safetensors.torch import load_file, save_file
from torch import Tensor

MEASURED: dict[str, Row] = {}
COMPUTED: dict[str, Tensor] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.addoption(
        "--write-differences", action="store_true",
        help="write differences.json, library_values.safetensors and the table of docs/new-sae.md again (with -n 0)",
    )  # fmt: skip


@pytest.fixture
def measured() -> dict[str, Row]:
    """Where a test leaves the row of a layout."""
    return MEASURED


@pytest.fixture
def computed() -> dict[str, Tensor]:
    """Where a test leaves what a library computes."""
    return COMPUTED


@pytest.fixture
def stored(request: pytest.FixtureRequest) -> None:
    """Needed by tests of what is stored, which a run that writes it again leaves out."""
    if request.config.getoption("--write-differences", default=False):
        pytest.skip("this run writes again what the test compares with")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Write what was measured, if all agreed; rows of libraries that are not here stay as they are."""
    if session.config.getoption("--write-differences", default=False) and exitstatus == 0 and MEASURED:
        rows = {**read_rows(), **MEASURED}
        write_rows({name: row for name, row in rows.items() if name in row_names()})
        write_table(read_rows())
        values = {**load_file(VALUES), **COMPUTED}
        save_file({key: tensor for key, tensor in values.items() if key.split("/")[0] in ALL_LAYOUTS}, VALUES)
