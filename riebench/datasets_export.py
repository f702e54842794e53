"""Edited pictures as a Hugging Face dataset: one row per unit, with its pictures where they are, prompts and scores."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from riebench.errors import RiebenchError
from riebench.exports import frame, unit_rows
from riebench.store.folder import RunFolder
from riebench.tasks.schema import EditTask
from riebench.tasks.suites import load_suite, suite_names

if TYPE_CHECKING:
    from datasets import Dataset

PICTURES = ("source_picture", "target_picture", "edited_picture")
MARK = "dataset_info.json"
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def check_hub_name(name: str) -> str:
    """A dataset's name on the hub.

    Raises:
        RiebenchError: if it is none.
    """
    if not HUB_NAME.fullmatch(name):
        raise RiebenchError(f"--push-to {name!r}: write OWNER/NAME, such as my-group/riebench-toy")
    return name


def to_dataset(folders: Sequence[RunFolder], tasks: Iterable[EditTask] = ()) -> Dataset:
    """All units as a dataset. Pictures that are not on this machine are missing values.

    Args:
        folders: run folders.
        tasks: suites of one's own, for the prompts; shipped ones are known.
    """
    from datasets import Dataset, Image
    from datasets.utils.logging import disable_progress_bar

    disable_progress_bar()
    rows = _with_prompts(folders, unit_rows(folders), tasks)
    table = frame(rows)
    made = Dataset.from_pandas(table, preserve_index=False)
    paths = dict(zip(PICTURES, zip(*_pictures(folders), strict=True), strict=True)) if rows else {}
    for name in PICTURES:
        made = made.add_column(name, [*paths.get(name, ())]).cast_column(name, Image())
    return made


def _pictures(folders: Sequence[RunFolder]) -> Iterable[tuple[str | None, str | None, str | None]]:
    """Paths of source, target and edited picture of every unit, in the order of `unit_rows`."""
    for folder in folders:
        for record in folder.records():
            shared = folder.shared.path
            yield (
                _there(shared, record.source_image), _there(shared, record.target_image),
                _there(folder.path, record.image),
            )  # fmt: skip


def _there(place: Path, name: str | None) -> str | None:
    return str(place / name) if name is not None and (place / name).is_file() else None


def _with_prompts(
    folders: Sequence[RunFolder], rows: list[dict[str, Any]], tasks: Iterable[EditTask]
) -> list[dict[str, Any]]:
    shipped = {folder.spec.suite for folder in folders} & {*suite_names()}
    known = {
        (task.suite, task.name, example.id, example.content_hash): example.plain
        for task in [*(task for name in sorted(shipped) for task in load_suite(name)), *tasks]
        for example in task.examples
    }
    told = []
    for row in rows:
        example = known.get((row["suite"], row["task"], row["example_id"], row["example_hash"]))
        prompts = {"source_prompt": example and example.source, "target_prompt": example and example.target}
        told.append(row | prompts)
    return told


def save_dataset(dataset: Dataset, place: Path) -> Path:
    """Writes a dataset folder with the pictures inside; one that is there is replaced when the new one is whole.

    Args:
        dataset: what to write.
        place: the folder.

    Raises:
        RiebenchError: if something else is there.
    """
    if place.exists() and not (place / MARK).is_file():
        raise RiebenchError(f"{place} is there and no dataset; use another --out folder")
    beside = place.with_name(f".{place.name}.new")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        dataset.save_to_disk(str(beside))
        if place.exists():
            shutil.rmtree(place)
        beside.rename(place)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return place


def push(dataset: Dataset, name: str) -> None:
    """Uploads a dataset, as a private one if it is new.

    Raises:
        RiebenchError: with the hub's own first line, if it cannot.
    """
    try:
        dataset.push_to_hub(check_hub_name(name), private=True)
    # The hub's client raises errors of many libraries; whichever it is, nothing here can mend it.
    except Exception as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RiebenchError(
            f"{name} could not be uploaded: {said}; `hf auth login` gives the right to write there"
        ) from error
