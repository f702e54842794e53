"""The gallery shows, for each category, what a run's pictures really are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from records import make_key, make_spec

from riebench.report.gallery import gallery, write_galleries
from riebench.store.folder import RunFolder, run_path
from riebench.store.records import EditRecord
from riebench.store.shared import SHARED_NAME, SharedFolder
from riebench.utils.images import CELL_SIZE, GAP, MARGIN_LEFT, MARGIN_TOP, read_image

COLORS = {"source": 10, "mid.0": 90, "all": 160, "target": 250}


def _flat(value: int) -> np.ndarray:
    return np.full((16, 16, 3), value, np.uint8)


def _filled(results: Path) -> tuple[RunFolder, SharedFolder]:
    folder = RunFolder(run_path(results, "toy", "toy-turbo", "sae"), make_spec())
    shared = SharedFolder(folder.path.parent / SHARED_NAME)
    keys = [
        make_key(block_set=name, category=c, task=c)
        for c in ("change_object", "add_object")
        for name in ("mid.0", "all")
    ]
    with folder.open_for_writing({}, keys) as run:
        for key in keys:
            names = {role: shared.image_name(key, role) for role in ("source", "target")}
            for role, name in names.items():
                shared.write_image(name, _flat(COLORS[role]))
            image, digest = run.write_image(key, _flat(COLORS[key.block_set]))
            run.append(
                EditRecord(
                    key=key,
                    status="ok",
                    image=image,
                    image_sha256=digest,
                    source_image=names["source"],
                    target_image=names["target"],
                )
            )
    return folder, shared


def test_rows_are_categories_and_columns_are_block_sets(tmp_path: Path) -> None:
    picture = gallery(*_filled(tmp_path))
    assert picture is not None
    for row in range(2):
        y = MARGIN_TOP + row * (CELL_SIZE + GAP) + CELL_SIZE // 2
        found = [int(picture[y, MARGIN_LEFT + column * (CELL_SIZE + GAP) + CELL_SIZE // 2, 0]) for column in range(4)]
        assert found == [COLORS[name] for name in ("source", "mid.0", "all", "target")]
    assert picture.shape[0] == MARGIN_TOP + 2 * (CELL_SIZE + GAP)


def test_written_once_per_setting_and_nothing_for_an_empty_run(tmp_path: Path) -> None:
    folder, _ = _filled(tmp_path)
    empty = RunFolder(run_path(tmp_path, "toy", "toy-turbo", "other"), make_spec(name="other"))
    written = write_galleries(folder.path.parent, [folder, empty])
    assert [path.name for path in written] == ["sae.png"]
    assert read_image(written[0].parent, written[0].name).shape[2] == 3


def test_pictures_that_are_not_there_leave_their_place_empty(tmp_path: Path) -> None:
    """Stored results may be records and scores alone."""
    folder, shared = _filled(tmp_path)
    for record in folder.records():
        if record.key.block_set == "mid.0" or record.key.category == "add_object":
            (folder.path / str(record.image)).unlink()
    for path in (shared.path / "images").glob("*target*"):
        path.unlink()
    picture = gallery(folder, shared)
    assert picture is not None and picture.shape[0] == MARGIN_TOP + CELL_SIZE + GAP
    middle = MARGIN_TOP + CELL_SIZE // 2
    found = [int(picture[middle, MARGIN_LEFT + column * (CELL_SIZE + GAP) + CELL_SIZE // 2, 0]) for column in range(3)]
    assert found == [COLORS["source"], COLORS["all"], 255]
    for path in (folder.path / "images").iterdir():
        path.unlink()
    assert gallery(folder, shared) is None and write_galleries(folder.path.parent, [folder]) == []


def test_the_order_of_records_changes_nothing(tmp_path: Path) -> None:
    """Workers record in the order in which they happen to finish."""
    folder, shared = _filled(tmp_path)
    made = folder.records()
    with folder.open_for_writing():
        for strength, value in ((0.5, 30), (1.5, 220)):
            for record in made:
                key = record.key.model_copy(update={"strength": strength})
                image, digest = folder.write_image(key, _flat(value))
                folder.append(record.model_copy(update={"key": key, "image": image, "image_sha256": digest}))
    lines = (folder.path / "records.jsonl").read_text().splitlines(keepends=True)
    ends = [line for line in lines if '"strength":1.0' not in line]
    for some in (lines, ends):
        drawn = []
        for order in (some, some[::-1]):
            (folder.path / "records.jsonl").write_text("".join(order))
            drawn.append(gallery(folder, shared))
        assert drawn[0] is not None and drawn[1] is not None and np.array_equal(drawn[0], drawn[1])
