"""Variable-density Poisson disc: random samples that keep their distance, which grows outward."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mri_qpan.sampling_masks.geometry import (
    Mask,
    centre_block,
    check_calib,
    check_ratio,
    default_block,
    from_plane,
    normalised_radius,
    plane_of,
    random_integers,
    target_count,
)

CENTRE_DISTANCE = 12.0
"""The distance kept at the zero frequency is this times ratio^2, in parts of its growth up to an edge.

At 15, 20, 33 and 50 % the parts 0.25, 0.5, 1 to 3 and 3 served wavelet reconstruction best.
"""

PACKING = 0.7
"""Samples a unit area that random sequential packing reaches at distance 1 (0.547 coverage)."""

EXCESS = 0.01
"""How many samples too many, relative, end the search for the distance."""

MAX_THROWS = 20
"""How often the distance is adjusted at most."""


def poisson(shape: Sequence[int], ratio: float, calib: int | None = None, seed: int = 0) -> Mask:
    """Poisson-disc samples (Vasanawala et al., ISBI 2011) with a distance that grows linearly outward.

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
        bool, `shape`, zero frequency at n // 2. Outside the block, the squared distance of two samples p and
        q is never below floor(min(d(p), d(q))^2) grid steps, with d(p) = scale * (12 ratio^2 + distance of p
        from the centre, 1 at an edge).

    Raises
    ------
    MaskError
        If no whole number of samples is within 0.5 percentage points of the ratio, or the central block
        alone exceeds it.

    Notes
    -----
    Candidates are visited in random order and accepted unless an earlier sample blocks them (dart throwing
    to saturation). Squared distances between grid points are integers, so d^2 is rounded to one of the two
    nearest at random: the density then falls smoothly where neighbours are close. The scale is searched
    until slightly too many fit; of those that keep a distance, the last accepted are then left out.
    """
    plane, ratio = plane_of(shape), check_ratio(ratio)
    block = centre_block(plane, default_block(plane, ratio) if calib is None else check_calib(calib))
    count = target_count(ratio, block.size, int(block.sum()), "samples")
    mask = block.copy()
    distance = CENTRE_DISTANCE * ratio * ratio + normalised_radius(plane)
    mask.ravel()[_search(distance * distance, block, count - int(block.sum()), seed)] = True
    return from_plane(mask, shape)


def _search(squared: NDArray[np.float64], block: Mask, count: int, seed: int) -> list[int]:
    """Return `count` samples outside `block`, `squared` distances apart, times the largest scale found."""
    if count == 0:
        return []
    rank, dither = random_integers(seed, 2 * block.size).reshape(2, -1)
    order = np.argsort(rank, kind="stable")
    order = order[~block.ravel()[order]]
    squared = squared.ravel()
    fraction = dither.astype(np.float64) / 2**53
    # fsum is exact: the result of a plain sum depends on the order in which a machine adds.
    scale = PACKING * math.fsum((1 / (squared[order] + 0.01)).tolist()) / count
    low, high = 0.0, math.inf
    best, best_reach = order.tolist(), np.zeros(block.size, dtype=np.int64)
    for _ in range(MAX_THROWS):
        limited = np.minimum(scale * squared, float(4 * block.size))
        reach = np.maximum(np.floor(limited + fraction).astype(np.int64) - 1, 0)
        accepted = _throw(block.shape[1], order, reach)
        if len(accepted) >= count:
            low, best, best_reach = scale, accepted, reach
            if len(accepted) <= count * (1 + EXCESS) + 1:
                break
        else:
            high = scale
        scale *= len(accepted) / (count * (1 + EXCESS / 2))
        if not low < scale < high:
            scale = (low + high) / 2 if high < math.inf else 2 * low
    return _leave_out(best, best_reach, len(best) - count)


def _throw(width: int, order: NDArray[np.intp], reach: NDArray[np.int64]) -> list[int]:
    """Return the accepted candidates: each blocks all others up to the squared distance `reach` from it."""
    margin = math.isqrt(int(reach.max()))
    padded = width + 2 * margin
    rows, columns = np.divmod(order, width)
    places = ((rows + margin) * padded + columns + margin).tolist()
    blocked = bytearray((reach.size // width + 2 * margin) * padded)
    discs: dict[int, list[tuple[int, bytes]]] = {0: []}
    accepted = []
    for index, place, value in zip(order.tolist(), places, reach[order].tolist(), strict=True):
        if blocked[place]:
            continue
        accepted.append(index)
        if value not in discs:
            discs[value] = _disc(value, padded)
        for first, ones in discs[value]:
            blocked[place + first : place + first + len(ones)] = ones
    return accepted


def _disc(reach: int, width: int) -> list[tuple[int, bytes]]:
    """Return a disc's rows in a grid `width` wide: where each starts relative to the centre, and ones."""
    rows = []
    for row in range(-math.isqrt(reach), math.isqrt(reach) + 1):
        half = math.isqrt(reach - row * row)
        rows.append((row * width - half, b"\1" * (2 * half + 1)))
    return rows


def _leave_out(accepted: list[int], reach: NDArray[np.int64], excess: int) -> list[int]:
    """Drop the `excess` last accepted, those that keep no distance last of all: they fill the centre."""
    index = np.array(accepted)
    order = np.argsort(reach[index] == 0, kind="stable")
    spaced = int((reach[index] > 0).sum())
    kept = np.concatenate([order[spaced:], order[:spaced]])[: len(accepted) - excess]
    return index[kept].tolist()
