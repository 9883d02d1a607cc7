"""What all kinds share: the plane that is sampled, its calibration block, the count, the random stream."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mri_qpan.sampling_masks.errors import MaskError

Mask = NDArray[np.bool_]

TOLERANCE = 0.005
"""How far the delivered ratio may be from the one asked for: 0.5 percentage points."""

MAX_SAMPLES = 2**31
"""Larger shapes are taken for a slip of the pen."""

WEIGHT_ONE = 2**20
"""Sampling densities are integers up to this, so that their sums are the same on every machine."""


def check_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Return `shape` as a tuple of 2 or 3 positive integers, or raise `MaskError`."""
    try:
        sizes = tuple(operator.index(n) for n in shape)
    except TypeError:
        raise MaskError(f"a mask's shape is (y, x) or (z, y, x) in whole numbers, got {shape!r}") from None
    if len(sizes) not in (2, 3) or min(sizes) < 1:
        raise MaskError(f"a mask's shape is (y, x) or (z, y, x) with sizes from 1, got {sizes}")
    if math.prod(sizes) > MAX_SAMPLES:
        raise MaskError(f"a mask of shape {sizes} has more than {MAX_SAMPLES} samples")
    return sizes


def check_ratio(ratio: float) -> float:
    """Return `ratio` as a float in (0, 1], or raise `MaskError`."""
    value = float(ratio)
    if not 0 < value <= 1:
        hint = f": an acceleration of {value:g} is a ratio of {1 / value:.3g}" if 1 < value < math.inf else ""
        raise MaskError(f"a sampling ratio lies above 0 and at most at 1, got {value:g}{hint}")
    return value


def check_calib(calib: int) -> int:
    """Return `calib` as an integer from 0, or raise `MaskError`."""
    try:
        size = operator.index(calib)
    except TypeError:
        raise MaskError(f"a calibration size is a whole number, got {calib!r}") from None
    if size < 0:
        raise MaskError(f"a calibration size is 0 or more, got {size}")
    return size


def plane_of(shape: Sequence[int]) -> tuple[int, int]:
    """Return the sizes of the plane that 2-D kinds sample.

    (y, x) gives (y, x), and so does a single slice (1, y, x); a volume (z, y, x) gives (z, y), its two
    phase-encoding directions, with x (readout) fully sampled.
    """
    sizes = check_shape(shape)
    first, second = sizes[:2] if len(sizes) == 3 and sizes[0] > 1 else sizes[-2:]
    return first, second


def from_plane(plane: Mask, shape: Sequence[int]) -> Mask:
    """Spread a mask of `plane_of(shape)` over `shape`."""
    sizes = check_shape(shape)
    if len(sizes) == 3 and sizes[0] > 1:
        plane = plane[:, :, None]
    return np.broadcast_to(plane, sizes).copy()


def from_lines(lines: Mask, shape: Sequence[int]) -> Mask:
    """Spread a choice of lines, (y,) bool, over `shape`: whole rows along x, in every z alike."""
    return np.broadcast_to(lines[:, None], check_shape(shape)).copy()


def centre_slice(size: int, calib: int) -> slice:
    """Return the `calib` central indices of an axis of `size`; index size // 2 is the zero frequency."""
    calib = min(calib, size)
    start = size // 2 - calib // 2
    return slice(start, start + calib)


def centre_block(plane: tuple[int, int], calib: int) -> Mask:
    """Return the calibration region: a central block of calib x calib, cut to the plane."""
    block = np.zeros(plane, dtype=np.bool_)
    block[centre_slice(plane[0], calib), centre_slice(plane[1], calib)] = True
    return block


def default_block(plane: tuple[int, int], ratio: float) -> int:
    """Return the default side of the block: about 5 % of the samples (26 at 20 % of 256 x 256)."""
    return max(1, math.isqrt(int(0.05 * ratio * plane[0] * plane[1])))


def target_count(ratio: float, total: int, calib: int, unit: str) -> int:
    """Return how many of `total` samples (or lines) to acquire, `calib` of them calibration.

    Raises
    ------
    MaskError
        If no whole number, or none that leaves room for the calibration, comes within `TOLERANCE`.
    """
    nearest = max(1, math.floor(ratio * total + 0.5))
    if nearest < calib and calib / total - ratio > TOLERANCE:
        raise MaskError(
            f"the calibration region alone is {calib / total:.2%} of the {unit}, more than the {ratio:.2%}"
            " asked for: make it smaller or raise the ratio"
        )
    count = max(nearest, calib)
    if abs(count / total - ratio) <= TOLERANCE + 1e-12:
        return count
    below = min(math.floor(ratio * total), total - 1)
    options = [f"{n} ({n / total:.2%})" for n in (below, below + 1) if n > 0]
    raise MaskError(
        f"no whole number of the {total} {unit} is within 0.5 percentage points of {ratio:.2%}:"
        f" ask for {' or '.join(options)}, or for a larger matrix"
    )


def check_seed(seed: int) -> int:
    """Return `seed` as an integer from 0, or raise `MaskError`."""
    try:
        value = operator.index(seed)
    except TypeError:
        raise MaskError(f"a seed is a whole number, got {seed!r}") from None
    if value < 0:
        raise MaskError(f"a seed is 0 or more, got {value}")
    return value


def random_integers(seed: int, count: int) -> NDArray[np.uint64]:
    """Return `count` random 53-bit integers.

    They are the raw PCG64 stream, which NumPy keeps unchanged between versions and machines
    (it does not promise so for the distributions made from it).
    """
    raw = np.random.PCG64(check_seed(seed)).random_raw(count)
    return np.asarray(raw, dtype=np.uint64) >> np.uint64(11)


def normalised_radius(plane: tuple[int, int]) -> NDArray[np.float64]:
    """Return the distance to the zero frequency: 1 at the middle of an edge, about sqrt(2) in a corner.

    Only operations that IEEE 754 rounds in one way (+ - * / sqrt) are used, so every machine agrees.
    """
    first, second = (np.abs(np.arange(n) - n // 2) / max(1, n // 2) for n in plane)
    return np.sqrt((first * first)[:, None] + (second * second)[None, :])


def falling_density(radius: NDArray[np.float64], power: int) -> NDArray[np.int64]:
    """Return (1 - radius)^power, zero beyond radius 1, in units of 1 / `WEIGHT_ONE`."""
    base = np.maximum(0, 1 - radius)
    weight = np.full(radius.shape, float(WEIGHT_ONE))
    for _ in range(power):
        weight = weight * base
    return weight.astype(np.int64)


def draw(density: NDArray[np.int64], count: int, fixed: Mask, seed: int) -> Mask:
    """Choose exactly `count` samples: the `fixed` ones, and others at random.

    Parameters
    ----------
    density
        Chances in units of 1 / `WEIGHT_ONE`, up to a constant: it is added (or taken off) so that `count`
        are expected, as `genPDF` of Lustig et al. (MRM 58:1182, 2007) does.
    count
        How many to choose, from fixed.sum() to density.size.
    fixed
        Chosen in any case, shaped as `density`.
    seed
        Of the random stream.

    Notes
    -----
    Sequential Poisson sampling (Ohlsson, J. Official Statistics 14, 1998): the samples with the smallest
    u / p are chosen, u uniform in (0, 1), p the chance.
    """
    chosen = fixed.copy()
    wanted = count - int(fixed.sum())
    if wanted == 0:
        return chosen
    free = np.flatnonzero(~fixed)
    chances = _raise_to(density.ravel()[free], wanted)
    keys = random_integers(seed, density.size)[free].astype(np.float64) / chances
    keys[chances == WEIGHT_ONE] = -1.0
    chosen.ravel()[free[smallest(keys, wanted)]] = True
    return chosen


def _raise_to(density: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return `density` plus a constant, cut to 1..WEIGHT_ONE, that sums to just below `count`."""
    low, high = -WEIGHT_ONE, WEIGHT_ONE + 1
    while high - low > 1:
        middle = (low + high) // 2
        if np.clip(density + middle, 1, WEIGHT_ONE).sum() <= count * WEIGHT_ONE:
            low = middle
        else:
            high = middle
    return np.clip(density + low, 1, WEIGHT_ONE)


def smallest(keys: NDArray[np.float64], count: int) -> NDArray[np.intp]:
    """Return the indices of the `count` smallest keys; of equal ones the first, on every machine."""
    limit = np.partition(keys, count - 1)[count - 1]
    below = np.flatnonzero(keys < limit)
    return np.concatenate([below, np.flatnonzero(keys == limit)[: count - below.size]])
