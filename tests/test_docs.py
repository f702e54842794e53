"""What the documents name is there: imports of their Python, modules and names in their text, files they link to."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from typing import Any

import pytest
import typer.main
from paths import ROOT

from riebench.cli.main import app
from riebench.registry import METHODS, METRICS, MODEL_FAMILIES, MODEL_PRESETS, NETWORKS, REGIONS, SAE_FORMATS

DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
GROUPS = {one.group for one in (METHODS, METRICS, NETWORKS, SAE_FORMATS, REGIONS, MODEL_FAMILIES, MODEL_PRESETS)}
"""Groups of entry points, which look like modules and are none."""
TERMS = {
    "knobs?": "edit strength",
    "files of strangers": "untrusted files",
    "all alike": "micro-average",
    "gives way": "known scaling limits",
    "sees PAM": "inputs used",
    "the last pieces?|a piece|pieces of a run": "work item",
}
"""Words of the project's own -> the term of the field."""
SETTING = r"\b(a|each|every|other|official|the) settings?\b|\bsetting files?\b"
"""Phrases that speak of a method configuration."""
NOT_PROSE = r"```.*?```|`[^`\n]*`|<!--.*?-->|\]\([^)]*\)"
"""Code, comments and addresses."""
GENERATED = {
    "docs/results-toy.md", "docs/toyworld.md", "docs/validity.md", "docs/validity-saes.md", "docs/response-curves.md",
}  # fmt: skip
"""Documents with generated parts, whose words are those of stored tables."""
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]


@pytest.mark.parametrize("name", NAMES)
def test_python_in_the_documents_imports_what_there_is(name: str) -> None:
    for code in re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("riebench"):
                for one in node.names:
                    assert exists(f"{node.module}.{one.name}"), f"{node.module} has no {one.name}"


@pytest.mark.parametrize("name", NAMES)
def test_modules_and_files_that_the_text_names_are_there(name: str) -> None:
    text = re.sub(r"```.*?```", "", (ROOT / name).read_text(encoding="utf-8"), flags=re.DOTALL)
    for dotted in re.findall(r"`(riebench(?:\.\w+)+)", text):
        assert exists(dotted) or dotted in GROUPS, dotted
    for path in re.findall(r"`((?:riebench|tests|benchmarks|baselines|tasks)/[\w/.-]*)`", text):
        assert (ROOT / path).exists(), path
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        assert "://" in link or (ROOT / name).parent.joinpath(link).exists(), link


@pytest.mark.parametrize("name", NAMES)
def test_the_text_speaks_in_the_terms_of_the_field(name: str) -> None:
    text = re.sub(NOT_PROSE, "", (ROOT / name).read_text(encoding="utf-8"), flags=re.DOTALL)
    found = {word: better for word, better in TERMS.items() if re.search(rf"\b({word})\b", text, re.IGNORECASE)}
    assert not found
    if name not in GENERATED:
        prose = "\n".join(line for line in text.splitlines() if not line.startswith("|"))
        assert not re.search(SETTING, prose, re.IGNORECASE), "say method configuration"


def exists(dotted: str) -> bool:
    """Whether a module, or a name in one, can be had."""
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


@pytest.mark.parametrize("name", NAMES)
def test_commands_have_the_verbs_and_options_that_they_are_written_with(name: str) -> None:
    for line in commands((ROOT / name).read_text(encoding="utf-8")):
        words = [word.strip("[]") for word in shlex.split(line, comments=True)]
        command: Any = typer.main.get_command(app)
        depth = 0
        for depth, word in enumerate(words, start=1):
            if word not in getattr(command, "commands", {}):
                depth -= 1
                break
            command = command.commands[word]
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        used = {word.partition("=")[0] for word in words[depth:] if word.startswith("--")}
        assert used <= known | {"--help", "--debug"}, f"{line}: {', '.join(used - known)}"
        assert not hasattr(command, "commands") or depth == len(words), f"{line}: no such verb"


def commands(text: str) -> list[str]:
    """What follows `riebench` on every line of a code block, and in code inside a line, as far as the first pipe."""
    blocks = re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    inline = re.findall(r"`(riebench [^`\n]*)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    found = (re.match(r"(?:\$ )?(?:\S*/)?riebench (?!COMMAND)([\w-][^|…<;&]*)", line) for line in [*lines, *inline])
    return [match[1].replace("...", " ") for match in found if match]
