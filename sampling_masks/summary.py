"""What one says of a mask: its ratio and its hash."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

HASH_LENGTH = 12


def ratio_of(mask: NDArray[Any]) -> float:
    """Return the fraction of samples that `mask` (any shape, bool) acquires."""
    return int(np.count_nonzero(mask)) / mask.size


def ratio_from_acceleration(acceleration: float) -> float:
    """Return the ratio 1 / acceleration."""
    return 1 / acceleration


def mask_hash(mask: NDArray[Any]) -> str:
    """Return a short name for exactly this mask, the same on every machine.

    It is the first 12 hexadecimal digits of SHA-256 over the shape in ASCII ("256x256:") and the mask in C
    order, zero frequency at n // 2, packed 8 samples a byte, most significant bit first, zeros at the end.

    Parameters
    ----------
    mask
        bool, (y, x) or (z, y, x), centred.
    """
    digest = hashlib.sha256("x".join(str(n) for n in mask.shape).encode() + b":")
    digest.update(np.packbits(np.ascontiguousarray(mask, dtype=np.bool_).ravel()).tobytes())
    return digest.hexdigest()[:HASH_LENGTH]
