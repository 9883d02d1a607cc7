"""Memory that is freed stays with the process, so that the next image need not fetch it again."""

from __future__ import annotations

import ctypes
import os
import sys

TRIM, MMAP = -1, -3
"""`mallopt`'s numbers for M_TRIM_THRESHOLD and M_MMAP_THRESHOLD."""

KEPT = 256 * 2**20
"""Free bytes above which glibc gives memory back."""

LARGE = 64 * 2**20
"""Bytes of a block that comes from the system and returns to it at once."""


def keep_memory() -> bool:
    """Let glibc keep up to `KEPT` freed bytes; return whether it does.

    By default it returns every block of some megabytes, and the system clears each page of the next:
    thousands an image. Nothing is changed where `MALLOC_…` or `GLIBC_TUNABLES` are set, or without glibc.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return False
    return bool(mallopt(TRIM, KEPT) and mallopt(MMAP, LARGE))
