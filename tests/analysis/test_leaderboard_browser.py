"""The leaderboard on GitHub: no table is wider than the column that a window of 1,200 px has for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import chromium
from github_page import COLUMN, PADDING, write_page
from leaderboard_runs import add_profile_scores, add_run
from paths import ROOT

from riebench.analysis.leaderboard import leaderboard_text

pytestmark = pytest.mark.browser

TABLES = "return [...document.querySelectorAll('table')].map(table => [table.scrollWidth, table.clientWidth])"


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    yield from chromium()


def table_widths(driver: Any, markdown: str, file: Path) -> list[list[int]]:
    """Width of what each table holds and of the table itself, px."""
    screen = {"width": 1200, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    driver.get(write_page(markdown, file).as_uri())
    return [[int(one) for one in pair] for pair in driver.execute_script(TABLES)]


def test_no_table_of_the_published_leaderboard_overflows(driver: Any, tmp_path: Path) -> None:
    text = (ROOT / "leaderboard.md").read_text(encoding="utf-8")
    widths = table_widths(driver, text, tmp_path / "page.html")
    assert len(widths) >= 5
    assert all(held <= shown <= COLUMN - 2 * PADDING for held, shown in widths), widths
    # A table that is too wide shows as one.
    wide = "| a | b |\n| --- | --- |\n| " + "x" * 80 + " | " + "y" * 80 + " |\n"
    ((held, shown),) = table_widths(driver, wide, tmp_path / "wide.html")
    assert held > shown


def test_long_reasons_and_profiles_do_not_overflow(driver: Any, tmp_path: Path) -> None:
    for name in ("activation_patch_sweep", "random_features_sweep", "another"):
        folder = add_run(tmp_path, name, 0.03, second=True, backbone="siglip2-b16@0123456789ab")
        add_profile_scores(folder)
    run = folder.path / "run.json"
    run.write_text(run.read_text().replace('"steps": 4', '"steps": 1'))
    text = leaderboard_text(tmp_path)
    assert "made by another model of this name" in text and "profile `paper`" in text
    widths = table_widths(driver, text, tmp_path / "page.html")
    # Methods and SAEs, of each of two profiles.
    assert len(widths) == 4 and all(held <= shown <= COLUMN - 2 * PADDING for held, shown in widths), widths
