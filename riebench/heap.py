"""Memory that a computation has let go and the next one needs again, kept instead of given back between the two."""

from __future__ import annotations

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Numbers of the parameters in the C library's malloc.h."""
LARGEST_ON_HEAP = 32 * 2**20
"""Larger blocks come from the system one by one; the C library takes no higher limit everywhere."""
KEPT = 2**30
"""So much free memory at the heap's end is kept."""
OWN_CHOICE = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")
"""Where a user who tunes memory, or exchanges what hands it out, says so."""


def keep_freed_memory() -> bool:
    """Makes this process keep freed memory for what it computes next, on the CPU.

    GNU's C library gives the end of its heap back to the system as soon as 64 MB are free there, and a U-Net's
    activations are freed after every call: without this, each call waits for the same pages anew. Most memory used is
    the same, and so are all results. Nothing changes with another C library, or where the environment tunes memory.

    Returns:
        Whether it is set.
    """
    if os.name != "posix" or any(os.environ.get(name) for name in OWN_CHOICE):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    # Both or neither: setting one ends the library's own adaptation of the other.
    return bool(library.mallopt(_MMAP_THRESHOLD, LARGEST_ON_HEAP)) and bool(library.mallopt(_TRIM_THRESHOLD, KEPT))
