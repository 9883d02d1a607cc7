"""Where every line of an ISMRMRD measurement lies, by the headers.

Nothing here touches a sample. A line's place is `ky + N_y // 2 - center` (encodingLimits), a sample's
`j - center_sample + N_x // 2` after `discard_pre` and `discard_post`; a line flagged REVERSE was acquired
from the far end of the readout, its `center_sample` counts from the near end like every other line's
(scanners copy one value to both polarities).
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mri_qpan.errors import InputError
from mri_qpan.recon.kspace import Geometry, Index, Stamp, Vector
from mri_qpan.recon.readers.mrd_checks import check_bands, check_channels, check_places, check_size
from mri_qpan.recon.readers.mrd_header import Limit
from mri_qpan.recon.readers.mrd_kinds import Heads, Measurement, Rows, group, index_keys, key_of, unused
from mri_qpan.recon.readers.mrd_noise import noise_notes, noise_scale
from mri_qpan.recon.readers.mrd_space import geometry_of, recon_space, stamp_of


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
        keys = index_keys(measurement.heads[rows])
        own = (keys == key_of(index)).all(axis=1)
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
        return recon_space(described, self.grids[index.encoding].shape)


def plan(measurement: Measurement) -> Plan:
    """Group and place the lines of a measurement; raises `InputError` if that is impossible."""
    images = group(measurement)
    check_bands(measurement)
    check_channels(measurement)
    grids = {encoding: _lay_out(measurement, encoding) for encoding in sorted({i.encoding for i in images})}
    return Plan(measurement, images, grids)


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
