"""Files of fastMRI's layout (HDF5) to `KSpace`, one a slice.

`kspace` is (slice, coil, x, y), or (slice, x, y) for one coil, with the readout before the phase encoding:
images are its transpose here. `mask` names the acquired lines where the challenge left some out; the columns
that pad the matrix are zeros in the file (`encodingLimits` of its ISMRMRD header say the same), and so are
the samples that pad asymmetric echoes.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from mri_qpan.errors import InputError
from mri_qpan.recon.kspace import Geometry, Index, KSpace
from mri_qpan.recon.readers.absent import Absent
from mri_qpan.recon.readers.hdf5 import Hdf5Process
from mri_qpan.recon.readers.mrd_header import EncodingHeader, parse_header
from mri_qpan.recon.readers.mrd_space import asked_for, uninterpolated
from mri_qpan.recon.readers.samples import check_samples
from mri_qpan.recon.readers.stream import KSpaceStream

LARGEST_SLICE = 4 * 2**30  # bytes
PIXEL_TOLERANCE = 0.02  # of their size; headers round


def read(process: Hdf5Process) -> KSpaceStream:
    """Read the slices of a fastMRI file.

    Parameters
    ----------
    process
        An open file of fastMRI's kind: single- or multi-coil, full or masked, of any part of the data set.

    Returns
    -------
    Stream of `KSpace`, one a slice.

    Raises
    ------
    InputError
        If its parts contradict each other, or (from the stream) samples are not finite.
    """
    path, xml = process.path, process.description["xml"]
    slices, *shape = process.description["shape"]
    coils, nx, ny = shape if len(shape) == 3 else (1, *shape)
    if 8 * coils * nx * ny > LARGEST_SLICE:
        raise InputError(f"{path}: {coils} coils of {nx} x {ny} samples a slice: the file is damaged")
    mask = process.arrays[0]
    if mask.size not in (0, ny):
        raise InputError(
            f"{path}: 'mask' has {mask.size} lines and 'kspace' {ny}: they do not belong together"
        )
    lines = mask if mask.size else np.ones(ny, bool)
    notes: list[str] = []
    encoding = None
    if xml is None:
        notes.append("no ISMRMRD header: nothing cropped, pixels taken as 1 mm")
    else:
        encoding = parse_header(xml, str(path)).encodings[0]
        lines = lines & _acquired(encoding, ny)
    recon_shape, geometry = _target(encoding, nx, ny, notes)
    indices = [Index(slice=n) for n in range(slices)]

    def images() -> Iterator[KSpace]:
        try:
            for index in indices:
                _, (samples,) = process.ask({"slice": index.slice}, 1)
                check_samples(samples, path, f"slice {index.slice}")
                yield _slice(
                    samples.reshape(coils, nx, ny), lines, recon_shape, geometry, index, tuple(notes)
                )
        finally:
            process.close()

    return KSpaceStream(indices, images(), xml)


def _acquired(encoding: EncodingHeader, ny: int) -> NDArray[np.bool_]:
    """Return which lines the scanner measured, by the header's limits: the rest pads the matrix."""
    limit = encoding.step_1
    acquired = np.ones(ny, bool)
    # Limits that are all zero were never filled in.
    if limit is not None and limit.maximum > 0 and encoding.encoded.matrix[1] == ny:
        first = ny // 2 - limit.center
        acquired[: max(0, first)] = False
        acquired[first + limit.maximum + 1 :] = False
    return acquired


def _target(
    encoding: EncodingHeader | None, nx: int, ny: int, notes: list[str]
) -> tuple[tuple[int, int, int], Geometry]:
    """Return the matrix (z, y, x) to deliver and its place."""
    if encoding is None:
        return (1, ny, nx), Geometry((float(nx), float(ny), 1.0))
    encoded, recon = encoding.encoded, encoding.recon
    measured = encoded.fov if encoded.matrix[:2] == (nx, ny) else None
    if recon.fov is None and measured is None:
        notes.append("the header has no field of view: pixels taken as 1 mm")
    notes.append("fastMRI's files tell no position in the patient")
    sizes, lengths = [], []
    for axis, n, wanted in ((0, nx, recon.matrix[0]), (1, ny, recon.matrix[1])):
        size, asked = min(wanted, n), None if recon.fov is None else recon.fov[axis] / wanted
        pixel = asked or 1.0
        if measured is not None and (asked is None or abs(asked * n / measured[axis] - 1) > PIXEL_TOLERANCE):
            pixel = measured[axis] / n
            if asked is not None:
                size = uninterpolated(n, measured[axis], wanted, asked * wanted)
        notes += asked_for(wanted, size, "xy"[axis])
        sizes.append(size)
        lengths.append(pixel * size)
    (_, _, thickness) = recon.fov or measured or (0.0, 0.0, 1.0)
    return (1, sizes[1], sizes[0]), Geometry((lengths[0], lengths[1], thickness))


def _slice(
    samples: NDArray[np.complex64],
    lines: NDArray[np.bool_],
    recon_shape: tuple[int, int, int],
    geometry: Geometry,
    index: Index,
    notes: tuple[str, ...],
) -> KSpace:
    data = np.ascontiguousarray(samples.transpose(0, 2, 1))[:, None]
    found = lines & data.any(axis=(0, 1, 3))
    data[:, :, ~found] = 0
    counts = np.zeros(data.shape[1:], np.uint16)
    counts[:, found] = 1
    absent = Absent(counts)
    for y in np.flatnonzero(found):
        absent.note((0, y), data[:, 0, y])
    said = absent.finish()
    return KSpace(data, counts > 0, recon_shape, geometry, index, notes=(*notes, *said))
