"""docs/reliability.md names only tests that exist."""

from __future__ import annotations

import ast
import re

from paths import ROOT

FILES = {file.name: file for file in (ROOT / "tests").rglob("test_*.py")}
DOCUMENT = ROOT / "docs" / "reliability.md"


def test_every_promise_has_its_test() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    named = re.findall(r"`(test_\w+\.py)::(\w+)`", text)
    assert len(named) > 40
    functions = {
        file: {node.name for node in ast.walk(ast.parse(FILES[file].read_text(encoding="utf-8")))
               if isinstance(node, ast.FunctionDef)}
        for file in {file for file, _ in named}
    }  # fmt: skip
    assert [f"{file}::{name}" for file, name in named if name not in functions[file]] == []
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith(("| promise", "| ---"))]
    assert [row for row in rows if "::" not in row] == []
    assert all((DOCUMENT.parent / link).is_file() for link in re.findall(r"\]\(([^)#]+)\)", text))
