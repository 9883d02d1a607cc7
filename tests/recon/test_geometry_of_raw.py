"""From raw lines to files: a point of the patient stands at its coordinate in every format.

The raw samples are Fourier integrals over points in patient coordinates, summed as the physics has it; what
the files say of their voxels' places is read by other packages. Nothing of ours says where a point is.
"""

from pathlib import Path

import ismrmrd
import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from mrd_files import Acquisition, header_xml, limit_xml, line, write
from numpy.typing import NDArray
from scipy.spatial import KDTree
from scipy.spatial.transform import Rotation

from mri_qpan.bart import read_cfl
from mri_qpan.methods import get_method
from mri_qpan.recon.job import Job, reconstruct_file
from mri_qpan.recon.writers import find_formats

Places = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Points of the patient (point, LPS) in mm, and what is there."""

FORMATS = ("ismrmrd", "nifti", "dicom", "cfl", "npy")
CENTRE = np.array([12.5, -40.0, 33.75])
READ, PHASE, THROUGH = Rotation.from_rotvec([0.4, -0.7, 1.1]).as_matrix().T
PIXEL = 1.5, 2.0, 4.0
"""Along read, phase and slice, in mm."""


def phantom(nz: int, ny: int, nx: int) -> NDArray[np.float64]:
    """A slope along each axis, and a mark of its own in each corner."""
    z, y, x = np.meshgrid(np.arange(nz), np.arange(ny), np.arange(nx), indexing="ij")
    weights = 1 + 0.31 * x / nx + 0.17 * y / ny + 0.07 * z / nz
    for mark, corner in enumerate(np.ndindex(2, 2, 2)):
        weights[tuple(-end for end in corner)] = 2 + 0.5 * mark
    return weights


def waves(places: NDArray[np.float64], count: int, fov: float) -> NDArray[np.complex128]:
    """exp(-2 pi i k u) for k = (-count // 2 …) / fov and points at u mm, (k, point)."""
    steps = np.arange(count) - count // 2
    return np.exp(-2j * np.pi * np.outer(steps, places) / fov) / np.sqrt(count)


def offsets(count: int, pixel: float) -> NDArray[np.float64]:
    """Where the voxels of an axis lie about the centre of the field of view."""
    return (np.arange(count) - count // 2) * pixel


def truth(weights: NDArray[np.float64], slices: NDArray[np.float64]) -> Places:
    _, ny, nx = weights.shape
    w, v, u = np.meshgrid(slices, offsets(ny, PIXEL[1]), offsets(nx, PIXEL[0]), indexing="ij")
    points = CENTRE + w[..., None] * THROUGH + v[..., None] * PHASE + u[..., None] * READ
    return points.reshape(-1, 3), weights.ravel()


def multislice(path: Path, reverse: bool, centre: int) -> Places:
    """Interleaved slices with gaps, both directions oversampled, lines in no order."""
    nz, ny, nx, wide, high = 5, 14, 22, 44, 18
    weights, through = phantom(nz, ny, nx), offsets(nz, PIXEL[2] + 1.5)
    acquisitions: list[Acquisition] = []
    for s in (0, 2, 4, 1, 3):
        kx = waves(offsets(nx, PIXEL[0]), wide, wide * PIXEL[0])
        ky = waves(offsets(ny, PIXEL[1]), high, high * PIXEL[1])
        samples = ky @ weights[s] @ kx.T
        for y in np.random.default_rng(s).permutation(high):
            back = reverse and y % 2 == 1
            one = samples[y, ::-1] if back else samples[y]
            flags = [ismrmrd.ACQ_IS_REVERSE] if back else []
            where = CENTRE + through[s] * THROUGH
            acquisitions.append(
                line(
                    one[None],
                    ky=y + centre - high // 2,
                    slice=s,
                    flags=flags,
                    position=where,
                    directions=(READ, PHASE, THROUGH),
                )
            )
    xml = header_xml(
        (wide, high, 1),
        (nx, ny, 1),
        fov=(wide * PIXEL[0], high * PIXEL[1], PIXEL[2]),
        recon_fov=(nx * PIXEL[0], ny * PIXEL[1], PIXEL[2]),
        limits=limit_xml("kspace_encoding_step_1", centre + high // 2, centre),
    )
    write(path, xml, acquisitions)
    return truth(weights, through)


def slab(path: Path) -> Places:
    """One 3-D slab, oversampled in all directions."""
    (nz, ny, nx), (deep, high, wide) = (5, 9, 12), (8, 12, 24)
    weights, through = phantom(nz, ny, nx), offsets(nz, PIXEL[2])
    kz = waves(through, deep, deep * PIXEL[2])
    ky = waves(offsets(ny, PIXEL[1]), high, high * PIXEL[1])
    kx = waves(offsets(nx, PIXEL[0]), wide, wide * PIXEL[0])
    samples = np.einsum("ap,bq,cr,pqr->abc", kz, ky, kx, weights)
    acquisitions = [
        line(samples[None, z, y], ky=y, kz=z, position=CENTRE, directions=(READ, PHASE, THROUGH))
        for z in range(deep)
        for y in range(high)
    ]
    xml = header_xml(
        (wide, high, deep),
        (nx, ny, nz),
        fov=(wide * PIXEL[0], high * PIXEL[1], deep * PIXEL[2]),
        recon_fov=(nx * PIXEL[0], ny * PIXEL[1], nz * PIXEL[2]),
    )
    write(path, xml, acquisitions)
    return truth(weights, through)


@pytest.fixture(params=["slices", "reversed readouts, centre moved", "slab"])
def case(request: pytest.FixtureRequest, path: Path) -> Places:
    if request.param == "slab":
        return slab(path)
    return multislice(path, *((False, 9) if request.param == "slices" else (True, 11)))


def test_every_point_is_at_its_place_in_every_format(case: Places, path: Path, tmp_path: Path) -> None:
    job = Job(get_method("zero-filled"), torch.device("cpu"), formats=find_formats(FORMATS))
    record = reconstruct_file(path, tmp_path, job)
    assert not [note for note in record["notes"] if note.startswith("no ")]
    stem = tmp_path / "scan_zero-filled"
    images = ismrmrd_images(stem.with_suffix(".h5"))
    found = {
        "ismrmrd": ismrmrd_places(images),
        "nifti": nifti_places(stem.with_suffix(".nii.gz")),
        "dicom": dicom_places(tmp_path),
    }
    points, weights = case
    for name, (places, values) in found.items():
        assert len(places) == len(points), name
        distance, nearest = KDTree(places).query(points)
        assert distance.max() < 0.01, name
        scaled = values[nearest] * weights.max() / values.max()
        wrong = abs(scaled - weights) > 2e-3
        assert not wrong.any(), f"{name}: {wrong.sum()} of {len(points)} points are elsewhere"
    pixels = np.stack([image.data[0] for image in images])
    np.testing.assert_allclose(abs(np.load(stem.with_suffix(".npy"))), pixels, rtol=1e-5)
    np.testing.assert_allclose(abs(read_cfl(stem)).reshape(pixels.shape), pixels, rtol=1e-5)


def ismrmrd_images(path: Path) -> list[ismrmrd.Image]:
    with ismrmrd.Dataset(str(path), "dataset", mode="r") as dataset:
        return [dataset.read_image("image_1", i) for i in range(dataset.number_of_images("image_1"))]


def ismrmrd_places(images: list[ismrmrd.Image]) -> Places:
    points, values = [], []
    for image in images:
        size = np.array(image.matrix_size)
        pixel = np.array(image.field_of_view) / size
        axes = np.array([image.read_dir, image.phase_dir, image.slice_dir])
        z, y, x = np.indices(image.data.shape[1:]).reshape(3, -1)
        offset = (np.stack([x, y, z], axis=1) - size // 2) * pixel
        points.append(np.array(image.position) + offset @ axes)
        values.append(image.data[0].ravel())
    return np.concatenate(points), np.concatenate(values)


def nifti_places(path: Path) -> Places:
    nifti = nib.load(path)
    pixels = nifti.get_fdata()
    points = nib.affines.apply_affine(nifti.affine, np.indices(pixels.shape).reshape(3, -1).T)
    return points * [-1, -1, 1], pixels.ravel()


def dicom_places(folder: Path) -> Places:
    """Of every file's pixels, as DICOM (PS3.3 C.7.6.2.1.1) has them."""
    points, values = [], []
    for path in sorted(folder.glob("*.dcm")):
        file = pydicom.dcmread(path)
        row, column = np.array(file.ImageOrientationPatient, float).reshape(2, 3)
        between_rows, between_columns = (float(v) for v in file.PixelSpacing)
        down, across = np.indices(file.pixel_array.shape).reshape(2, -1, 1)
        first = np.array(file.ImagePositionPatient, float)
        points.append(first + across * between_columns * row + down * between_rows * column)
        values.append(file.pixel_array.ravel().astype(float))
    return np.concatenate(points), np.concatenate(values)
