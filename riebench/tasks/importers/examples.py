"""Records of untrusted files on their way to becoming examples.

Each record becomes an example or is left out with its reason (`ImportCollector`). The other functions convert the
fields of records: categories, regions, masks and texts.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image
from pydantic import ValidationError

from riebench.errors import MAX_NAME_LENGTH, RiebenchError, near_match, one_line
from riebench.tasks.masks import Mask
from riebench.tasks.prompts import (
    BACKGROUND,
    FILE,
    NOT,
    SEEN,
    WHOLE,
    mask_file,
    phrase_spans,
    plain_prompt,
    region_words,
    split_negations,
)
from riebench.tasks.schema import ALL_CATEGORIES, MAX_PROMPT_LENGTH, EditExample, default_region_rule
from riebench.tasks.suites import REQUIRED_REGIONS, TokenCounter, check_example
from riebench.utils.yaml_files import text_fault

EVERYTHING, COMPLEMENT = "#everything", "~"
"""Signs in the published RIEBench file: the whole picture, and everything but the words."""

PIE_SIDE = 512
"""Side of PIE-Bench's pictures and masks, in pixels."""

MASK_FOLDER = "masks"
"""Name of the folder of mask files, beside the task files."""


TASK_WORDS: dict[str, str] = {
    "add": "add_object",
    "addition": "add_object",
    "object_addition": "add_object",
    "remove": "delete_object",
    "removal": "delete_object",
    "object_removal": "delete_object",
    "delete": "delete_object",
    "replace": "change_object",
    "replacement": "change_object",
    "object_replacement": "change_object",
    "background": "change_background",
    "background_change": "change_background",
    "color": "change_color",
    "color_change": "change_color",
    "texture": "change_material",
    "texture_change": "change_material",
    "material": "change_material",
    "action": "change_pose",
    "action_change": "change_pose",
    "pose": "change_pose",
    "style": "change_style",
    "style_change": "change_style",
}
"""Word for a kind of edit in Emu Edit, MagicBrush and others -> its category.

Words of several kinds (local, global, text, counting) are not here: who imports them says what they are.
"""


@dataclass(frozen=True)
class Draft:
    """One record as read, not checked yet.

    Attributes:
        category: an edit category.
        id: the example's id.
        source: prompt of the picture to edit, verbatim.
        target: prompt of the wished result, verbatim.
        regions: "source_region" and "target_region"; those that the category's rule does not use are left out.
        mask: the pixels that the edit may change, instead of regions by words; bool [H, W].
        provenance: further fields of the record.
        remarks: what a user should know of how it was read, in words that fit many records.
    """

    category: str
    id: str
    source: str
    target: str
    regions: Mapping[str, str] = field(default_factory=dict)
    mask: Mask | None = None
    provenance: Mapping[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


@dataclass
class ImportCollector:
    """Collector of the examples, masks and remarks of one import.

    Attributes:
        count: a function that counts the tokens of a prompt, start and end tokens included.
        limit: the number of tokens that the model reads.
        examples: category -> the examples, as its task file will state them.
        masks: mask file, relative to the suite's folder -> its bytes.
        skipped: (record's name, reason) of each record that was left out.
    """

    count: TokenCounter
    limit: int
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    masks: dict[str, bytes] = field(default_factory=dict)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    _notes: list[str] = field(default_factory=list)
    _remarks: dict[str, list[str]] = field(default_factory=dict)
    _ids: set[str] = field(default_factory=set)
    _pairs: dict[tuple[str, str, str, str], str] = field(default_factory=dict)

    def add_record(self, name: str, read: Callable[[], Draft]) -> None:
        """Read one record; a fault in it is the reason why it is left out.

        Args:
            name: the record's name, for messages.
            read: a function that returns the draft or raises a `RiebenchError`.
        """
        # The name comes from an untrusted file too, and is printed.
        name = one_line(name[:MAX_NAME_LENGTH])
        try:
            draft = read()
            self._add(draft)
            for remark in (*draft.remarks, *_mask_remarks(draft.mask)):
                self._remarks.setdefault(remark, []).append(name)
        except RiebenchError as error:
            self.skipped.append((name, str(error)))
        except RecursionError:
            self.skipped.append((name, "nested too deeply"))

    def add_note(self, note: str) -> None:
        """Add a remark for the user on the whole import."""
        self._notes.append(one_line(note))

    @property
    def notes(self) -> list[str]:
        """Remarks for the user.

        Those on single records come last, with their number and the first of them.
        """
        return [*self._notes, *(f"{what}: {len(names)}, {names[0]} first" for what, names in self._remarks.items())]

    @property
    def n_examples(self) -> int:
        """Number of examples so far."""
        return sum(map(len, self.examples.values()))

    def _add(self, draft: Draft) -> None:
        """Check a draft and add it as an example."""
        rule = default_region_rule(draft.category)
        png = None if draft.mask is None else _encode_mask(draft.mask)
        file = f"{MASK_FOLDER}/{draft.id}.png"
        regions = {key: draft.regions.get(key) if png is None else FILE + file for key in REQUIRED_REGIONS[rule]}
        values: dict[str, Any] = {"id": draft.id, "source": draft.source, "target": draft.target}
        values |= {key: region for key, region in regions.items() if region is not None}
        if draft.provenance:
            values["provenance"] = dict(draft.provenance)
        _check_texts(values)
        example = self._build_example(values, rule)
        pair = (draft.category, example.plain.source, example.plain.target, hashlib.sha256(png or b"").hexdigest())
        if pair in self._pairs:
            raise RiebenchError(f"the same edit as {self._pairs[pair]}")
        if draft.id in self._ids:
            stated = draft.provenance.get("stated_id")
            made = f", which {stated!r} becomes," if stated is not None else ""
            raise RiebenchError(f"the id {draft.id!r}{made} is used already; give each record an id of its own")
        self._pairs[pair] = draft.id
        self._ids.add(draft.id)
        if png is not None:
            self.masks[file] = png
        self.examples.setdefault(draft.category, []).append(values)

    def _build_example(self, values: dict[str, Any], rule: str) -> EditExample:
        """Return the checked example of an example's keys and values."""
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

    def examples_with_clusters(self) -> dict[str, list[dict[str, Any]]]:
        """Return the examples, those with equal source prompts in one cluster.

        Examples of one cluster are resampled together.
        """
        prompts = [plain_prompt(example["source"]) for group in self.examples.values() for example in group]
        shared = {prompt for prompt, n in Counter(prompts).items() if n > 1}
        first: dict[str, str] = {}
        found: dict[str, list[dict[str, Any]]] = {}
        for category, group in self.examples.items():
            for example in group:
                prompt = plain_prompt(example["source"])
                cluster = {"cluster": first.setdefault(prompt, example["id"])} if prompt in shared else {}
                found.setdefault(category, []).append({**example, **cluster})
        return found


def _check_texts(values: Mapping[str, Any]) -> None:
    """Refuse texts that no task file may hold.

    One of them in a task file would make all its other examples unreadable too.
    """
    for key, value in values.items():
        for text in value.values() if isinstance(value, dict) else [value]:
            fault = text_fault(text)
            if fault is not None:
                raise RiebenchError(f"{key}: {fault}")


def _encode_mask(mask: Mask) -> bytes:
    """Return a mask's PNG file, or refuse an empty mask."""
    if not mask.any():
        raise RiebenchError("the mask is empty")
    return mask_png(mask)


def _mask_remarks(mask: Mask | None) -> list[str]:
    if mask is None:
        return []
    return ["masks that cover the whole picture"] * bool(mask.all()) + [
        "masks that are not square, and are stretched"
    ] * (mask.shape[0] != mask.shape[1])


def category_word(value: object) -> str:
    """Return a category's name as it is compared: small letters, words joined by "_"."""
    return "_".join(re.split(r"[\s_-]+", str(value).strip().lower())).replace("colour", "color")


def parse_words(stated: Sequence[str]) -> dict[str, str]:
    """Parse the pairs of `--map WORD=CATEGORY`: word as compared -> category.

    Raises:
        RiebenchError: for a pair that is none, an unknown category (with the nearest match) or a word given twice.
    """
    words: dict[str, str] = {}
    for pair in stated:
        word, equals, category = pair.rpartition("=")
        if not (word.strip() and equals and category.strip()):
            raise RiebenchError(f"--map {pair!r}: write WORD=CATEGORY, such as local=change_content")
        if category_word(word) in words:
            raise RiebenchError(f"--map: {word.strip()!r} is given twice")
        try:
            words[category_word(word)] = category_of(category)
        except RiebenchError as error:
            raise RiebenchError(f"--map {pair!r}: {error}") from error
    return words


def category_of(value: object, words: Mapping[str, str] = MappingProxyType({})) -> str:
    """Return the category of a name or number.

    Both are also accepted as PIE-Bench writes them ("6", "6_change_attribute_color_40"), and so are the `TASK_WORDS` of
    other data sets.

    Args:
        value: the name or number.
        words: further words -> category, which come first (see `parse_words`).

    Raises:
        RiebenchError: if it is none; names the nearest match.
    """
    text = category_word(value)
    known_words = {**TASK_WORDS, **words}
    if text in known_words:
        return known_words[text]
    number = re.match(r"(\d)(_|$)", text)
    if number:
        names = [name for name, known in ALL_CATEGORIES.items() if known == int(number[1])]
    else:
        wanted = text.replace("attribute_", "")
        names = [name for name in ALL_CATEGORIES if name == wanted]
    if not names:
        raise RiebenchError(f"unknown category {str(value)!r}{near_match(text, ALL_CATEGORIES)}")
    return names[0]


def published_region(phrase: str, prompt: str) -> str:
    """Return a region phrase of the published RIEBench file as a region.

    Its signs are written out.

    Args:
        phrase: "#everything"; a phrase with "background" in it, which the published scripts take for all but the
            foreground; words with "~", for everything but them; or words.
        prompt: the prompt of the picture that the region lies in.

    Raises:
        RiebenchError: for a phrase without words, or one that is too long for one.
    """
    if len(phrase) > MAX_PROMPT_LENGTH:
        raise RiebenchError(f"a region has {len(phrase)} characters")
    phrase = " ".join(phrase.split())
    if phrase == EVERYTHING:
        return WHOLE
    if "background" in phrase:
        return BACKGROUND
    if COMPLEMENT in phrase:
        return f"{NOT} {words_region(phrase.replace(COMPLEMENT, '').strip(), prompt)}"
    return words_region(phrase, prompt)


def column_region(text: str, prompt: str) -> str:
    """Return a region from a data set's column.

    Any form that task files have is accepted, or words.

    Raises:
        RiebenchError: for a mask file, whose path would mean nothing here.
    """
    if len(text) > MAX_PROMPT_LENGTH:
        raise RiebenchError(f"a region has {len(text)} characters")
    text = " ".join(text.split())
    if mask_file(text) is not None:
        raise RiebenchError(f"the region {text!r} names a file; give the column that holds the mask itself")
    if region_words(text) is None:
        return text
    negations, words = split_negations(text)
    return f"{NOT} " * negations + words_region(words, prompt)


def words_region(words: str, prompt: str) -> str:
    """Return words as a region.

    They stay as they are if the prompt contains them; otherwise they are for something only seen in the picture.

    Raises:
        RiebenchError: if there are no words.
    """
    if not words.strip():
        raise RiebenchError("a region has no words")
    known = region_words(words) is not None and phrase_spans(plain_prompt(prompt), words)
    return words if known else f"{SEEN} {words}"


def decode_mask(runs: Any, height: int = PIE_SIDE, width: int = PIE_SIDE) -> Mask:
    """Return the mask of a list of runs.

    The benchmark's own evaluation also sets the outer frame of one pixel; that belongs to its profile, not to the data,
    and is not done here.

    Args:
        runs: [start, length, start, length, ...], or the same numbers as text with spaces or commas between. A run
            that leaves the picture is cut at its end; one that begins behind it is refused.
        height: of the picture.
        width: of the picture.

    Returns:
        bool [height, width].

    Raises:
        RiebenchError: if it is no such list.
    """
    numbers = _run_numbers(runs)
    if len(numbers) % 2:
        raise RiebenchError(f"a mask is pairs of start and length, but this one has {len(numbers)} numbers")
    flat = np.zeros(height * width, dtype=bool)
    for start, length in zip(numbers[::2], numbers[1::2], strict=True):
        if start < 0 or length < 0:
            raise RiebenchError(f"a mask's run {start}+{length} is negative")
        if length and start >= flat.size:
            raise RiebenchError(
                f"a mask's run {start}+{length} begins behind a picture of {height} x {width} pixels; masks of other "
                "sizes are read as pictures only"
            )
        flat[start : start + length] = True
    return flat.reshape(height, width)


def _run_numbers(runs: Any) -> list[int]:
    """Return the numbers of a mask given as a list or as text."""
    if isinstance(runs, str):
        numbers = runs.strip().removeprefix("[").removesuffix("]").strip()
        try:
            return [int(part) for part in re.split(r"\s*,\s*|\s+", numbers)] if numbers else []
        except ValueError as error:
            raise RiebenchError(f"a mask's text is numbers with spaces or commas between, not {runs[:40]!r}") from error
    if not isinstance(runs, list):
        raise RiebenchError(f"a mask is a list of numbers, not {type(runs).__name__}")
    odd = [number for number in runs if not isinstance(number, int) or isinstance(number, bool)]
    if odd:
        raise RiebenchError(f"a mask is a list of whole numbers; {odd[0]!r} is none")
    return runs


def mask_png(mask: Mask) -> bytes:
    """Return a mask as a PNG file's bytes, white where it is true.

    `file:` regions read this picture.
    """
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, format="PNG")
    return buffer.getvalue()


def read_json(path: Path) -> tuple[Any, str]:
    """Return a JSON file's value and its SHA-256.

    Raises:
        RiebenchError: if it is missing or damaged, or names a record twice; says where.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RiebenchError(f"{path}: {(error.strerror or str(error)).lower()}") from error
    try:
        value = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_refuse_repeated_keys)
    except json.JSONDecodeError as error:
        raise RiebenchError(f"{path}, line {error.lineno}: damaged JSON ({error.msg.lower()})") from error
    except (ValueError, RecursionError) as error:
        raise RiebenchError(f"{path}: {error}") from error
    return value, hashlib.sha256(data).hexdigest()


def _refuse_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the mapping of some pairs, or refuse a key given twice."""
    repeated = [key for key, n in Counter(key for key, _ in pairs).items() if n > 1]
    if repeated:
        raise ValueError(f"{repeated[0]!r} is given twice")
    return dict(pairs)


def text_field(record: Any, key: str) -> str:
    """Return a text of a record; numbers are taken as written.

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
