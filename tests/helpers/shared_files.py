"""Reference material that lies beside a checkout, in `../shared`; tests that need it skip where it is absent."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from paths import ROOT

SHARED = ROOT.parent / "shared"


def needs(*names: str) -> pytest.MarkDecorator:
    """Skips a test, or with `pytestmark` a file, unless all these files or folders are there."""
    missing = [name for name in names if not (SHARED / name).exists()]
    return pytest.mark.skipif(bool(missing), reason=f"no {', '.join(missing)} beside the checkout")


def load_module(name: str) -> ModuleType:
    """A Python file of the shared folder as a module."""
    spec = importlib.util.spec_from_file_location(Path(name).stem, SHARED / name)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
