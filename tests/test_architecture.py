"""The structure of the package: sizes, docstrings, imports, and the start of the command line."""

from __future__ import annotations

import ast
import re
import resource
import runpy
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest
from paths import ROOT

PACKAGE = ROOT / "riebench"
ROOT_MODULES = 6
PACKAGE_MODULES = 12
FIRST_LINE = 80
FUNCTION_LINES = 60
HELP_SECONDS = 0.6
QUESTIONS = ("what", "how", "where", "who", "why", "which", "whether", "when")
METAPHORS = {"told", "crew", "shelf", "scorebook", "sick"}
HEAVY = ("torch", "diffusers")
HELP = "import sys; sys.argv = ['riebench', '--help']\nfrom riebench.cli.main import main; main()"

Function = ast.FunctionDef | ast.AsyncFunctionDef
Documented = ast.Module | ast.ClassDef | Function


def module_name(file: Path) -> str:
    """Return the dotted name of a file of the package; that of an `__init__` is its package's."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@lru_cache(maxsize=1)
def sources() -> dict[str, ast.Module]:
    """Return the syntax tree of every module of the package by its dotted name."""
    files = sorted(PACKAGE.rglob("*.py"))
    return {module_name(file): ast.parse(file.read_text(encoding="utf-8"), str(file)) for file in files}


def packages() -> list[Path]:
    """Return the folders of all packages, the root's first."""
    return sorted(file.parent for file in PACKAGE.rglob("__init__.py"))


def modules_of(package: Path) -> list[str]:
    """Return the names of a package's modules; a sub-package counts as one."""
    below = [folder.name for folder in package.iterdir() if (folder / "__init__.py").is_file()]
    return sorted([*below, *(file.stem for file in package.glob("*.py"))])


def documented() -> Iterator[tuple[str, Documented]]:
    """Yield every module, class and function with the place where it stands."""
    for name, tree in sources().items():
        for node in ast.walk(tree):
            if isinstance(node, Documented):
                yield (name if isinstance(node, ast.Module) else f"{name}:{node.lineno} {node.name}"), node


def first_lines() -> Iterator[tuple[str, str]]:
    """Yield the first line of every docstring with its place."""
    for place, node in documented():
        text = ast.get_docstring(node, clean=False)
        if text is not None:
            yield place, text.split("\n")[0]


def imported(tree: ast.Module) -> set[str]:
    """Return the modules of the package that a module imports anywhere, also inside functions and for types.

    `from package import name` is an import of `package.name` where that is a module, and of the package's `__init__`
    otherwise.
    """
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module is not None, "imports are absolute"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in sources() else node.module for name in names}
    return found & sources().keys()


def find_circle(graph: dict[str, set[str]]) -> list[str]:
    """Return the modules of one circle in a graph, the first of them also at the end; nothing if there is none."""
    finished: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in finished:
            return []
        for other in sorted(graph[name]):
            circle = visit(other, [*path, name])
            if circle:
                return circle
        finished.add(name)
        return []

    return next((circle for name in sorted(graph) if (circle := visit(name, []))), [])


def line_count(module: str, function: Function) -> int:
    """Return the number of lines of a function; for a command, those after its signature, which holds its help."""
    first = function.body[0].lineno if module.startswith("riebench.cli.") else function.lineno
    assert function.end_lineno is not None
    return function.end_lineno - first + 1


def identifiers(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield every name that a module defines or uses, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, Function | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.Name):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute):
            yield node.lineno, node.attr
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.keyword) and node.arg is not None:
            yield node.value.lineno, node.arg
        elif isinstance(node, ast.alias):
            yield node.lineno, node.asname or node.name


def words_of(identifier: str) -> set[str]:
    """Return the words of an identifier, in lower case."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", identifier)}


def test_no_package_holds_too_many_modules() -> None:
    assert PACKAGE in packages()
    limits = {package: ROOT_MODULES if package == PACKAGE else PACKAGE_MODULES for package in packages()}
    # Sub-packages of the root are its structure, not modules of it.
    counts = {
        package: len(list(package.glob("*.py"))) if package == PACKAGE else len(modules_of(package))
        for package in packages()
    }
    assert {module_name(package): n for package, n in counts.items() if n > limits[package]} == {}


def test_every_package_says_what_it_holds() -> None:
    trees = sources()
    names = [module_name(package / "__init__.py") for package in packages()]
    assert len(names) > 10
    assert [name for name in names if not ast.get_docstring(trees[name])] == []


def test_first_lines_of_docstrings_are_short() -> None:
    assert {place: len(line) for place, line in first_lines() if len(line) > FIRST_LINE} == {}


def test_docstrings_do_not_begin_with_a_question_word() -> None:
    found = list(first_lines())
    assert len(found) > 500
    assert [f"{place}: {line}" for place, line in found if re.match(rf"({'|'.join(QUESTIONS)})\b", line, re.I)] == []


def test_functions_fit_a_screen() -> None:
    counts = {
        f"{name}:{node.lineno} {node.name}": line_count(name, node)
        for name, tree in sources().items()
        for node in ast.walk(tree)
        if isinstance(node, Function)
    }
    assert {place: count for place, count in counts.items() if count > FUNCTION_LINES} == {}


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {name: imported(tree) - {name} for name, tree in sources().items()}
    assert sum(map(len, graph.values())) > 500
    assert " -> ".join(find_circle(graph)) == ""


def test_identifiers_are_plain_words() -> None:
    found = [
        f"{module}:{line} {name}"
        for module, tree in sources().items()
        for line, name in [*identifiers(tree), (1, module.rpartition(".")[2])]
        if words_of(name) & METAPHORS
    ]
    assert found == []


@pytest.mark.parametrize("code", ["import riebench", HELP])
def test_the_start_loads_no_model_library(code: str) -> None:
    script = f"import atexit, sys\natexit.register(lambda: print('LOADED', *sorted(sys.modules)))\n{code}\n"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = done.stdout.splitlines()[-1].split()
    assert loaded[0] == "LOADED" and "riebench" in loaded
    assert set(HEAVY) & set(loaded) == set()


def test_help_takes_little_processor_time() -> None:
    def seconds() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    taken = []
    for _ in range(3):
        before = seconds()
        subprocess.run([sys.executable, "-m", "riebench", "--help"], capture_output=True, check=True, cwd=ROOT)
        taken.append(seconds() - before)
    assert min(taken) <= HELP_SECONDS


def test_no_test_module_imports_another() -> None:
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    names = {file.stem for file in files}
    assert len(names) == len(files) > 50
    pattern = re.compile(r"^\s*(?:from|import) (test_\w+)", re.M)
    found = {file.stem: set(pattern.findall(file.read_text(encoding="utf-8"))) & names for file in files}
    assert {name: others for name, others in found.items() if others} == {}


def test_the_document_and_its_figure_show_the_layers_that_are_checked() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contract = settings["tool"]["importlinter"]["contracts"][0]["layers"]
    named = [{name.strip().removeprefix("riebench.") for name in layer.split("|")} for layer in contract]
    checked = [layer for layer in named if layer.isdisjoint({"__main__", "_version"})]
    document = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in document.splitlines() if line.startswith("| `riebench.")]
    assert [set(re.findall(r"riebench\.(\w+)", row)) for row in rows] == checked
    figure = runpy.run_path(str(ROOT / "docs/images/architecture.py"))
    drawn: dict[int, set[str]] = {}
    for box in figure["BOXES"]:
        drawn.setdefault(box.row, set()).update(box.name.split(", "))
    upper = [layer for layer in checked if layer not in ({"blocks"}, {"registry"}, {"errors"})]
    assert [drawn[row] for row in sorted(drawn, reverse=True)] == [*upper, {"blocks", "registry", "errors"}]
    svg = (ROOT / "docs/images/architecture.svg").read_text(encoding="utf-8")
    assert f"architecture.py {figure['digest']()}" in svg, "draw it again: python docs/images/architecture.py"
