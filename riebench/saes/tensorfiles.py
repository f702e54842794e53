"""Files of tensors, opened with care: nothing that a file holds is ever run, and none takes more memory than it has."""

from __future__ import annotations

import errno
import io
import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from riebench.errors import RiebenchError

_LFS = b"version https://git-lfs"


def load_tensors(path: Path) -> Any:
    """`torch.load` of a file from anywhere: tensors and plain containers only.

    Raises:
        RiebenchError: if it is a Git-LFS pointer, damaged, or holds anything else.
    """
    refuse_pointer(path)
    return _unpickled(path, path)


def load_tensors_after(path: Path, offset: int) -> Any:
    """The same for a file whose first bytes are something else."""
    return _unpickled(io.BytesIO(path.read_bytes()[offset:]), path)


def _unpickled(source: Path | io.BytesIO, path: Path) -> Any:
    try:
        _refuse_compressed(source, path)
        found = torch.load(source, map_location="cpu", weights_only=True)
    except RiebenchError:
        raise
    except Exception as error:
        # Whatever the unpickler stumbles over: it has no error of its own for what is no pickle at all.
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        if wanted:
            raise RiebenchError(
                f"{path} holds more than tensors ({wanted[1]}), and opening it would run its code, which riebench "
                "never does; have it saved as a plain state_dict or as safetensors"
            ) from error
        raise RiebenchError(f"{path} is damaged or holds more than tensors; fetch it again") from error
    _refuse_claims(found, path)
    return found


def _refuse_compressed(source: Path | io.BytesIO, path: Path) -> None:
    """Torch never compresses; an archive that does may hold a thousand times what it weighs."""
    if zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise RiebenchError(f"{path} is a compressed archive, which torch never writes; fetch it again")
    if not isinstance(source, Path):
        source.seek(0)


def _refuse_claims(found: Any, path: Path) -> None:
    """Refuses tensors that show the same few stored numbers as many: reading them would fill the memory.

    Raises:
        RiebenchError: naming the first.
    """
    size, seen, left = path.stat().st_size, set[int](), [("", found)]
    while left:
        name, value = left.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Mapping):
            left += [(str(key), part) for key, part in value.items() if isinstance(key, str | int)]
        elif isinstance(value, list | tuple | set):
            left += [(name, part) for part in value]
        elif isinstance(value, Tensor):
            if value.layout != torch.strided or value.is_quantized or value.is_meta:
                raise RiebenchError(f"{path}: {name or 'its content'} is no plain tensor; have it saved as one")
            if value.numel() * value.element_size() > size:
                raise RiebenchError(f"{path}: {name or 'its content'} claims more numbers than the file has; fetch it "
                                    "again")  # fmt: skip


def load_safetensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file.

    Raises:
        RiebenchError: if it is a Git-LFS pointer or damaged.
    """
    refuse_pointer(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise RiebenchError(f"{path} is damaged ({error}); fetch it again") from error


def refuse_pointer(path: Path) -> None:
    """Refuses a Git-LFS pointer in the place of a file.

    Raises:
        RiebenchError: if it is one.
    """
    if path.is_file():
        with path.open("rb") as file:
            if file.read(len(_LFS)) == _LFS:
                raise RiebenchError(f"{path} is a Git-LFS pointer, not the file; run `git lfs pull` where it came from")


def save_tensors(value: Any, path: Path) -> None:
    """`torch.save` to a path, brought to the disk.

    Raises:
        OSError: if the disk is full.
    """
    try:
        torch.save(value, path)
    except RuntimeError as error:
        if not any(word in str(error) for word in ("PytorchStreamWriter", "inline_container", "iostream")):
            raise
        # PyTorch's writer does not pass on what the system said; next to always it is this.
        raise OSError(errno.ENOSPC, "no space left", str(path)) from error
    with path.open("r+b") as file:
        os.fsync(file.fileno())
