"""Types of task and configuration files, and the intervals and categories in them.

The fields of the types are the keys of the YAML files; the hashes of their content identify runs. Intervals are shares
of a run's steps, as configurations and `--edit-steps` state them. This module needs no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from riebench.blocks import default_blocks
from riebench.errors import MAX_NAME_LENGTH, RiebenchError
from riebench.tasks.prompts import plain_prompt
from riebench.utils.files import content_digest

Interval = tuple[float, float]
"""First and last share of a run's steps, 0 to 1, the last one excluded."""

WHOLE_RUN: Interval = (0.0, 1.0)
"""The interval of every step."""

_ROUNDING = 1e-9
"""Tolerance for rounding: 0.3 of 20 steps are 6, though 0.3 * 20 may be slightly more in floating point."""

CATEGORIES: dict[str, int] = {
    "change_object": 1,
    "add_object": 2,
    "delete_object": 3,
    "change_content": 4,
    "change_pose": 5,
    "change_color": 6,
    "change_material": 7,
    "change_background": 8,
    "change_style": 9,
}
"""Edit category -> its number in the benchmark."""

MIXED_CATEGORY = "random"
"""Category of edits of every kind, which PIE-Bench has beside the nine others; the shipped suites have none."""

ALL_CATEGORIES: dict[str, int] = {MIXED_CATEGORY: 0, **CATEGORIES}
"""Every category that a task may have -> its number. Means over categories run over those that a suite has."""

INPUTS: dict[str, str] = {
    "P": "prompt",
    "A": "target activations",
    "M": "masks",
    "T": "training examples",
    "V": "inversion",
}
"""Letter of `Setting.access` -> the input in words, in the order in which inputs are named."""

MAX_PROMPT_LENGTH = 4000
"""Longest prompt, in characters; text encoders read the first 77 tokens only."""

MAX_WHOLE = 2**53
"""Numbers below this are whole in every format that stores them; larger ones count nothing."""

MAX_STRENGTH = 1e6
"""Largest strength; edits of thousands of times a feature's own value are noise already."""

MAX_STRENGTHS, MAX_BLOCKS = 1000, 1000
"""Most strengths and blocks of a method configuration."""

MAX_STEPS, MAX_GUIDANCE, MAX_SIZE = 1000, 1000.0, 16384
"""Most denoising steps, largest guidance scale, and longest side of a picture in pixels.

Models are trained with 1000 steps of noise, and no larger picture is read.
"""

MAX_PARAMETER = 1e9
"""Largest number of a method's parameter or of an option."""

Count = Annotated[int, Field(ge=0, lt=MAX_WHOLE)]
"""A number of things, or a number that names one."""

Strength = Annotated[float, Field(ge=-MAX_STRENGTH, le=MAX_STRENGTH)]
"""Multiplier of an edit."""

JsonScalar = str | bool | int | float | None

JsonValue = JsonScalar | list[JsonScalar]
"""A value of a method's parameter."""

RegionRule = Literal["edit", "add", "delete"]
"""Rule by which an example's regions count: both, the target's only, or the source's only."""

Identifier = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=120)]
"""A name that can stand in records, folder names and file names."""


def check_interval(interval: Interval) -> Interval:
    """Return the interval if it is valid.

    Raises:
        ValueError: if it does not lie in 0 to 1 or is empty.
    """
    first, last = interval
    if not 0 <= first < last <= 1:
        raise ValueError(f"{first:g}:{last:g} is no part of a run; write shares with 0 <= FIRST < LAST <= 1")
    return interval


def parse_interval(text: str) -> Interval:
    """Parse the text "FIRST:LAST".

    Raises:
        RiebenchError: if it is no interval.
    """
    first, colon, last = text.partition(":")
    try:
        if not colon:
            raise ValueError(f"{text!r} has no colon; write FIRST:LAST, such as 0:0.5 for the first half")
        return check_interval((float(first), float(last)))
    except ValueError as error:
        problem = str(error)
        if problem.startswith("could not convert"):
            problem = f"{text!r} are not two numbers; write FIRST:LAST, such as 0:0.5 for the first half"
        raise RiebenchError(f"--edit-steps: {problem}") from error


def step_window(interval: Interval, steps: int) -> tuple[int, int]:
    """Return the first step of an interval and the one after its last.

    Args:
        interval: shares of the run.
        steps: how many steps the run has.

    Raises:
        RiebenchError: if no step begins inside the interval.
    """
    first, last = (math.ceil(share * steps - _ROUNDING) for share in interval)
    if first >= last:
        raise RiebenchError(
            f"none of the {steps} steps begins between {interval[0]:g} and {interval[1]:g} of the run; "
            "take a wider interval, or more steps"
        )
    return first, last


def default_region_rule(category: str) -> RegionRule:
    """Return the region rule of a category whose file states none."""
    rules: dict[str, RegionRule] = {"add_object": "add", "delete_object": "delete"}
    return rules.get(category, "edit")


class StoredModel(BaseModel):
    """Base of all stored types.

    Instances are frozen; unknown keys, NaN and infinity are refused.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Attributes(StoredModel):
    """Attributes of the source and target picture, where known (toy world)."""

    source: dict[str, str]
    """Attribute -> value in the source picture."""
    target: dict[str, str]
    """Attribute -> value in the wished picture."""

    @model_validator(mode="after")
    def _comparable(self) -> Attributes:
        if self.source.keys() != self.target.keys():
            odd = ", ".join(sorted(self.source.keys() ^ self.target.keys()))
            raise ValueError(f"source and target must state the same attributes; only one states {odd}")
        if self.source == self.target:
            raise ValueError("source and target are the same; nobody could tell whether the edit worked")
        return self


class EditExample(StoredModel):
    """One edit: a prompt pair with the regions it may change."""

    id: Identifier
    """Unique in its suite; part of every record."""
    source: str = Field(min_length=1, max_length=MAX_PROMPT_LENGTH)
    """Prompt of the image to edit, verbatim."""
    target: str = Field(min_length=1, max_length=MAX_PROMPT_LENGTH)
    """Prompt of the wished result, verbatim."""
    source_region: str = Field(default="whole", max_length=MAX_PROMPT_LENGTH)
    """Region in which features are removed.

    It is "whole", "background", "file:PATH", words of the prompt, "seen: WORDS" for something that the prompt does not
    name, or "not: " and one of these.
    """
    target_region: str = Field(default="whole", max_length=MAX_PROMPT_LENGTH)
    """Region in which features are added, in the same forms."""
    attributes: Attributes | None = None
    """The truth of the edit, where it is known."""
    mask_sha256: str | None = None
    """Hash of the mask files that the regions name, filled in when they are read."""
    cluster: str | None = None
    """Examples that share a template or a picture carry the same name and are resampled together."""
    provenance: dict[str, str] = {}
    """Further fields of an imported record, such as its instruction or picture; they change no number."""

    @property
    def plain(self) -> EditExample:
        """The example with prompts as pictures are generated from them.

        The square brackets that mark edited words are removed.
        """
        prompts = {"source": plain_prompt(self.source), "target": plain_prompt(self.target)}
        return self.model_copy(update=prompts)

    @property
    def content_hash(self) -> str:
        """Hash of everything that can change a number of this example.

        Id, cluster and provenance are not part of it.
        """
        excluded = {"id", "cluster", "provenance"} | ({"mask_sha256"} if self.mask_sha256 is None else set())
        return content_digest(self.model_dump(mode="json", exclude=excluded))[:16]


def number_fault(value: object, largest: float = MAX_PARAMETER) -> str | None:
    """Return the reason why a number is refused, or None.

    Args:
        value: anything; what is no number has no fault.
        largest: the largest number that is taken, by its size.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) <= largest:
        return None
    # Python refuses to write a whole number of thousands of digits.
    shown = f"{value:g}" if isinstance(value, float) else str(value) if abs(value) < 10**40 else "a number"
    return f"{shown} is not between {-largest:g} and {largest:g}"


class EditTask(StoredModel):
    """All examples of one category in one suite."""

    name: Identifier
    """The file's name without its ending."""
    version: int = Field(ge=1, lt=MAX_WHOLE)
    """Version of the task; every change that changes numbers raises it."""
    category: str
    """A key of `ALL_CATEGORIES`."""
    suite: Identifier
    """The folder the file lies in."""
    region_rule: RegionRule = "edit"
    """Rule by which regions count; it follows from the category unless stated."""
    examples: tuple[EditExample, ...] = Field(min_length=1)
    """The edits, in file order."""
    folder: Path | None = None
    """Folder of the file on this machine, to which paths of mask files are relative. No hash and no record holds it."""
    provenance: dict[str, str | Count] = {}
    """Origin of imported examples: the file's name and SHA-256, and the number left out; it changes no number."""

    @model_validator(mode="before")
    @classmethod
    def _derive_rule(cls, data: Any) -> Any:
        if isinstance(data, dict) and "region_rule" not in data:
            return {**data, "region_rule": default_region_rule(str(data.get("category")))}
        return data

    @field_validator("category")
    @classmethod
    def _known_category(cls, value: str) -> str:
        if value not in ALL_CATEGORIES:
            raise ValueError(f"unknown category {value!r}; known: {', '.join(ALL_CATEGORIES)}")
        return value

    @property
    def content_hash(self) -> str:
        """Hash of version, region rule, and id and content of every example."""
        return content_digest([self.version, self.region_rule, [[e.id, e.content_hash] for e in self.examples]])[:16]


def sorted_access(letters: Iterable[str]) -> str:
    """Return letters of access in the order of `INPUTS`."""
    return "".join(sorted(letters, key=[*INPUTS].index))


def inputs_in_words(letters: Iterable[str]) -> str:
    """Return the inputs that letters of access stand for, in words.

    Args:
        letters: keys of `INPUTS` in any order.

    Returns:
        Such as "prompt + target activations + masks"; a single input has "only" behind it.
    """
    words = [INPUTS[letter] for letter in sorted_access(letters)]
    return f"{words[0]} only" if len(words) == 1 else " + ".join(words) or "no inputs"


class Setting(StoredModel):
    """One method with all its parameters: a file in `baselines/`."""

    name: Identifier
    """The file's name without its ending; also the run folder's name."""
    method: str
    """A registered method."""
    params: dict[str, JsonValue] = {}
    """The method's parameters; checked against its signature."""
    blocks: tuple[str, ...] = Field(default_factory=default_blocks, max_length=MAX_BLOCKS)
    """Blocks the method may change; empty for methods that touch none."""
    block_mode: Literal["together", "each", "both"] = "together"
    """All blocks in one edit, every block alone, or both."""
    strengths: tuple[Strength, ...] = Field(default=(1.0,), min_length=1, max_length=MAX_STRENGTHS)
    """Multipliers of the edit; each makes its own units."""
    edit_steps: Interval | None = None
    """Shares of the run [first, last) whose steps are edited (see `Interval`); None for all of it."""
    sae: str | None = None
    """Source of the SAEs: a folder, a hub id, or None for the model's own."""
    access: str = ""
    """Data that the method may use: letters of P, A, M, T, V."""
    group: Identifier | None = None
    """Name under which configurations are one method on the leaderboard, each an edit strength of its own."""
    plugin: str | None = None
    """A Python file that registers the method, as a path from the configuration's file. Records hold its name only."""
    plugin_sha256: str | None = None
    """Hash of that file and of the user's modules that it imports, filled in when they are read."""
    description: str = ""
    """One sentence for tables and pages."""

    @field_validator("params")
    @classmethod
    def _sensible_numbers(cls, value: dict[str, JsonValue]) -> dict[str, JsonValue]:
        for name, stated in value.items():
            for one in stated if isinstance(stated, list) else [stated]:
                fault = number_fault(one)
                if fault is not None:
                    raise ValueError(f"{name[:MAX_NAME_LENGTH]}: {fault}")
        return value

    @field_validator("access")
    @classmethod
    def _known_letters(cls, value: str) -> str:
        if set(value) - set(INPUTS) or len(set(value)) != len(value):
            raise ValueError(f"access {value!r}: use each of the letters {', '.join(INPUTS)} at most once")
        return value

    @field_validator("edit_steps")
    @classmethod
    def _part_of_a_run(cls, value: Interval | None) -> Interval | None:
        return None if value is None or check_interval(value) == WHOLE_RUN else value

    @field_validator("blocks", "strengths")
    @classmethod
    def _no_repeats(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(value)) != len(value):
            raise ValueError(f"repeats in {list(value)}")
        return value

    @property
    def block_sets(self) -> tuple[tuple[str, ...], ...]:
        """Sets of blocks to edit, as `block_mode` says.

        First comes each block alone, then all of them together.
        """
        each = tuple((block,) for block in self.blocks)
        if self.block_mode == "each":
            return each
        if self.block_mode == "both" and len(self.blocks) > 1:
            return (*each, self.blocks)
        return (self.blocks,)
