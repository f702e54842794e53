"""Importers of the two published benchmarks: RIEBench and PIE-Bench."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from riebench.errors import RiebenchError
from riebench.tasks.importers.examples import (
    Draft,
    ImportCollector,
    category_of,
    decode_mask,
    published_region,
    read_json,
    text_field,
)
from riebench.utils.files import file_inside, file_sha256
from riebench.utils.images import open_image

Origin = dict[str, str | int]
"""Origin of examples, as their task files state it."""


def import_riebench(path: Path, collector: ImportCollector) -> Origin:
    """Read the published RIEBench file into a collector.

    The file is a list of records with prompts and region phrases.

    Args:
        path: the file.
        collector: the collector that its records are added to.

    Raises:
        RiebenchError: if the file is no such list.
    """
    records, digest = read_json(path)
    if not isinstance(records, list) or not records:
        raise RiebenchError(f"{path}: expected a list of records, as the published riebench.json is")
    for number, record in enumerate(records):
        stated = record.get("id") if isinstance(record, dict) else None
        name = str(stated) if isinstance(stated, str | int) else f"record {number}"
        collector.add_record(name, partial(_riebench_draft, record))
    return {"format": "riebench", "file": path.name, "sha256": digest, "records": len(records)}


def _riebench_draft(record: Any) -> Draft:
    category = category_of(text_field(record, "editing_type_id"))
    source, target = text_field(record, "original_prompt"), text_field(record, "editing_prompt")
    # A region that the category's rule does not use may name anything, also something its picture cannot show.
    sides = {
        "source_region": (category != "add_object", "original_gsam_prompt", source),
        "target_region": (category != "delete_object", "editing_gsam_prompt", target),
    }
    regions = {
        side: published_region(text_field(record, key), prompt) for side, (used, key, prompt) in sides.items() if used
    }
    provenance = _extra_fields(record, {"instruction": "editing_instruction"})
    return Draft(category, text_field(record, "id"), source, target, regions, provenance=provenance)


def import_piebench(path: Path, images: Path | None, folder: Path, collector: ImportCollector) -> Origin:
    """Read PIE-Bench's mapping file into a collector.

    The file holds records by id, with prompts and a run-length mask.

    Args:
        path: the file.
        images: the folder to which the records' picture paths are relative; None leaves pictures aside.
        folder: the suite's folder; the pictures' paths are stored relative to it.
        collector: the collector that its records are added to.

    Raises:
        RiebenchError: if the file is no such mapping, or there is no such folder.
    """
    records, digest = read_json(path)
    if not isinstance(records, dict) or not records:
        raise RiebenchError(f"{path}: expected records by their ids, as PIE-Bench's mapping_file.json is")
    if images is not None and not images.is_dir():
        raise RiebenchError(f"{images}: no such folder of pictures")
    for name, record in records.items():
        collector.add_record(name, partial(_piebench_draft, name, record, images, folder))
    return {"format": "piebench", "file": path.name, "sha256": digest, "records": len(records)}


def _piebench_draft(name: str, record: Any, images: Path | None, folder: Path) -> Draft:
    category = category_of(text_field(record, "editing_type_id"))
    source, target = text_field(record, "original_prompt"), text_field(record, "editing_prompt")
    if "mask" not in record:
        raise RiebenchError("mask is missing")
    mask = decode_mask(record["mask"])
    provenance = _extra_fields(record, {"instruction": "editing_instruction", "blended_word": "blended_word"})
    if images is not None:
        provenance |= _image_reference(images, text_field(record, "image_path"), folder)
    return Draft(category, name, source, target, mask=mask, provenance=provenance)


def _extra_fields(record: Any, keys: Mapping[str, str]) -> dict[str, str]:
    """Return the further fields that a record has, under their new names."""
    return {name: text_field(record, key) for name, key in keys.items() if record.get(key)}


def _image_reference(images: Path, name: str, folder: Path) -> dict[str, str]:
    """Return path and hash of a record's picture.

    Raises:
        RiebenchError: if it is missing, lies elsewhere or is no picture.
    """
    path = file_inside(images, name, "image_path", "the folder of pictures")
    try:
        with open_image(path):
            pass
    except (OSError, RiebenchError) as error:
        problem = "no such file" if isinstance(error, FileNotFoundError) else "no picture that can be read"
        raise RiebenchError(f"image_path {name!r}: {problem} in {images}") from error
    return {"image": Path(os.path.relpath(path, folder)).as_posix(), "image_sha256": file_sha256(path)}
