"""Where the images of an ISMRMRD measurement lie: their matrix, field of view, place and time."""

import numpy as np

from mri_qpan.recon.kspace import Geometry, Stamp, Vector, as_vector
from mri_qpan.recon.readers.mrd_header import EncodingHeader


def recon_space(
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
    read, phase, through = (as_vector(axis) for axis in axes)
    return Geometry(fov, as_vector(position), read, phase, through, as_vector(table)), tuple(notes)
