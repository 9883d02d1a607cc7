"""Statistics that tell a measurement from those that a network was trained on."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

CENTRE, BAND = 0.05, (0.1, 0.2)
"""Distances from the k-space centre, in widths of the matrix: a disc, and a ring around it."""

LOBE = 1 / 16
"""Distance from a point, in fields of view along each axis, beyond which its spread counts as an alias."""

FAINT = 0.1
"""Of the image's robust maximum: what is brighter belongs to the object."""

MARGIN = 0.1
"""How far a statistic may lie outside the range of training, relative to the range's width."""

WORDS = {
    "fall": "signal falls by {value:.0f} dB from the k-space centre outward, in training by {low:.0f} to"
    " {high:.0f} dB",
    "gap": "a circle of k-space without a sample has a radius of {value:.0%} of the matrix, in training"
    " {high:.0%} at most",
    "peak": "the brightest pixel is {value:.1f} times the image's robust maximum, in training {high:.1f}"
    " at most",
    "filled": "the object fills {value:.0%} of the field of view, in training {low:.0%} to {high:.0%}",
    "alias": "one coil, and {value:.0%} of a point appears at another place: {high:.0%} at most in training",
    "moved": "the last layer still moves the image by {value:.1%}, in training {high:.1%} at most: the"
    " network does not settle on these data",
    "further": "one more layer would move the image by {value:.1%}, in training by {high:.1%} at most: the"
    " network does not settle on these data",
    "contraction": "one more layer would leave {value:.2f} times the last layer's step (eta1 + eta2), in"
    " training {high:.2f} times at most: the network does not settle on these data",
}
"""What is said of a statistic outside its range."""

ONE_SIDED = ("gap", "peak", "alias", "moved", "further", "contraction")
"""Statistics of which less is better."""


def statistics(
    samples: NDArray[np.complex64], mask: NDArray[np.bool_], adjoint: NDArray[np.complex64], scale: float
) -> dict[str, float]:
    """Return the statistics of a measurement that need no network.

    Parameters
    ----------
    samples
        (coil, y, x), zeros where nothing was acquired.
    mask
        (y, x), centred.
    adjoint
        A^H y, (y, x).
    scale
        Its robust maximum (`scaling.robust_scale`).

    Returns
    -------
    dict
        fall
            Mean power of the samples near the k-space centre over that in a ring, in dB.
        gap
            Radius of the largest circle without a sample, in widths of the matrix.
        peak
            Largest magnitude over the robust maximum.
        filled
            Share of the pixels brighter than a tenth of the robust maximum.
        alias
            Of one coil, whose maps unfold nothing: the strongest alias of a point over the point. Evenly
            spaced samples have one of almost 1.
    """
    power = np.square(np.abs(samples)).sum(0)
    axes = [((np.arange(n) - n // 2) / n) ** 2 for n in mask.shape]
    distance = np.sqrt(np.add.outer(*axes))
    near = mask & (distance < CENTRE)
    ring = mask & (distance > BAND[0]) & (distance < BAND[1])
    magnitude = np.abs(adjoint) / scale
    found = {
        "gap": float(distance_transform_edt(~mask, sampling=[1 / n for n in mask.shape]).max()),
        "peak": float(magnitude.max()),
        "filled": float((magnitude > FAINT).mean()),
    }
    if len(samples) == 1:
        found["alias"] = _alias(mask)
    if near.any() and ring.any() and power[near].any() and power[ring].any():
        found["fall"] = 10 * math.log10(float(power[near].mean()) / float(power[ring].mean()))
    return found


def _alias(mask: NDArray[np.bool_]) -> float:
    spread = np.abs(np.fft.ifft2(mask))
    height, width = (max(1, round(LOBE * n)) for n in mask.shape)
    point = spread[0, 0]
    spread[: height + 1, : width + 1] = spread[: height + 1, -width:] = 0
    spread[-height:, : width + 1] = spread[-height:, -width:] = 0
    return float(spread.max() / point)


def unlike(found: dict[str, float], ranges: dict[str, tuple[float, float]]) -> list[str]:
    """Return in words which statistics lie outside the ranges of training.

    Parameters
    ----------
    found
        Of a measurement.
    ranges
        Lowest and highest in training, by the statistic's name.
    """
    words = []
    for name, value in found.items():
        if name not in ranges:
            continue
        low, high = ranges[name]
        margin = MARGIN * (high - low)
        if value > high + margin or (value < low - margin and name not in ONE_SIDED):
            words.append(WORDS[name].format(value=value, low=low, high=high))
    return words
