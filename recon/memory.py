"""Memory that is freed stays with the process, so that the next image need not fetch it again."""

from __future__ import annotations

import ctypes
import os
import sys

MMAP, TRIM = -3, -1
"""`mallopt`'s numbers for M_MMAP_THRESHOLD and M_TRIM_THRESHOLD."""

LARGE = 32 * 2**20
"""Bytes of a block that comes from the system and returns to it at once: glibc's own limit to its growth, and
the most that it takes before 2.35."""

KEPT = 256 * 2**20
"""Free bytes at a heap's end above which glibc gives them back."""


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
