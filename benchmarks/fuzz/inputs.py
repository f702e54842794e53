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

SECRET = "secret.png"
"""A file beside the folder that a reader is given; nothing may open it."""
CLIMBING = f"../outside/{SECRET}"

WORDS: tuple[str, ...] = (
    "", " ", "\x00", "a\nb", "\ud800", "\u202e", "\u2028", "é" * 50, "🙈", "<script>alert(1)</script>", "javascript:x",
    "|", "`", "[x](y)", "\\input{/etc/passwd}", "$", "%s%n", "{{7*7}}", "not:" * 2000 + "whole", "not: " * 300, "file:",
    f"file: {CLIMBING}", f"file:masks/../../outside/{SECRET}", "file: masks/link.png", CLIMBING, "masks/link.png",
    "link.png", "/etc/passwd", "~/x", "C:\\x", "\\\\host\\x", "CON", "." * 300, "x" * 5000, "a " * 4000, "mid.0",
    "up.7.0", "mid.0+mid.0", "whole", "background", "seen:", "1e999", "nan", "0x" + "f" * 5000, "9" * 5000, "1:" * 500,
    "!!python/object/apply:os.system ['true']", "&a [*a]", "*a", "<<", "---", "%YAML 9", "2001-99-99",
    "=cmd|' /C x'!A0",
)  # fmt: skip
"""Texts that readers must survive in any place."""

VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**53, 2**63, 2**64, -(2**70), 10**30, 10**300, 1.5, -0.0, 1e308, float("nan"),
    float("inf"), float("-inf"), [], {}, [None], [[]], {"": 1}, [0, 10**18], [5, -3], [10**9] * 4, list(range(2000)),
)  # fmt: skip
"""Other values that readers must survive in any place."""

TOKENS: tuple[bytes, ...] = (
    b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"[" * 3000, b"{" * 3000, b'{"a":' * 1500, b"- " * 1500, b"? " * 800,
    b"\n- &a [x,x,x,x,x,x,x,x,x]\n- &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\n", b": ", b"\t", b"\r", b'"', b"'", b"NaN",
    b"-Infinity",
    b"1e400", b"9" * 5000, b"\\ud800", b"\\u0000", b"\\u202e", b"!!binary |\n  x", b"!!set {a}", b"!!timestamp x",
    b"|\n",
    b"../../outside/secret.png", b"\n", b"null", b"IDAT", b"IEND", b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff",
    b"version https://git-lfs.github.com/spec/v1\n", b"cos\nsystem\n", b"PK\x03\x04", b"%!PS-Adobe-3.0 EPSF-3.0\n",
)  # fmt: skip
"""Pieces of bytes that are put anywhere."""


def broken_bytes(data: bytes, chance: random.Random) -> bytes:
    """Return a variant of a file's bytes, with up to eight changes."""
    found = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 4, 8))):
        place = chance.randrange(len(found) + 1)
        length = min(chance.choice((1, 1, 2, 4, 16, 200)), len(found) - place)
        change = chance.randrange(7)
        if change == 0 and place < len(found):
            found[place] ^= 1 << chance.randrange(8)
        elif change == 1:
            del found[place : place + length]
        elif change == 2:
            found[place:place] = chance.choice(TOKENS)
        elif change == 3:
            found[place : place + length] = chance.randbytes(length)
        elif change == 4:
            found[place:place] = found[place : place + length] * chance.choice((1, 2, 50))
        elif change == 5:
            del found[place:]
        else:
            found[place : place + length] = chance.choice(WORDS).encode("utf-8", "surrogatepass")[:300]
    return bytes(found)


def broken_value(value: Any, chance: random.Random) -> Any:
    """Return a variant of a JSON-like value, with up to three changes in it."""
    for _ in range(chance.choice((1, 1, 2, 3))):
        value = _changed(value, chance)
    return value


def _changed(value: Any, chance: random.Random) -> Any:
    if isinstance(value, dict) and value and chance.random() < 0.85:
        key = chance.choice(list(value))
        change = chance.randrange(8)
        if change == 0:
            return {name: inner for name, inner in value.items() if name != key}
        if change == 1:
            return {**value, _word(chance): value[key]}
        if change == 2:
            return {(_word(chance) if name == key else name): inner for name, inner in value.items()}
        return {**value, key: _changed(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.85:
        place = chance.randrange(len(value))
        change = chance.randrange(8)
        if change == 0:
            return value[:place] + value[place + 1 :]
        if change == 1:
            return [*value, *([value[place]] * chance.choice((1, 3)))]
        return [*value[:place], _changed(value[place], chance), *value[place + 1 :]]
    return _replaced(value, chance)


def _replaced(value: Any, chance: random.Random) -> Any:
    change = chance.randrange(6)
    if change == 0:
        return nested(chance.choice((3, 40, 300 + chance.randrange(700), 3000)), chance.random() < 0.5)
    if change == 1:
        return chance.choice(VALUES)
    if isinstance(value, str) and change == 2:
        return value[: chance.randrange(len(value) + 1)] + _word(chance)
    if isinstance(value, int | float) and change in (2, 3):
        return value * chance.choice((-1, 0, 2, 1.5, 10**6))
    return _word(chance)


def _word(chance: random.Random) -> str:
    return chance.choice(WORDS)


def nested(depth: int, mapping: bool) -> Any:
    """Return a list or mapping nested in itself, so many levels deep."""
    found: Any = 1
    for _ in range(depth):
        found = {"a": found} if mapping else [found]
    return found


def as_json(value: Any) -> bytes:
    """Return a value as JSON.

    It works also where the value is too deep for the encoder, or a text is not valid Unicode.
    """
    if isinstance(value, dict):
        return b"{" + b",".join(_text(str(key)) + b":" + as_json(inner) for key, inner in _shallow(value)) + b"}"
    if isinstance(value, list | tuple):
        if len(value) == 1:
            opening = 0
            while isinstance(value, list | tuple) and len(value) == 1:
                value, opening = value[0], opening + 1
            return b"[" * opening + as_json(value) + b"]" * opening
        return b"[" + b",".join(map(as_json, value)) + b"]"
    return _text(value) if isinstance(value, str) else json.dumps(value).encode()


def _shallow(value: dict[str, Any]) -> list[tuple[str, Any]]:
    depth, inner = 0, value
    while isinstance(inner, dict) and len(inner) == 1:
        inner, depth = next(iter(inner.values())), depth + 1
    # So deep a mapping comes from `nested` alone, and a list says the same about the reader.
    return [("a", nested(depth, False))] if depth > 100 else list(value.items())


def _text(text: str) -> bytes:
    return json.dumps(text).encode()


Files = dict[str, bytes]
"""Path below a folder -> content."""


@dataclass(frozen=True)
class Reader:
    """Reader of untrusted files.

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
    """Return the files, one of them with damaged bytes."""
    name = chance.choice(list(files))
    return {**files, name: broken_bytes(files[name], chance)}


def yaml_variant(files: Files, chance: random.Random) -> Files:
    """Return the files, damaged bytes or another value in the first YAML file."""
    name = next(name for name in files if name.endswith(".yaml"))
    if chance.random() < 0.5:
        return {**files, name: broken_bytes(files[name], chance)}
    return yaml_place(files, broken_value(yaml.safe_load(files[name]), chance))


def yaml_place(files: Files, value: Any) -> Files:
    """Return the files with any value in the place of the first YAML file's."""
    name = next(name for name in files if name.endswith(".yaml"))
    # JSON is YAML, and can hold what the emitter would refuse to write.
    return {**files, name: as_json(value)}


def lines_variant(files: Files, chance: random.Random) -> Files:
    """Return the files with the first file of JSON lines changed.

    It has damaged bytes, or another value in one line.
    """
    name = next(name for name in files if name.endswith(".jsonl"))
    if chance.random() < 0.4:
        return {**files, name: broken_bytes(files[name], chance)}
    lines = files[name].splitlines()
    place = chance.randrange(len(lines))
    lines[place] = as_json(broken_value(json.loads(lines[place]), chance))
    return {**files, name: b"\n".join(lines) + b"\n"}


def json_variant(files: Files, chance: random.Random, name: str) -> Files:
    """Return the files, damaged bytes or another value in a JSON file."""
    if chance.random() < 0.4:
        return {**files, name: broken_bytes(files[name], chance)}
    return {**files, name: as_json(broken_value(json.loads(files[name]), chance))}


def put_json(files: Files, value: Any, name: str) -> Files:
    """Return the files with any value in the place of a JSON file's."""
    return {**files, name: as_json(value)}


def picture(kind: str = "PNG", mode: str = "L", side: int = 16) -> bytes:
    """Return a picture's bytes in a format and mode as Pillow calls them."""
    buffer = io.BytesIO()
    pixels = np.arange(side * side, dtype=np.uint32).reshape(side, side) % 256
    Image.fromarray(pixels.astype(np.uint8)).convert(mode).save(buffer, format=kind)
    return buffer.getvalue()


def link(path: Path) -> None:
    """Make a link that leads out of the folder, for paths that follow it."""
    if path.parent.is_dir():
        root = next(parent for parent in path.parents if parent.name == "case").parent
        path.symlink_to(root / "outside" / SECRET)
