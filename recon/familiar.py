"""Is a measurement like those that a model was trained on? What is not, in words."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mri_qpan import likeness
from mri_qpan.recon.kspace import KSpace
from mri_qpan.recon.prepare import Prepared

OUTER = 0.03  # share of the acquired samples, the farthest from the k-space centre, that shows the noise
MARGIN = 0.02  # of a ratio
SCALE = 2.0  # how far the sides of a matrix may lie outside those of training
FULL = 0.97  # ratio from which nothing is left to reconstruct
NEAR = 16  # the k-space centre was passed where a sample lies within a matrix over this of it


def measure(
    prepared: Prepared, adjoint: torch.Tensor, scale: float, found: dict[str, float]
) -> dict[str, float]:
    """Return the statistics (`mri_qpan.likeness`) of a slice on a grid; of others only what a network says.

    Parameters
    ----------
    prepared
        The measurement.
    adjoint
        A^H y, (1, [set,] y, x).
    scale
        Its robust maximum.
    found
        What a network says of itself: how far its last layer moved, contraction figures if asked for.
    """
    if prepared.coord is not None or prepared.mask.shape[0] > 1:
        return found
    image = adjoint[0].reshape(-1, *adjoint.shape[-2:]).cpu().numpy()
    combined = image[0] if len(image) == 1 else np.linalg.norm(image, axis=0).astype(np.complex64)
    return found | likeness.statistics(prepared.data[:, 0], prepared.mask[0], combined, scale)


def centre_missed(mask: NDArray[np.bool_]) -> list[str]:
    """Warn of samples (z, y, x) that all lie on one side of the k-space centre, or far from it.

    A scan that was stopped before it got there leaves an image of edges, whatever reconstructs it.
    """
    near = tuple(slice(n // 2 - max(3, n // NEAR), n // 2 + max(3, n // NEAR) + 1) for n in mask.shape)
    near = tuple(slice(max(s.start, 0), s.stop) for s in near)
    passed = mask[near].any()
    for axis, n in enumerate(mask.shape):
        there = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        passed = passed and there[0] <= n // 2 <= there[-1]
    if passed:
        return []
    return ["the k-space centre was not acquired: edges at most are right in the image, not its brightness"]


def warnings(card: dict[str, Any], prepared: Prepared, scale: float, found: dict[str, float]) -> list[str]:
    """Return what sets a measurement apart from a model's training.

    Parameters
    ----------
    card
        The model's.
    prepared
        The measurement.
    scale
        Robust maximum of its image, in the units of its samples.
    found
        From `measure`.
    """
    training = card.get("training")
    if not isinstance(training, dict) or "ratios" not in training:
        return []  # a model that does not say what it was trained on
    words = []
    low, high = training["ratios"]
    ratio = float(prepared.mask.mean())
    if ratio > FULL:
        words.append(
            "k-space is fully sampled: nothing is left for a network to reconstruct (--method zero-filled "
            "gives the image as measured)"
        )
    elif not low - MARGIN <= ratio <= high + MARGIN:
        words.append(f"{ratio:.0%} of k-space was acquired, the model was trained at {low:.0%} to {high:.0%}")
    noise = noise_level(prepared) / scale
    if noise > training["largest_noise"]:
        words.append(
            f"noise of {noise:.2f} of the image's maximum, the model was trained up to "
            f"{training['largest_noise']:g}"
        )
    shape = prepared.mask.shape[-2:]
    sides = [side for matrix in training.get("matrices", []) for side in matrix]
    if sides and not min(sides) / SCALE <= min(shape) <= max(shape) <= max(sides) * SCALE:
        words.append(
            f"a matrix of {shape[0]} x {shape[1]}, the model was trained on sides of {min(sides)} to"
            f" {max(sides)}"
        )
    if prepared.coord is not None:
        words.append("the model was trained on samples on a grid, these lie along a trajectory")
    if prepared.mask.shape[0] > 1 and not prepared.mask.any(axis=(1, 2)).all():
        words.append("planes of a slab are undersampled across: the model was trained on single slices")
    return words + likeness.unlike(found, training.get("seen", {}))


def noise_level(prepared: Prepared | KSpace) -> float:
    """Return the standard deviation of a complex sample's noise, from the samples farthest from the centre.

    An upper bound: whatever signal lies there counts as noise.
    """
    if prepared.coord is not None:
        distance = np.linalg.norm(prepared.coord, axis=1)
        count = max(1, round(OUTER * distance.size))
        samples = prepared.data[..., np.argpartition(distance, -count)[-count:]]
    else:
        distance = np.where(prepared.mask, _distance(prepared.mask.shape), np.float32(-1))
        count = max(1, round(OUTER * int(prepared.mask.sum())))
        outer = np.argpartition(distance, -count, axis=None)[-count:]
        samples = prepared.data.reshape(len(prepared.data), -1)[:, outer]
    # The median of a Rayleigh distribution; a few strong samples do not move it.
    return float(np.median(np.abs(samples)) / math.sqrt(math.log(2)))


def _distance(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return how far the places of a matrix are from its centre, each axis over its size."""
    axes = [((np.arange(n, dtype=np.float32) - n // 2) / n) ** 2 for n in shape]
    return np.asarray(sum(np.ix_(*axes)))
