"""Independent random samples of the phase-encoding plane, denser towards the centre."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mri_qpan.sampling_masks.geometry import (
    Mask,
    centre_block,
    check_calib,
    check_ratio,
    default_block,
    draw,
    falling_density,
    from_plane,
    normalised_radius,
    plane_of,
    target_count,
)

POWER = 4
"""How fast the density falls; of 2, 3, 4 and 6 it served wavelet reconstruction best from 15 to 50 %."""


def random2d(shape: Sequence[int], ratio: float, calib: int | None = None, seed: int = 0) -> Mask:
    """Random samples with polynomially falling density (Lustig et al., MRM 58:1182, 2007).

    Parameters
    ----------
    shape
        (y, x), or (z, y, x) with z > 1: then (z, y) is sampled and x is complete.
    ratio
        Fraction of samples to acquire, in (0, 1].
    calib
        Side of the central block that is complete. None: about 5 % of the samples.
    seed
        Of the random stream.

    Returns
    -------
    Mask
        bool, `shape`, zero frequency at n // 2.

    Raises
    ------
    MaskError
        If no whole number of samples is within 0.5 percentage points of the ratio, or the central block
        alone exceeds it.
    """
    plane, ratio = plane_of(shape), check_ratio(ratio)
    block = centre_block(plane, default_block(plane, ratio) if calib is None else check_calib(calib))
    count = target_count(ratio, block.size, int(block.sum()), "samples")
    density = falling_density(normalised_radius(plane) / math.sqrt(2), POWER)
    return from_plane(draw(density, count, block, seed), shape)
