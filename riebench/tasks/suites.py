"""Suites: folders of task files that are found, read and checked here.

Files alone decide which suites and tasks exist.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from riebench.errors import MAX_NAME_LENGTH, RiebenchError, TaskFileError, near_match
from riebench.tasks.mask_files import mask_reading
from riebench.tasks.prompts import mask_file, phrase_spans, plain_prompt, region_words, seen_words
from riebench.tasks.schema import ALL_CATEGORIES, EditExample, EditTask
from riebench.utils.files import content_digest, file_inside, file_sha256, package_folder
from riebench.utils.yaml_files import load_yaml, validate

TokenCounter = Callable[[str], int]
"""A prompt -> its number of tokens, start and end tokens included."""

REQUIRED_REGIONS: dict[str, tuple[str, ...]] = {
    "edit": ("source_region", "target_region"),
    "add": ("target_region",),
    "delete": ("source_region",),
}
"""Region rule -> the region keys that an example must state."""

SUITE_ALIASES: dict[str, str] = {"photos": "sdxl"}
"""Name of a shipped suite -> the name that its folder and stored runs have.

The suite `photos` was written for SDXL and first named for it; any text-to-image model of photographs can run it. Both
names work for good, and both make the same runs.
"""
DEFAULT_MODELS: dict[str, str] = {"toy": "toy-turbo", "toy-mixed": "toy-mixed"}
"""Suite -> model preset that it is meant for; all others are for SDXL Turbo."""
SHARED_SETTINGS: dict[str, str] = {"toy-mixed": "toy"}
"""Suite -> the suite whose official configurations it has too."""


def load_suite(
    suite: str, *, categories: Iterable[str] = (), limit: int | None = None, examples: Iterable[str] = ()
) -> tuple[EditTask, ...]:
    """Read every task file of a suite, in the order of category numbers.

    Args:
        suite: a shipped suite's name, or a folder of task files.
        categories: the categories to keep; empty keeps all.
        limit: the number of examples of each task to keep, from the first on; None keeps all.
        examples: ids of the examples to keep; empty keeps all. Tasks without one of them are left out.

    Raises:
        RiebenchError: for an unknown suite, category or example, or an empty suite.
        TaskFileError: for a file that cannot be used.
    """
    folder = suite_folder(suite)
    wanted = tuple(categories)
    check_categories(wanted)
    if limit is not None and limit < 1:
        raise RiebenchError(f"--limit {limit}: keep at least 1 example a category")
    tasks = [load_task(path) for path in sorted(folder.glob("*.yaml"))]
    tasks.sort(key=lambda task: (ALL_CATEGORIES[task.category], task.name))
    if not tasks:
        raise RiebenchError(f"suite {suite!r} is empty: no *.yaml in {folder}")
    _check_unique_ids(folder, tasks)
    tasks = [task for task in tasks if not wanted or task.category in wanted]
    if not tasks:
        raise RiebenchError(f"suite {suite!r} has no task of category {', '.join(wanted)}")
    tasks = _only(tasks, tuple(examples), suite)
    return tuple(task.model_copy(update={"examples": task.examples[:limit]}) for task in tasks)


def _only(tasks: list[EditTask], ids: tuple[str, ...], suite: str) -> list[EditTask]:
    """Return tasks with the named examples alone; with all of them if none is named.

    Raises:
        RiebenchError: for an id that is not there; names the nearest match.
    """
    known = [example.id for task in tasks for example in task.examples]
    for one in ids:
        if one not in known:
            near = difflib.get_close_matches(one[:MAX_NAME_LENGTH], known, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else "; `riebench tasks list` names the suite's tasks"
            raise RiebenchError(f"suite {suite!r} has no example {one!r} among those asked for{hint}")
    kept = [
        task.model_copy(update={"examples": tuple(e for e in task.examples if not ids or e.id in ids)})
        for task in tasks
    ]
    return [task for task in kept if task.examples]


def check_categories(names: Iterable[str]) -> None:
    """Refuse a category that there is not.

    Raises:
        RiebenchError: naming the nearest one.
    """
    for name in names:
        if name not in ALL_CATEGORIES:
            raise RiebenchError(f"unknown category {name!r}{near_match(name, ALL_CATEGORIES)}")


def load_task(path: Path) -> EditTask:
    """Read and check one task file.

    The task's name is the file's name, its suite the folder's.

    Raises:
        TaskFileError: naming file, key and nearest match.
    """
    data = load_yaml(path)
    for key in ("name", "suite", "folder"):
        if key in data:
            raise TaskFileError(f"{path}: {key}: follows from the file's place; leave the key out")
    folder = path.resolve().parent
    task = validate(EditTask, {**data, "name": path.stem, "suite": folder.name, "folder": folder}, path)
    seen: dict[tuple[str, str, str | None], str] = {}
    examples = []
    for index, (example, stated) in enumerate(zip(task.examples, data["examples"], strict=True)):
        where = f"{path}: examples[{index}] ({example.id})"
        check_example(where, example, stated, task.region_rule)
        example = _with_mask_hash(where, example, folder)
        pair = edit_identity(example)
        if pair in seen:
            raise TaskFileError(f"{where}: the same prompts as {seen[pair]}")
        seen[pair] = example.id
        examples.append(example)
    return task.model_copy(update={"examples": tuple(examples)})


def check_example(where: str, example: EditExample, stated: dict[str, Any], rule: str) -> None:
    """Check that one example is consistent in itself, mask files aside.

    Args:
        where: file and example, for messages.
        example: the example.
        stated: the keys and values that its file states.
        rule: the category's region rule.

    Raises:
        TaskFileError: naming the key and the nearest match.
    """
    for key, prompt in (("source", example.plain.source), ("target", example.plain.target)):
        if not prompt:
            raise TaskFileError(f"{where}: {key}: the prompt is empty")
    if _words(example.plain.source) == _words(example.plain.target):
        raise TaskFileError(f"{where}: source and target are the same prompt")
    if "mask_sha256" in stated:
        raise TaskFileError(f"{where}: mask_sha256: follows from the mask files; leave the key out")
    for key in REQUIRED_REGIONS[rule]:
        if key not in stated:
            raise TaskFileError(f"{where}: {key} is missing; write 'whole' if it is the whole picture")
    for side, prompt in (("source", example.plain.source), ("target", example.plain.target)):
        region = getattr(example, f"{side}_region")
        if seen_words(region) == "":
            raise TaskFileError(f"{where}: {side}_region: 'seen:' needs words for what the picture shows")
        words = region_words(region)
        # Masks are made with the same search, so that words accepted here are found there.
        if words is not None and not phrase_spans(prompt, words):
            near = near_match(words, _words(prompt))
            raise TaskFileError(f"{where}: {side}_region: {words!r} does not occur in the {side} prompt{near}")


def edit_identity(example: EditExample) -> tuple[str, str, str | None]:
    """Return the values that no two examples of a task may share.

    They are the prompts as generated from, and the mask files if there are any.
    """
    return example.plain.source, example.plain.target, example.mask_sha256


def check_prompt_lengths(tasks: Iterable[EditTask], count: TokenCounter, limit: int) -> None:
    """Refuse prompts that the model's tokenizer would cut.

    Args:
        tasks: the tasks to check.
        count: a function that counts the tokens of a prompt, start and end tokens included.
        limit: the number of tokens that the text encoder reads.

    Raises:
        RiebenchError: naming task, example, key and both numbers.
    """
    for task in tasks:
        for example in task.examples:
            for key, prompt in (("source", example.source), ("target", example.target)):
                n = count(plain_prompt(prompt))
                if n > limit:
                    raise RiebenchError(
                        f"{task.suite}/{task.name}.yaml: {example.id}: {key} has {n} tokens, of which the model reads "
                        f"{limit}; shorten it, its end would be cut off"
                    )


def _with_mask_hash(where: str, example: EditExample, folder: Path) -> EditExample:
    """Return an example with the hash of its mask files filled in."""
    digests = []
    for key in ("source_region", "target_region"):
        file = mask_file(getattr(example, key))
        if file is not None:
            try:
                path = file_inside(folder, file, "mask file", "the suite's folder")
                reading = mask_reading(path)
                digests.append(f"{file_sha256(path)} {reading}" if reading else file_sha256(path))
            except RiebenchError as error:
                raise TaskFileError(f"{where}: {key}: {error}; put it beside the task files") from error
            except OSError as error:
                raise TaskFileError(f"{where}: {key}: mask file {folder / file}: {error.strerror}") from error
    return example.model_copy(update={"mask_sha256": content_digest(digests)}) if digests else example


def _check_unique_ids(folder: Path, tasks: Iterable[EditTask]) -> None:
    owner: dict[str, str] = {}
    for task in tasks:
        for index, example in enumerate(task.examples):
            if example.id in owner:
                file = folder / f"{task.name}.yaml"
                raise TaskFileError(
                    f"{file}: examples[{index}].id: {example.id!r} is already used in {owner[example.id]}"
                )
            owner[example.id] = f"{task.name}.yaml"


def _words(text: str) -> list[str]:
    return re.findall(r"[\w'-]+", text.lower())


def data_root() -> Path:
    """Return the folder that holds `tasks/` and `baselines/`.

    It lies inside an installed wheel, or is the checkout.

    Raises:
        RiebenchError: if neither is there.
    """
    package = package_folder()
    for root in (package / "_data", package.parent):
        if (root / "tasks").is_dir() and (root / "baselines").is_dir():
            return root
    raise RiebenchError(f"tasks/ and baselines/ are missing beside {package}; install riebench again")


def shipped_suites() -> tuple[str, ...]:
    """Return the names of the suites that ship with the package, as runs store them."""
    return tuple(sorted(folder.name for folder in (data_root() / "tasks").iterdir() if folder.is_dir()))


def known_suites() -> tuple[str, ...]:
    """Return all names of the shipped suites, sorted."""
    return tuple(sorted({*shipped_suites(), *SUITE_ALIASES}))


def suite_name(suite: str) -> str:
    """Return the name that runs store of a suite given by name or by path."""
    if "/" in suite or suite.startswith("."):
        return Path(suite).expanduser().resolve().name
    return SUITE_ALIASES.get(suite, suite)


def suite_title(stored: str) -> str:
    """Return a stored suite's name as headings show it, such as "photos (sdxl)"."""
    return next((f"{name} ({stored})" for name, other in SUITE_ALIASES.items() if other == stored), stored)


def suite_folder(suite: str) -> Path:
    """Return the folder of a suite given by name or by path.

    Raises:
        RiebenchError: if there is no such suite; names the nearest match.
    """
    if suite in known_suites():
        return data_root() / "tasks" / suite_name(suite)
    path = Path(suite).expanduser()
    if path.is_dir():
        return path
    raise RiebenchError(f"unknown suite {suite!r}{near_match(suite, known_suites())}; a folder of task files works too")


def default_model(suite: str) -> str:
    """Return the model preset that a suite is meant for."""
    return DEFAULT_MODELS.get(suite_name(suite), "sdxl-turbo")
