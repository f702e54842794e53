"""Inputs of readers: sets of files, and damaged or hostile variants of them."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from benchmarks.mutations import SECRET, as_json, broken_bytes, broken_value

Files = dict[str, bytes]
"""Path below a folder -> content."""


@dataclass(frozen=True)
class Reader:
    """Something that reads files of others.

    Attributes:
        name: for reports.
        read: reads what lies in a folder; raises a `RiebenchError` of one line, or nothing.
        valid: sets of valid files, made in a folder.
        variant: a damaged or hostile variant of such a set.
        place: puts any value in the place of a set's content; None where files are no values.
        weight: its share of the inputs.
    """

    name: str
    read: Callable[[Path], object]
    valid: Callable[[Path], list[Files]]
    variant: Callable[[Files, random.Random], Files]
    place: Callable[[Files, Any], Files] | None = None
    weight: int = 10


def damage(files: Files, chance: random.Random) -> Files:
    """One of the files with damaged bytes."""
    name = chance.choice(list(files))
    return {**files, name: broken_bytes(files[name], chance)}


def yaml_variant(files: Files, chance: random.Random) -> Files:
    """The first YAML file with damaged bytes, or with another value in it."""
    name = next(name for name in files if name.endswith(".yaml"))
    if chance.random() < 0.5:
        return {**files, name: broken_bytes(files[name], chance)}
    return yaml_place(files, broken_value(yaml.safe_load(files[name]), chance))


def yaml_place(files: Files, value: Any) -> Files:
    """Any value in the place of the first YAML file's."""
    name = next(name for name in files if name.endswith(".yaml"))
    # JSON is YAML, and says what the emitter would refuse to.
    return {**files, name: as_json(value)}


def lines_variant(files: Files, chance: random.Random) -> Files:
    """The first file of JSON lines with damaged bytes, or with another value in one line."""
    name = next(name for name in files if name.endswith(".jsonl"))
    if chance.random() < 0.4:
        return {**files, name: broken_bytes(files[name], chance)}
    lines = files[name].splitlines()
    place = chance.randrange(len(lines))
    lines[place] = as_json(broken_value(json.loads(lines[place]), chance))
    return {**files, name: b"\n".join(lines) + b"\n"}


def json_variant(files: Files, chance: random.Random, name: str) -> Files:
    """A JSON file with damaged bytes, or with another value in it."""
    if chance.random() < 0.4:
        return {**files, name: broken_bytes(files[name], chance)}
    return {**files, name: as_json(broken_value(json.loads(files[name]), chance))}


def put_json(files: Files, value: Any, name: str) -> Files:
    """Any value in the place of a JSON file's."""
    return {**files, name: as_json(value)}


def picture(kind: str = "PNG", mode: str = "L", side: int = 16) -> bytes:
    """A picture's bytes in a format and mode as Pillow calls them."""
    buffer = io.BytesIO()
    pixels = np.arange(side * side, dtype=np.uint32).reshape(side, side) % 256
    Image.fromarray(pixels.astype(np.uint8)).convert(mode).save(buffer, format=kind)
    return buffer.getvalue()


def link(path: Path) -> None:
    """A link that leads out of the folder, for paths that follow it."""
    if path.parent.is_dir():
        root = next(parent for parent in path.parents if parent.name == "case").parent
        path.symlink_to(root / "outside" / SECRET)
