"""Strict reading of YAML files, and of pydantic types from them.

Tabs and duplicate keys are refused, and every message names file, line and key. Files are untrusted, so what would cost
the reader more than it costs the writer is refused before it is built: deep nesting, aliases of aliases of aliases,
numbers of thousands of digits.
"""

from __future__ import annotations

import re
import reprlib
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from yaml.constructor import SafeConstructor

from riebench.errors import TaskFileError, near_match

MAX_FILE_SIZE = 64 * 2**20
"""Largest file that is read, in bytes; ten thousand examples take some 5 MB."""
MAX_DEPTH = 32
"""Most levels of nested lists and mappings; tasks and settings have five."""
MAX_VALUES = 1_000_000
"""Most texts, numbers, lists and mappings of a file; while it is read, each takes about a kilobyte of memory."""
MAX_ALIAS_FACTOR = 10
"""Factor by which aliases may at most enlarge a file."""
MAX_TEXT_LENGTH, MAX_NUMBER_LENGTH = 100_000, 40
"""Most characters of a text and of a number."""
_NUMBER_TAGS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
"""Tags that YAML gives to numbers."""
_OTHER_BASE = re.compile(r"[-+]?(0[0-7_]+$|[0-9_]+(:[0-9_.]+)+$)")
"""Numbers that YAML 1.1 reads to the base 8 (010 is 8) or 60 (1:30 is 90)."""

M = TypeVar("M", bound=BaseModel)


def load_yaml(path: Path) -> dict[str, Any]:
    """Read one YAML file whose top level is a mapping.

    Args:
        path: the file.

    Raises:
        TaskFileError: if it is missing, not UTF-8, holds a tab or a duplicate key, or is no mapping; the message
            names file and line.
    """
    text = _read_text(path)
    tab = text.find("\t")
    if tab >= 0:
        number = text.count("\n", 0, tab) + 1
        raise TaskFileError(f"{path}, line {number}: a tab; indent and separate with spaces")
    # The C parser is about ten times faster; PyYAML lacks it where libyaml was missing when it was built.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        # Composing recurses for every level, in C without a limit; going through the events one by one does not.
        _check_cost(text, loader, path)
        node = yaml.compose(text, Loader=loader)
        if not isinstance(node, yaml.MappingNode):
            raise TaskFileError(f"{path}: expected 'key: value' lines at the top level")
        sizes: dict[int, tuple[int, int]] = {}
        if _expanded_size(node, path, sizes, 1)[0] > MAX_ALIAS_FACTOR * len(sizes) + 1000:
            raise TaskFileError(f"{path}: its aliases stand for too much; write it out")
        for line_number, key in _duplicate_keys(node):
            raise TaskFileError(f"{path}, line {line_number}: key {key!r} is given twice")
        value: dict[str, Any] = SafeConstructor().construct_document(node)
    except (ValueError, RecursionError, AttributeError) as error:
        # For example an impossible date, an anchor inside itself, or a text tagged as a date that is none.
        raise TaskFileError(f"{path}: cannot be understood ({error})") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}" if mark else ""
        # The parser reads ahead of the events it yields, and some versions stop at brackets before they are counted.
        too_deep = mark is not None and _open_brackets(text[: mark.index]) > MAX_DEPTH
        problem = "nested too deeply" if too_deep else error.problem or error.context
        raise TaskFileError(f"{path}{where}: {problem}") from error
    except yaml.YAMLError as error:
        raise TaskFileError(f"{path}: {' '.join(str(error).split())}") from error
    return value


def _read_text(path: Path) -> str:
    """Return the text of a file of limited size."""
    try:
        # A pipe or a device has no end.
        if path.exists() and not path.is_file():
            raise TaskFileError(f"{path}: cannot be read (it is no file)")
        if path.stat().st_size > MAX_FILE_SIZE:
            raise TaskFileError(f"{path}: has more than {MAX_FILE_SIZE >> 20} MB; split it")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise TaskFileError(f"{path}: no such file") from error
    except (UnicodeDecodeError, OSError) as error:
        raise TaskFileError(f"{path}: cannot be read ({error})") from error


def _check_cost(text: str, loader: Any, path: Path) -> None:
    """Refuse a text with too many values or too many levels, event by event."""
    depth = values = 0
    for event in yaml.parse(text, Loader=loader):
        values += isinstance(event, yaml.NodeEvent)
        if values > MAX_VALUES:
            raise TaskFileError(f"{path}: has more than {MAX_VALUES} values; split it")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                line = event.start_mark.line + 1 if event.start_mark else 1
                raise TaskFileError(f"{path}, line {line}: nested too deeply")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _open_brackets(text: str) -> int:
    """Return the number of brackets of a text that are not closed again.

    Brackets inside quotes count too.
    """
    return sum(text.count(mark) for mark in "[{") - sum(text.count(mark) for mark in "]}")


def _expanded_size(node: yaml.Node, path: Path, sizes: dict[int, tuple[int, int]], depth: int) -> tuple[int, int]:
    """Return the nodes and levels below a node with all aliases written out.

    Each node is checked once; its numbers are kept in `sizes` by its `id`. The node itself counts.
    """
    size, levels = sizes.get(id(node), (0, 1))
    if depth + levels - 1 > MAX_DEPTH:
        raise TaskFileError(f"{path}, line {node.start_mark.line + 1}: nested too deeply")
    if size:
        return size, levels
    if isinstance(node, yaml.ScalarNode):
        _check_scalar(node, path)
    inner: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        inner = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        inner = node.value
    found = [_expanded_size(part, path, sizes, depth + 1) for part in inner]
    sizes[id(node)] = 1 + sum(size for size, _ in found), 1 + max((levels for _, levels in found), default=0)
    return sizes[id(node)]


def _check_scalar(node: yaml.ScalarNode, path: Path) -> None:
    fault = text_fault(node.value)
    if node.tag in _NUMBER_TAGS:
        if len(node.value) > MAX_NUMBER_LENGTH:
            fault = f"a number of {len(node.value)} characters"
        elif _OTHER_BASE.match(node.value):
            number = SafeConstructor().construct_document(node)
            fault = f"YAML reads {node.value} as {number:g}; put it in quotes if it is text, or write {number:g}"
    if fault is not None:
        raise TaskFileError(f"{path}, line {node.start_mark.line + 1}: {fault}")


def text_fault(text: str) -> str | None:
    """Return the reason why a text cannot stand in a file, or None."""
    if len(text) > MAX_TEXT_LENGTH:
        return f"a text of {len(text)} characters; at most {MAX_TEXT_LENGTH} are read"
    if text.isprintable():
        return None
    controls = (one for one in text if unicodedata.category(one) in ("Cc", "Cs") and one != "\n")
    first = next(controls, None)
    return None if first is None else f"the text holds the control character {first!r}; leave it out"


def _duplicate_keys(node: yaml.Node) -> Iterator[tuple[int, str]]:
    """Yield line number and name of every key that its mapping has already."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    yield key.start_mark.line + 1, key.value
                seen.add(key.value)
            yield from _duplicate_keys(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _duplicate_keys(item)


def validate(model: type[M], data: dict[str, Any], path: Path, *, lines: bool = False) -> M:
    """Convert a mapping to a pydantic type.

    Args:
        model: the pydantic type.
        data: the mapping.
        path: the file that the mapping comes from, for messages.
        lines: whether messages name the line of the key, too.

    Raises:
        TaskFileError: naming file, key and, for an unknown key or value, the nearest match.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        line = _key_line(path, _first_error(error)["loc"]) if lines else None
        where = f"{path}, line {line}" if line else path
        raise TaskFileError(f"{where}: {_describe_error(model, error, path)}") from error


def _first_error(error: ValidationError) -> Any:
    # A misspelt key is both unknown and missing under its right name; the unknown key says more.
    return min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")


def _key_line(path: Path, location: tuple[int | str, ...]) -> int | None:
    """Return the line of the top-level key of a location, or None."""
    try:
        node = yaml.compose(_read_text(path), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (TaskFileError, yaml.YAMLError):
        return None
    keys = [key for key, _ in node.value] if isinstance(node, yaml.MappingNode) and location else []
    return next((int(key.start_mark.line) + 1 for key in keys if key.value == str(location[0])), None)


def _describe_error(model: type[BaseModel], error: ValidationError, path: Path) -> str:
    """Return the first fault of a validation error in one line."""
    first = _first_error(error)
    location = first["loc"]
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        return f"{where}: unknown key{near_match(str(location[-1]), _fields_at(model, location[:-1]))}{more}"
    if first["type"] == "missing":
        return f"{where}: is missing{more}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"{where}: {message}{more}"
    unquoted = _unquoted_text(path, location) if first["type"] == "string_type" else None
    if unquoted is not None:
        return f"{where}: {unquoted} is no text to YAML; put it in quotes: '{unquoted}'{more}"
    return f"{where}: {message}, not {_short_repr(first['input'])}{more}"


def _unquoted_text(path: Path, location: tuple[int | str, ...]) -> str | None:
    """Return the text at a location of a file, as written; None if none is there.

    It is that of a number, a date or a word such as `no`.
    """
    try:
        node = yaml.compose(_read_text(path), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (TaskFileError, yaml.YAMLError):
        return None
    for part in location:
        if part == "[key]":  # pydantic's name for the key itself, not its value
            return _short_text(str(location[location.index(part) - 1]))
        if isinstance(node, yaml.MappingNode):
            node = next((value for key, value in node.value if key.value == str(part)), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            node = node.value[part]
        else:
            return None
    return _short_text(node.value) if isinstance(node, yaml.ScalarNode) and node.value else None


def _short_text(text: str) -> str:
    return text if len(text) <= MAX_NUMBER_LENGTH else f"{text[:MAX_NUMBER_LENGTH]}..."


def _short_repr(value: Any) -> str:
    """Return a value as messages quote it, shortened whatever it is."""
    shortener = reprlib.Repr()
    shortener.maxstring = shortener.maxother = shortener.maxlong = 200
    return shortener.repr(value)


def _fields_at(model: type[BaseModel], location: tuple[int | str, ...]) -> tuple[str, ...]:
    """Return the known keys at a location inside a type."""
    for part in location:
        if isinstance(part, str) and part in model.model_fields:
            inner = _model_in(model.model_fields[part].annotation)
            if inner is None:
                return ()
            model = inner
    return tuple(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the first pydantic type in an annotation, or None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (tuple, list, Union, UnionType):
        for argument in get_args(annotation):
            found = _model_in(argument)
            if found is not None:
                return found
    return None
