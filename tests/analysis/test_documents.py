"""Tables inside documents follow the stored ones, and stale files are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from riebench.analysis.tables import check_tables, fill_document, write_tables
from riebench.errors import RiebenchError
from riebench.store.folder import RunFolder, find_run_folders

PART = "<!-- table: tables/per_block.csv metric={} settings={} -->\nold\n<!-- end -->\n"


@pytest.fixture
def folders(filled: RunFolder) -> list[RunFolder]:
    """The run folders below the results folder of a finished run, their tables written."""
    found = list(find_run_folders(filled.path.parents[2]))
    write_tables(found)
    return found


def test_tables_are_checked_against_the_scores(folders: list[RunFolder]) -> None:
    paths = check_tables(folders)
    assert {path.suffix for path in paths} == {".md", ".csv"}
    paths[1].write_text(paths[1].read_text().replace("sae", "eas", 1))
    with pytest.raises(RiebenchError, match=f"{paths[1].name} is out of date"):
        check_tables(folders)
    write_tables(folders)
    paths[0].unlink()
    with pytest.raises(RiebenchError, match="out of date"):
        check_tables(folders)


def test_a_marked_part_is_filled_and_the_rest_left_alone(folders: list[RunFolder]) -> None:
    document = folders[0].path.parent / "doc.md"
    document.write_text("before\n" + PART.format("clip_gain", "sae") + "after\n")
    with pytest.raises(RiebenchError, match="out of date"):
        fill_document(document, check=True)
    fill_document(document)
    text = document.read_text()
    assert text.startswith("before\n<!-- table:") and text.endswith("<!-- end -->\nafter\n") and "old" not in text
    # Gains are 0.01 to 0.03 in one category and 0.03 to 0.05 in the other.
    assert "| sae | mid.0 | +2.00 | +4.00 | +3.00 |" in text
    fill_document(document, check=True)


@pytest.mark.parametrize(
    ("metric", "settings", "message"), [("clip_gain", "other", "'other'"), ("nope", "sae", "no nope")]
)
def test_what_is_not_there_is_named(folders: list[RunFolder], metric: str, settings: str, message: str) -> None:
    document = folders[0].path.parent / "doc.md"
    document.write_text(PART.format(metric, settings))
    with pytest.raises(RiebenchError, match=message):
        fill_document(document)


def test_missing_files_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(RiebenchError, match=r"doc\.md cannot be read"):
        fill_document(tmp_path / "doc.md")
    document = tmp_path / "doc.md"
    document.write_text(PART.format("clip_gain", "sae"))
    with pytest.raises(RiebenchError, match="run `riebench tables` first"):
        fill_document(document)


@pytest.mark.parametrize(
    ("find", "put", "named"),
    [("metric=", "metrics=", 0), ("sae -->", "sae  -->", 0), ("<!-- end -->", "<!-- end-->", 1)],
)
def test_a_mark_that_begins_no_part_is_named(folders: list[RunFolder], find: str, put: str, named: int) -> None:
    """It would never be filled, and a stale table below it would pass for one that is up to date."""
    document = folders[0].path.parent / "doc.md"
    document.write_text("before\n" + 2 * PART.format("clip_gain", "sae"))
    fill_document(document)
    whole = document.read_text()
    damaged = whole.replace(find, put, 1)
    document.write_text(damaged)
    line = [number for number, text in enumerate(whole.splitlines(), 1) if text.startswith("<!-- table:")][named]
    with pytest.raises(RiebenchError, match=rf"doc\.md, line {line}: this mark"):
        fill_document(document, check=True)
    with pytest.raises(RiebenchError, match="this mark"):
        fill_document(document)
    assert document.read_text() == damaged


def test_a_document_that_cannot_be_followed_is_one_line(folders: list[RunFolder]) -> None:
    document = folders[0].path.parent / "doc.md"
    document.write_text("words alone\n")
    with pytest.raises(RiebenchError, match="no part to fill"):
        fill_document(document, check=True)
    document.write_bytes(b"caf\xe9\n")
    with pytest.raises(RiebenchError, match="byte 3 is no UTF-8"):
        fill_document(document)
    document.write_text(PART.format("clip_gain", "sae").replace("per_block", "feature_share"))
    with pytest.raises(RiebenchError, match="has no clip_gain"):
        fill_document(document)
