"""Packages that extend riebench, installed for real, and those that the documents describe."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from pathlib import Path

from paths import ROOT
from python_processes import run_python


def document_code(name: str, word: str) -> str:
    """Return the Python block of a document that holds a word."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / name).read_text(encoding="utf-8"), re.DOTALL)
    (code,) = [block for block in blocks if word in block]
    return str(code)


def document_files(name: str) -> dict[str, str]:
    """Return file -> content of the files that a document writes down, each as "`FILE`:" above a code block."""
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    return dict(re.findall(r"`([\w.]+)`:\n\n```\w+\n(.*?)```", text, flags=re.DOTALL))


def entry_points(pyproject: str) -> dict[str, dict[str, str]]:
    """Return kind of entry points -> name -> target, as a document's pyproject.toml states them."""
    stated = tomllib.loads(pyproject)["project"]["entry-points"]
    return {group.removeprefix("riebench."): entries for group, entries in stated.items()}


def install_document(folder: Path, name: str) -> dict[str, str]:
    """Install the package that a document describes, and return the document's files.

    Its modules, name, version and entry points are those that the document writes down.
    """
    files = document_files(name)
    project = tomllib.loads(files["pyproject.toml"])["project"]
    only = tomllib.loads(files["pyproject.toml"])["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]
    modules = {one.removesuffix(".py"): files[one] for one in only}
    name = project["name"].replace("-", "_")
    install(folder, name, modules, entry_points(files["pyproject.toml"]), project["version"], with_pip=True)
    return files


def install(
    folder: Path,
    name: str,
    modules: Mapping[str, str],
    groups: Mapping[str, Mapping[str, str]],
    version: str = "1.0",
    *,
    with_pip: bool = False,
) -> None:
    """Build a wheel and install it, without a network.

    Args:
        folder: gets the package, as `site-packages` would.
        name: the distribution's.
        modules: name -> Python code.
        groups: kind of entry points -> name -> target.
        version: the distribution's.
        with_pip: as users do; otherwise what pip does with such a wheel, which unpacks it, in much less time.
    """
    info = f"{name}-{version}.dist-info"
    points = "".join(
        f"[riebench.{group}]\n" + "".join(f"{key} = {target}\n" for key, target in entries.items())
        for group, entries in groups.items()
    )
    files = {
        **{f"{module}.py": code for module, code in modules.items()},
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": points,
    }
    lines = []
    for path, text in files.items():
        digest = urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")
        lines.append(f"{path},sha256={digest},{len(text.encode())}\n")
    files[f"{info}/RECORD"] = "".join(lines) + f"{info}/RECORD,,\n"
    wheel = folder.parent / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    if not with_pip:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        return
    options = ["--quiet", "--no-deps", "--no-index", "--upgrade", "--target", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(wheel)], check=True)


def run(folder: Path, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run Python with the packages of a folder installed."""
    path = os.pathsep.join(part for part in (str(ROOT), str(folder), os.environ.get("PYTHONPATH", "")) if part)
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    return run_python(*arguments, environment=environment, cwd=cwd or folder)
