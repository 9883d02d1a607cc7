"""What acquisitions must not contradict: their channels, their places, the size of their matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mri_qpan.errors import InputError

if TYPE_CHECKING:
    from mri_qpan.recon.readers.mrd_kinds import Heads, Measurement
    from mri_qpan.recon.readers.mrd_plan import Grid

LARGEST_KSPACE = 32 * 2**30  # bytes; more than any Cartesian scan of today, so a damaged header
SMALLEST_RATIO = 0.002  # a lower acquired share means that matrix and acquisitions do not belong together


def check_channels(measurement: Measurement) -> None:
    """Raise `InputError` if acquisitions are empty or differ in their channels."""
    heads = measurement.heads
    used = np.flatnonzero(measurement.imaging | measurement.calibration | measurement.noise)
    channels, samples = heads["active_channels"][used], heads["number_of_samples"][used]
    empty = used[(channels == 0) | (samples == 0)]
    if empty.size:
        raise InputError(
            f"{measurement.path}: {name_of(heads, empty[0])} has no channels or no samples: file damaged"
        )
    first = channels[np.argmax(measurement.imaging[used])]
    other = used[channels != first]
    if other.size:
        raise InputError(
            f"{measurement.path}: {name_of(heads, other[0])} has {heads['active_channels'][other[0]]} "
            f"channels where the images have {first}: all lines need the same channels"
        )


def check_bands(measurement: Measurement) -> None:
    """Raise `InputError` if slices were excited together: each image would show them on top of each other."""
    for number in np.unique(measurement.heads["encoding_space_ref"][measurement.imaging]):
        encodings = measurement.header.encodings
        bands = encodings[number].bands if number < len(encodings) else 1
        if bands > 1:
            raise InputError(
                f"{measurement.path}: {bands} slices were excited together (multiband) and lie on top of "
                "each other in these samples: separate them first, which is not done here"
            )


def check_places(measurement: Measurement, grid: Grid, used: NDArray[np.bool_]) -> None:
    """Raise `InputError` if one of the lines in use lies outside the encoded matrix, or has no samples."""
    heads = measurement.heads
    depth, height, width = grid.shape
    axes = {
        "z": (grid.z, grid.z + 1, depth),
        "y": (grid.y, grid.y + 1, height),
        "x": (grid.start, grid.stop, width),
    }
    for axis, (start, stop, size) in axes.items():
        outside = np.flatnonzero(used & ((start < 0) | (stop > size)))
        if outside.size:
            row = outside[0]
            raise InputError(
                f"{measurement.path}: {name_of(heads, row)} lies outside the encoded matrix along {axis} "
                f"(place {start[row]} to {stop[row] - 1} of 0 to {size - 1}; {outside.size} such lines): "
                "the header's encodedSpace or encodingLimits do not belong to these acquisitions"
            )
    empty = np.flatnonzero(used & (grid.stop <= grid.start))
    if empty.size:
        raise InputError(
            f"{measurement.path}: {name_of(heads, empty[0])} discards all of its samples: header damaged"
        )


def check_size(measurement: Measurement, grid: Grid, used: NDArray[np.bool_]) -> None:
    """Refuse a matrix that the acquisitions cannot fill, before anything of its size is allocated."""
    shown = " x ".join(map(str, grid.shape))
    size = int(np.prod(grid.shape, dtype=np.int64))
    coils = int(measurement.heads["active_channels"][used].max())
    if 8 * size * coils > LARGEST_KSPACE:
        raise InputError(
            f"{measurement.path}: {coils} channels of {shown} samples (z, y, x) are beyond any scan"
        )
    acquired = int((grid.stop - grid.start)[used].sum())
    if acquired < SMALLEST_RATIO * size:
        raise InputError(
            f"{measurement.path}: {acquired} samples were acquired for a matrix of {shown} (z, y, x): "
            "header and acquisitions do not belong together, or the file is truncated"
        )


def name_of(heads: Heads, row: int | np.intp) -> str:
    """Return the name of an acquisition in messages."""
    return f"acquisition {int(row)} (scan counter {int(heads['scan_counter'][row])})"
