"""Code of a plug-in: the user's files that it consists of, and how they are run.

A plug-in is a Python file, the modules of the user that it imports, directly or through each other, and the data files
that they state (`find_sources`). Modules beside the plug-in are found there, as for a script, without a change of
`sys.path`, and under names of their own, so that plug-ins of two folders may each have a module `helpers`
(`run_sources`).
"""

from __future__ import annotations

import ast
import builtins
import hashlib
import importlib
import importlib.util
import site
import sys
import sysconfig
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from importlib.machinery import (
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    ModuleSpec,
    SourceFileLoader,
)
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from riebench.errors import RiebenchError
from riebench.utils.files import content_digest, file_sha256, package_folder

PACKAGE_PREFIX = "riebench_plugin_"
"""Beginning of the names under which the modules of a folder are loaded."""

FILES_VARIABLE = "PLUGIN_FILES"
"""Variable in which a file states the data files that it reads, as paths that begin at its own folder."""

_SUFFIXES = tuple([*SOURCE_SUFFIXES, *EXTENSION_SUFFIXES])
_OWN = ""
"""Name of the plug-in's own file among its modules."""


@dataclass(frozen=True)
class PluginSources:
    """The user's files that a plug-in consists of.

    Attributes:
        path: the plug-in's own file.
        hashes: module, as it is imported -> SHA-256 of its file; "" for the plug-in's own, a path for a data file.
        files: the same names -> files.
        beside: top-level modules that are loaded from the plug-in's folder.
    """

    path: Path
    hashes: Mapping[str, str]
    files: Mapping[str, Path]
    beside: frozenset[str]

    @property
    def digest(self) -> str:
        """SHA-256 of all files; that of the plug-in's own if it is the only one."""
        return self.hashes[_OWN] if len(self.hashes) == 1 else content_digest(dict(self.hashes))

    @property
    def package(self) -> str:
        """Name of the package that stands for the plug-in's folder."""
        return PACKAGE_PREFIX + hashlib.sha256(str(self.path.parent).encode()).hexdigest()[:12]

    @property
    def module(self) -> str:
        """Name under which the plug-in's own file is loaded."""
        return f"{self.package}.{self.path.stem.replace('.', '_')}"


def find_sources(path: Path) -> PluginSources:
    """Find a plug-in's files by the import statements in them, without running any.

    A package counts with all its modules. Modules of Python, of installed packages and of riebench are not the user's.

    Args:
        path: the plug-in's own file, resolved.

    Raises:
        OSError: if a file cannot be read.
        RiebenchError: if a file states its data files in a form that cannot be read without running it.
    """
    found = _Search(path)
    found.add(_OWN, path, beside=True)
    while found.waiting:
        name, file, beside = found.waiting.popleft()
        tree = _syntax_tree(file)
        if tree is None:
            continue
        for wanted in _imported(name, tree):
            found.request(wanted, beside)
        for stated in _data_files(file, tree):
            found.add_data(name, file.parent / stated, stated)
    return PluginSources(path, found.hashes, found.files, frozenset(found.beside))


@dataclass
class _Search:
    """Search for the files of a plug-in; those in `waiting` are still to be read."""

    path: Path
    hashes: dict[str, str] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    beside: set[str] = field(default_factory=set)
    waiting: deque[tuple[str, Path, bool]] = field(default_factory=deque)
    asked: set[tuple[str, bool]] = field(default_factory=set)

    def add(self, name: str, file: Path, *, beside: bool) -> None:
        """Add one module's file, unless it is there already."""
        if file in self.files.values():
            return
        # Beside the plug-in and elsewhere there may be two modules of one name.
        key = name if name not in self.files else f"{name} (elsewhere)"
        self.files[key] = file
        self.hashes[key] = file_sha256(file)
        self.waiting.append((name, file, beside))

    def add_data(self, name: str, file: Path, stated: str) -> None:
        """Add a data file that a module states."""
        key = f"{name}: {stated}"
        self.files[key], self.hashes[key] = file.resolve(), file_sha256(file)

    def request(self, module: str, from_beside: bool) -> None:
        """Add the files of a module that one of the files imports, if it is the user's."""
        top = module.partition(".")[0]
        if not top or (top, from_beside) in self.asked:
            return
        self.asked.add((top, from_beside))
        if top in sys.stdlib_module_names or top == "riebench":
            return
        spec = _spec_in(self.path.parent, top) if from_beside else None
        usual = _usual_spec(top)
        if spec is not None and _is_same(spec, usual):
            spec = None
        elif spec is not None and spec.origin is None and usual is not None and usual.origin is not None:
            # A folder without __init__.py counts only where nothing else has its name, as for Python itself.
            spec = None
        if spec is not None:
            self.beside.add(top)
        chosen = spec or usual
        if chosen is None or (spec is None and not _is_users(chosen)):
            return
        for name, file in _files_of(top, chosen):
            self.add(name, file, beside=spec is not None)


def _spec_in(folder: Path, name: str) -> ModuleSpec | None:
    """Find a top-level module in a folder."""
    return _finder(folder).find_spec(name)


def _finder(folder: Path) -> FileFinder:
    # A new one each time: it remembers what a folder held.
    return FileFinder(str(folder), (ExtensionFileLoader, EXTENSION_SUFFIXES), (SourceFileLoader, SOURCE_SUFFIXES))


def _usual_spec(name: str) -> ModuleSpec | None:
    """Find a top-level module where Python itself would."""
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return None


def _is_same(one: ModuleSpec, other: ModuleSpec | None) -> bool:
    """Return whether two specs lead to one file or folder."""
    return other is not None and _places(one) == _places(other)


def _places(spec: ModuleSpec) -> list[Path]:
    named = [spec.origin] if spec.has_location and spec.origin else list(spec.submodule_search_locations or ())
    return [Path(place).resolve() for place in named]


def _is_users(spec: ModuleSpec) -> bool:
    """Return whether a module is no part of Python or of an installed package."""
    places = _places(spec)
    return bool(places) and not any(_is_installed(place) for place in places)


def is_users_module(name: str) -> bool:
    """Check that a module is the user's: not Python's, riebench's or a package's.

    Args:
        name: its dotted name; one that cannot be found is the user's, such as that of a notebook.
    """
    top = name.partition(".")[0]
    if top in sys.stdlib_module_names or top == "riebench":
        return False
    spec = None if top == "__main__" else _usual_spec(top)
    return spec is None or _is_users(spec)


def _is_installed(place: Path) -> bool:
    if {"site-packages", "dist-packages"} & set(place.parts):
        return True
    return any(place.is_relative_to(folder) for folder in (*_installed_folders(), package_folder().resolve()))


@cache
def _installed_folders() -> tuple[Path, ...]:
    names = [sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")]
    with suppress(AttributeError):  # some embedded Pythons have no such function
        names += [*site.getsitepackages(), site.getusersitepackages()]
    return tuple(Path(name).resolve() for name in names)


def _files_of(name: str, spec: ModuleSpec) -> Iterator[tuple[str, Path]]:
    """Yield the modules of a file or package, with their files."""
    if spec.submodule_search_locations is None:
        if spec.origin is not None:
            yield from _archive_or_file(name, Path(spec.origin))
        return
    for folder in map(Path, spec.submodule_search_locations):
        if not folder.is_dir():
            yield from _archive_or_file(name, folder)
        for file in sorted(folder.rglob("*")):
            inside = file.relative_to(folder)
            hidden = any(part.startswith(".") or part == "__pycache__" for part in inside.parts)
            if file.name.endswith(_SUFFIXES) and file.is_file() and not hidden:
                parts = [*inside.parts[:-1], inside.name.partition(".")[0]]
                yield ".".join([name, *parts]), file.resolve()


def _archive_or_file(name: str, place: Path) -> Iterator[tuple[str, Path]]:
    """Yield a module with its file, or with the archive that it lies in."""
    found = next((one for one in (place, *place.parents) if one.exists()), place)
    if found.is_file():
        yield name, found.resolve()


def _syntax_tree(file: Path) -> ast.Module | None:
    """Parse a file; None if it is no source, or none that can be run."""
    if file.suffix not in SOURCE_SUFFIXES:
        return None
    try:
        return ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None  # running it says what is wrong


def _data_files(file: Path, tree: ast.Module) -> tuple[str, ...]:
    """Return the data files that a file states in `FILES_VARIABLE`."""
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if not any(isinstance(target, ast.Name) and target.id == FILES_VARIABLE for target in targets):
            continue
        try:
            names = ast.literal_eval(node.value)  # type: ignore[attr-defined]
        except (ValueError, TypeError, AttributeError):
            names = None
        if not isinstance(names, list | tuple) or not all(isinstance(one, str) for one in names):
            raise RiebenchError(f"{file}: {FILES_VARIABLE} is a list of paths in quotes, such as ['vectors.npy']")
        return tuple(names)
    return ()


def _imported(name: str, tree: ast.Module) -> Iterator[str]:
    """Yield the modules that a file's statements import, anywhere in it.

    Relative names are written out; those of the plug-in's own file begin in its folder.
    """
    package = name.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module or ""
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
            start = ".".join(part for part in base if part)
            yield from [start] if start else (alias.name for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            literal = node.args[0].value
            if called in ("import_module", "__import__") and isinstance(literal, str):
                yield literal


def run_sources(sources: PluginSources, *, fresh: bool) -> bool:
    """Run a plug-in's file as a module.

    It is not run again if another plug-in of its folder has imported it.

    Args:
        sources: its files, of which exactly the content that was read is run.
        fresh: forgets what was loaded from its folder before.

    Returns:
        Whether it was run here.

    Raises:
        RiebenchError: if the plug-in cannot be run, has changed meanwhile, or imports what its files do not name.
        Exception: whatever its code raises.
    """
    package = sources.package
    if fresh:
        forget_package(package)
    elif sources.module in sys.modules:
        return False
    _folder_package(sources)
    loader = _PluginLoader(sources.module, str(sources.path))
    module = importlib.util.module_from_spec(ModuleSpec(sources.module, loader, origin=str(sources.path)))
    module.__file__ = str(sources.path)
    before = set(sys.modules)
    # Type hints of the methods are resolved in the module found under this name.
    sys.modules[sources.module] = module
    try:
        loader.exec_module(module)
        _refuse_uncovered(sources, before)
    except BaseException:
        forget_package(package) if fresh else sys.modules.pop(sources.module, None)
        raise
    return True


def forget_package(package: str) -> None:
    """Remove the modules of a folder from those that are loaded."""
    for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
        del sys.modules[name]


def _folder_package(sources: PluginSources) -> None:
    """Make the package that stands for a plug-in's folder, or add to what it may load."""
    known = sys.modules.get(sources.package)
    if known is None:
        known = ModuleType(sources.package)
        known.__path__ = [str(sources.path.parent)]
        known.__dict__.update(_hashes={}, _beside=set())
        known.__dict__["_builtins"] = {**vars(builtins), "__import__": _import_beside(known)}
        sys.modules[sources.package] = known
    hashes = known.__dict__["_hashes"]
    for name, file in sources.files.items():
        if hashes.setdefault(file, sources.hashes[name]) != sources.hashes[name]:
            raise RiebenchError(f"{file} has changed since it was read; start again")
    known.__dict__["_beside"] |= sources.beside
    if not any(isinstance(finder, _PluginFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _PluginFinder())


def _import_beside(package: ModuleType) -> Callable[..., Any]:
    """Return `__import__` as the modules of a folder have it: they find each other."""
    own: Callable[..., Any] = builtins.__import__

    def find_and_import(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
        top = name.partition(".")[0]
        if level or top not in package.__dict__["_beside"]:
            return own(name, globals, locals, fromlist, level)
        full = f"{package.__name__}.{name}"
        importlib.import_module(full)
        return own(full, globals, locals, fromlist, 0) if fromlist else sys.modules[f"{package.__name__}.{top}"]

    return find_and_import


class _PluginFinder:
    """Finder of the modules below the packages that stand for plug-ins' folders."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Find a module; None for every other name."""
        if not name.startswith(PACKAGE_PREFIX) or "." not in name or path is None:
            return None
        for folder in path:
            spec = _finder(Path(folder)).find_spec(name)
            if spec is None or spec.origin is None:
                if spec is not None:
                    return spec
                continue
            own = Path(spec.origin).resolve()
            package = sys.modules[name.partition(".")[0]]
            _check_content(package, own)
            if isinstance(spec.loader, SourceFileLoader):
                spec.loader = _PluginLoader(name, str(own))
            return spec
        return None


def _check_content(package: ModuleType, file: Path) -> None:
    """Check that a file is what was read for the plug-in's identity.

    Raises:
        RiebenchError: if it is not.
    """
    expected = package.__dict__["_hashes"].get(file)
    if expected is None:
        raise RiebenchError(f"{file} is imported by a name that only shows while it runs; import it with a statement")
    if file_sha256(file) != expected:
        raise RiebenchError(f"{file} has changed since it was read; start again")


class _PluginLoader(SourceFileLoader):
    """Loader of one file of a plug-in, with the `__import__` of its folder."""

    def get_code(self, fullname: str) -> CodeType:
        """Compile the file, which must be the one that was read."""
        package = sys.modules[fullname.partition(".")[0]]
        _check_content(package, Path(self.path))
        # Never from Python's cache, which takes a file that was changed within a second for the same one.
        data = Path(self.path).read_bytes()
        code: CodeType = self.source_to_code(data, self.path)
        return code

    def exec_module(self, module: ModuleType) -> None:
        """Run the file in its module."""
        package = sys.modules[module.__name__.partition(".")[0]]
        module.__dict__["__builtins__"] = package.__dict__["_builtins"]
        super().exec_module(module)


def _refuse_uncovered(sources: PluginSources, before: set[str]) -> None:
    """Refuse loaded modules of the user that no import statement names."""
    covered = set(find_sources(sources.path).files.values()) | set(sources.files.values())
    for name in sys.modules.keys() - before:
        spec = getattr(sys.modules.get(name), "__spec__", None)
        if not isinstance(spec, ModuleSpec) or not spec.has_location or spec.origin is None:
            continue
        place = Path(spec.origin).resolve()
        if place.suffix not in SOURCE_SUFFIXES or not place.is_file():
            continue
        if place not in covered and not _is_installed(place):
            raise RiebenchError(f"imports {place} by a name that only shows while it runs; import it with a statement")
