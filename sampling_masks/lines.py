"""Cartesian lines: variable density, equispaced, partial Fourier.

Lines lie along x (readout), so a row y is acquired as a whole; in a volume (z, y, x) it is so in every z.
The ratio is the fraction of lines.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mri_qpan.sampling_masks.geometry import (
    Mask,
    centre_slice,
    check_calib,
    check_ratio,
    check_shape,
    draw,
    falling_density,
    from_lines,
    random_integers,
    target_count,
)

POWER = 3
"""How fast the density of lines falls: at 25 % it reaches zero just at the edges."""

PARTIAL_COVERAGE = 5 / 8
"""The part of the lines, from one edge on, that partial Fourier reaches at least."""


def lines(shape: Sequence[int], ratio: float, calib: int | None = None, seed: int = 0) -> Mask:
    """Random whole lines, denser towards the fully sampled centre.

    Parameters
    ----------
    shape
        (y, x) or (z, y, x).
    ratio
        Fraction of lines to acquire, in (0, 1].
    calib
        Number of central lines that are all acquired. None: `default_lines`.
    seed
        Of the random stream.

    Returns
    -------
    Mask
        bool, `shape`, zero frequency at n // 2.

    Raises
    ------
    MaskError
        If no whole number of lines is within 0.5 percentage points of the ratio, or the central lines
        alone exceed it.
    """
    number, count, fixed = _plan(shape, ratio, calib)
    return from_lines(draw(_density(number), count, fixed, seed), shape)


def equispaced(shape: Sequence[int], ratio: float, calib: int | None = None, seed: int = 0) -> Mask:
    """Evenly spaced lines and fully sampled central ones, as scanners do parallel imaging.

    Parameters, result and errors are those of `lines`; the seed shifts the comb. The spacing need not be
    a whole number: distances between neighbours outside the centre differ by one line at most.
    """
    number, count, fixed = _plan(shape, ratio, calib)
    centre = np.flatnonzero(fixed)
    start, stop = (int(centre[0]), int(centre[-1]) + 1) if centre.size else (number, number)
    chosen = fixed | _comb(number, start, stop, count - centre.size, seed)
    return from_lines(chosen, shape)


def partial(shape: Sequence[int], ratio: float, calib: int | None = None, seed: int = 0) -> Mask:
    """Partial Fourier: one side of k-space (which one, the seed says) is left out.

    Parameters, result and errors are those of `lines`. From a ratio of 5/8 on, all lines from one edge on
    are acquired, the classical scheme. Below, the covered 5/8 are undersampled as `lines` does.
    """
    number, count, fixed = _plan(shape, ratio, calib)
    needed = np.flatnonzero(fixed) if fixed.any() else np.array([number // 2])
    reach = max(count, round(PARTIAL_COVERAGE * number), int(needed[-1]) + 1, number - int(needed[0]))
    from_top = random_integers(seed, number + 1)[-1] % np.uint64(2) == 0
    covered = slice(0, reach) if from_top else slice(number - reach, number)
    chosen = np.zeros(number, dtype=np.bool_)
    chosen[covered] = draw(_density(number)[covered], count, fixed[covered], seed)
    return from_lines(chosen, shape)


def default_lines(number: int, ratio: float) -> int:
    """Return the default number of central lines: 8 % of all at 4x, 4 % at 8x, as fastMRI has it."""
    fraction = min(max(0.32 * ratio, 0.04), 0.08, ratio / 2)
    return max(1, int(fraction * number + 0.5))


def _plan(shape: Sequence[int], ratio: float, calib: int | None) -> tuple[int, int, Mask]:
    """Return the number of lines, how many to acquire, and the central ones as (y,) bool."""
    number = check_shape(shape)[-2]
    ratio = check_ratio(ratio)
    size = min(number, default_lines(number, ratio) if calib is None else check_calib(calib))
    count = target_count(ratio, number, size, "lines")
    fixed = np.zeros(number, dtype=np.bool_)
    fixed[centre_slice(number, size)] = True
    return number, count, fixed


def _density(number: int) -> NDArray[np.int64]:
    return falling_density(np.abs(np.arange(number) - number // 2) / max(1, number // 2), POWER)


def _comb(number: int, start: int, stop: int, count: int, seed: int) -> Mask:
    """Return a comb of exactly `count` teeth outside start..stop, with teeth inside as they fall.

    Line j is a tooth where (j count + shift) // free steps up: Bresenham's line, in integers. The comb
    runs through the centre unbroken if a shift exists that puts `count` teeth outside it.
    """
    free = number - (stop - start)
    index = np.arange(number + 1)
    if count == 0:
        return np.zeros(number, dtype=np.bool_)
    shifts = np.arange(free)
    before = (start * count + shifts) // free
    after = (number * count + shifts) // free - (stop * count + shifts) // free
    fitting = np.flatnonzero(before + after == count)
    pick = int(random_integers(seed, 1)[0])
    if fitting.size:
        shift = int(fitting[pick % fitting.size])
    else:
        shift = pick % free
        index = index - np.clip(index - start, 0, stop - start)
    return np.diff((index * count + shift) // free) > 0
