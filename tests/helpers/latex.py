"""A check of LaTeX tables without LaTeX."""

from __future__ import annotations

import re

SPECIAL = re.compile(r"(?<!\\)[&%$#_{}~^]")


def check_latex(text: str) -> None:
    """Check that LaTeX can read a text with tables.

    Marks in cells are escaped, the rows of a table have as many cells as it has columns, and environments are closed.
    """
    opened = re.findall(r"\\begin\{(\w+)\}", text)
    assert opened and sorted(opened) == sorted(re.findall(r"\\end\{(\w+)\}", text))
    for rule in ("toprule", "midrule", "bottomrule"):
        assert f"\\{rule}" in text
    table = r"\\begin\{(?:tabular|longtable)\}\{(l+)\}(.*?)\\end\{(?:tabular|longtable)\}"
    for columns, body in re.findall(table, text, re.DOTALL):
        rows = [line for line in body.splitlines() if line.endswith(r" \\") and not line.startswith("\\")]
        assert rows
        for row in rows:
            cells = re.split(r"(?<!\\)&", row.removesuffix(r" \\"))
            assert len(cells) == len(columns), row
            plain = [
                re.sub(r"\\textbackslash\s|\\textasciitilde\s|\\textasciicircum\s|\{\}(?=[\[*])", "", c) for c in cells
            ]
            assert not any(SPECIAL.search(cell) for cell in plain), row
            assert not row.startswith(("[", "*"))
