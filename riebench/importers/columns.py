"""Which column of a data set holds what an example needs."""

from __future__ import annotations

from collections.abc import Sequence

from riebench.errors import RiebenchError, near_match

USUAL: dict[str, tuple[str, ...]] = {
    "id": ("id", "image_id", "key"),
    "category": ("category", "editing_type_id", "edit_type", "task"),
    "source": ("source", "source_prompt", "original_prompt", "source_caption", "input_caption"),
    "target": ("target", "target_prompt", "editing_prompt", "target_caption", "output_caption"),
    "source_region": ("source_region", "original_gsam_prompt"),
    "target_region": ("target_region", "editing_gsam_prompt"),
    "mask": ("mask",),
    "instruction": ("instruction", "editing_instruction", "edit_instruction", "edit"),
}
"""What an example needs -> names that its column usually has."""

NEEDED = ("source", "target")
"""What cannot be done without."""


def read_mapping(stated: Sequence[str]) -> dict[str, str]:
    """The pairs of `--column FIELD=COLUMN`.

    Raises:
        RiebenchError: for a pair that is none, an unknown field (with the nearest match) or one given twice.
    """
    mapping: dict[str, str] = {}
    for pair in stated:
        name, equals, column = (part.strip() for part in pair.partition("="))
        if not (name and equals and column):
            raise RiebenchError(f"--column {pair!r}: write FIELD=COLUMN, such as source=caption")
        if name not in USUAL:
            raise RiebenchError(f"--column {pair!r}: unknown field {name!r}{near_match(name, USUAL)}")
        if name in mapping:
            raise RiebenchError(f"--column: {name!r} is given twice")
        mapping[name] = column
    return mapping


def choose_columns(where: str, columns: Sequence[str], mapping: dict[str, str]) -> dict[str, str]:
    """The column of each field, stated or found by its usual name.

    Args:
        where: the data set, for messages.
        columns: those that it has.
        mapping: field -> column, as stated.

    Raises:
        RiebenchError: if a stated column does not exist (with the nearest match) or a prompt has none.
    """
    for name, column in mapping.items():
        if column not in columns:
            raise RiebenchError(f"{where} has no column {column!r} for {name}{near_match(column, columns)}")
    found = {}
    for name, usual in USUAL.items():
        known = [column for column in usual if column in columns]
        if name in mapping or known:
            found[name] = mapping.get(name) or known[0]
    for name in NEEDED:
        if name not in found:
            near = near_match(f"{name}_prompt", columns)
            raise RiebenchError(f"which column of {where} holds the {name} prompt{near}? write --column {name}=COLUMN")
    return found
