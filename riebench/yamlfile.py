"""Reading YAML strictly: no tabs, no duplicate keys, and every complaint names file, line and key."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from yaml.constructor import SafeConstructor

from riebench.errors import TaskFileError, near_match

M = TypeVar("M", bound=BaseModel)


def load_yaml(path: Path) -> dict[str, Any]:
    """Reads one YAML file whose top level is a mapping.

    Args:
        path: the file.

    Raises:
        TaskFileError: if it is missing, not UTF-8, holds a tab or a duplicate key, or is no mapping; the message
            names file and line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise TaskFileError(f"{path}: no such file") from error
    except (UnicodeDecodeError, OSError) as error:
        raise TaskFileError(f"{path}: cannot be read ({error})") from error
    for number, line in enumerate(text.split("\n"), start=1):
        if "\t" in line:
            raise TaskFileError(f"{path}, line {number}: a tab; indent and separate with spaces")
    # The C parser is some ten times faster; it is absent where libyaml was absent at build time.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        node = yaml.compose(text, Loader=loader)
        if not isinstance(node, yaml.MappingNode):
            raise TaskFileError(f"{path}: expected 'key: value' lines at the top level")
        for line_number, key in _duplicates(node):
            raise TaskFileError(f"{path}, line {line_number}: key {key!r} is given twice")
        value: dict[str, Any] = SafeConstructor().construct_document(node)
    except (ValueError, RecursionError) as error:  # an impossible date; an anchor inside itself
        raise TaskFileError(f"{path}: cannot be understood ({error})") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}" if mark else ""
        raise TaskFileError(f"{path}{where}: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise TaskFileError(f"{path}: {' '.join(str(error).split())}") from error
    return value


def _duplicates(node: yaml.Node) -> Iterator[tuple[int, str]]:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    yield key.start_mark.line + 1, key.value
                seen.add(key.value)
            yield from _duplicates(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _duplicates(item)


def validate(model: type[M], data: dict[str, Any], path: Path) -> M:
    """Turns a mapping into a stored type.

    Args:
        model: the type.
        data: the mapping.
        path: the file it came from, for messages.

    Raises:
        TaskFileError: naming file, key and, for an unknown key or value, the nearest match.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise TaskFileError(f"{path}: {_explain(model, error)}") from error


def _explain(model: type[BaseModel], error: ValidationError) -> str:
    # A misspelt key is both unknown and missing under its right name; the unknown one tells more.
    first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
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
    return f"{where}: {message}, not {first['input']!r}{more}"


def _fields_at(model: type[BaseModel], location: tuple[int | str, ...]) -> tuple[str, ...]:
    for part in location:
        if isinstance(part, str) and part in model.model_fields:
            inner = _model_in(model.model_fields[part].annotation)
            if inner is None:
                return ()
            model = inner
    return tuple(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (tuple, list, Union, UnionType):
        for argument in get_args(annotation):
            found = _model_in(argument)
            if found is not None:
                return found
    return None
