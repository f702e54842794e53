"""Files of weights, inspected without loading any.

Names and shapes of tensors are read from the headers of safetensors files, and damaged files are refused.
"""

from __future__ import annotations

import json
from pathlib import Path

from riebench.errors import MetricError, RiebenchError

LFS_POINTER = b"version https://git-lfs"
"""First bytes of a file that Git LFS has not fetched yet."""

WEIGHT_ENDINGS = (".safetensors", ".bin", ".pt", ".pth")
"""Endings of files with the weights of a network that measures."""

INTEGER_FORMATS = ("I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64", "BOOL")
"""Number formats without fractions, as the headers of files name them."""

WIDE = "float16, bfloat16 or float32"
"""Number formats that weights are read from, in words."""


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return tensor name -> shape of a safetensors file.

    Only its header is read.

    Raises:
        RiebenchError: if it is no such file, for instance a Git-LFS pointer.
    """
    return {name: shape for name, (shape, _) in _read_header(path)[0].items()}


def tensor_formats(path: Path) -> dict[str, str]:
    """Return tensor name -> number format ("F16", "I64") of a safetensors file.

    Only its header is read.

    Raises:
        RiebenchError: as `tensor_shapes`.
    """
    return {name: kind for name, (_, kind) in _read_header(path)[0].items()}


def metadata(path: Path) -> dict[str, str]:
    """Return the notes in a safetensors file's header.

    Raises:
        RiebenchError: as `tensor_shapes`.
    """
    return _read_header(path)[1]


def _read_header(path: Path) -> tuple[dict[str, tuple[tuple[int, ...], str]], dict[str, str]]:
    """Return tensor name -> shape and number format, and the notes."""
    with path.open("rb") as file:
        start = file.read(40)
        if start.startswith(LFS_POINTER):
            raise RiebenchError(f"{path} is a Git-LFS pointer, not the file; run `git lfs pull` where it came from")
        try:
            length = int.from_bytes(start[:8], "little")
            if len(start) < 8 or length > path.stat().st_size:
                raise ValueError("it is cut off")
            file.seek(8)
            header = json.loads(file.read(length))
            notes = {str(name): str(text) for name, text in (header.pop("__metadata__", None) or {}).items()}
            return {name: (tuple(entry["shape"]), str(entry["dtype"])) for name, entry in header.items()}, notes
        except (ValueError, KeyError, TypeError, RecursionError, AttributeError) as error:
            raise RiebenchError(f"{path} is damaged ({error}); fetch it again") from error


def tensor_names(file: Path) -> set[str]:
    """Return the names of the tensors in a safetensors file of a model.

    Only its header is read.

    Raises:
        RiebenchError: if it is a Git LFS pointer, cut off or no such file, or if a weight has a type without fractions,
            which would be loaded without a word.
    """
    from safetensors import SafetensorError, safe_open

    formats = tensor_formats(file)
    for name, kind in formats.items():
        if kind in INTEGER_FORMATS and name.endswith((".weight", ".bias")):
            raise RiebenchError(
                f"{file}: {name} holds numbers of the type {kind}, which no weight has; fetch the model as its authors "
                "trained it, not damaged or packed to fewer bits"
            )
    try:
        # Opening compares the file's length with the length that its header states.
        with safe_open(file, "pt"):
            return set(formats)
    except (SafetensorError, OSError) as error:
        raise RiebenchError(f"{file} is damaged or cut off ({error}); download it again") from error


def check_wide(file: Path) -> None:
    """Refuse a safetensors file whose weights have 8 or fewer bits.

    Read as they are, they would be the numbers of another model.

    Raises:
        RiebenchError: naming the first one; or as `tensor_shapes`.
    """
    for name, kind in tensor_formats(file).items():
        if kind.startswith("F") and kind not in ("F16", "F32", "F64"):
            raise RiebenchError(f"{file.name} holds weights of 8 or fewer bits ({name}: {kind}); fetch it in {WIDE}")


def check_weights_file(path: Path) -> Path:
    """Check that a path is a weights file, and return it.

    Raises:
        MetricError: if there is no such file, it is a Git-LFS pointer, or its ending is not that of a weights file.
    """
    if not path.is_file():
        raise MetricError(f"there is no file {path}")
    if path.suffix not in WEIGHT_ENDINGS:
        raise MetricError(f"{path} is no weights file; it has to end in {', '.join(WEIGHT_ENDINGS)}")
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise MetricError(f"{path} is a Git-LFS pointer, not the file; run `git lfs pull` in its folder")
    return path
