"""What a report shows beside an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mri_qpan.recon import familiar
from mri_qpan.recon.kspace import Image
from mri_qpan.recon.prepare import Prepared

Complex = NDArray[np.complex64]

PLANES = 9
"""Planes of a slab to show; of more, these many, evenly spread, the central one among them."""


@dataclass(frozen=True)
class Views:
    """What a report shows beside an image; k-space and coil maps are those of a slab's central plane.

    Attributes
    ----------
    planes
        The planes of the image to show.
    zero_filled
        Magnitude of A^H y in these planes, (plane, y, x).
    mask
        Where samples were acquired, (y, x).
    mps
        Magnitude of the coil maps of the first set, (coil, y, x).
    samples, residual
        y, and A x - y, (coil, y, x); None along a trajectory.
    noise
        Upper bound of a sample's noise over the image's robust maximum.
    """

    planes: tuple[int, ...]
    zero_filled: NDArray[np.float32]
    mask: NDArray[np.bool_]
    mps: NDArray[np.float32]
    samples: Complex | None
    residual: Complex | None
    noise: float


def take_views(
    prepared: Prepared,
    zero_filled: Image,
    samples: torch.Tensor | None,
    missing: torch.Tensor | None,
    scale: float,
) -> Views:
    """Return what a report shows.

    Parameters
    ----------
    prepared
        The measurement.
    zero_filled
        A^H y as delivered.
    samples, missing
        y and A x - y, (1, coil, [z,] y, x), or None along a trajectory.
    scale
        Robust maximum of the image.
    """
    maps = prepared.mps.reshape(-1, *prepared.mps.shape[-4:])[0]
    planes = planes_of(zero_filled.data.shape[0])
    return Views(
        planes=planes,
        zero_filled=np.abs(zero_filled.data[list(planes)]),
        mask=_middle(prepared.mask),
        mps=np.abs(_middle(maps.swapaxes(0, 1))),
        samples=None if samples is None else _plane(samples),
        residual=None if missing is None else _plane(missing),
        noise=familiar.noise_level(prepared) / scale,
    )


def planes_of(depth: int) -> tuple[int, ...]:
    """Return which of the planes of a slab are shown, in their order."""
    if depth <= PLANES:
        return tuple(range(depth))
    return tuple((n + 1) * depth // (PLANES + 1) for n in range(PLANES))


def _middle(volume: NDArray[Any]) -> NDArray[Any]:
    """Return the central plane of (z, ...)."""
    return np.asarray(volume[volume.shape[0] // 2])


def _plane(kspace: torch.Tensor) -> Complex:
    """Return the central plane, (coil, y, x), of (1, coil, [z,] y, x), a copy."""
    volume = kspace[0].reshape(kspace.shape[1], -1, *kspace.shape[-2:])
    return volume[:, volume.shape[1] // 2].cpu().numpy().copy()
