"""Records of other people's files on their way in: each becomes an example of ours or is left out with its reason."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from riebench.errors import LONGEST_NAME, RiebenchError, near_match, one_line
from riebench.importers.runlengths import Mask, mask_png
from riebench.phrases import FILE, plain_prompt
from riebench.schema import EditExample, default_rule
from riebench.suites import REQUIRED_REGIONS, TokenCounter, check_example
from riebench.utils.yaml_files import text_fault

MASK_FOLDER = "masks"
"""Folder of the mask files, beside the task files."""


@dataclass(frozen=True)
class Draft:
    """One record, read.

    Attributes:
        category: an edit category.
        id: the example's id.
        source: prompt of the picture to edit, verbatim.
        target: prompt of the wished result, verbatim.
        regions: "source_region" and "target_region"; those that the category's rule does not use are left out.
        mask: where the edit may be, instead of regions by words; bool [H, W].
        provenance: what else the record says.
    """

    category: str
    id: str
    source: str
    target: str
    regions: Mapping[str, str] = field(default_factory=dict)
    mask: Mask | None = None
    provenance: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Intake:
    """Collects what an import gives.

    Attributes:
        count: number of tokens of a prompt, start and end included.
        limit: how many of them the model reads.
        examples: category -> the examples, as its task file will state them.
        masks: mask file, relative to the suite's folder -> its bytes.
        skipped: (record's name, reason) of each record that was left out.
        notes: what else the user should know.
    """

    count: TokenCounter
    limit: int
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    masks: dict[str, bytes] = field(default_factory=dict)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _ids: set[str] = field(default_factory=set)
    _pairs: dict[tuple[str, str, str, str], str] = field(default_factory=dict)

    def take(self, name: str, read: Callable[[], Draft]) -> None:
        """Reads one record; what is wrong with it becomes the reason why it is left out.

        Args:
            name: the record's name, for messages.
            read: makes the draft, or raises a `RiebenchError`.
        """
        # The name is a stranger's too, and is printed.
        name = one_line(name[:LONGEST_NAME])
        try:
            self._add(read())
        except RiebenchError as error:
            self.skipped.append((name, str(error)))
        except RecursionError:
            self.skipped.append((name, "nested too deeply"))

    @property
    def n_taken(self) -> int:
        """Examples so far."""
        return sum(map(len, self.examples.values()))

    def _add(self, draft: Draft) -> None:
        rule = default_rule(draft.category)
        png = None if draft.mask is None else _checked_png(draft.mask)
        file = f"{MASK_FOLDER}/{draft.id}.png"
        regions = {key: draft.regions.get(key) if png is None else FILE + file for key in REQUIRED_REGIONS[rule]}
        values: dict[str, Any] = {"id": draft.id, "source": draft.source, "target": draft.target}
        values |= {key: region for key, region in regions.items() if region is not None}
        if draft.provenance:
            values["provenance"] = dict(draft.provenance)
        _check_texts(values)
        example = self._checked(values, rule)
        pair = (draft.category, example.plain.source, example.plain.target, hashlib.sha256(png or b"").hexdigest())
        if pair in self._pairs:
            raise RiebenchError(f"the same edit as {self._pairs[pair]}")
        if draft.id in self._ids:
            raise RiebenchError(f"the id {draft.id!r} is used already")
        self._pairs[pair] = draft.id
        self._ids.add(draft.id)
        if png is not None:
            self.masks[file] = png
        self.examples.setdefault(draft.category, []).append(values)

    def _checked(self, values: dict[str, Any], rule: str) -> EditExample:
        try:
            example = EditExample.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            raise RiebenchError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
        where = "record"
        try:
            check_example(where, example, values, rule)
        except RiebenchError as error:
            raise RiebenchError(str(error).removeprefix(f"{where}: ")) from error
        for key, prompt in (("source", example.plain.source), ("target", example.plain.target)):
            n = self.count(prompt)
            if n > self.limit:
                raise RiebenchError(f"{key} has {n} tokens, of which the model reads {self.limit}")
        return example

    def clustered(self) -> dict[str, list[dict[str, Any]]]:
        """The examples; those of equal source prompts are marked to be resampled together."""
        prompts = [plain_prompt(one["source"]) for some in self.examples.values() for one in some]
        shared = {prompt for prompt, n in Counter(prompts).items() if n > 1}
        first: dict[str, str] = {}
        found: dict[str, list[dict[str, Any]]] = {}
        for category, some in self.examples.items():
            for one in some:
                prompt = plain_prompt(one["source"])
                cluster = {"cluster": first.setdefault(prompt, one["id"])} if prompt in shared else {}
                found.setdefault(category, []).append({**one, **cluster})
        return found


def _check_texts(values: Mapping[str, Any]) -> None:
    """Refuses what no task file may hold: there it would be the end of all other records too."""
    for key, value in values.items():
        for text in value.values() if isinstance(value, dict) else [value]:
            fault = text_fault(text)
            if fault is not None:
                raise RiebenchError(f"{key}: {fault}")


def _checked_png(mask: Mask) -> bytes:
    if not mask.any():
        raise RiebenchError("the mask is empty")
    return mask_png(mask)


def read_json(path: Path) -> tuple[Any, str]:
    """A JSON file's value and its SHA-256.

    Raises:
        RiebenchError: if it is missing or damaged, or names a record twice; says where.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RiebenchError(f"{path}: {(error.strerror or str(error)).lower()}") from error
    try:
        value = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_without_repeats)
    except json.JSONDecodeError as error:
        raise RiebenchError(f"{path}, line {error.lineno}: damaged JSON ({error.msg.lower()})") from error
    except (ValueError, RecursionError) as error:
        raise RiebenchError(f"{path}: {error}") from error
    return value, hashlib.sha256(data).hexdigest()


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    repeated = [key for key, n in Counter(key for key, _ in pairs).items() if n > 1]
    if repeated:
        raise ValueError(f"{repeated[0]!r} is given twice")
    return dict(pairs)


def text_field(record: Any, key: str) -> str:
    """A text of a record; numbers are taken as written.

    Raises:
        RiebenchError: if it is missing (with the nearest key) or no text.
    """
    if not isinstance(record, dict):
        raise RiebenchError(f"expected a record with keys, not {type(record).__name__}")
    if key not in record:
        raise RiebenchError(f"{key} is missing{near_match(key, map(str, record))}")
    value = record[key]
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise RiebenchError(f"{key} is no text: {str(value)[:40]!r}")
    return str(value)
