"""Plug-ins of several files: modules beside them, their identity, and no leak to others."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from riebench.errors import RiebenchError, TaskFileError
from riebench.methods.base import get_method
from riebench.registry import METHODS
from riebench.tasks import settings
from riebench.tasks.plugins import PACKAGE_PREFIX, find_sources
from riebench.tasks.settings import load_plugin, load_setting_file
from riebench.utils.files import file_sha256

METHOD = '''
from riebench.generation.edits import Edit
from riebench.methods.base import EditContext, method
{imports}

@method("{name}", access="PA", needs=("updates",))
def nothing(ctx: EditContext) -> Edit:
    """{doc}"""
    {body}
'''


BY_NAME = "from importlib import import_module\n"
BY_PATH = f"import os, sys\nsys.path.append(os.path.dirname(__file__))\n{BY_NAME}"


@pytest.fixture(autouse=True)
def forget(tmp_path: Path) -> Iterator[None]:
    """Remove plug-ins, their methods and their modules after each test."""
    before, modules, path = set(METHODS.names()), set(sys.modules), list(sys.path)
    yield
    settings._loaded_plugins.clear()
    for name in set(METHODS.names()) - before:
        METHODS._objects.pop(name)
    for name in set(sys.modules) - modules:
        file = getattr(sys.modules[name], "__file__", None)
        if name.startswith(PACKAGE_PREFIX) or str(file).startswith(str(tmp_path)):
            del sys.modules[name]
    sys.path[:] = path


def write(folder: Path, imports: str = "", body: str = "return VALUE", name: str = "mine", **files: str) -> Path:
    """Write a plug-in, and files beside it; `a__b` is a/b.py."""
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        place = folder / f"{file.replace('__init', '/__init__') if '__init' in file else file.replace('__', '/')}.py"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    path = folder / "my_methods.py"
    path.write_text(METHOD.format(imports=imports, body=body, name=name, doc="Changes nothing."))
    return path


def value(path: Path, name: str = "mine") -> object:
    """Load a plug-in and return what its method returns."""
    load_plugin(path)
    return get_method(name).function(None)


@pytest.mark.parametrize(
    ("imports", "body", "files"),
    [
        ("from aids import VALUE", "return VALUE", {"aids": "VALUE = 7"}),
        ("import aids as h", "return h.VALUE", {"aids": "VALUE = 7"}),
        ("import aids", "return aids.VALUE", {"aids": "from more import VALUE", "more": "VALUE = 7"}),
        ("from .aids import VALUE", "return VALUE", {"aids": "VALUE = 7"}),
        ("from . import aids", "return aids.VALUE", {"aids": "VALUE = 7"}),
        ("", "import aids; return aids.VALUE", {"aids": "VALUE = 7"}),
        ("", "from aids import VALUE; return VALUE", {"aids": "def f():\n    pass\nVALUE = 7"}),
        ("import pack.part", "return pack.part.VALUE", {"pack__init": "", "pack__part": "VALUE = 7"}),
        ("import pack.part as p", "return p.VALUE", {"pack__init": "", "pack__part": "VALUE = 7"}),
        ("from pack import part", "return part.VALUE", {"pack__init": "", "pack__part": "VALUE = 7"}),
        ("from pack import *", "return VALUE", {"pack__init": "from .part import VALUE", "pack__part": "VALUE = 7"}),
        (
            "from pack import VALUE",
            "return VALUE",
            {
                "pack__init": "from pack.a import VALUE",
                "pack__a": "import aids\nVALUE = aids.N",
                "aids": "N = 7",
            },
        ),
        ("from lib.part import VALUE", "return VALUE", {"lib__part": "VALUE = 7"}),
    ],
)
def test_modules_beside_a_plugin_are_found_and_part_of_its_identity(
    imports: str, body: str, files: dict[str, str], tmp_path: Path
) -> None:
    path = write(tmp_path / "plugin", imports, body, **files)
    state = list(sys.path), set(sys.modules)
    first = load_plugin(path)
    assert get_method("mine").function(None) == 7
    assert sys.path == state[0]
    assert {name for name in set(sys.modules) - state[1] if not name.startswith("riebench.")} == {
        name for name in sys.modules if name.startswith(PACKAGE_PREFIX)
    }
    assert first != file_sha256(path) and len(first) == 64
    changed = next(file for file in sorted(path.parent.rglob("*.py")) if "= 7" in file.read_text())
    text = changed.read_text()
    changed.write_text(text.replace("= 7", "= 8"))
    with pytest.raises(RiebenchError, match="has changed since it was read; start again"):
        load_plugin(path)
    # Another process sees the other content, though time and size of the file may be the same.
    settings._loaded_plugins.clear()
    METHODS._objects.pop("mine")
    assert value(path) == 8
    assert settings._loaded_plugins[path] != first
    changed.write_text(text)
    assert find_sources(path).digest == first


def test_a_plugin_of_one_file_keeps_its_identity(tmp_path: Path) -> None:
    path = write(tmp_path, "import numpy as np\nimport json", "return 1", unused="VALUE = 1")
    assert load_plugin(path) == file_sha256(path)


def test_plugins_of_two_folders_have_modules_of_one_name(tmp_path: Path) -> None:
    lazy = "import aids; from pack import part; return aids.VALUE, part.VALUE, VALUE"
    for name in ("a", "b"):
        write(
            tmp_path / name, "from aids import VALUE", lazy, name, aids=f"VALUE = '{name}'", pack__init="",
            pack__part=f"VALUE = '{name}'",
        )  # fmt: skip
    digests = [load_plugin(tmp_path / name / "my_methods.py") for name in ("a", "b")]
    for name in ("a", "b"):
        # Also what is imported only now comes from the method's own folder.
        assert get_method(name).function(None) == (name, name, name)
    assert len(set(digests)) == 2 and "aids" not in sys.modules
    with pytest.raises(ModuleNotFoundError):
        __import__("aids")


def test_modules_of_another_place_do_not_take_the_place_of_those_beside(tmp_path: Path) -> None:
    other = tmp_path / "other"
    write(other, aids="VALUE = 'other'", elsewhere="from aids import VALUE")
    sys.path.insert(0, str(other))
    imports = "from aids import VALUE\nfrom elsewhere import VALUE as OTHER"
    path = write(tmp_path / "plugin", imports, "return VALUE, OTHER", aids="VALUE = 'beside'")
    assert value(path) == ("beside", "other")
    names = {"", "aids", "elsewhere", "aids (elsewhere)"}
    assert set(find_sources(path).hashes) == names


def test_the_identity_does_not_depend_on_how_a_module_is_found(tmp_path: Path) -> None:
    path = write(tmp_path / "plugin", "from aids import VALUE", aids="VALUE = 7")
    first = find_sources(path).digest
    sys.path.insert(0, str(path.parent))
    assert load_plugin(path) == first and "aids" in sys.modules


def test_two_plugins_of_one_folder_share_their_modules(tmp_path: Path) -> None:
    first = write(tmp_path, "import aids\nSTATE = aids.STATE", "return STATE", "one", aids="STATE = []")
    text = first.read_text().replace('"one"', '"two"') + "\nfrom my_methods import nothing as other\n"
    (tmp_path / "second.py").write_text(text)
    load_plugin(tmp_path / "second.py")
    # It was run already, as a module of the second; its method is there all the same.
    load_plugin(first)
    assert get_method("one").function(None) is get_method("two").function(None)


def test_a_file_beside_takes_no_name_of_python_or_riebench(tmp_path: Path) -> None:
    imports = "import json, datasets\nimport riebench.errors"
    path = write(tmp_path, imports, "return json.dumps(1)", json="x = 1", riebench__init="1 / 0")
    (tmp_path / "datasets").mkdir()
    assert value(path) == "1" and load_plugin(path) == file_sha256(path)


def test_data_files_that_a_plugin_states_are_part_of_its_identity(tmp_path: Path) -> None:
    path = write(tmp_path, 'PLUGIN_FILES = ["data/values.txt"]', "return 1")
    with pytest.raises(RiebenchError, match=r"values\.txt: No such file"):
        load_plugin(path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "values.txt").write_text("1")
    first = load_plugin(path)
    (tmp_path / "data" / "values.txt").write_text("2")
    assert find_sources(path).digest != first != file_sha256(path)
    path.write_text(path.read_text().replace('["data/values.txt"]', "[str(1)]"))
    with pytest.raises(RiebenchError, match="PLUGIN_FILES is a list of paths in quotes"):
        find_sources(path)


@pytest.mark.parametrize(
    ("imports", "files", "message"),
    [
        ("import aids", {"aids": "1 / 0"}, "fails: ZeroDivisionError"),
        ("import aids", {"aids": "x = 1 +"}, "fails: SyntaxError"),
        ("import aids.more", {"aids": ""}, "fails: ModuleNotFoundError"),
        (f"{BY_NAME}import_module('.ai' + 'ds', __package__)", {"aids": ""}, "only shows while"),
        (f"{BY_PATH}import_module('ai' + 'ds')", {"aids": ""}, "only shows while"),
    ],
)
def test_modules_that_cannot_serve_are_refused_in_a_line(
    imports: str, files: dict[str, str], message: str, tmp_path: Path
) -> None:
    path = write(tmp_path, imports, "return 1", **files)
    (tmp_path / "my_setting.yaml").write_text("method: mine\nplugin: my_methods.py\naccess: PA\n")
    before = set(sys.modules)
    with pytest.raises(TaskFileError, match=f"my_setting.yaml: plugin .*{message}"):
        load_setting_file(tmp_path / "my_setting.yaml")
    assert not [name for name in set(sys.modules) - before if name.startswith(PACKAGE_PREFIX)]
    assert path.is_file()


def test_a_folder_that_a_plugin_adds_to_the_path_is_part_of_its_identity(tmp_path: Path) -> None:
    write(tmp_path / "lib", deep="VALUE = 7")
    imports = f"import sys\nsys.path.insert(0, {str(tmp_path / 'lib')!r})\nfrom deep import VALUE"
    path = write(tmp_path / "plugin", imports)
    assert load_plugin(path) != file_sha256(path)
    assert load_plugin(path) == find_sources(path).digest


@pytest.mark.parametrize("inside", ["deep.py", "deep/__init__.py"])
def test_a_module_in_an_archive_is_part_of_the_identity(inside: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "lib.zip", "w") as archive:
        archive.writestr(inside, "VALUE = 7")
    imports = f"import sys\nsys.path.insert(0, {str(tmp_path / 'lib.zip')!r})\nfrom deep import VALUE"
    path = write(tmp_path / "plugin", imports)
    assert load_plugin(path) != file_sha256(path)
    assert file_sha256(tmp_path / "lib.zip") in find_sources(path).hashes.values()


def test_a_module_that_changes_before_it_is_imported_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "", "import aids; return aids.VALUE", aids="VALUE = 7")
    load_plugin(path)
    (tmp_path / "aids.py").write_text("VALUE = 8")
    with pytest.raises(RiebenchError, match=r"aids\.py has changed since it was read"):
        get_method("mine").function(None)


def test_a_fresh_process_needs_no_python_path(tmp_path: Path) -> None:
    path = write(tmp_path / "plugin", "from aids import VALUE", aids="VALUE = 7")
    load = f"from riebench.tasks.settings import load_plugin; print(load_plugin(Path({str(path)!r})))"
    code = f"from pathlib import Path; {load}"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert found.stdout == f"{load_plugin(path)}\n" and re.fullmatch(r"[0-9a-f]{64}\n", found.stdout)
