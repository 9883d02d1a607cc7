"""Images as plain arrays: complex ones for BART and NumPy, magnitudes in fastMRI's layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mri_qpan.bart import write_cfl
from mri_qpan.errors import ReconError
from mri_qpan.recon.files import from_memory
from mri_qpan.recon.kspace import ImageSeries, Index

AXES = ("slice", "set", "phase", "repetition", "contrast")
"""Counters along BART's dimensions 13 (slices), 12, 11, 10 (time) and 5 (echoes)."""


def write_npy(path: Path, series: ImageSeries) -> None:
    """Write the complex images of a series, (image, z, y, x) complex64, as .npy, in the order of the series.

    Raises
    ------
    ReconError
        If the images differ in size.
    """
    np.save(path, _same_size([image.data for image in series.images]), allow_pickle=False)


def write_cfl_pair(path: Path, series: ImageSeries) -> None:
    """Write the complex images of a series as BART's .cfl and .hdr, with provenance in the header.

    Dimensions 0 to 2 are x, y, z; 5 are contrasts, 10 repetitions, 11 phases, 12 sets, 13 slices.

    Parameters
    ----------
    path
        The .cfl file to make; its .hdr lies beside it.
    series
        What to write.

    Raises
    ------
    ReconError
        If the images differ in size.
    """
    pixels = _same_size([image.data for image in series.images])
    counters = [tuple(getattr(image.index, axis) for axis in AXES) for image in series.images]
    # Places by rank: a file may hold slices 3, 5 and 7 alone.
    ranks = [sorted(set(column)) for column in zip(*counters, strict=True)]
    slices, sets, phases, repetitions, contrasts = (len(values) for values in ranks)
    array = np.zeros(
        (slices, sets, phases, repetitions, 1, 1, 1, 1, contrasts, 1, 1, *pixels.shape[1:]), np.complex64
    )
    for values, image in zip(counters, pixels, strict=True):
        s, u, p, r, c = (column.index(value) for column, value in zip(ranks, values, strict=True))
        array[s, u, p, r, 0, 0, 0, 0, c, 0, 0] = image
    origin = series.provenance
    made_by = [
        "# Command",
        str(origin["command"]),
        "# Creator",
        f"mri-qpan {origin['version']} {origin['method']}",
    ]
    write_cfl(path.with_suffix(""), array, made_by)


def write_fastmri(path: Path, series: ImageSeries) -> None:
    """Write magnitudes in the layout of fastMRI's submissions: HDF5 with `reconstruction`, (slice, x, y).

    Parameters
    ----------
    path
        The file to make.
    series
        Slices of one repetition, contrast, phase and set.

    Raises
    ------
    ReconError
        If the series is more than a stack of slices, or they differ in size.
    """
    import h5py

    first = series.images[0].index
    stack = all(i.index == _with_slice(first, i.index.slice) for i in series.images)
    if not stack or any(image.data.shape[0] > 1 for image in series.images):
        raise ReconError("fastMRI's layout holds one stack of slices, and this series is more than that")
    pixels = np.abs(_same_size([image.data[0] for image in series.images])).transpose(0, 2, 1)
    with from_memory(path) as memory, h5py.File(memory, "w") as file:
        file["reconstruction"] = pixels
        file.attrs["max"], file.attrs["norm"] = pixels.max(), np.linalg.norm(pixels)
        file.attrs["provenance"] = json.dumps(series.provenance)
        if series.xml is not None:
            file["ismrmrd_header"] = series.xml


def _with_slice(index: Index, number: int) -> Index:
    return Index(index.encoding, index.repetition, index.contrast, index.phase, index.set, number)


def _same_size(images: list[NDArray[Any]]) -> NDArray[Any]:
    if len({image.shape for image in images}) > 1:
        raise ReconError("the images differ in size: no single array")
    return np.stack(images)
