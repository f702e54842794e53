"""Methods from a user's own Python file: a setting names the file, and reading the setting runs it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from riebench.errors import RiebenchError
from riebench.registry import METHODS
from riebench.schema import Setting
from riebench.utils.files import file_sha256

_loaded: dict[Path, str] = {}
"""File -> SHA-256 of what was run."""


def load_plugin(path: Path) -> str:
    """Runs a Python file once, so that the methods it registers can be used.

    Args:
        path: the file.

    Returns:
        SHA-256 of the file, for the run's identity: changed code makes other pictures.

    Raises:
        RiebenchError: if it is missing, fails, registers nothing, takes a shipped method's name, or has changed since
            it was run.
    """
    path = path.expanduser().resolve()
    try:
        digest = file_sha256(path)
    except OSError as error:
        raise RiebenchError(f"plugin {path}: {error.strerror}") from error
    if path in _loaded:
        if _loaded[path] != digest:
            raise RiebenchError(f"plugin {path} has changed since it was read; start again")
        return digest
    before = METHODS.names()
    for name in before:
        # Shipped names are filled in only when used; filled in now, a plugin cannot take one of them unnoticed.
        METHODS.get(name)
    _execute(path)
    if METHODS.names() == before:
        raise RiebenchError(f"plugin {path} registers no method; put @method(NAME, access=...) above a function")
    _loaded[path] = digest
    return digest


def load_setting_plugin(setting: Setting) -> None:
    """Runs a setting's plugin, if it has one, in this process.

    Raises:
        RiebenchError: see `load_plugin`; also if the file is not the one the setting was read with.
    """
    if setting.plugin is not None and load_plugin(Path(setting.plugin)) != setting.plugin_sha256:
        raise RiebenchError(f"plugin {setting.plugin} has changed since the setting was read; start again")


def _execute(path: Path) -> None:
    name = f"riebench_plugin_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise RiebenchError(f"plugin {path} is no Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    # Type hints of the methods are looked up in the module by its name.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        sys.modules.pop(name, None)
        raise RiebenchError(f"plugin {path} fails: {type(error).__name__}: {error}") from error
