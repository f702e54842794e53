"""Importer of any data set of prompt pairs.

Its rows come from `riebench.tasks.importers.rows`. Columns are chosen for the fields of an example, by their usual
names or as stated, and each row becomes a draft.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from typing import Any

import numpy as np

from riebench.errors import RiebenchError, near_match
from riebench.tasks.importers.examples import (
    Draft,
    ImportCollector,
    category_of,
    category_word,
    column_region,
    decode_mask,
    parse_words,
)
from riebench.tasks.importers.published import Origin
from riebench.tasks.importers.rows import DatasetSource, PictureCell, is_picture, open_rows, read_cell
from riebench.tasks.masks import Mask
from riebench.tasks.prompts import WHOLE
from riebench.utils.files import canonical_json, content_digest

USUAL_COLUMNS: dict[str, tuple[str, ...]] = {
    "id": ("id", "image_id", "key"),
    "category": ("category", "editing_type_id", "edit_type", "task"),
    "source": ("source", "source_prompt", "original_prompt", "source_caption", "input_caption", "input"),
    "target": (
        "target", "target_prompt", "edited_prompt", "editing_prompt", "target_caption", "output_caption", "output",
    ),
    "source_region": ("source_region", "original_gsam_prompt"),
    "target_region": ("target_region", "editing_gsam_prompt"),
    "mask": ("mask",),
    "instruction": ("instruction", "editing_instruction", "edit_instruction", "edit_prompt", "edit"),
}  # fmt: skip
"""Field of an example -> usual names of its column.

InstructPix2Pix has original_prompt, edit_prompt (the instruction) and edited_prompt; HQ-Edit input, edit and output;
the test set of Emu Edit input_caption, output_caption, instruction and task.
"""

INSTRUCTIONS = (*USUAL_COLUMNS["instruction"], "inverse_edit", "inverse_instruction", "edit_action")
"""Columns that say what to do to a picture, and so are no prompt of one."""

PAIRED_COLUMNS = ("input", "output")
"""Columns that are prompts only where both are there; one alone may be anything."""

REQUIRED_FIELDS = ("source", "target")
"""Fields that every data set must have a column for."""


@dataclass(frozen=True)
class RowReading:
    """Facts that all rows of a data set share.

    Attributes:
        name: the data set's short name, with which ids begin that rows do not state.
        category: of all rows; None if a column states it.
        words: word of that column -> category, as `--map` says.
        seen: words that the column has had so far.
    """

    name: str
    category: str | None
    words: Mapping[str, str]
    seen: set[str] = field(default_factory=set)

    def category_of(self, record: Mapping[str, Any]) -> str:
        """Return the category of a row.

        Raises:
            RiebenchError: if it states none, or one that is not known.
        """
        if self.category is not None:
            return self.category
        stated = _required_text(record, "category")
        self.seen.add(category_word(stated))
        try:
            return category_of(stated, self.words)
        except RiebenchError as error:
            known = "did you mean" in str(error)
            raise error if known else RiebenchError(f"{error}; say which it is: --map {stated}=CATEGORY") from None

    def unused_words(self) -> list[str]:
        """Return a line on each word of `--map` that no row has had."""
        missing = [word for word in self.words if word not in self.seen]
        return [f"--map {word}=...: no row says {word!r}{near_match(word, self.seen)}" for word in missing]


def import_dataset(
    source: DatasetSource,
    collector: ImportCollector,
    *,
    columns: Sequence[str] = (),
    category: str | None = None,
    words: Sequence[str] = (),
    limit: int | None = None,
) -> Origin:
    """Read rows of a data set into a collector; each holds one prompt pair.

    Args:
        source: the data set.
        collector: the collector that its rows are added to.
        columns: "FIELD=COLUMN" for each column without a usual name.
        category: the category of all rows; None if a column states it.
        words: "WORD=CATEGORY" for each word that the category's column has for a category (see `parse_words`).
        limit: the number of rows to read, from the first on; None for all.

    Raises:
        RiebenchError: if it cannot be opened or read, or a column is missing.
    """
    mapping = parse_columns(columns)
    reading = RowReading(source.short, None if category is None else category_of(category), parse_words(words))
    opened = open_rows(source)
    rows = opened.read(source.name)
    first = next(rows, None)
    if first is None:
        raise RiebenchError(f"{source.name} has no rows in its split {opened.split!r}")
    chosen = choose_columns(source.name, list(first), mapping, [name for name in first if is_picture(first[name])])
    if reading.category is None and "category" not in chosen:
        raise RiebenchError(
            f"no column of {source.name} says the edits' category: write --column category=COLUMN or --category NAME"
        )
    digest, n_rows = hashlib.sha256(), 0
    for row in islice(chain([first], rows), limit):
        record = {field: read_cell(row.get(column), source) for field, column in chosen.items()}
        digest.update(canonical_json({key: _hash_form(value) for key, value in record.items()}).encode())
        stated = record.get("id")
        name = str(stated) if isinstance(stated, str | int) and str(stated).strip() else f"row {n_rows}"
        collector.add_record(name, partial(_draft, record, reading))
        n_rows += 1
    if limit is not None and next(rows, None) is not None:
        collector.add_note(f"--limit {limit} leaves out the rows after the first {limit}")
    if not {"mask", "source_region", "target_region"} & set(chosen):
        collector.add_note("no column names regions: each region is the whole picture")
    for note in (*_column_notes(chosen, mapping), *reading.unused_words()):
        collector.add_note(note)
    options = {"config": source.config, "split": opened.split, "revision": opened.revision or source.revision}
    known = {key: value for key, value in options.items() if value is not None}
    place = source.name if source.local is None else source.local.name
    return {"format": "dataset", "dataset": place, **known, "sha256": digest.hexdigest(), "records": n_rows}


def parse_columns(stated: Sequence[str]) -> dict[str, str]:
    """Parse the pairs of `--column FIELD=COLUMN`.

    Raises:
        RiebenchError: for a pair that is none, an unknown field (with the nearest match) or one given twice.
    """
    mapping: dict[str, str] = {}
    for pair in stated:
        name, equals, column = (part.strip() for part in pair.partition("="))
        if not (name and equals and column):
            raise RiebenchError(f"--column {pair!r}: write FIELD=COLUMN, such as source=caption")
        if name not in USUAL_COLUMNS:
            raise RiebenchError(f"--column {pair!r}: unknown field {name!r}{near_match(name, USUAL_COLUMNS)}")
        if name in mapping:
            raise RiebenchError(f"--column: {name!r} is given twice")
        mapping[name] = column
    return mapping


def choose_columns(
    where: str, columns: Sequence[str], mapping: Mapping[str, str], pictures: Collection[str] = ()
) -> dict[str, str]:
    """Return the column of each field, stated or found by its usual name.

    Args:
        where: the data set, for messages.
        columns: the columns that it has.
        mapping: field -> column, as the user stated it.
        pictures: those that hold pictures, so that only a mask is looked for there.

    Raises:
        RiebenchError: if a stated column does not exist (with the nearest match) or a prompt has none.
    """
    for name, column in mapping.items():
        if column not in columns:
            likely = [one for one in columns if name not in REQUIRED_FIELDS or one not in INSTRUCTIONS]
            raise RiebenchError(f"{where} has no column {column!r} for {name}{near_match(column, likely)}")
    free = [column for column in columns if column not in mapping.values()]
    texts = [column for column in free if column not in pictures]
    if not set(PAIRED_COLUMNS) <= set(texts):
        texts = [column for column in texts if column not in PAIRED_COLUMNS]
    found = {}
    for name, usual in USUAL_COLUMNS.items():
        known = [column for column in usual if column in (free if name == "mask" else texts)]
        if name in mapping or known:
            found[name] = mapping.get(name) or known[0]
    for name in REQUIRED_FIELDS:
        if name not in found:
            near = near_match(f"{name}_prompt", [one for one in texts if one not in (*INSTRUCTIONS, *found.values())])
            said = next((f"; {one!r} is the instruction" for one in columns if one in INSTRUCTIONS), "")
            raise RiebenchError(
                f"which column of {where} holds the {name} prompt{near}? write --column {name}=COLUMN{said}"
            )
    return found


def _column_notes(chosen: Mapping[str, str], mapping: Mapping[str, str]) -> list[str]:
    """Return what a user should know of the columns that were chosen."""
    guessed = [f"{name}={column}" for name, column in chosen.items() if name not in mapping and name != column]
    odd = [column for name in REQUIRED_FIELDS if (column := chosen[name]) in INSTRUCTIONS]
    return [
        *([f"columns found by their names: {', '.join(guessed)}"] if guessed else []),
        *(f"the column {column!r} usually holds an instruction, not a prompt" for column in odd),
    ]


def _draft(record: Mapping[str, Any], reading: RowReading) -> Draft:
    """Return the draft of one row."""
    source, target = _required_text(record, "source"), _required_text(record, "target")
    category = reading.category_of(record)
    stated, remarks = _cell_text(record, "id"), []
    if "\n" in source + target:
        remarks.append("prompts with a line break, as an open quotation mark in a table makes them")
    if "id" in record and stated is None:
        remarks.append("rows without an id, called by a hash of their content")
    # An id made from the content stays the same wherever the row stands.
    identity = stated or f"{reading.name}-{content_digest([category, source, target])[:12]}"
    mask = None if _is_empty(record.get("mask")) else _mask(record["mask"])
    instruction = _cell_text(record, "instruction")
    regions = {}
    for side, prompt in (("source_region", source), ("target_region", target)):
        text = _cell_text(record, side)
        regions[side] = WHOLE if text is None else column_region(text, prompt)
        if side in record and text is None and mask is None:
            remarks.append(f"rows without a {side}, taken as the whole picture")
    provenance = {} if instruction is None else {"instruction": instruction}
    if "mask" in record and mask is None and not any(f"{side}_region" in record for side in REQUIRED_FIELDS):
        remarks.append("rows without a mask, taken as the whole picture")
    if stated is not None and _as_id(identity) != stated:
        remarks.append("ids with characters that ids lack, which became dashes; as stated they are under `provenance`")
        provenance["stated_id"] = stated
    return Draft(category, _as_id(identity), source, target, regions, mask, provenance, tuple(remarks))


def _cell_text(record: Mapping[str, Any], field: str) -> str | None:
    """Return a cell's text; None for an empty one.

    Raises:
        RiebenchError: if it holds something else, such as a date or a fraction, whose text as written is lost.
    """
    value = record.get(field)
    if _is_empty(value):
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        kind = "a picture" if isinstance(value, PictureCell) else f"{str(value)[:40]!r} ({type(value).__name__})"
        raise RiebenchError(f"{field} is no text but {kind}; store the column as text, in quotes")
    return str(value)


def _is_empty(value: Any) -> bool:
    """Return whether a cell is empty.

    It is missing, white space, or "not a number", as some formats write it.
    """
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, str) and not value.strip())


def _required_text(record: Mapping[str, Any], field: str) -> str:
    """Return a cell's text, or refuse an empty one."""
    text = _cell_text(record, field)
    if text is None:
        raise RiebenchError(f"{field} is no text: {str(record.get(field))[:40]!r}")
    return text


def _as_id(text: str) -> str:
    """Return a text as an id; characters that ids lack become dashes."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")


def _mask(value: Any) -> Mask:
    """Return the mask of a cell: a picture's, or that of runs."""
    if not isinstance(value, PictureCell):
        return decode_mask(list(value) if isinstance(value, tuple | np.ndarray) else value)
    if isinstance(value.mask, RiebenchError):
        raise RiebenchError(f"mask: {value.mask}") from value.mask
    return value.mask


def _hash_form(value: Any) -> Any:
    """Return a cell's value in a form that can be hashed as JSON."""
    if isinstance(value, PictureCell):
        picture = value.upright
        return [picture.mode, list(picture.size), hashlib.sha256(picture.tobytes()).hexdigest()]
    return value if isinstance(value, str | int | None) else str(value)
