"""The undecimated Haar wavelet, a tight frame that shifts with the image."""

from __future__ import annotations

import torch
from torch import Tensor


def haar_analysis(image: Tensor, levels: int) -> list[Tensor]:
    """Return the undecimated (a trous) Haar coefficients of `image`, circular at its edges.

    Parameters
    ----------
    image
        (batch, *spatial), real or complex; all axes but the first are transformed.
    levels
        How often the approximation is split; level j compares voxels 2^j apart.

    Returns
    -------
    list of Tensor
        The detail bands of every level, finest first, each (2^n - 1, batch, *spatial) for n spatial axes,
        then the approximation (1, batch, *spatial). Scaled so that the energy of all together is the image's.

    Notes
    -----
    The frame is tight: `haar_synthesis` is its adjoint and inverts it. It averages the orthonormal Haar
    transforms of all shifts (cycle spinning, Coifman and Donoho 1995); a coefficient of level j is
    2^(n j / 2) times smaller than theirs, j counted from 1.
    """
    coefficients = []
    approximation = image
    for level in range(levels):
        bands = approximation[None]
        for axis in range(1, image.ndim):
            shifted = torch.roll(bands, 2**level, dims=axis + 1)
            bands = torch.cat([(bands + shifted) / 2, (bands - shifted) / 2])
        approximation = bands[0]
        coefficients.append(bands[1:])
    return [*coefficients, approximation[None]]


def haar_synthesis(coefficients: list[Tensor]) -> Tensor:
    """Return the adjoint of `haar_analysis`, which inverts it: an image (batch, *spatial)."""
    approximation = coefficients[-1][0]
    for level in reversed(range(len(coefficients) - 1)):
        bands = torch.cat([approximation[None], coefficients[level]])
        for axis in reversed(range(1, approximation.ndim)):
            low, high = bands.chunk(2)
            bands = (low + high + torch.roll(low - high, -(2**level), dims=axis + 1)) / 2
        approximation = bands[0]
    return approximation
