"""ISMRMRD raw data (MRD in HDF5) to `KSpace`, one an image.

Headers are read in bulk and checked before any sample is (`mrd_plan`); samples are then read in bulk, an
image at a time.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mri_qpan.errors import InputError
from mri_qpan.recon.kspace import Index, KSpace
from mri_qpan.recon.readers.hdf5 import Hdf5Process
from mri_qpan.recon.readers.mrd_plan import Measurement, Plan, Rows, classify, name_of, plan

BLOCK = 2**26  # bytes of samples read at once
LARGEST_SAMPLE = 1e15  # no receiver's; squares of larger ones leave single precision


class KSpaceStream(Iterator[KSpace]):
    """The images of one file, read one at a time in the order of their `Index`.

    Attributes
    ----------
    measurement
        What stands in the file; `measurement.xml` is its header.
    indices
        The images that will come.
    """

    def __init__(self, file: Hdf5Process) -> None:
        self.measurement = _classify(file)
        planned = plan(self.measurement)
        self.indices = list(planned.images)
        self._file = file
        self._images = _images(file, planned)

    def __len__(self) -> int:
        """Return how many images the file holds, read or not."""
        return len(self.indices)

    def __next__(self) -> KSpace:
        """Read the next image."""
        return next(self._images)


def read(path: str | Path) -> KSpaceStream:
    """Read the images of an ISMRMRD file.

    Headers are checked here, samples when an image is taken from the stream.

    Parameters
    ----------
    path
        An HDF5 file with one ISMRMRD dataset of any name.

    Returns
    -------
    Iterator of `KSpace`, one a slice (or 3-D slab), contrast, phase, repetition and set.

    Raises
    ------
    InputError
        If the file is not ISMRMRD, is damaged, is not Cartesian or contradicts itself.
    """
    return KSpaceStream(Hdf5Process(Path(path)))


def header(path: str | Path) -> str:
    """Return the ISMRMRD header (XML) of a file; raises `InputError` as `read` does."""
    return inspect(path).xml


def inspect(path: str | Path) -> Measurement:
    """Read everything but the samples; raises `InputError` if that is impossible."""
    file = Hdf5Process(Path(path))
    file.close()
    return _classify(file)


def _classify(file: Hdf5Process) -> Measurement:
    return classify(file.path, file.names, file.name, file.xml, file.heads)


def _images(file: Hdf5Process, planned: Plan) -> Iterator[KSpace]:
    try:
        noise = _noise_covariance(file, planned)
        for index, rows in planned.images.items():
            yield _image(file, planned, index, rows, noise)
    finally:
        file.close()


def _image(
    file: Hdf5Process, planned: Plan, index: Index, rows: Rows, noise: NDArray[np.complex128] | None
) -> KSpace:
    data, counts = _average(file, planned, index, rows)
    calib = calib_mask = None
    calib_rows = planned.calibration_rows(index)
    if calib_rows.size:
        calib, calib_counts = _average(file, planned, index, calib_rows)
        calib_mask = calib_counts > 0
    if noise is not None:
        noise = noise * planned.noise_scale(index) / np.median(counts[counts > 0])
    return KSpace(
        data=data,
        mask=counts > 0,
        recon_shape=planned.recon_shape(index),
        geometry=planned.geometry(index),
        index=index,
        stamp=planned.stamp(index),
        calib=calib,
        calib_mask=calib_mask,
        noise_covariance=None if noise is None else noise.astype(np.complex64),
        notes=planned.notes(index),
    )


def _average(
    file: Hdf5Process, planned: Plan, index: Index, rows: Rows
) -> tuple[NDArray[np.complex64], NDArray[np.uint16]]:
    """Average lines on the grid: (coil, z, y, x) samples and how many went into each, (z, y, x)."""
    heads, grid, reverse = file.heads, planned.grids[index.encoding], planned.measurement.reverse
    shape = int(heads["active_channels"][rows[0]]), *grid.shape
    try:
        data, counts = np.zeros(shape, np.complex64), planned.counts(index, rows)
    except MemoryError as error:
        shown = " x ".join(map(str, shape))
        raise InputError(f"{file.path}: {shown} samples (coil, z, y, x) do not fit into memory") from error
    for row, line in _lines(file, rows):
        kept = line[:, heads["discard_pre"][row] : line.shape[1] - heads["discard_post"][row]]
        place = data[:, grid.z[row], grid.y[row], grid.start[row] : grid.stop[row]]
        place += kept[:, ::-1] if reverse[row] else kept
    if counts.max() > 1:
        data /= np.maximum(counts, 1).astype(np.float32)
    return data, counts


def _noise_covariance(file: Hdf5Process, planned: Plan) -> NDArray[np.complex128] | None:
    """Covariance of the samples of the noise scans, (coil, coil), or None without any."""
    rows = np.flatnonzero(planned.measurement.noise)
    if not rows.size:
        return None
    noise = np.concatenate([line for _, line in _lines(file, rows)], axis=1).astype(np.complex128)
    return noise @ noise.conj().T / noise.shape[1]


def _lines(file: Hdf5Process, rows: Rows) -> Iterator[tuple[int, NDArray[np.complex64]]]:
    """Yield each of the rows and its samples (coil, sample), read in blocks."""
    heads = file.heads
    payload = 8 * heads["active_channels"][rows].astype(np.int64) * heads["number_of_samples"][rows]
    blocks = np.cumsum(payload) // BLOCK
    for block in np.split(rows, np.flatnonzero(np.diff(blocks)) + 1):
        for row, numbers in zip(block, file.samples(block), strict=True):
            yield int(row), _line(file, int(row), numbers)


def _line(file: Hdf5Process, row: int, numbers: NDArray[np.float32]) -> NDArray[np.complex64]:
    heads = file.heads
    channels, length = int(heads["active_channels"][row]), int(heads["number_of_samples"][row])
    if numbers.size != 2 * channels * length:
        raise InputError(
            f"{file.path}: {name_of(heads, row)} holds {numbers.size} numbers where its header says "
            f"{channels} channels of {length} complex samples: the file is damaged or truncated"
        )
    if not (np.abs(numbers) < LARGEST_SAMPLE).all():
        raise InputError(
            f"{file.path}: {name_of(heads, row)} holds samples that are NaN, infinite or beyond "
            f"{LARGEST_SAMPLE:g}: the file is damaged"
        )
    return numbers.view(np.complex64).reshape(channels, length)
