"""Pseudo-radial: straight spokes through the zero frequency, drawn on the Cartesian grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mri_qpan.sampling_masks.errors import MaskError
from mri_qpan.sampling_masks.geometry import (
    TOLERANCE,
    Mask,
    centre_block,
    check_calib,
    check_ratio,
    from_plane,
    normalised_radius,
    plane_of,
    random_integers,
    target_count,
)
from mri_qpan.sampling_masks.summary import ratio_of


def radial(shape: Sequence[int], ratio: float, calib: int | None = None, seed: int = 0) -> Mask:
    """Equiangular spokes to the edge of the grid, as the published pseudo-radial masks have them.

    Parameters
    ----------
    shape
        (y, x), or (z, y, x) with z > 1: then (z, y) is sampled and x is complete.
    ratio
        Fraction of samples to acquire, in (0, 1].
    calib
        Side of a central block that is complete. None: none, the spokes themselves fill the centre.
    seed
        Of the random stream; it turns the spokes.

    Returns
    -------
    Mask
        bool, `shape`, zero frequency at n // 2, point-symmetric about it (indices modulo n).

    Raises
    ------
    MaskError
        If no such mask is within 0.5 percentage points of the ratio (samples come in pairs, which matters
        below some 200 samples), or the central block alone exceeds it.

    Notes
    -----
    The number of spokes is the one that comes nearest to the ratio. In small matrices that may not be near
    enough: then the outermost samples of one spoke too many are left out. For even sizes the outermost row
    and column have no mirror image and stay empty, unless nothing else is left to acquire.
    """
    plane, ratio = plane_of(shape), check_ratio(ratio)
    block = centre_block(plane, 1 if calib is None else max(1, check_calib(calib)))
    block |= _reflect(block)
    count = target_count(ratio, block.size, int(block.sum()), "samples")
    turn = float(random_integers(seed, 1)[0]) / 2**53
    fewer, enough = _around(plane, count, turn, block)
    mask = min(fewer, enough, key=lambda found: abs(int(found.sum()) - count))
    if abs(ratio_of(mask) - ratio) > TOLERANCE:
        mask = _trim(enough, block, ratio * block.size)
    if abs(ratio_of(mask) - ratio) > TOLERANCE:
        raise MaskError(
            f"spokes are point-symmetric, so samples come in pairs: the nearest to {ratio:.2%} is"
            f" {ratio_of(mask):.2%}; ask for that or for a larger matrix"
        )
    return from_plane(mask, shape)


def spokes(shape: tuple[int, int], number: int, turn: float = 0.0) -> Mask:
    """Equiangular spokes to the edge of the grid, without a central block.

    With `turn` 0 the pseudo-radial masks of the compressed sensing literature: 256 x 256 with 55, 85, 117 and
    152 spokes are the published masks of 20, 30, 40 and 50 %.

    Parameters
    ----------
    shape
        (y, x).
    number
        Spokes.
    turn
        Angle of the first, as a part of the angle between two; 0 is along y = 0.

    Returns
    -------
    Mask
        bool, `shape`, zero frequency at n // 2.

    Raises
    ------
    MaskError
        If there is no spoke or no sample to acquire.
    """
    if number < 1 or len(shape) != 2 or min(shape) < 1:
        raise MaskError(f"{number} spokes in a matrix {tuple(shape)}: ask for at least one, in (y, x)")
    return _spokes((shape[0], shape[1]), number, turn)


def _around(plane: tuple[int, int], count: int, turn: float, block: Mask) -> tuple[Mask, Mask]:
    """Return `block` with as many spokes as stay below `count` samples, and with one more."""
    low, high = 0, 2 * sum(plane)
    fewer, enough = block, block | _spokes(plane, high, turn)
    while high - low > 1:
        middle = (low + high) // 2
        mask = block | _spokes(plane, middle, turn)
        if mask.sum() >= count:
            high, enough = middle, mask
        else:
            low, fewer = middle, mask
    return fewer, enough


def _spokes(plane: tuple[int, int], number: int, turn: float) -> Mask:
    """Return `number` spokes, the first at `turn` of the angle between two."""
    sine, cosine = _sine_cosine((np.arange(number) + turn) / number)
    half = [max(1, n // 2) for n in plane]
    steep = np.abs(sine) * half[0] >= np.abs(cosine) * half[1]
    mask = np.zeros(plane, dtype=np.bool_)
    mask[plane[0] // 2, plane[1] // 2] = True
    _rasterise(mask, cosine[steep] * half[1] / (sine[steep] * half[0]))
    _rasterise(mask.T, sine[~steep] * half[0] / (cosine[~steep] * half[1]))
    return mask


def _rasterise(mask: Mask, slope: NDArray[np.float64]) -> None:
    """Set the samples nearest to lines through the centre that advance `slope` columns a row."""
    rows, columns = (n // 2 for n in mask.shape)
    step = np.arange(1, (mask.shape[0] - 1) // 2 + 1)
    aside = np.floor(slope[:, None] * step + 0.5).astype(np.intp)
    limit = (mask.shape[1] - 1) // 2
    spoke, place = np.nonzero(np.abs(aside) <= limit)
    down, right = step[place], aside[spoke, place]
    mask[rows + down, columns + right] = True
    mask[rows - down, columns - right] = True


def _trim(mask: Mask, block: Mask, wanted: float) -> Mask:
    """Bring `mask` as near to `wanted` samples as point-symmetric pairs allow.

    Too many: the outermost go, but none of `block`. Too few: the innermost missing come.
    """
    total = int(mask.sum())
    surplus = total > wanted
    index = np.flatnonzero(mask & ~block if surplus else ~mask)
    mirror = _reflect(np.arange(mask.size).reshape(mask.shape)).ravel()[index]
    index, mirror = index[index <= mirror], mirror[index <= mirror]
    radius = normalised_radius((mask.shape[0], mask.shape[1])).ravel()[index]
    order = np.argsort(-radius if surplus else radius, kind="stable")
    change = np.cumsum(np.concatenate([[0], np.where(index == mirror, 1, 2)[order]]))
    left = total - change if surplus else total + change
    chosen = order[: int(np.argmin(np.abs(left - wanted)))]
    flat = mask.ravel().copy()
    flat[index[chosen]] = flat[mirror[chosen]] = not surplus
    return flat.reshape(mask.shape)


def _reflect(array: NDArray[Any]) -> NDArray[Any]:
    """Return `array` point-reflected about the zero frequency, with indices modulo its sizes."""
    return np.roll(array[::-1, ::-1], [1 - n % 2 for n in array.shape], axis=(0, 1))


def _sine_cosine(half_turns: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return sine and cosine of `half_turns` times pi, within 0 to 2, the same on every machine.

    Library sines differ in their last bit from one machine to another; sums and products do not.
    """
    angle = (half_turns - 0.5) * math.pi
    square = angle * angle
    sine, cosine = np.ones_like(angle), np.ones_like(angle)
    for k in range(26, 0, -2):
        sine = 1 - sine * square / (k * (k + 1))
        cosine = 1 - cosine * square / ((k - 1) * k)
    # Turned by a quarter to make the series short: sin(a + pi/2) = cos(a), cos(a + pi/2) = -sin(a).
    return cosine, -sine * angle
