"""The finding that the README opens with, and its picture, are what the stored results say."""

from __future__ import annotations

import csv

from paths import ROOT

from benchmarks.overview import CONFIGURATION, FILE, MODEL, SUITE, columns, first_records, noted
from riebench.store.folder import RunFolder, run_path
from riebench.tasks.schema import ALL_CATEGORIES

BLOCK, CATEGORY = "mid.0", "change_background"
NUMBERS = {8: "eight"}


def rows(metric: str) -> dict[str, dict[str, str]]:
    """Return category -> row of the block's stored table, over the nine categories."""
    with (ROOT / "results" / SUITE / MODEL / "tables" / "per_block.csv").open(encoding="utf-8", newline="") as stream:
        found = [
            row for row in csv.DictReader(stream)
            if (row["setting"], row["block_set"], row["metric"]) == (CONFIGURATION, BLOCK, metric)
        ]  # fmt: skip
    return {row["category"]: row for row in found if row["category"] in ALL_CATEGORIES}


def share(row: dict[str, str]) -> str:
    """Return "N of M" pictures that reach the target."""
    return f"{round(float(row['mean']) * int(row['n_scored']))} of {row['n_expected']}"


def percent(row: dict[str, str], name: str) -> str:
    """Return a share in whole percent."""
    return f"{100 * float(row[name]):.0f}"


def test_the_readme_opens_with_what_the_stored_results_say() -> None:
    reached, changed = rows("judge_target"), rows("lpips")
    background, others = reached.pop(CATEGORY), [*reached.values()]
    # "And nothing else": no picture of another category, and intervals that lie apart.
    assert {share(row) for row in others} == {share(others[0])} and {row["mean"] for row in others} == {"0"}
    assert float(background["ci_low"]) > max(float(row["ci_high"]) for row in others)
    largest = max(float(row["mean"]) for category, row in changed.items() if category != CATEGORY)
    expected = (
        f"they make the wanted background appear in {share(background)} pictures ({percent(background, 'mean')} %, "
        f"95 % interval {percent(background, 'ci_low')} to {percent(background, 'ci_high')} %). In each of the other "
        f"{NUMBERS[len(others)]} edit categories the target appears in {share(others[0])} "
        f"({percent(others[0], 'mean')} %, {percent(others[0], 'ci_low')} to "
        f"{max(percent(row, 'ci_high') for row in others)} %), and the picture hardly changes: the mean LPIPS to the "
        f"source is at most {largest:.3f} there, against {float(changed[CATEGORY]['mean']):.3f} for backgrounds."
    )
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    opening = " ".join(text.partition("![")[0].split())
    assert expected in opening
    assert text.index(expected[:20]) < text.index("riebench run")


def test_the_picture_shows_what_the_stored_results_say() -> None:
    folder = RunFolder(run_path(ROOT / "results", SUITE, MODEL, CONFIGURATION))
    shown = noted(FILE)
    assert shown == columns(folder, first_records(folder))
    assert [category for category, column in shown.items() if BLOCK in column.reached] == [CATEGORY]
    assert FILE.stat().st_size < 300_000
