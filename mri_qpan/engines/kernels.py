"""The C++ kernels' library, built at installation where there was a compiler; the package works without."""

from __future__ import annotations

import ctypes
import functools
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

VERSION = 8
"""Of the calls and structures; mirrored in fused.cpp. Raise it with every change of the C++ code."""

NO_MEMORY = 2
"""A call's outcome; mirrored in vectors.h."""


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the library, or None where there is none that loads, or one of other sources."""
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name("_fused" + suffix)
        if path.exists():
            try:
                found = ctypes.CDLL(str(path))
                if int(found.mri_qpan_kernels_version()) == VERSION:
                    return found
            except (OSError, AttributeError):  # built for another machine, or from older sources
                continue
    return None


def check(outcome: int) -> None:
    """Raise what a call's outcome stands for.

    Raises
    ------
    RuntimeError
        If the processor lacks the vectors asked for.
    MemoryError
        If there was no memory for the call's own buffers.
    """
    if outcome == NO_MEMORY:
        raise MemoryError("no memory for a kernel's buffers")
    if outcome:
        raise RuntimeError("this processor lacks the vectors that a kernel was asked to use")


@functools.cache
def width() -> int:
    """Return the bits of the vectors that the kernels use here: 512, 256, or 0 where they cannot run."""
    found = library()
    return 0 if found is None else int(found.mri_qpan_fused_width())
