"""How the C library's allocator treats the large tensors that every training step makes and frees."""

from __future__ import annotations

import ctypes
import ctypes.util
import mmap
from functools import cache

# Parameters of mallopt(3), and the advice of madvise(2) that pages be large.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_HUGE_PAGES = 14
_LARGEST = 1 << 30
_RESERVE = 512 << 20


@cache
def keep_freed_pages() -> None:
    """Have freed memory stay with the process, in large pages, instead of going back to the system.

    By default glibc maps every large tensor afresh, and its pages are faulted in and zeroed again at every
    step. What is reserved here takes address space, and memory only where it is used; pages of 2 MiB spare the
    processor most look-ups of addresses. Other C libraries are left alone.
    """
    name = ctypes.util.find_library("c")
    libc = ctypes.CDLL(name) if name else None
    if libc is None or not hasattr(libc, "gnu_get_libc_version"):
        return
    libc.mallopt(_MMAP_THRESHOLD, _LARGEST)
    libc.mallopt(_TRIM_THRESHOLD, _LARGEST)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
    libc.free.argtypes = (ctypes.c_void_p,)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    block = libc.malloc(_RESERVE)
    if block:
        first = -(-block // mmap.PAGESIZE) * mmap.PAGESIZE
        libc.madvise(first, (block + _RESERVE - first) // mmap.PAGESIZE * mmap.PAGESIZE, _HUGE_PAGES)
        libc.free(block)
