"""How the C library's allocator treats the large tensors that every training step makes and frees."""

from __future__ import annotations

import ctypes
import ctypes.util

# Parameters of mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST = 1 << 30


def keep_freed_pages() -> None:
    """Have freed memory stay with the process instead of going back to the system.

    By default glibc maps every large tensor afresh, and its pages are faulted in and zeroed again at every
    step. Other C libraries are left alone.
    """
    name = ctypes.util.find_library("c")
    libc = ctypes.CDLL(name) if name else None
    if libc is not None and hasattr(libc, "gnu_get_libc_version"):
        libc.mallopt(_MMAP_THRESHOLD, _LARGEST)
        libc.mallopt(_TRIM_THRESHOLD, _LARGEST)
