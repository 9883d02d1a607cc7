"""What the headers of an ISMRMRD measurement say: kinds of acquisitions, images, every line's place.

Nothing here touches a sample. A line's place is `ky + N_y // 2 - center` (encodingLimits), a sample's
`j - center_sample + N_x // 2` after `discard_pre` and `discard_post`; a line flagged REVERSE was acquired
from the far end of the readout, its `center_sample` counts from the near end like every other line's
(scanners copy one value to both polarities).
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ismrmrd import constants
from numpy.typing import NDArray

from mri_qpan.errors import InputError
from mri_qpan.recon.kspace import Geometry, Index, Stamp, Vector
from mri_qpan.recon.readers.mrd_checks import check_bands, check_channels, check_places, check_size
from mri_qpan.recon.readers.mrd_header import EncodingHeader, Limit, MrdHeader, parse_header
from mri_qpan.recon.readers.mrd_noise import noise_notes, noise_scale

Rows = NDArray[np.intp]
Heads = NDArray[np.void]

PHASE_CORRECTION = "phase correction"
NON_IMAGING = {
    "navigator": constants.ACQ_IS_NAVIGATION_DATA,
    PHASE_CORRECTION: constants.ACQ_IS_PHASECORR_DATA,
    "HP feedback": constants.ACQ_IS_HPFEEDBACK_DATA,
    "dummy": constants.ACQ_IS_DUMMYSCAN_DATA,
    "real-time feedback": constants.ACQ_IS_RTFEEDBACK_DATA,
    "surface coil correction": constants.ACQ_IS_SURFACECOILCORRECTIONSCAN_DATA,
    "phase stabilisation reference": constants.ACQ_IS_PHASE_STABILIZATION_REFERENCE,
    "phase stabilisation": constants.ACQ_IS_PHASE_STABILIZATION,
}


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
    reverse
        True for the acquisitions whose readout runs backwards.
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
    reverse: NDArray[np.bool_]
    skipped: dict[str, int]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Grid:
    """Where the lines of one encoding lie.

    Attributes
    ----------
    shape
        Encoded matrix (z, y, x).
    z, y
        Place of every acquisition.
    start, stop
        Places along x of every acquisition's first sample and behind its last one.
    notes
        What was assumed, in words.
    """

    shape: tuple[int, int, int]
    z: NDArray[np.int64]
    y: NDArray[np.int64]
    start: NDArray[np.int64]
    stop: NDArray[np.int64]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """The images of a measurement and where their samples go.

    Attributes
    ----------
    measurement
        What is planned.
    images
        The imaging acquisitions of every image, in the order of `Index`.
    grids
        The grid of every encoding that has images.
    """

    measurement: Measurement
    images: dict[Index, Rows]
    grids: dict[int, Grid]

    def counts(self, index: Index, rows: Rows) -> NDArray[np.uint16]:
        """Return how often acquisitions sample the grid of an image, (z, y, x)."""
        grid = self.grids[index.encoding]
        counts = np.zeros(grid.shape, np.uint16)
        for row in rows:
            counts[grid.z[row], grid.y[row], grid.start[row] : grid.stop[row]] += 1
        return counts

    def calibration_rows(self, index: Index) -> Rows:
        """Return the calibration lines for an image: its own, or those of its slice.

        One reference scan often serves a whole series. None where every calibration line is also an imaging
        one: then they are part of the data already.
        """
        measurement = self.measurement
        rows = np.flatnonzero(measurement.calibration)
        apart = ~measurement.imaging[rows]
        if not apart.any():
            return rows[:0]
        keys = _index_keys(measurement.heads[rows])
        own = (keys == _key(index)).all(axis=1)
        # The imaging lines of later repetitions keep their flag where only the first has the lines between.
        if own.any() and ((own & apart).any() or self._is_dense(index, rows[own])):
            return rows[own]
        same_slice = (keys[:, 0] == index.encoding) & (keys[:, -1] == index.slice)
        for served in (same_slice & apart, same_slice):
            if served.any():
                return rows[(keys == keys[served][0]).all(axis=1)]
        return rows[:0]

    def _is_dense(self, index: Index, rows: Rows) -> bool:
        """Return whether lines leave none out between the first and the last."""
        grid = self.grids[index.encoding]
        places = np.unique(np.stack([grid.z[rows], grid.y[rows]]), axis=1)
        return places.shape[1] == math.prod(int(np.ptp(place)) + 1 for place in places)

    def central_head(self, index: Index) -> np.void:
        """Return the header of the acquisition nearest the k-space centre."""
        rows, grid = self.images[index], self.grids[index.encoding]
        distance = abs(grid.y[rows] - grid.shape[1] // 2) + abs(grid.z[rows] - grid.shape[0] // 2)
        return self.measurement.heads[rows[np.argmin(distance)]]

    def stamp(self, index: Index) -> Stamp:
        """Return what an image header copies from the acquisition nearest the k-space centre."""
        return stamp_of(self.central_head(index))

    def recon_shape(self, index: Index) -> tuple[int, int, int]:
        """Return the matrix (z, y, x) to deliver."""
        return self._recon_space(index)[0]

    def geometry(self, index: Index) -> Geometry:
        """Return place and size of the image to deliver."""
        return geometry_of(self.central_head(index), self._recon_space(index)[1])[0]

    def noise_scale(self, index: Index) -> float:
        """Return the noise power of an image's samples over the noise scan's (`mrd_noise.noise_scale`)."""
        return noise_scale(self.measurement, self.central_head(index))

    def notes(self, index: Index) -> tuple[str, ...]:
        """Return what was assumed for an image, in words."""
        measurement = self.measurement
        notes = [*measurement.notes, *self.grids[index.encoding].notes, *self._recon_space(index)[2]]
        notes += unused(measurement.skipped)
        notes += self._repeated(index)
        notes += geometry_of(self.central_head(index), self._recon_space(index)[1])[1]
        notes += noise_notes(measurement, self.central_head(index))
        separate = (measurement.calibration & ~measurement.imaging).any()
        if separate and not self.calibration_rows(index).size:
            notes.append("the calibration lines are of other slices or encodings than the image: not used")
        return tuple(notes)

    def _repeated(self, index: Index) -> list[str]:
        """Say whether lines were averaged that no counter calls averages of each other."""
        rows, grid = self.images[index], self.grids[index.encoding]
        average = self.measurement.heads["idx"]["average"][rows]
        places = np.stack([average, grid.z[rows], grid.y[rows], grid.start[rows]])
        repeated = rows.size - np.unique(places, axis=1).shape[1]
        if not repeated:
            return []
        return [
            f"{repeated} lines of an image repeat others of the same counters: averaged (if a counter of the "
            "user's tells them apart, reconstruct them apart)"
        ]

    def _recon_space(self, index: Index) -> tuple[tuple[int, int, int], Vector, tuple[str, ...]]:
        described = self.measurement.header.encodings[index.encoding]
        return _recon_space(described, self.grids[index.encoding].shape)


def classify(
    path: Path, names: list[str], name: str, xml: str, heads: Heads, waveforms: int = 0
) -> Measurement:
    """Sort acquisitions by their flags; raises `InputError` if the header (XML) is of no use.

    Parameters
    ----------
    path, names, name
        The file, its datasets, and the one that is read.
    xml, heads
        The ISMRMRD header, and the headers of all acquisitions.
    waveforms
        How many waveforms lie beside them.
    """
    parsed = parse_header(xml, str(path))
    flags = heads["flags"]
    noise = _is_set(flags, constants.ACQ_IS_NOISE_MEASUREMENT)
    skipped = np.zeros(len(heads), bool)
    counts = {}
    for kind, bit in NON_IMAGING.items():
        found = _is_set(flags, bit) & ~noise
        skipped |= found
        if found.any():
            counts[kind] = int(found.sum())
    notes = []
    if len(names) > 1:
        notes.append(f"several datasets ({', '.join(names)}): {name!r} was read")
    if waveforms:
        notes.append(f"{waveforms} waveforms (of physiological signals) were not used")
    both = _is_set(flags, constants.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING)
    calibration = (both | _is_set(flags, constants.ACQ_IS_PARALLEL_CALIBRATION)) & ~noise & ~skipped
    return Measurement(
        path=path,
        dataset=name,
        xml=xml,
        header=parsed,
        heads=heads,
        noise=noise,
        calibration=calibration,
        imaging=(both | ~calibration) & ~noise & ~skipped,
        reverse=_is_set(flags, constants.ACQ_IS_REVERSE),
        skipped=counts,
        notes=(*notes, *parsed.notes),
    )


def unused(skipped: dict[str, int]) -> list[str]:
    """Say which kinds of acquisitions no image uses, and what that may do to it."""
    if not skipped:
        return []
    words = f"not used: {', '.join(f'{count} {kind}' for kind, count in skipped.items())} acquisitions"
    ghost = "; readouts of both directions may leave a ghost" if PHASE_CORRECTION in skipped else ""
    return [words + ghost]


def plan(measurement: Measurement) -> Plan:
    """Group and place the lines of a measurement; raises `InputError` if that is impossible."""
    images = group(measurement)
    check_bands(measurement)
    check_channels(measurement)
    grids = {encoding: _lay_out(measurement, encoding) for encoding in sorted({i.encoding for i in images})}
    return Plan(measurement, images, grids)


def group(measurement: Measurement) -> dict[Index, Rows]:
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


def _lay_out(measurement: Measurement, encoding: int) -> Grid:
    """Place every imaging and calibration line of an encoding; raises `InputError` where one does not fit."""
    encodings = measurement.header.encodings
    if encoding >= len(encodings):
        raise InputError(
            f"{measurement.path}: acquisitions refer to encoding {encoding} where the header has "
            f"{len(encodings)}: header and acquisitions do not belong together"
        )
    described = encodings[encoding]
    heads = measurement.heads
    used = (measurement.imaging | measurement.calibration) & (heads["encoding_space_ref"] == encoding)
    notes: list[str] = []
    nx, ny, nz = described.encoded.matrix
    ky = heads["idx"]["kspace_encode_step_1"].astype(np.int64)
    kz = heads["idx"]["kspace_encode_step_2"].astype(np.int64)
    if nz > 1 and not kz[used].any():
        notes.append(f"the header says {nz} partitions but no line has a second phase encoding: read as 2-D")
        nz = 1
    shift_y = _shift("kspace_encode_step_1", described.step_1, ny, ky[used], notes)
    shift_z = _shift("kspace_encode_step_2", described.step_2, nz, kz[used], notes)
    centre = _centre_sample(heads, used, nx, notes)
    samples = heads["number_of_samples"].astype(np.int64)
    reverse = measurement.reverse
    pre, post = heads["discard_pre"].astype(np.int64), heads["discard_post"].astype(np.int64)
    grid = Grid(
        shape=(nz, ny, nx),
        z=kz - shift_z,
        y=ky - shift_y,
        start=nx // 2 - centre + np.where(reverse, post, pre),
        stop=nx // 2 - centre + samples - np.where(reverse, pre, post),
        notes=tuple(notes),
    )
    check_places(measurement, grid, used)
    check_size(measurement, grid, used)
    return grid


def _shift(counter: str, limit: Limit | None, size: int, values: NDArray[np.int64], notes: list[str]) -> int:
    """Counter value at place 0 of the matrix."""
    if size == 1 and not values.any():
        return 0
    if limit is None:
        notes.append(f"the header has no encodingLimits for {counter}: its centre taken as {size // 2}")
        return 0
    if limit.maximum == 0 and limit.center == 0 and values.max(initial=0) > 0:
        notes.append(f"encodingLimits of {counter} are all zero: its centre taken as {size // 2}")
        return 0
    return limit.center - size // 2


def _centre_sample(heads: Heads, used: NDArray[np.bool_], nx: int, notes: list[str]) -> NDArray[np.int64]:
    centre = heads["center_sample"].astype(np.int64)
    samples = heads["number_of_samples"].astype(np.int64)
    if not centre[used].any() and (samples[used] > nx - nx // 2).any():
        notes.append("no acquisition has a center_sample: the echo taken as at the middle of each readout")
        return samples // 2
    return centre


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
    if shape[0] == 1 < encoded.matrix[2]:
        # Slices that the header counts as partitions: its pixel is what one of them has.
        thickness = fov_encoded[2] / encoded.matrix[2]
        notes.append(f"slices taken as {thickness:g} mm thick, the header's field of view by its partitions")
        fov_encoded = fov_recon = (*fov_encoded[:2], thickness)
    elif shape[0] == 1 == recon.matrix[2]:
        # However wide a slice was excited, it has the thickness that was asked for.
        fov_encoded = (*fov_encoded[:2], fov_recon[2])
    for axis, n, wanted, length, target in zip(
        "xyz", shape[::-1], recon.matrix, fov_encoded, fov_recon, strict=True
    ):
        size = uninterpolated(n, length, wanted, target)
        if not (axis == "z" and n == 1):
            notes += asked_for(wanted, size, axis)
        sizes.append(size)
        lengths.append(length * size / n)
    x, y, z = sizes
    return (z, y, x), (lengths[0], lengths[1], lengths[2]), tuple(notes)


def uninterpolated(n: int, length: float, wanted: int, target: float) -> int:
    """Return how many of `n` pixels over `length` (mm) to deliver of `wanted` ones over `target`."""
    cropped = min(n, max(1, round(n * target / length)))
    return min(n, wanted) if abs(cropped - wanted) <= 1 else cropped


def asked_for(wanted: int, size: int, axis: str) -> list[str]:
    """Say where `uninterpolated` is not what the header asks for."""
    if size == wanted:
        return []
    return [f"the header asks for {wanted} pixels along {axis}; delivered uninterpolated: {size}"]


def stamp_of(head: np.void) -> Stamp:
    """Return what an image header copies from an acquisition's."""
    first, second, third = (int(v) for v in head["physiology_time_stamp"])
    return Stamp(
        measurement_uid=int(head["measurement_uid"]),
        acquisition_time_stamp=int(head["acquisition_time_stamp"]),
        physiology_time_stamp=(first, second, third),
        user_int=tuple(int(v) for v in head["user_int"]),
        user_float=tuple(float(v) for v in head["user_float"]),
    )


def geometry_of(head: np.void, fov: Vector) -> tuple[Geometry, tuple[str, ...]]:
    """Return where an image of an acquisition's slice lies, and what was assumed."""
    notes = []
    axes = np.array([head["read_dir"], head["phase_dir"], head["slice_dir"]], np.float64)
    lengths = np.linalg.norm(axes, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        axes /= lengths[:, None]
    (lacking,) = np.nonzero(lengths == 0)
    if lacking.size == 1:
        missing = int(lacking[0])
        names = ("read", "phase", "slice")
        first, second = (missing + 1) % 3, (missing + 2) % 3
        axes[missing] = np.cross(axes[first], axes[second])
        notes.append(
            f"the acquisitions give no {names[missing]} direction: taken as {names[first]} x {names[second]}"
        )
    if not np.allclose(axes @ axes.T, np.eye(3), atol=1e-2):
        notes = ["the acquisitions give no usable directions: read, phase, slice taken as patient x, y, z"]
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


def _index_keys(heads: Heads) -> NDArray[np.int64]:
    idx = heads["idx"]
    counters = [idx[name] for name in ("repetition", "contrast", "phase", "set", "slice")]
    return np.stack([heads["encoding_space_ref"], *counters], axis=1).astype(np.int64)


def _key(index: Index) -> tuple[int, ...]:
    return index.encoding, index.repetition, index.contrast, index.phase, index.set, index.slice


def _is_set(flags: NDArray[np.uint64], bit: int) -> NDArray[np.bool_]:
    return (flags & np.uint64(1 << (bit - 1))) != 0
