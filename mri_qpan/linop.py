"""The measurement A = P F S as a SigPy `Linop`, built from SigPy's own operators.

`mri_qpan.encoding.Encoding` is the same operator in torch, batched; tests hold the two equal.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sigpy import linop


def sense(mask: NDArray[np.bool_], mps: NDArray[np.complexfloating[Any, Any]] | None = None) -> linop.Linop:
    """Return A = P F S: coil sensitivities, centred orthonormal DFT, sampling mask.

    Parameters
    ----------
    mask
        True where a sample is acquired, (y, x) or (z, y, x).
    mps
        Coil sensitivities, (coil, *mask.shape) complex, or (set, coil, *mask.shape) with several sets of
        maps (soft SENSE). None: one coil of unit sensitivity.

    Returns
    -------
    sigpy.linop.Linop
        From an image, mask.shape (with several sets (set, *mask.shape)), to k-space (coil, *mask.shape).
        `sigpy.mri.linop.Sense` weights with the square root of its `weights`; a mask is its own root.

    Raises
    ------
    ValueError
        If `mask` is not 2-D or 3-D, or `mps` does not fit it.
    """
    if mask.ndim not in (2, 3):
        raise ValueError(f"mask must be (y, x) or (z, y, x), got shape {mask.shape}")
    if mps is None:
        mps = np.ones((1, *mask.shape), np.complex64)
    if mps.ndim - mask.ndim not in (1, 2) or mps.shape[-mask.ndim :] != mask.shape:
        raise ValueError(f"mps of shape {mps.shape} does not fit a mask of {mask.shape}")
    S = _coils(mps, sets=mps.ndim == mask.ndim + 2)
    F = linop.FFT(S.oshape, axes=range(-mask.ndim, 0))
    P = linop.Multiply(F.oshape, mask.astype(bool).astype(mps.real.dtype))  # 255 is True, too
    A = P * F * S
    A.repr_str = "Sense"
    return A


def _coils(mps: NDArray[Any], sets: bool) -> linop.Linop:
    if not sets:
        return linop.Multiply(mps.shape[1:], mps)
    image_shape = (mps.shape[0], *mps.shape[2:])
    with_coils = linop.Reshape((mps.shape[0], 1, *mps.shape[2:]), image_shape)
    weighted = linop.Multiply(with_coils.oshape, mps)
    return linop.Sum(weighted.oshape, axes=(0,)) * weighted * with_coils
