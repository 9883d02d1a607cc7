"""ISMRMRD measurements along a trajectory (radial, spiral): images and the place of every sample."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mri_qpan.errors import InputError
from mri_qpan.recon.kspace import Geometry, Index, Stamp, Vector
from mri_qpan.recon.readers.array_trajectory import in_field_of_view
from mri_qpan.recon.readers.mrd_checks import SMALLEST_RATIO, check_bands, check_channels, name_of
from mri_qpan.recon.readers.mrd_header import EncodingHeader
from mri_qpan.recon.readers.mrd_kinds import Measurement, Rows, group, unused
from mri_qpan.recon.readers.mrd_noise import noise_notes, noise_scale
from mri_qpan.recon.readers.mrd_space import asked_for, geometry_of, stamp_of, uninterpolated

CARTESIAN = "cartesian"

LARGER, EQUAL = 1.2, 0.05
"""Of `unit_notes`: how much larger than the delivered field of view, and how nearly of one reach."""


def is_along_trajectory(measurement: Measurement) -> bool:
    """Return whether the imaging acquisitions lie along a trajectory, by the header of their encoding."""
    used = np.unique(measurement.heads["encoding_space_ref"][measurement.imaging])
    encodings = measurement.header.encodings
    return any(n < len(encodings) and encodings[n].trajectory != CARTESIAN for n in used)


@dataclass(frozen=True)
class TrajectoryPlan:
    """The images of a measurement along a trajectory.

    Attributes
    ----------
    measurement
        What is planned.
    images
        The imaging acquisitions of every image, in the order of `Index`.
    recon_shape
        Matrix (z, y, x) to deliver; z is 1 of slices.
    deep
        Whether images are volumes; a volume may have one plane to deliver.
    fov
        Its field of view (x, y, z) in mm.
    asked
        Pixels along z that the header asks for.
    encoded, ratio
        Encoded matrix, and the encoded field of view over the one delivered, both (z, y, x).
    centre
        Of a volume whose trajectory has but kx and ky, the counter of the partition through the centre; else
        None.
    """

    measurement: Measurement
    images: dict[Index, Rows]
    recon_shape: tuple[int, int, int]
    deep: bool
    fov: Vector
    asked: int
    encoded: NDArray[np.float64]
    ratio: NDArray[np.float64]
    centre: int | None = None

    def of_stack(self) -> tuple[TrajectoryPlan, list[str]]:
        """Return the plan of a stack, whose planes are the encoded ones less the oversampling, and notes.

        The transform along z is one on a grid: it crops, and interpolates nothing.
        """
        depth, (x, y, z) = int(self.encoded[0]), self.fov
        length = float(self.ratio[0]) * z
        planes = uninterpolated(depth, length, self.asked, z)
        shape, fov = (planes, *self.recon_shape[1:]), (x, y, length * planes / depth)
        return replace(self, recon_shape=shape, fov=fov), asked_for(self.asked, planes, "z")

    def kept(self, row: int | np.intp) -> slice:
        """Return the samples of an acquisition that are not to be discarded."""
        head = self.measurement.heads[row]
        return slice(int(head["discard_pre"]), int(head["number_of_samples"]) - int(head["discard_post"]))

    def coordinates(self, row: int | np.intp, path: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return an acquisition's trajectory as (sample, 3), of slices (sample, 2), x last, in its unit."""
        heads = self.measurement.heads
        dimensions, samples = int(heads["trajectory_dimensions"][row]), int(heads["number_of_samples"][row])
        if path.size != dimensions * samples:
            raise InputError(
                f"{self.measurement.path}: the trajectory of {name_of(heads, row)} has {path.size} numbers "
                f"where its header says {samples} samples of {dimensions}: the file is damaged or truncated"
            )
        if not np.isfinite(path).all():
            raise InputError(
                f"{self.measurement.path}: the trajectory of {name_of(heads, row)} is not finite"
            )
        wanted = 3 if self.deep and self.centre is None else 2
        return np.ascontiguousarray(path.reshape(samples, dimensions)[:, wanted - 1 :: -1])

    def in_encoded_field_of_view(
        self, coord: list[NDArray[np.float32]], rows: Rows
    ) -> list[NDArray[np.float32]]:
        """Return acquisitions' `coordinates` in cycles over the encoded field of view.

        The format does not settle their unit: up to 0.5 they are cycles a pixel, else cycles over the field
        of view, both as encoded. Of a volume they are (sample, 3), kz from the partitions' counter where the
        trajectory has none.
        """
        encoded = self.encoded[-coord[0].shape[1] :]
        together = in_field_of_view(np.concatenate(coord), encoded, self.measurement.path)
        found = np.split(together, np.cumsum([len(path) for path in coord])[:-1])
        if self.centre is None:
            return found
        counters = self.measurement.heads["idx"]["kspace_encode_step_2"][rows].astype(int) - self.centre
        return [np.insert(path, 0, kz, axis=1) for path, kz in zip(found, counters, strict=True)]

    def inside(self, coord: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return which coordinates (sample, n), over the field of view delivered, its matrix resolves.

        The non-uniform DFT is periodic: any others would come out as lower frequencies.
        """
        half = np.array(self.recon_shape[-coord.shape[1] :]) / 2
        return np.asarray((np.abs(coord) <= half).all(axis=1))

    def unit_notes(self, coord: NDArray[np.float32]) -> list[str]:
        """Say where coordinates (sample, n), over the encoded field of view, end where the image's do.

        They may then be cycles over the field of view to deliver, and the image of half the resolution wrong.
        """
        ratio, reach = float(self.ratio[-1]), float(np.abs(coord[:, -1]).max())
        half = self.recon_shape[-1] / 2
        if ratio < LARGER or not (1 - EQUAL) * half <= reach <= (1 + EQUAL) * half:
            return []
        return [
            f"the trajectory reaches {reach:.3g} of {ratio * half:g} cycles over the encoded field of view,"
            f" as many as the image has over its own, {half:g}: if that was meant, its unit is taken wrongly"
        ]

    def noise_scale(self, index: Index) -> float:
        """Return the noise power of an image's samples over the noise scan's (`mrd_noise.noise_scale`)."""
        return noise_scale(self.measurement, self._head(index))

    def geometry(self, index: Index) -> Geometry:
        """Return place and size of the image to deliver."""
        return geometry_of(self._head(index), self.fov)[0]

    def stamp(self, index: Index) -> Stamp:
        """Return what an image header copies from an acquisition's."""
        return stamp_of(self._head(index))

    def notes(self, index: Index) -> tuple[str, ...]:
        """Return what was assumed for an image, in words."""
        measurement = self.measurement
        notes = [*measurement.notes, *geometry_of(self._head(index), self.fov)[1]]
        heads = measurement.heads[self.images[index]]
        notes.append(
            f"{len(heads)} readouts along a trajectory as the file has it: gradient delays uncorrected"
        )
        if not self.deep and (heads["trajectory_dimensions"] > 2).any():
            notes.append("only kx and ky of the trajectory were used")
        if not self.deep and self.encoded[0] > 1:
            notes.append(
                f"the header says {self.encoded[0]:g} partitions but all readouts are of one: read as 2-D, "
                f"{self.fov[2]:g} mm thick as reconSpace has them"
            )
        notes += unused(measurement.skipped)
        notes += noise_notes(measurement, self._head(index))
        return tuple(notes)

    def _head(self, index: Index) -> np.void:
        rows = self.images[index]
        return self.measurement.heads[rows[len(rows) // 2]]


def plan_trajectory(measurement: Measurement) -> TrajectoryPlan:
    """Group the readouts of a measurement along a trajectory; raises `InputError` if that is impossible."""
    path, heads = measurement.path, measurement.heads
    images = group(measurement)
    check_bands(measurement)
    check_channels(measurement)
    if len({index.encoding for index in images}) > 1:
        raise InputError(f"{path}: several encodings, one of them not Cartesian: reconstruct them apart")
    described = measurement.header.encodings[next(iter(images)).encoding]
    used = np.concatenate(list(images.values()))
    lacking = used[heads["trajectory_dimensions"][used] < 2]
    if lacking.size and described.trajectory == "epi":
        raise InputError(
            f"{path}: echo-planar readouts need their ramps regridded and their ghosts corrected first, "
            "which is not done here; call the trajectory 'cartesian' where that was done"
        )
    if lacking.size:
        raise InputError(
            f"{path}: the trajectory is {described.trajectory!r:.40} and {name_of(heads, lacking[0])} has no "
            "coordinates of its samples: add them to the file"
        )
    discarded = heads["discard_pre"][used].astype(int) + heads["discard_post"][used]
    empty = used[discarded >= heads["number_of_samples"][used]]
    if empty.size:
        raise InputError(f"{path}: {name_of(heads, empty[0])} discards all of its samples: header damaged")
    encoded, recon = described.encoded, described.recon
    if recon.fov is not None and encoded.fov is None:
        raise InputError(f"{path}: the header gives reconSpace a field of view and encodedSpace none: add it")
    fov_encoded = encoded.fov or tuple(float(n) for n in encoded.matrix)
    deep, centre = _third_direction(measurement, described, used)
    fov = recon.fov or fov_encoded
    nx, ny, nz = recon.matrix
    if not deep:
        fov = (*fov[:2], fov[2] / nz)
    shape = (min(nz, described.encoded.matrix[2]) if deep else 1, ny, nx)
    for rows in images.values():
        samples = int(heads["number_of_samples"][rows].sum())
        if samples < SMALLEST_RATIO * math.prod(shape):
            words = " x ".join(map(str, shape))
            raise InputError(
                f"{path}: an image of {samples} samples and a matrix of {words} (z, y, x): header and"
                " acquisitions do not belong together"
            )
    return TrajectoryPlan(
        measurement=measurement,
        images=images,
        recon_shape=shape,
        deep=deep,
        fov=(fov[0], fov[1], fov[2]),
        asked=nz,
        encoded=np.array(encoded.matrix[::-1], np.float64),
        ratio=np.array([e / f for e, f in zip(fov_encoded[::-1], fov[::-1], strict=True)]),
        centre=centre,
    )


def _third_direction(
    measurement: Measurement, described: EncodingHeader, used: Rows
) -> tuple[bool, int | None]:
    """Return whether images are volumes, and `TrajectoryPlan.centre`; raises `InputError` if none can be."""
    path, heads = measurement.path, measurement.heads
    depth = described.encoded.matrix[2]
    partitions = heads["idx"]["kspace_encode_step_2"][used].astype(int)
    three = heads["trajectory_dimensions"][used] > 2
    if depth == 1:
        if np.ptp(partitions) > 0:
            raise InputError(
                f"{path}: acquisitions of {np.unique(partitions).size} partitions where encodedSpace has a"
                " single one: header and acquisitions do not belong together"
            )
        return False, None
    if three.all():
        return True, None
    if three.any():
        raise InputError(
            f"{path}: some trajectories are 2-D, others 3-D: add the coordinates that are missing"
        )
    if np.ptp(partitions) == 0:
        return False, None
    centre = depth // 2 if described.step_2 is None else described.step_2.center
    outside = used[(partitions - centre < -(depth // 2)) | (partitions - centre >= depth - depth // 2)]
    if outside.size:
        raise InputError(
            f"{path}: {name_of(heads, outside[0])} lies outside the encoded matrix along z: the header's"
            " encodedSpace or encodingLimits do not belong to these acquisitions"
        )
    return True, centre
