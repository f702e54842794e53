"""docs/configurations.md says what the code does: every method with its inputs and parameters, every key."""

from __future__ import annotations

import inspect
import re

import yaml
from paths import ROOT

from riebench.methods.base import get_method
from riebench.registry import METHODS
from riebench.tasks.schema import Setting

TEXT = (ROOT / "docs" / "configurations.md").read_text(encoding="utf-8")


def rows(heading: str) -> dict[str, list[str]]:
    """First cell -> the other cells of the table under a heading row that begins so."""
    _, _, rest = TEXT.partition(f"| {heading} |")
    lines = rest.partition("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {first.strip("` "): others for first, *others in cells}


def test_every_method_stands_there_with_its_letters_and_parameters() -> None:
    table = rows("method")
    # Tests of other files register methods of their own.
    shipped = [name for name in METHODS.names() if get_method(name).function.__module__.startswith("riebench.methods")]
    assert sorted(table) == sorted(shipped)
    for name, (sees, parameters, *_) in table.items():
        method = get_method(name)
        assert set(sees) - {"–"} == set(method.access), name
        stated: dict[str, object] = {}
        for part in re.findall("`([^`]+)`", parameters):
            stated |= yaml.safe_load(part)
        signature = inspect.signature(method.function).parameters
        assert stated == {key: one.default for key, one in signature.items() if key != "ctx"}, name


def test_every_parameter_and_key_is_explained() -> None:
    assert set(rows("key")) == set(Setting.model_fields) - {"name", "plugin_sha256"}
    for name in rows("parameter"):
        methods = [name in inspect.signature(get_method(one).function).parameters for one in rows("method")]
        assert any(methods), f"no method has {name}"


def test_the_defaults_are_the_codes() -> None:
    table = rows("key")
    for key in ("params", "access", "block_mode", "strengths", "description"):
        field = Setting.model_fields[key]
        default = yaml.safe_load(table[key][0].strip("`"))
        assert default == (list(field.default) if isinstance(field.default, tuple) else field.default), key
