"""Facts about this machine: packages, devices, memory and disk.

Besides reporting what there is, this module picks the device to compute on and tells the C library to keep freed
memory. PyTorch is imported only where it is needed; no model is loaded and nothing is downloaded.
"""

from __future__ import annotations

import ctypes
import errno
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from packaging.requirements import Requirement

from riebench.errors import RiebenchError
from riebench.utils.files import package_folder

CGROUP = Path("/sys/fs/cgroup")
"""Folder in which a container finds its limits."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameter numbers of `mallopt`, from the C library's malloc.h."""

MAX_HEAP_BLOCK = 32 * 2**20
"""Largest block, in bytes, that is taken from the heap; a larger one comes from the system by itself.

The C library does not accept a higher limit on every machine.
"""

MAX_FREE_HEAP = 2**30
"""Free bytes at the end of the heap that are kept instead of being returned to the system."""

_MEMORY_WORDS = (
    "out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory", "_status_alloc_failed",
    "failed to map segment", "unable to allocate", "bad_alloc", "os error 12",
)  # fmt: skip
_DISK_WORDS = ("no space left on device", "disk quota exceeded", "os error 28", "os error 122")
_FILE_WORDS = ("file too large", "os error 27")
"""Words of libraries for a shortage of memory, of disk space, and of the size that a file may have, in lower case."""

MALLOC_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")
"""Environment variables with which a user tunes or replaces the memory allocator."""


@dataclass(frozen=True)
class Gpu:
    """A CUDA device.

    Attributes:
        name: as the driver calls it.
        total: its memory in bytes.
        free: bytes of it that no process uses now.
        driver: the driver's version; "" if `nvidia-smi` does not say.
        bfloat16: whether it computes in bfloat16.
    """

    name: str
    total: int
    free: int
    driver: str
    bfloat16: bool


def pick_device(device: str) -> str:
    """Return the device that "auto" means here.

    Any other name is returned as it is.

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


def find_gpu(device: str) -> Gpu | None:
    """Return the CUDA device of a given name, or None if PyTorch sees none."""
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
    """Return the version of the NVIDIA driver; "" if `nvidia-smi` gives none."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    return next(iter(output.splitlines()), "").strip()


def free_ram() -> int:
    """Return the bytes of memory that a process here may still take.

    The limit is that of the machine, of its container or of the shell (`ulimit -v`), whichever is lowest.
    """
    return min(int(psutil.virtual_memory().available), _container_headroom(), _address_headroom())


def _container_headroom() -> int:
    """Return the bytes left under the container's limit, 2**62 without one."""
    try:
        limit, used = (int((CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        counts = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        # The file cache counts as used, though it is freed as soon as its memory is needed.
        return max(0, limit - used + int(counts["inactive_file"]))
    except (OSError, ValueError, KeyError):
        # No container, or one without a limit ("max").
        return 2**62


def _address_headroom() -> int:
    """Return the bytes left under the shell's limit (`ulimit -v`), 2**62 without one."""
    limit = process_limit("AS")
    return 2**62 if limit is None else max(0, limit - int(psutil.Process().memory_info().vms))


def process_limit(name: str) -> int | None:
    """Return a limit that the shell sets on this process; None without one.

    Args:
        name: as `resource` calls it after RLIMIT_, such as "AS" for memory or "FSIZE" for the size of a file.
    """
    try:
        import resource
    except ImportError:
        # A system without such limits.
        return None
    limit: int = resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))[0]
    return None if limit == resource.RLIM_INFINITY else limit


def shortage(error: BaseException) -> str | None:
    """Return what to do about an error whose cause is a shortage here.

    Shortages are those of memory, of disk space, and of the size that a file may have. Libraries report them in types
    and words of their own, so an error's causes count too.

    Args:
        error: any error.

    Returns:
        One line that says what is short and what helps; None for any other error.
    """
    for one in _causes(error):
        if is_memory_shortage(one):
            return _memory_words()
        if _is_shortage(one, (errno.ENOSPC, errno.EDQUOT), _DISK_WORDS):
            return "the disk is full; everything finished so far is kept: free some space and repeat the same command"
        if _is_shortage(one, (errno.EFBIG,), _FILE_WORDS):
            return _file_words()
    return None


def is_memory_shortage(error: BaseException) -> bool:
    """Return whether an error, or one that caused it, is a shortage of memory."""
    return any(isinstance(one, MemoryError) or _is_shortage(one, (errno.ENOMEM,), _MEMORY_WORDS)
               for one in _causes(error))  # fmt: skip


def _causes(error: BaseException) -> list[BaseException]:
    """Return an error and what it came from, the outermost first."""
    found: list[BaseException] = []
    left: BaseException | None = error
    while left is not None and left not in found:
        found.append(left)
        left = left.__cause__ or left.__context__
    return found


def _is_shortage(error: BaseException, numbers: Sequence[int], words: Sequence[str]) -> bool:
    # The messages of riebench itself may quote a file.
    if isinstance(error, RiebenchError) or not isinstance(error, Exception):
        return False
    if isinstance(error, OSError) and error.errno in numbers:
        return True
    text = str(error)[:10_000].lower()
    return any(one in text for one in words)


def _memory_words() -> str:
    limit = process_limit("AS")
    if limit is None:
        return "memory does not suffice; end other programs, or use a smaller --batch-size, then --dtype float16"
    return (
        f"memory does not suffice under the limit of {size_text(limit)} that `ulimit -v` sets; raise it "
        "(`ulimit -v unlimited`), or use a smaller --batch-size"
    )


def _file_words() -> str:
    limit = process_limit("FSIZE")
    if limit is None:
        what = "the file system takes; use a folder on another one"
    else:
        what = f"the limit of {size_text(limit)} that `ulimit -f` sets; raise it (`ulimit -f unlimited`)"
    return f"a file would be larger than {what} and repeat the same command; everything finished so far is kept"


def peak_ram() -> int:
    """Return the most bytes that this process has taken since it started.

    The usual count (`ru_maxrss`) continues from the memory of the process that started this one.
    """
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def keep_freed_memory() -> bool:
    """Make this process keep freed CPU memory for later computations.

    GNU's C library returns the end of its heap to the system as soon as 64 MB are free there, and a U-Net's activations
    are freed after every call: without this, each call waits for the same pages again. Peak memory stays the same, and
    so do all results. Nothing changes with another C library, or where the environment tunes memory.

    Returns:
        True if the limits are set.
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


def free_disk(folder: Path) -> int:
    """Return the bytes free on the disk where a folder is or would be."""
    existing = folder.expanduser().resolve()
    while not existing.exists():
        existing = existing.parent
    return shutil.disk_usage(existing).free


def hub_cache_folder() -> Path:
    """Return the folder in which files from the hub are cached."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def size_text(count: int) -> str:
    """Return a number of bytes as text, in GB, MB or bytes."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.0f} MB" if count >= 1e6 else f"{count} bytes"


def package_requirements() -> list[Requirement]:
    """Return the packages that riebench requires.

    They come from its metadata or, in a checkout that is not installed, from `pyproject.toml`.
    """
    try:
        stated = importlib.metadata.requires("riebench") or []
    except importlib.metadata.PackageNotFoundError:
        file = package_folder().parent / "pyproject.toml"
        stated = tomllib.loads(file.read_text(encoding="utf-8"))["project"]["dependencies"] if file.is_file() else []
    found = [Requirement(text) for text in stated]
    return [one for one in found if one.marker is None or one.marker.evaluate({"extra": ""})]


def unmet_requirements(required: list[Requirement]) -> list[tuple[Requirement, str | None]]:
    """Return the requirements that are not fulfilled.

    Each comes with the version that is installed (None for none).
    """
    found: list[tuple[Requirement, str | None]] = []
    for requirement in required:
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            found.append((requirement, None))
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            found.append((requirement, version))
    return found


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
