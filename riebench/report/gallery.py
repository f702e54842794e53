"""Galleries, one picture per run with one example of each category.

A row shows the source picture, the edited picture of each block set, and the target picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from riebench.analysis.configurations import block_places
from riebench.store.folder import RunFolder
from riebench.store.records import EditRecord
from riebench.store.shared import SHARED_NAME, SharedFolder
from riebench.tasks.schema import ALL_CATEGORIES
from riebench.utils.files import write_atomic
from riebench.utils.images import Picture, encode_png, grid, picture_path


def write_galleries(model_folder: Path, folders: Sequence[RunFolder]) -> list[Path]:
    """Write one gallery per setting below `model_folder/gallery/`.

    It shows the setting's strength nearest to 1.

    Args:
        model_folder: `results/<suite>/<model>`.
        folders: its run folders.

    Returns:
        The files, in the order of the settings; a setting without a finished unit has none.
    """
    shared = SharedFolder(model_folder / SHARED_NAME)
    written = []
    for folder in folders:
        picture = gallery(folder, shared)
        if picture is not None:
            path = model_folder / "gallery" / f"{folder.path.name}.png"
            write_atomic(path, encode_png(picture))
            written.append(path)
    return written


def gallery(folder: RunFolder, shared: SharedFolder) -> Picture | None:
    """Draw the gallery of a run.

    There is one row per category; the columns are the source, one per block set, and the target. Results that are
    stored without their pictures are not an error.

    Args:
        folder: the run.
        shared: the folder with its source and target pictures.

    Returns:
        uint8 [H, W, 3], or None if there is no finished picture.
    """
    finished = [
        record for record in folder.records()
        if record.image and picture_path(folder.pictures, record.image).is_file()
    ]  # fmt: skip
    if not finished:
        return None
    # The choice does not depend on the order of the records, which differs between workers.
    strength = min((record.key.strength for record in finished), key=lambda value: (abs(value - 1), value))
    finished = [record for record in finished if record.key.strength == strength]
    places = block_places(record.key.block_set for record in finished)
    block_sets = sorted(places, key=places.__getitem__)
    rows = []
    for category in sorted({record.key.category for record in finished}, key=lambda name: ALL_CATEGORIES[name]):
        chosen = _first_example(finished, category)
        if chosen is not None:
            rows.append((category.replace("_", " "), _row(chosen, block_sets, folder, shared)))
    return grid(("source", *block_sets, "target"), rows) if rows else None


def _first_example(records: list[EditRecord], category: str) -> dict[str, EditRecord] | None:
    """Find the first example and seed whose source and target pictures are known.

    Returns:
        Block set -> record of that example and seed, or None if there is none.
    """
    for record in sorted(records, key=lambda r: (r.key.example_id, r.key.seed)):
        key = record.key
        if key.category == category and record.source_image and record.target_image:
            return {r.key.block_set: r for r in records if (r.key.example_id, r.key.seed) == (key.example_id, key.seed)}
    return None


def _row(
    records: dict[str, EditRecord], block_sets: Sequence[str], folder: RunFolder, shared: SharedFolder
) -> list[Picture | None]:
    some = next(iter(records.values()))
    edited = [records[name].image if name in records else None for name in block_sets]
    ends = [
        name if name and picture_path(shared.path, name).is_file() else None
        for name in (some.source_image, some.target_image)
    ]
    source, target = (None if name is None else shared.read_image(name) for name in ends)
    return [source, *(None if name is None else folder.read_image(name) for name in edited), target]
