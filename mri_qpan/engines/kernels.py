"""The C++ kernels' library, built at installation where there was a compiler; the package works without."""

from __future__ import annotations

import ctypes
import functools
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the library, or None where there is none that loads."""
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name("_fused" + suffix)
        if path.exists():
            try:
                return ctypes.CDLL(str(path))
            except OSError:  # built for another machine
                continue
    return None


@functools.cache
def width() -> int:
    """Return the bits of the vectors that the kernels use here: 512, 256, or 0 where they cannot run."""
    found = library()
    return 0 if found is None else int(found.mri_qpan_fused_width())
