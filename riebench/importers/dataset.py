"""Any data set of prompt pairs, as task files."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain, islice
from typing import Any

import numpy as np
from PIL import Image

from riebench.errors import RiebenchError
from riebench.importers.cells import opened_cell
from riebench.importers.columns import choose_columns, read_mapping
from riebench.importers.intake import Draft, Intake
from riebench.importers.published import Origin
from riebench.importers.rows import Place, open_rows
from riebench.importers.runlengths import Mask, decode
from riebench.importers.wording import category_of, stated_region
from riebench.phrases import WHOLE
from riebench.utils.files import canonical_json, content_digest


def import_dataset(
    place: Place, intake: Intake, *, columns: Sequence[str] = (), category: str | None = None, limit: int | None = None
) -> Origin:
    """Reads rows of a data set; each holds one prompt pair.

    Args:
        place: where it is.
        intake: gets its rows.
        columns: "FIELD=COLUMN" for what has no usual name.
        category: that of all rows; None if a column says it.
        limit: reads only the first so many rows.

    Raises:
        RiebenchError: if it cannot be opened or read, or a column is missing.
    """
    mapping = read_mapping(columns)
    fixed = None if category is None else category_of(category)
    opened = open_rows(place)
    rows = opened.read(place.name)
    first = next(rows, None)
    if first is None:
        raise RiebenchError(f"{place.name} has no rows in its split {opened.split!r}")
    chosen = choose_columns(place.name, list(first), mapping)
    if fixed is None and "category" not in chosen:
        raise RiebenchError(
            f"no column of {place.name} says the edits' category: write --column category=COLUMN or --category NAME"
        )
    digest, n_rows = hashlib.sha256(), 0
    for row in islice(chain([first], rows), limit):
        record = {field: opened_cell(row.get(column), place) for field, column in chosen.items()}
        digest.update(canonical_json({key: _hashable(value) for key, value in record.items()}).encode())
        name = _given(record, "id") or f"row {n_rows}"
        intake.take(name, partial(_draft, place.short, record, fixed))
        n_rows += 1
    if limit is not None and next(rows, None) is not None:
        intake.notes.append(f"--limit {limit} leaves out the rows after the first {limit}")
    if not {"mask", "source_region", "target_region"} & set(chosen):
        intake.notes.append("no column names regions: each region is the whole picture")
    told = {"config": place.config, "split": opened.split, "revision": opened.revision or place.revision}
    stated = {key: value for key, value in told.items() if value is not None}
    source = place.name if place.local is None else place.local.name
    return {"format": "dataset", "dataset": source, **stated, "sha256": digest.hexdigest(), "records": n_rows}


def _draft(name: str, record: Mapping[str, Any], fixed: str | None) -> Draft:
    source, target = _text(record, "source"), _text(record, "target")
    category = fixed or category_of(_text(record, "category"))
    # An id from the content stays the row's own wherever the row stands.
    identity = _given(record, "id") or f"{name}-{content_digest([category, source, target])[:12]}"
    mask = None if record.get("mask") in (None, "") else _mask(record["mask"])
    instruction = _given(record, "instruction")
    regions = {}
    for side, prompt in (("source_region", source), ("target_region", target)):
        text = _given(record, side)
        regions[side] = WHOLE if text is None else stated_region(text, prompt)
    said = {} if instruction is None else {"instruction": instruction}
    return Draft(category, _as_id(identity), source, target, regions, mask, said)


def _given(record: Mapping[str, Any], field: str) -> str | None:
    """A cell's text; None for an empty one, which table readers also write as "not a number"."""
    value = record.get(field)
    return str(value) if isinstance(value, str | int) and str(value).strip() else None


def _text(record: Mapping[str, Any], field: str) -> str:
    text = _given(record, field)
    if text is None:
        raise RiebenchError(f"{field} is no text: {str(record.get(field))[:40]!r}")
    return text


def _as_id(text: str) -> str:
    """A name that can stand in file names: other characters become dashes."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")


def _mask(value: Any) -> Mask:
    if not isinstance(value, Image.Image):
        return decode(list(value) if isinstance(value, tuple | np.ndarray) else value)
    bright: Mask = np.asarray(value.convert("L")) > 127
    return bright


def _hashable(value: Any) -> Any:
    if isinstance(value, Image.Image):
        return [value.mode, list(value.size), hashlib.sha256(value.tobytes()).hexdigest()]
    return value if isinstance(value, str | int | None) else str(value)
