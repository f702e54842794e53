"""Identity of a function: a hash of all that decides what it computes.

That is its source, the user's functions, classes and modules that it uses, and the values of the global names that it
reads. Objects of Python, of riebench and of installed packages count by their names.
"""

from __future__ import annotations

import dataclasses
import dis
import functools
import hashlib
import inspect
import logging
import re
import textwrap
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

from riebench.errors import RiebenchError
from riebench.tasks.plugins import find_sources, is_users_module
from riebench.utils.files import content_digest

_PLAIN = (type(None), bool, int, float, complex, str, bytes, Path, logging.Logger, re.Pattern)
"""Types whose `repr` is their whole content."""

_NAMED_MODULES = ("typing", "types", "torch", "numpy", "numpy.dtypes")
"""Modules whose objects that hold no data (number formats, devices, type hints) are their `repr`."""


def source_digest(function: Callable[..., Any]) -> str:
    """Return the SHA-256 of all that decides what a function computes.

    Raises:
        RiebenchError: if its source cannot be found, or it reads an object whose content has no identity.
    """
    found = _Contents(function.__name__)
    found.add(function)
    return content_digest(found.contents)


def source_text(function: Callable[..., Any]) -> str:
    """Return the source of a function, also of one in a notebook's cell.

    Raises:
        RiebenchError: if it cannot be found.
    """
    try:
        return textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError) as error:
        name = getattr(function, "__qualname__", "the function")
        raise RiebenchError(
            f"the source of {name} cannot be found, and with it the run's identity; define it in a file or in a "
            "notebook's cell, not in text that is executed"
        ) from error


class _Contents:
    """Contents of a function and of all that it uses.

    Args:
        name: of the function, for messages.

    Attributes:
        contents: name of a function or class of the user -> what it consists of.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.contents: dict[str, Any] = {}
        self._seen: dict[int, str] = {}

    def add(self, thing: Any) -> str:
        """Add a function or class of the user; return the name that stands for it.

        Classes and functions may use each other in circles, so each is entered before what it uses.
        """
        if id(thing) not in self._seen:
            name = f"{thing.__qualname__}#{len(self._seen)}"
            self._seen[id(thing)] = name
            self.contents[name] = self._class(thing) if isinstance(thing, type) else self._function(thing)
        return self._seen[id(thing)]

    def _function(self, function: Any) -> dict[str, Any]:
        used = dict(_read_names(function))
        return {
            "source": source_text(function),
            "defaults": [self.value("a default", one) for one in function.__defaults__ or ()],
            "keywords": {name: self.value(name, one) for name, one in (function.__kwdefaults__ or {}).items()},
            "names": {name: self.value(name, used[name]) for name in sorted(used)},
        }

    def _class(self, thing: type) -> dict[str, Any]:
        parts: dict[str, Any] = {"bases": [self.value("a base", base) for base in thing.__bases__]}
        for name, part in sorted(vars(thing).items()):
            inner = getattr(part, "__func__", getattr(part, "fget", part))
            if isinstance(inner, FunctionType):
                # What decorators such as `dataclass` write has no source; it follows from the annotations.
                if inspect.unwrap(inner).__code__.co_filename != "<string>":
                    parts[name] = self.add(inner)
            elif name == "__annotations__":
                parts[name] = {one: repr(hint) for one, hint in part.items()}
            elif not name.startswith("__") and isinstance(part, (*_PLAIN, list, tuple, dict, set, frozenset)):
                parts[name] = self.value(name, part)
        return parts

    def value(self, name: str, thing: Any) -> Any:
        """Return what an object consists of, in a form that can be hashed.

        Raises:
            RiebenchError: if that cannot be said.
        """
        if isinstance(thing, (Enum, *_PLAIN)):
            return repr(thing)
        if isinstance(thing, list | tuple):
            return [type(thing).__name__, *(self.value(name, one) for one in thing)]
        if isinstance(thing, set | frozenset):
            return ["set", *sorted(repr(self.value(name, one)) for one in thing)]
        if isinstance(thing, dict):
            return [["dict"], *([self.value(name, key), self.value(name, one)] for key, one in thing.items())]
        if hasattr(thing, "source_sha256"):
            return str(thing.source_sha256)
        if isinstance(thing, ModuleType):
            return _module(thing)
        if isinstance(thing, functools.partial):
            return [self.value(name, part) for part in (thing.func, thing.args, thing.keywords)]
        return self._object(name, thing)

    def _object(self, name: str, thing: Any) -> Any:
        if isinstance(thing, FunctionType | type) and is_users_module(thing.__module__ or "__main__"):
            return self.add(thing)
        if hasattr(thing, "__qualname__") or callable(getattr(thing, "__wrapped__", None)):
            return f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', repr(type(thing)))}"
        data = _array_digest(thing)
        if data is not None:
            return data
        if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
            fields = {field.name: getattr(thing, field.name) for field in dataclasses.fields(thing)}
            return [self.value(name, type(thing)), self.value(name, fields)]
        if type(thing).__module__ in _NAMED_MODULES:
            return repr(thing)
        raise RiebenchError(
            f"{self.name} reads {name!r}, a {type(thing).__name__}, whose content cannot enter the run's identity; "
            "make it inside the function, or hand over its numbers as an array or a parameter"
        )


def _read_names(function: Any) -> Iterator[tuple[str, Any]]:
    """Yield the global and enclosing names that a function reads, with their values."""
    names = set(_global_names(function.__code__))
    yield from ((name, function.__globals__[name]) for name in names if name in function.__globals__)
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        # A name that has no value yet cannot have been read.
        try:
            yield name, cell.cell_contents
        except ValueError:
            continue


def _global_names(code: CodeType) -> Iterator[str]:
    """Yield the names that code reads from its module, nested code included."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _global_names(constant)


def _module(module: ModuleType) -> str:
    """Return a hash of the files of a user's module, or the name of another."""
    file = getattr(module, "__file__", None)
    if file is None or not is_users_module(module.__name__):
        return module.__name__
    return find_sources(Path(file).resolve()).digest


def _array_digest(thing: Any) -> str | None:
    """Return what stands for an array or a tensor; None for anything else."""
    array = thing.detach().cpu() if callable(getattr(thing, "detach", None)) and hasattr(thing, "cpu") else thing
    if str(getattr(array, "dtype", "")) == "torch.bfloat16":
        # NumPy has no such numbers; in float32 they are the same.
        array = array.float()
    array = array.numpy() if callable(getattr(array, "numpy", None)) else array
    if not (hasattr(array, "dtype") and hasattr(array, "tobytes") and hasattr(array, "shape")):
        return None
    # Objects of Python inside an array have no bytes of their own.
    if array.dtype.hasobject:
        return None
    return f"{array.dtype} {array.shape} {hashlib.sha256(array.tobytes()).hexdigest()}"
