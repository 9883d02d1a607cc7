"""How much memory a reconstruction may take; what it frees stays with the process for the next one."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress
from pathlib import Path

MMAP, TRIM = -3, -1
"""`mallopt`'s numbers for M_MMAP_THRESHOLD and M_TRIM_THRESHOLD."""

LARGE = 32 * 2**20
"""Bytes of a block that comes from the system and returns to it at once: glibc's own limit to its growth, and
the most that it takes before 2.35."""

KEPT = 256 * 2**20
"""Free bytes at a heap's end above which glibc gives them back."""

WORKERS = "MRI_QPAN_WORKERS"
"""Environment variable with the number of processes among which `budget` shares the memory."""

CONTAINER = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Where Linux has a container's limit: cgroups v2 and v1."""


def budget() -> int:
    """Return the bytes that a reconstruction may take if nobody says: half of this machine's or container's.

    Where `batch` has several workers on this machine, each has its share of them. 4 GiB are shared where
    the system does not tell.
    """
    try:
        limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        limit = 2**33
    for name in CONTAINER:
        with suppress(OSError, ValueError):  # none, or "max"
            limit = min(limit, int(Path(name).read_text()))
    return limit // 2 // max(1, int(os.environ.get(WORKERS, 1)))


def keep_memory() -> bool:
    """Let glibc keep up to `KEPT` freed bytes at a heap's end; return whether it does.

    By default it gives them back above twice the largest block that was freed, and the system then clears
    each page of the next image again: thousands of them. Nothing is changed where `MALLOC_…` or
    `GLIBC_TUNABLES` are set, or without glibc.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return False
    # In this order: the second alone would end glibc's growth of the first at 128 KiB.
    return bool(mallopt(MMAP, LARGE) and mallopt(TRIM, KEPT))
