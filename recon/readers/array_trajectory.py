"""Arrays of samples along a trajectory (radial, spiral) to `KSpace`, the trajectory an array beside them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mri_qpan.errors import InputError, OptionError
from mri_qpan.recon.kspace import Geometry, Index, KSpace
from mri_qpan.recon.readers.mrd_checks import SMALLEST_RATIO
from mri_qpan.recon.readers.samples import check_samples
from mri_qpan.recon.readers.stream import KSpaceStream

ALONG = ("sample", "readout")
LARGEST_MATRIX = 4096
TOLERANCE = 1.05
"""Trajectories may reach a little beyond the matrix."""

SHORT = 0.25
"""Share of the matrix that trajectories over the field of view reach, unless of the centre alone."""


@dataclass(frozen=True)
class Trajectory:
    """Where the coordinates of samples are found, and the matrix (y, x) that they are for.

    Attributes
    ----------
    name
        Of a variable of the same .mat file, or of a .npy file.
    matrix
        To deliver; coordinates up to 0.5 are cycles over one of its pixels, others over all of it.
    """

    name: str
    matrix: tuple[int, int]

    @classmethod
    def parse(cls, words: str) -> Trajectory:
        """Read NAME:N or NAME:NXxNY; raises `InputError` if it is neither."""
        name, _, size = words.rpartition(":")
        numbers = [int(n) if n.isdecimal() else 0 for n in size.split("x")]
        if not name or len(numbers) > 2 or not all(2 <= n <= LARGEST_MATRIX for n in numbers):
            raise OptionError(f"--dims …@{words}: a trajectory is NAME:MATRIX, such as k:256 or k:256x192")
        return cls(name, (numbers[-1], numbers[0]))


def in_field_of_view(
    coord: NDArray[np.floating[Any]], matrix: NDArray[np.float64], path: Path
) -> NDArray[np.float32]:
    """Return coordinates in cycles over the field of view.

    No file says their unit: up to 0.5 they are taken as cycles a pixel. Those up to pi that are a small part
    of the matrix are neither: an image of so few cycles shows nothing.

    Parameters
    ----------
    coord
        (sample, n), as some file has them, x last.
    matrix
        Of that field of view, (n,).
    path
        For messages.

    Raises
    ------
    InputError
        If they are neither.
    """
    reach = float(np.abs(coord).max())
    if not math.isfinite(reach) or reach == 0:
        raise InputError(f"{path}: the trajectory is {'zero everywhere' if reach == 0 else 'not finite'}")
    if reach > matrix.max() / 2 * TOLERANCE:
        raise InputError(
            f"{path}: a trajectory that reaches {reach:g} is beyond cycles a pixel (0.5) and cycles over the"
            f" field of view ({matrix.max() / 2:g}): rescale it"
        )
    if reach <= 0.5 * TOLERANCE:
        return (coord * matrix).astype(np.float32)
    plane, half = float(np.abs(coord[:, -2:]).max()), float(matrix[-2:].max()) / 2
    if plane <= math.pi * TOLERANCE and plane < SHORT * half:
        found = "a range from -1 to 1" if plane <= TOLERANCE else "radians a pixel (3.14)"
        if plane <= 0.5 * TOLERANCE:
            found = "cycles a pixel in plane alone"
        raise InputError(
            f"{path}: the trajectory reaches {plane:g} in plane, which looks like {found}: rescale it to"
            f" cycles a pixel (0.5) or over the field of view ({half:g})"
        )
    through = float(np.abs(coord[:, 0]).max())
    if len(matrix) == 3 and 0 < through <= 0.5 * TOLERANCE and through < SHORT * matrix[0] / 2:
        raise InputError(
            f"{path}: the trajectory reaches {through:g} along z, which looks like cycles a pixel in z alone:"
            f" rescale it to cycles a pixel (0.5) or over the field of view ({matrix[0] / 2:g})"
        )
    return coord.astype(np.float32)


def short_notes(coord: NDArray[np.float32], matrix: NDArray[np.float64]) -> list[str]:
    """Say where coordinates (sample, n), in cycles over a field of view, reach little of its matrix (n,)."""
    reach, half = float(np.abs(coord).max()), float(matrix.max()) / 2
    if reach >= SHORT * half:
        return []
    return [
        f"the trajectory reaches {reach:.3g} of {half:g} cycles over the field of view: if more was measured,"
        " its unit is another"
    ]


def stream(
    array: NDArray[Any],
    names: Sequence[str],
    counters: Sequence[str],
    path: Path,
    trajectory: Trajectory,
    load: Callable[[str], NDArray[Any]],
    note: str,
) -> KSpaceStream:
    """Return the images of an array of samples along a trajectory that all of them share.

    Parameters
    ----------
    array
        Complex; its axes are `names`.
    names, counters
        Names of the axes: `ALONG`, coil, and those that count images (`Index`).
    path, note
        For messages, and what was assumed.
    trajectory
        Which coordinates.
    load
        Reads an array by its name.

    Raises
    ------
    InputError
        If the coordinates do not fit the samples.
    """
    along = [name for name in names if name in ALONG]
    shape = tuple(array.shape[names.index(name)] for name in along)
    matrix = np.array(trajectory.matrix, np.float64)
    coord = in_field_of_view(_coordinates(load(trajectory.name), shape, trajectory, path), matrix, path)
    if len(coord) < SMALLEST_RATIO * matrix.prod():
        raise InputError(f"{path}: {len(coord)} samples are too few for a matrix of {matrix} (y, x)")
    inside = (np.abs(coord) <= matrix / 2).all(axis=1)
    order = [names.index(name) for name in (*counters, "coil", *along) if name in names]
    counted = [array.shape[names.index(name)] if name in names else 1 for name in counters]
    channels = array.shape[names.index("coil")] if "coil" in names else 1
    samples = array.transpose(order).reshape(*counted, channels, *shape)
    places = {Index(**dict(zip(counters, p, strict=True))): p for p in np.ndindex(*counted)}
    notes = [note, "the trajectory as the file has it: gradient delays uncorrected"]
    notes += short_notes(coord, matrix)
    if not inside.all():
        notes.append(f"{(~inside).mean():.1%} of the samples lie beyond the matrix's resolution: left out")
    ny, nx = trajectory.matrix

    def images() -> Iterator[KSpace]:
        for index in sorted(places):
            data = np.array(samples[places[index]], np.complex64).reshape(channels, -1)
            check_samples(data, path, f"image {index}")
            yield KSpace(
                data=data[:, None, None, inside],
                mask=np.ones((1, 1, int(inside.sum())), bool),
                recon_shape=(1, ny, nx),
                geometry=Geometry((float(nx), float(ny), 1.0)),
                index=index,
                notes=tuple(notes),
                coord=coord[inside],
            )

    return KSpaceStream(sorted(places), images(), None)


def _coordinates(
    array: NDArray[Any], shape: tuple[int, ...], trajectory: Trajectory, path: Path
) -> NDArray[np.float64]:
    """Return coordinates as (sample, 2), y and x: complex ones are kx + i ky, real ones pairs (kx, ky)."""
    found, wanted = np.squeeze(array), tuple(n for n in shape if n > 1)  # a vector of MATLAB's has two axes
    if array.dtype.kind == "c" and found.shape == wanted:
        pairs = np.stack([found.imag, found.real], axis=-1)
    elif array.dtype.kind in "fiu" and found.shape == (*wanted, 2):
        pairs = found[..., ::-1]
    elif array.dtype.kind in "fiu" and found.shape == (2, *wanted):
        pairs = np.moveaxis(found, 0, -1)[..., ::-1]
    else:
        words = " x ".join(map(str, shape))
        raise InputError(
            f"{path}: trajectory {trajectory.name!r} is {array.dtype} of shape {array.shape}: wanted complex"
            f" {words} (kx + i ky), or real with an axis of 2 (kx, ky) before or after them"
        )
    return np.asarray(pairs, np.float64).reshape(-1, 2)
