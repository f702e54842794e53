"""Suites written from an import: task files and masks.

They are checked before any file is put in its place.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from riebench.errors import RiebenchError
from riebench.tasks.importers.examples import ImportCollector
from riebench.tasks.schema import ALL_CATEGORIES, Identifier
from riebench.tasks.suites import load_task
from riebench.utils.files import write_atomic

HEADER = "# Imported by `riebench tasks import {format}`. The data belong to their authors; see the terms they gave.\n"
"""First line of an imported task file."""

_LINE_BREAKS = set("\n\r\x85\u2028\u2029")
"""Characters that YAML takes for line ends."""


@dataclass(frozen=True)
class StoredSuite:
    """Files of a suite that were written or left unchanged.

    Attributes:
        written: new or replaced files, relative to the suite's folder.
        unchanged: files that were there already with the same content.
    """

    written: tuple[str, ...]
    unchanged: tuple[str, ...]


class _Dumper(yaml.SafeDumper):
    """YAML dumper that writes task files as the shipped ones are written.

    Lists are indented, otherwise it is PyYAML's safe dumper.
    """

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """Return a text's node; a text that other styles change is quoted."""
        style = '"' if set(text) & _LINE_BREAKS else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _Dumper.represent_text)


def suite_files(collector: ImportCollector, origin: Mapping[str, str | int]) -> dict[str, bytes]:
    """Return the files of a suite, by name relative to its folder.

    There is one task file per category that has examples, and the masks.

    Args:
        collector: the examples and masks that were read.
        origin: their origin; every task file states it, with the number of records left out.

    Raises:
        RiebenchError: if nothing is left to write.
    """
    if not collector.examples:
        why = "; the first, {}: {}".format(*collector.skipped[0]) if collector.skipped else ""
        raise RiebenchError(f"nothing to import: {len(collector.skipped)} records were left out{why}")
    files: dict[str, bytes] = {}
    clustered = collector.examples_with_clusters()
    for category in ALL_CATEGORIES:
        if category in clustered:
            task = {
                "category": category,
                "version": 1,
                "provenance": {**origin, "left_out": len(collector.skipped)},
                "examples": clustered[category],
            }
            files[f"{category}.yaml"] = (HEADER.format(**origin) + _dump(task)).encode()
    return {**files, **collector.masks}


def _dump(value: dict[str, Any]) -> str:
    # A prompt stays on one line, however long it is.
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100_000)


def store_suite(files: Mapping[str, bytes], out: Path, *, force: bool = False) -> StoredSuite:
    """Write a suite's files to their folder, all or none.

    They are first written to a temporary folder beside it and read as `riebench run` would read them.

    Args:
        files: name relative to the folder -> content.
        out: the folder; it may hold other task files, which stay.
        force: replaces files of other content.

    Raises:
        RiebenchError: if a file of other content is in the way, or an id is used by another task file there.
    """
    check_output_folder(out)
    out = out.resolve()
    same = [name for name, data in files.items() if _file_bytes(out / name) == data]
    differing = [name for name in files if name not in same and (out / name).exists()]
    if differing and not force:
        raise RiebenchError(
            f"{out / differing[0]} has other content ({len(differing)} files differ); use --force to replace it, or "
            "another --out"
        )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".riebench-import-", dir=out.parent))
    except OSError as error:
        raise RiebenchError(f"--out {out} cannot be written ({error.strerror}); name another folder") from error
    try:
        staged = staging / out.name
        for name, data in files.items():
            write_atomic(staged / name, data)
        _check_staged(staged, out, files)
        if out.exists():
            # Masks are written before the task files that name them.
            for name in sorted(files, key=lambda name: name.endswith(".yaml")):
                if name not in same:
                    write_atomic(out / name, files[name])
        else:
            staged.rename(out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return StoredSuite(tuple(name for name in files if name not in same), tuple(same))


def check_output_folder(out: Path) -> None:
    """Refuse a suite folder that is a file or has an unusable name.

    The name must be one that can stand in records.

    Raises:
        RiebenchError: saying which.
    """
    name = out.resolve().name
    try:
        TypeAdapter(Identifier).validate_python(name)
    except ValidationError as error:
        raise RiebenchError(
            f"--out {out}: a suite is called by its folder's name, and {name!r} is no name for records; use letters, "
            "digits, '.', '_' and '-'"
        ) from error
    if out.exists() and not out.is_dir():
        raise RiebenchError(f"--out {out} is a file; name a folder")


def _check_staged(staged: Path, out: Path, files: Mapping[str, bytes]) -> None:
    """Check that the new files can be read and use no id of another file."""
    new = {example.id for path in staged.glob("*.yaml") for example in load_task(path).examples}
    for path in sorted(out.glob("*.yaml")):
        if path.name not in files:
            for example in load_task(path).examples:
                if example.id in new:
                    raise RiebenchError(f"{path} has an example {example.id!r} already; use another --out")


def _file_bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None
