"""Where voxels lie in the patient: the one convention that every writer uses.

The voxel at index n // 2 of each axis is where the centred DFT puts the middle of the field of view, and
`Geometry.position` is that point. So the centre of voxel (x, y, z) lies at

    position + (x - n_x // 2) d_x read + (y - n_y // 2) d_y phase + (z - n_z // 2) d_z slice,   d = fov / n

in DICOM's LPS axes, for even and odd sizes alike. For an even matrix the first voxel's centre is then
position - fov_x / 2 read - fov_y / 2 phase, which is DICOM's ImagePositionPatient of an ISMRMRD image.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from mri_qpan.errors import ReconError
from mri_qpan.recon.kspace import Geometry, Image

Array = NDArray[np.float64]
Shape = tuple[int, ...]

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

DIRECTION_TOLERANCE = 1e-3
SPACING_TOLERANCE_MM = 0.05
STEEPEST = 0.5  # share along the normal, of the step to the next slice, below which it lies beside this one


def voxel_size(geometry: Geometry, shape: Shape) -> tuple[float, float, float]:
    """Return the distance of voxel centres (x, y, z) in mm of an image of `shape` (z, y, x)."""
    x, y, z = (length / n for length, n in zip(geometry.fov, reversed(shape), strict=True))
    return x, y, z


def centre(shape: Shape, wanted: Shape) -> tuple[slice, ...]:
    """Return the slices that keep `wanted` samples of each axis, index n // 2 staying the centre."""
    starts = [n // 2 - w // 2 for n, w in zip(shape, wanted, strict=True)]
    return tuple(slice(start, start + w) for start, w in zip(starts, wanted, strict=True))


def affine_lps(geometry: Geometry, shape: Shape) -> Array:
    """Return the map from voxel indices (x, y, z, 1) to LPS millimetres.

    Parameters
    ----------
    geometry
        Place of the image.
    shape
        Its matrix (z, y, x).

    Returns
    -------
    ndarray
        (4, 4) float64.
    """
    directions = np.array([geometry.read_dir, geometry.phase_dir, geometry.slice_dir]).T
    affine = np.eye(4)
    affine[:3, :3] = directions * voxel_size(geometry, shape)
    centre = [n // 2 for n in reversed(shape)]
    affine[:3, 3] = np.array(geometry.position) - affine[:3, :3] @ centre
    return affine


def stack(images: Sequence[Image]) -> tuple[list[Image], Array]:
    """Put the slices of one volume in the order of their place and find the affine of the whole.

    Slices that all claim one position, as headers without positions do, are taken to lie side by side in
    the order of their counter.

    Parameters
    ----------
    images
        2-D slices (z = 1) of one matrix size, or a single 3-D image.

    Returns
    -------
    images
        In ascending order along `slice_dir`.
    affine
        (4, 4): voxel indices (x, y, slice, 1) to LPS millimetres.

    Raises
    ------
    ReconError
        If the slices are not parallel, evenly spaced and above each other, as a volume's must be.
    """
    first = images[0]
    affine = affine_lps(first.geometry, first.data.shape)
    if len(images) == 1:
        return [first], affine
    _check_parallel(images)
    positions = np.array([image.geometry.position for image in images])
    if np.ptp(positions, axis=0).max() < SPACING_TOLERANCE_MM:
        return sorted(images, key=lambda image: image.index.slice), affine
    order = np.argsort(positions @ np.array(first.geometry.slice_dir), kind="stable")
    positions = positions[order]
    step = (positions[-1] - positions[0]) / (len(images) - 1)
    ideal = positions[0] + np.arange(len(images))[:, None] * step
    if np.abs(positions - ideal).max() > SPACING_TOLERANCE_MM:
        raise ReconError("the slices are not evenly spaced, so they do not make one volume")
    if step @ np.array(first.geometry.slice_dir) < STEEPEST * np.linalg.norm(step):
        raise ReconError("the slices lie beside each other in their plane, so they do not make one volume")
    affine[:3, 2] = step
    affine[:3, 3] += positions[0] - np.array(first.geometry.position)
    return [images[i] for i in order], affine


def volumes(images: Sequence[Image]) -> list[list[Image]]:
    """Return images by repetition, contrast, phase and set, in this order: the slices of one volume each."""

    def key(image: Image) -> tuple[int, ...]:
        index = image.index
        return index.repetition, index.contrast, index.phase, index.set

    return [list(group) for _, group in groupby(sorted(images, key=key), key=key)]


def place_notes(images: Sequence[Image]) -> list[str]:
    """Say what was assumed of the places of slices, in words; `images` as of a series."""
    first = volumes(images)[0]
    if len(first) < 2:
        return []
    try:
        _check_parallel(first)
    except ReconError:  # of a localiser each slice says its own place
        return []
    positions = np.array([image.geometry.position for image in first])
    if np.ptp(positions, axis=0).max() < SPACING_TOLERANCE_MM:
        return [f"all {len(first)} slices have one position: taken as side by side, in their numbers' order"]
    steps = np.diff(positions @ np.array(first[0].geometry.slice_dir))
    if (steps > 0).any() and (steps < 0).any():
        return ["slices are not numbered in the order they lie in: NIfTI and DICOM have them as they lie"]
    return []


def _check_parallel(images: Sequence[Image]) -> None:
    if any(image.data.shape[0] != 1 for image in images):
        raise ReconError("several 3-D slabs do not make one volume")
    for axis in ("read_dir", "phase_dir", "slice_dir", "fov"):
        vectors = np.array([getattr(image.geometry, axis) for image in images])
        if np.abs(vectors - vectors[0]).max() > DIRECTION_TOLERANCE:
            raise ReconError(f"the slices differ in {axis}, so they do not make one volume")
