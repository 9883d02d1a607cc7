"""ISMRMRD raw data (MRD in HDF5) to `KSpace`, one an image.

Headers are read in bulk and checked before any sample is; samples are then read in bulk, an image at a time.
A line's place is `ky + N_y // 2 - center` (encodingLimits), a sample's `j - center_sample + N_x // 2` after
`discard_pre` and `discard_post`; a line flagged REVERSE was acquired from the far end of the readout, its
`center_sample` counts from the near end like every other line's (scanners copy one value to both polarities).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ismrmrd import constants
from numpy.typing import NDArray

from mri_qpan.errors import InputError
from mri_qpan.recon.kspace import Geometry, Index, KSpace, Stamp, Vector
from mri_qpan.recon.readers.hdf5 import Hdf5Process
from mri_qpan.recon.readers.mrd_header import EncodingHeader, Limit, MrdHeader, parse_header

Rows = NDArray[np.intp]
Heads = NDArray[np.void]

NON_IMAGING = {
    "navigator": constants.ACQ_IS_NAVIGATION_DATA,
    "phase correction": constants.ACQ_IS_PHASECORR_DATA,
    "HP feedback": constants.ACQ_IS_HPFEEDBACK_DATA,
    "dummy": constants.ACQ_IS_DUMMYSCAN_DATA,
    "real-time feedback": constants.ACQ_IS_RTFEEDBACK_DATA,
    "surface coil correction": constants.ACQ_IS_SURFACECOILCORRECTIONSCAN_DATA,
    "phase stabilisation reference": constants.ACQ_IS_PHASE_STABILIZATION_REFERENCE,
    "phase stabilisation": constants.ACQ_IS_PHASE_STABILIZATION,
}
LARGEST_KSPACE = 32 * 2**30  # bytes; more than any Cartesian scan of today, so a damaged header
SMALLEST_RATIO = 0.002  # a lower acquired fraction means that matrix and acquisitions do not belong together
BLOCK = 2**26  # bytes of samples read at once


@dataclass(frozen=True)
class Measurement:
    """What stands in an ISMRMRD file, samples aside.

    Attributes
    ----------
    path, dataset
        The file and the name of its group.
    xml, header
        The ISMRMRD header as text, and parsed.
    heads
        Header of every acquisition, structured array of ISMRMRD's fields.
    noise, calibration, imaging
        True for the acquisitions of that kind, (acquisitions,); a line can be calibration and imaging.
    skipped
        How many acquisitions each non-imaging kind has.
    notes
        What was assumed, in words.
    """

    path: Path
    dataset: str
    xml: str
    header: MrdHeader
    heads: Heads
    noise: NDArray[np.bool_]
    calibration: NDArray[np.bool_]
    imaging: NDArray[np.bool_]
    skipped: dict[str, int]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Grid:
    """Where the lines of one encoding lie: matrix (z, y, x), counters at the centre, each line's place."""

    shape: tuple[int, int, int]
    z: NDArray[np.int64]
    y: NDArray[np.int64]
    start: NDArray[np.int64]
    stop: NDArray[np.int64]
    reverse: NDArray[np.bool_]
    notes: tuple[str, ...]


class KSpaceStream(Iterator[KSpace]):
    """The images of one file, read one at a time in the order of their `Index`.

    Attributes
    ----------
    measurement
        What stands in the file; `measurement.xml` is its header.
    indices
        The images that will come.
    """

    def __init__(
        self, file: Hdf5Process, measurement: Measurement, plans: dict[int, Grid], images: dict[Index, Rows]
    ) -> None:
        self.measurement = measurement
        self.indices = list(images)
        self._file = file
        self._images = _images(file, measurement, plans, images)

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
    file = Hdf5Process(Path(path))
    measurement = _describe(file)
    images = group_images(measurement)
    _check_channels(measurement)
    plans = {encoding: lay_out(measurement, encoding) for encoding in sorted({i.encoding for i in images})}
    return KSpaceStream(file, measurement, plans, images)


def header(path: str | Path) -> str:
    """Return the ISMRMRD header (XML) of a file; raises `InputError` as `read` does."""
    return inspect(path).xml


def inspect(path: str | Path) -> Measurement:
    """Read everything but the samples; raises `InputError` if that is impossible."""
    file = Hdf5Process(Path(path))
    file.close()
    return _describe(file)


def _describe(file: Hdf5Process) -> Measurement:
    heads = file.heads
    parsed = parse_header(file.xml, str(file.path))
    flags = heads["flags"]
    noise = _is_set(flags, constants.ACQ_IS_NOISE_MEASUREMENT)
    skipped = np.zeros(len(heads), bool)
    counts = {}
    for name, bit in NON_IMAGING.items():
        found = _is_set(flags, bit) & ~noise
        skipped |= found
        if found.any():
            counts[name] = int(found.sum())
    several: tuple[str, ...] = ()
    if len(file.names) > 1:
        several = (f"several datasets ({', '.join(file.names)}): {file.name!r} was read",)
    both = _is_set(flags, constants.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING)
    calibration = (both | _is_set(flags, constants.ACQ_IS_PARALLEL_CALIBRATION)) & ~noise & ~skipped
    return Measurement(
        path=file.path,
        dataset=file.name,
        xml=file.xml,
        header=parsed,
        heads=heads,
        noise=noise,
        calibration=calibration,
        imaging=(both | ~calibration) & ~noise & ~skipped,
        skipped=counts,
        notes=(*several, *parsed.notes),
    )


def group_images(measurement: Measurement) -> dict[Index, Rows]:
    """Return the imaging acquisitions of every image, in the order of `Index`."""
    rows = np.flatnonzero(measurement.imaging)
    if not rows.size:
        kinds = {"noise": int(measurement.noise.sum()), "calibration": int(measurement.calibration.sum())}
        shown = ", ".join(f"{n} {kind}" for kind, n in (kinds | measurement.skipped).items() if n)
        raise InputError(
            f"{measurement.path}: no imaging acquisitions (found {shown or 'none at all'}): "
            "check that the right measurement of the scan was exported"
        )
    keys = _index_keys(measurement.heads[rows])
    unique, inverse = np.unique(keys, axis=0, return_inverse=True)
    order = np.argsort(inverse.ravel(), kind="stable")
    edges = np.cumsum(np.bincount(inverse.ravel()))[:-1]
    groups = np.split(rows[order], edges)
    return {Index(*map(int, key)): group for key, group in zip(unique, groups, strict=True)}


def lay_out(measurement: Measurement, encoding: int) -> Grid:
    """Place every imaging and calibration line of an encoding; raises `InputError` where one does not fit."""
    encodings = measurement.header.encodings
    if encoding >= len(encodings):
        raise InputError(
            f"{measurement.path}: acquisitions refer to encoding {encoding} where the header has "
            f"{len(encodings)}: header and acquisitions do not belong together"
        )
    described = encodings[encoding]
    _check_trajectory(measurement, described)
    heads = measurement.heads
    used = (measurement.imaging | measurement.calibration) & (heads["encoding_space_ref"] == encoding)
    notes: list[str] = []
    nx, ny, nz = described.encoded.matrix
    ky = heads["idx"]["kspace_encode_step_1"].astype(np.int64)
    kz = heads["idx"]["kspace_encode_step_2"].astype(np.int64)
    if nz > 1 and not kz[used].any():
        notes.append(f"the header says {nz} partitions but no line has a second phase encoding: read as 2-D")
        nz = 1
    flat = nz == 1 and not kz[used].any()
    centre = _centre_sample(heads, used, nx, notes)
    samples = heads["number_of_samples"].astype(np.int64)
    reverse = _is_set(heads["flags"], constants.ACQ_IS_REVERSE)
    pre, post = heads["discard_pre"].astype(np.int64), heads["discard_post"].astype(np.int64)
    grid = Grid(
        shape=(nz, ny, nx),
        z=kz
        if flat
        else kz + nz // 2 - _centre("kspace_encode_step_2", described.step_2, nz, kz[used], notes),
        y=ky + ny // 2 - _centre("kspace_encode_step_1", described.step_1, ny, ky[used], notes),
        start=nx // 2 - centre + np.where(reverse, post, pre),
        stop=nx // 2 - centre + samples - np.where(reverse, pre, post),
        reverse=reverse,
        notes=tuple(notes),
    )
    _check_places(measurement, grid, used)
    _check_size(measurement, grid, used)
    return grid


def _images(
    file: Hdf5Process, measurement: Measurement, plans: dict[int, Grid], images: dict[Index, Rows]
) -> Iterator[KSpace]:
    try:
        noise = _noise(measurement, file)
        for index, rows in images.items():
            yield _image(measurement, file, plans[index.encoding], index, rows, noise)
    finally:
        file.close()


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
            f"{file.path}: {_name(heads, row)} holds {numbers.size} numbers where its header says "
            f"{channels} channels of {length} complex samples: the file is damaged or truncated"
        )
    if not np.isfinite(numbers).all():
        raise InputError(
            f"{file.path}: {_name(heads, row)} holds samples that are NaN or infinite: the file is damaged"
        )
    return numbers.view(np.complex64).reshape(channels, length)


def _image(
    measurement: Measurement,
    file: Hdf5Process,
    grid: Grid,
    index: Index,
    rows: Rows,
    noise: tuple[NDArray[np.complex128], float] | None,
) -> KSpace:
    described = measurement.header.encodings[index.encoding]
    data, counts = _accumulate(measurement, file, grid, rows)
    calib_rows, calib_notes = _calibration_rows(measurement, index)
    calib = calib_counts = None
    if calib_rows.size:
        calib, calib_counts = _accumulate(measurement, file, grid, calib_rows)
    distance = abs(grid.y[rows] - grid.shape[1] // 2) + abs(grid.z[rows] - grid.shape[0] // 2)
    head = measurement.heads[rows[np.argmin(distance)]]
    recon_shape, fov, space_notes = _recon_space(described, grid.shape)
    geometry, geometry_notes = _geometry(head, fov)
    covariance, noise_notes = _noise_of(measurement, head, noise, counts)
    notes = (*measurement.notes, *grid.notes, *space_notes, *geometry_notes, *noise_notes, *calib_notes)
    return KSpace(
        data=data,
        mask=counts > 0,
        recon_shape=recon_shape,
        geometry=geometry,
        index=index,
        stamp=_stamp(head),
        calib=calib,
        calib_mask=None if calib_counts is None else calib_counts > 0,
        noise_covariance=covariance,
        notes=notes,
    )


def _accumulate(
    measurement: Measurement, file: Hdf5Process, grid: Grid, rows: Rows
) -> tuple[NDArray[np.complex64], NDArray[np.uint16]]:
    """Average lines on the grid: (coil, z, y, x) samples and how many went into each, (z, y, x)."""
    heads = measurement.heads
    coils = int(heads["active_channels"][rows[0]])
    try:
        data = np.zeros((coils, *grid.shape), np.complex64)
        counts = np.zeros(grid.shape, np.uint16)
    except MemoryError as error:
        shown = " x ".join(map(str, (coils, *grid.shape)))
        raise InputError(
            f"{measurement.path}: {shown} samples (coil, z, y, x) do not fit into memory"
        ) from error
    for row, line in _lines(file, rows):
        first, last = heads["discard_pre"][row], line.shape[1] - heads["discard_post"][row]
        kept = line[:, first:last]
        place = grid.z[row], grid.y[row], slice(grid.start[row], grid.stop[row])
        data[:, *place] += kept[:, ::-1] if grid.reverse[row] else kept
        counts[place] += 1
    if counts.max() > 1:
        data /= np.maximum(counts, 1).astype(np.float32)
    return data, counts


def _calibration_rows(measurement: Measurement, index: Index) -> tuple[Rows, tuple[str, ...]]:
    """Calibration lines for an image: its own, or its slice's (one reference scan serves a whole series).

    None where every calibration line is also an imaging one: then they are part of the data already.
    """
    heads = measurement.heads
    if not (measurement.calibration & ~measurement.imaging).any():
        return np.empty(0, np.intp), ()
    rows = np.flatnonzero(measurement.calibration)
    keys = _index_keys(heads[rows])
    own = (keys == _key(index)).all(axis=1)
    if own.any():
        return rows[own], ()
    same_slice = (keys[:, 0] == index.encoding) & (keys[:, -1] == index.slice)
    if same_slice.any():
        first = (keys == keys[same_slice][0]).all(axis=1)
        return rows[first], ()
    return np.empty(0, np.intp), (
        f"the calibration lines are of other slices or encodings than {index}: not used",
    )


def _recon_space(
    described: EncodingHeader, shape: tuple[int, int, int]
) -> tuple[tuple[int, int, int], Vector, tuple[str, ...]]:
    """Matrix (z, y, x) to deliver and its field of view (x, y, z): the encoded one less the oversampling.

    A crop changes the field of view and keeps the pixel; a reconSpace of other pixels asks for interpolation,
    which is left to viewers.
    """
    encoded, recon = described.encoded, described.recon
    notes = []
    if encoded.fov is None:
        notes.append("the header gives no field of view: 1 mm pixels assumed")
    fov_encoded = encoded.fov or tuple(float(n) for n in encoded.matrix)
    fov_recon = recon.fov or tuple(
        f * min(r / n, 1.0) for f, r, n in zip(fov_encoded, recon.matrix, encoded.matrix, strict=True)
    )
    sizes, lengths = [], []
    for axis, n, wanted, length, target in zip(
        "xyz", shape[::-1], recon.matrix, fov_encoded, fov_recon, strict=True
    ):
        cropped = min(n, max(1, round(n * target / length)))
        size = min(n, wanted) if n == wanted or abs(cropped - wanted) <= 1 else cropped
        if size != wanted and not (axis == "z" and n == 1):
            notes.append(
                f"the header asks for {wanted} pixels along {axis}; delivered uninterpolated: {size}"
            )
        sizes.append(size)
        lengths.append(length * size / n)
    x, y, z = sizes
    return (z, y, x), (lengths[0], lengths[1], lengths[2]), tuple(notes)


def _geometry(head: np.void, fov: Vector) -> tuple[Geometry, tuple[str, ...]]:
    notes = []
    axes = np.array([head["read_dir"], head["phase_dir"], head["slice_dir"]], np.float64)
    lengths = np.linalg.norm(axes, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        axes /= lengths[:, None]
    if not np.allclose(axes @ axes.T, np.eye(3), atol=1e-2):
        notes.append(
            "the acquisitions give no usable directions: read, phase, slice taken as patient x, y, z"
        )
        axes = np.eye(3)
    position, table = (np.array(head[name], np.float64) for name in ("position", "patient_table_position"))
    if not (np.isfinite(position).all() and np.isfinite(table).all()):
        notes.append("the acquisitions give no usable position: taken as the isocentre")
        position, table = np.zeros(3), np.zeros(3)
    read, phase, through = (_vector(axis) for axis in axes)
    return Geometry(fov, _vector(position), read, phase, through, _vector(table)), tuple(notes)


def _vector(values: NDArray[Any]) -> Vector:
    x, y, z = (float(v) for v in values)
    return x, y, z


def _stamp(head: np.void) -> Stamp:
    first, second, third = (int(v) for v in head["physiology_time_stamp"])
    return Stamp(
        measurement_uid=int(head["measurement_uid"]),
        acquisition_time_stamp=int(head["acquisition_time_stamp"]),
        physiology_time_stamp=(first, second, third),
        user_int=tuple(int(v) for v in head["user_int"]),
        user_float=tuple(float(v) for v in head["user_float"]),
    )


def _noise(measurement: Measurement, file: Hdf5Process) -> tuple[NDArray[np.complex128], float] | None:
    """Covariance of the noise scans, (coil, coil), and their dwell time in µs (0: not given)."""
    rows = np.flatnonzero(measurement.noise)
    if not rows.size:
        return None
    coils = int(measurement.heads["active_channels"][rows[0]])
    total, samples = np.zeros((coils, coils), np.complex128), 0
    for _, line in _lines(file, rows):
        total += line.astype(np.complex128) @ line.conj().T
        samples += line.shape[1]
    dwell = np.unique(measurement.heads["sample_time_us"][rows])
    return total / samples, float(dwell[0]) if dwell.size == 1 and dwell[0] > 0 else 0.0


def _noise_of(
    measurement: Measurement,
    head: np.void,
    noise: tuple[NDArray[np.complex128], float] | None,
    counts: NDArray[np.uint16],
) -> tuple[NDArray[np.complex64] | None, tuple[str, ...]]:
    """Noise covariance of one averaged sample of this image.

    Noise power goes with the receiver bandwidth: times dwell_noise / dwell_image, over the noise scan's
    relative bandwidth (Kellman and McVeigh, Magn Reson Med 54:1439, 2005).
    """
    if noise is None:
        return None, ("no noise scan: the channels are taken as equally noisy and uncorrelated",)
    covariance, dwell_noise = noise
    dwell = float(head["sample_time_us"])
    notes = []
    ratio = dwell_noise / dwell if dwell_noise > 0 and dwell > 0 else 1.0
    if not (dwell_noise > 0 and dwell > 0):
        notes.append("no dwell times: the noise scan is taken as of the image's bandwidth")
    bandwidth = measurement.header.relative_noise_bandwidth
    averages = float(np.median(counts[counts > 0]))
    scaled = covariance * ratio / (bandwidth if bandwidth and bandwidth > 0 else 1.0) / averages
    return scaled.astype(np.complex64), tuple(notes)


def _centre(counter: str, limit: Limit | None, size: int, values: NDArray[np.int64], notes: list[str]) -> int:
    """Counter value at the k-space centre."""
    if limit is None:
        notes.append(f"the header has no encodingLimits for {counter}: its centre taken as {size // 2}")
        return size // 2
    if limit.maximum == 0 and limit.center == 0 and values.max(initial=0) > 0:
        notes.append(f"encodingLimits of {counter} are all zero: its centre taken as {size // 2}")
        return size // 2
    return limit.center


def _centre_sample(heads: Heads, used: NDArray[np.bool_], nx: int, notes: list[str]) -> NDArray[np.int64]:
    centre = heads["center_sample"].astype(np.int64)
    samples = heads["number_of_samples"].astype(np.int64)
    if not centre[used].any() and (samples[used] > nx - nx // 2).any():
        notes.append("no acquisition has a center_sample: the echo taken as at the middle of each readout")
        return samples // 2
    return centre


def _check_trajectory(measurement: Measurement, described: EncodingHeader) -> None:
    if described.trajectory != "cartesian":
        raise InputError(
            f"{measurement.path}: the trajectory is {described.trajectory!r:.40}; only Cartesian data can be "
            "reconstructed yet: grid it first, or acquire Cartesian lines"
        )


def _check_channels(measurement: Measurement) -> None:
    heads = measurement.heads
    used = np.flatnonzero(measurement.imaging | measurement.calibration | measurement.noise)
    channels, samples = heads["active_channels"][used], heads["number_of_samples"][used]
    empty = used[(channels == 0) | (samples == 0)]
    if empty.size:
        raise InputError(
            f"{measurement.path}: {_name(heads, empty[0])} has no channels or no samples: file damaged"
        )
    first = channels[np.argmax(measurement.imaging[used])]
    other = used[channels != first]
    if other.size:
        raise InputError(
            f"{measurement.path}: {_name(heads, other[0])} has {heads['active_channels'][other[0]]} channels "
            f"where the images have {first}: all lines need the same channels"
        )


def _check_places(measurement: Measurement, grid: Grid, used: NDArray[np.bool_]) -> None:
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
                f"{measurement.path}: {_name(heads, row)} lies outside the encoded matrix along {axis} "
                f"(place {start[row]} to {stop[row] - 1} of 0 to {size - 1}; {outside.size} such lines): "
                "the header's encodedSpace or encodingLimits do not belong to these acquisitions"
            )
    empty = np.flatnonzero(used & (grid.stop <= grid.start))
    if empty.size:
        raise InputError(
            f"{measurement.path}: {_name(heads, empty[0])} discards all of its samples: header damaged"
        )


def _check_size(measurement: Measurement, grid: Grid, used: NDArray[np.bool_]) -> None:
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


def _index_keys(heads: Heads) -> NDArray[np.int64]:
    idx = heads["idx"]
    counters = [idx[name] for name in ("repetition", "contrast", "phase", "set", "slice")]
    return np.stack([heads["encoding_space_ref"], *counters], axis=1).astype(np.int64)


def _key(index: Index) -> tuple[int, ...]:
    return index.encoding, index.repetition, index.contrast, index.phase, index.set, index.slice


def _is_set(flags: NDArray[np.uint64], bit: int) -> NDArray[np.bool_]:
    return (flags & np.uint64(1 << (bit - 1))) != 0


def _name(heads: Heads, row: int | np.intp) -> str:
    return f"acquisition {int(row)} (scan counter {int(heads['scan_counter'][row])})"
