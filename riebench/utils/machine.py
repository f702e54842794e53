"""What this machine has: packages, memory, disk and GPU. PyTorch is imported; nothing is loaded or fetched."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import psutil
from packaging.requirements import Requirement

from riebench.errors import RiebenchError
from riebench.utils.files import package_folder

CGROUP = Path("/sys/fs/cgroup")
"""Where a container finds its limits."""


@dataclass(frozen=True)
class Gpu:
    """A CUDA device.

    Attributes:
        name: as the driver calls it.
        total: its memory in bytes.
        free: bytes nobody uses now.
        driver: version of the driver; "" if `nvidia-smi` does not say.
        bfloat16: whether it computes in bfloat16.
    """

    name: str
    total: int
    free: int
    driver: str
    bfloat16: bool


def package_requirements() -> list[Requirement]:
    """What the package needs, from its metadata, or in a checkout from `pyproject.toml`."""
    try:
        stated = importlib.metadata.requires("riebench") or []
    except importlib.metadata.PackageNotFoundError:
        file = package_folder().parent / "pyproject.toml"
        stated = tomllib.loads(file.read_text(encoding="utf-8"))["project"]["dependencies"] if file.is_file() else []
    found = [Requirement(text) for text in stated]
    return [one for one in found if one.marker is None or one.marker.evaluate({"extra": ""})]


def unmet_requirements(needed: list[Requirement]) -> list[tuple[Requirement, str | None]]:
    """Requirements that are not fulfilled, each with the version that is here (None for none)."""
    found: list[tuple[Requirement, str | None]] = []
    for one in needed:
        try:
            version = importlib.metadata.version(one.name)
        except importlib.metadata.PackageNotFoundError:
            found.append((one, None))
            continue
        if not one.specifier.contains(version, prereleases=True):
            found.append((one, version))
    return found


def free_ram() -> int:
    """Bytes of memory that a process here may still take: of the machine, or of its container's limit."""
    return min(int(psutil.virtual_memory().available), _container_headroom())


def peak_ram() -> int:
    """Bytes that this process has taken at most since its program began.

    The usual count (`ru_maxrss`) goes on from what the process that started it had taken.
    """
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _container_headroom() -> int:
    try:
        limit, used = (int((CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        counts = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        # What was read from files lately counts as used, and goes as soon as its room is needed.
        return max(0, limit - used + int(counts["inactive_file"]))
    except (OSError, ValueError, KeyError):
        # No container, or one without a limit ("max").
        return 2**62


def free_disk(folder: Path) -> int:
    """Bytes free where a folder is or would be."""
    place = folder.expanduser().resolve()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def hub_cache_folder() -> Path:
    """Where files from the hub are kept."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def find_gpu(device: str) -> Gpu | None:
    """The CUDA device of that name; None if PyTorch sees none."""
    import torch

    if not torch.cuda.is_available():
        return None
    _, _, number = device.partition(":")
    index = int(number) if number.isdigit() else 0
    if index >= torch.cuda.device_count():
        return None
    free, total = torch.cuda.mem_get_info(index)
    return Gpu(torch.cuda.get_device_name(index), total, free, _driver_version(), torch.cuda.is_bf16_supported())


def _driver_version() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    return next(iter(told.splitlines()), "").strip()


def pick_device(device: str) -> str:
    """The device that "auto" means here; any other name is returned as it is.

    Raises:
        RiebenchError: if there is no such device here.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise RiebenchError(f"--device {device}: PyTorch sees no CUDA device here; use --device cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise RiebenchError(f"--device {device} cannot be used: {str(error).splitlines()[0]}") from error
    return device


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Numbers of the parameters in the C library's malloc.h."""
MAX_HEAP_BLOCK = 32 * 2**20
"""Larger blocks come from the system one by one; the C library takes no higher limit everywhere."""
MAX_FREE_HEAP = 2**30
"""So much free memory at the heap's end is kept."""
MALLOC_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")
"""Where a user who tunes memory, or exchanges what hands it out, says so."""


def keep_freed_memory() -> bool:
    """Makes this process keep freed memory for what it computes next, on the CPU.

    GNU's C library gives the end of its heap back to the system as soon as 64 MB are free there, and a U-Net's
    activations are freed after every call: without this, each call waits for the same pages anew. Most memory used is
    the same, and so are all results. Nothing changes with another C library, or where the environment tunes memory.

    Returns:
        Whether it is set.
    """
    if os.name != "posix" or any(os.environ.get(name) for name in MALLOC_VARIABLES):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    # Both or neither: setting one ends the library's own adaptation of the other.
    return bool(library.mallopt(_MMAP_THRESHOLD, MAX_HEAP_BLOCK)) and bool(
        library.mallopt(_TRIM_THRESHOLD, MAX_FREE_HEAP)
    )


def size_text(count: int) -> str:
    """Bytes in words."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.0f} MB" if count >= 1e6 else f"{count} bytes"
