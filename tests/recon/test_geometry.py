"""One geometry in every format: a mark in a known voxel has one place in the patient."""

from pathlib import Path

import ismrmrd
import nibabel as nib
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from origins import PROVENANCE
from scipy.spatial.transform import Rotation

from mri_qpan.errors import ReconError
from mri_qpan.recon.geometry import affine_lps, centre, place_notes, stack, voxel_size
from mri_qpan.recon.kspace import Geometry, Image, ImageSeries, Index, Vector
from mri_qpan.recon.writers import write_dicom, write_ismrmrd, write_nifti

SHAPES = [(1, 6, 10), (1, 7, 9), (1, 5, 12), (4, 6, 10), (3, 7, 9)]
CORNERS = [(0, 0), (0, -1), (-1, 0), (-1, -1)]


def vector(values: NDArray[np.float64]) -> Vector:
    x, y, z = (float(v) for v in values)
    return x, y, z


def oblique(seed: int, fov: Vector, position: NDArray[np.float64] | None = None) -> Geometry:
    rotation = Rotation.from_rotvec(np.random.default_rng(seed).normal(size=3)).as_matrix()
    centre = np.array([12.5, -40.0, 3.75]) if position is None else position
    read, phase, through = (vector(column) for column in rotation.T)
    return Geometry(fov, vector(centre), read, phase, through)


def place(geometry: Geometry, shape: tuple[int, ...], voxel: tuple[int, int, int]) -> NDArray[np.float64]:
    """Where voxel (z, y, x) lies by the physics: voxel n // 2 lies at the position."""
    point = np.array(geometry.position)
    axes = (geometry.slice_dir, geometry.phase_dir, geometry.read_dir)
    for i, n, axis, length in zip(voxel, shape, axes, reversed(geometry.fov), strict=True):
        point = point + (i - n // 2) * length / n * np.array(axis)
    return point


def marked(
    shape: tuple[int, int, int], voxel: tuple[int, int, int], geometry: Geometry, index: Index
) -> Image:
    data = np.full(shape, 0.1, np.complex64)
    data[voxel] = 5j
    return Image(data, geometry, index)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("corner", CORNERS)
def test_mark_has_one_place_in_every_format(
    tmp_path: Path, shape: tuple[int, int, int], corner: tuple[int, int]
) -> None:
    geometry = oblique(1, (250.0, 90.0, 12.0))
    nz, ny, nx = shape
    voxel = (nz - 1, corner[0] % ny, corner[1] % nx)
    series = ImageSeries([marked(shape, voxel, geometry, Index())], None, PROVENANCE)
    truth = place(geometry, shape, voxel)
    write_nifti(tmp_path / "a.nii.gz", series)
    write_ismrmrd(tmp_path / "a.h5", series)
    write_dicom(tmp_path / "a.dcm", series)
    np.testing.assert_allclose(nifti_mark(tmp_path / "a.nii.gz"), truth, atol=1e-3)
    np.testing.assert_allclose(ismrmrd_mark(tmp_path / "a.h5"), truth, atol=1e-3)
    np.testing.assert_allclose(dicom_mark(tmp_path), truth, atol=1e-3)


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("gap", [0.0, 2.5])
def test_mark_in_a_stack_of_slices(tmp_path: Path, descending: bool, gap: float) -> None:
    shape, thickness, slices = (1, 6, 9), 4.0, 5
    base = oblique(2, (180.0, 60.0, thickness))
    step = np.array(base.slice_dir) * (thickness + gap) * (-1 if descending else 1)
    geometries = [oblique(2, base.fov, np.array(base.position) + s * step) for s in range(slices)]
    images = [
        marked(shape, (0, 1, 7) if s == 3 else (0, 0, 0), g, Index(slice=s)) for s, g in enumerate(geometries)
    ]
    images[3].data[0, 1, 7] = 9
    series = ImageSeries(images, None, PROVENANCE)
    truth = place(geometries[3], shape, (0, 1, 7))
    write_nifti(tmp_path / "a.nii", series)
    write_ismrmrd(tmp_path / "a.h5", series)
    write_dicom(tmp_path / "a.dcm", series)
    np.testing.assert_allclose(nifti_mark(tmp_path / "a.nii"), truth, atol=1e-3)
    np.testing.assert_allclose(ismrmrd_mark(tmp_path / "a.h5"), truth, atol=1e-3)
    np.testing.assert_allclose(dicom_mark(tmp_path), truth, atol=1e-3)


def nifti_mark(path: Path) -> NDArray[np.float64]:
    """LPS place of the brightest voxel by the file's own affine, sform and qform agreeing."""
    nifti = nib.load(path)
    np.testing.assert_allclose(nifti.get_qform(), nifti.get_sform(), atol=1e-3)
    pixels = nifti.get_fdata()
    voxel = np.unravel_index(np.argmax(pixels), pixels.shape)
    return (nifti.affine @ [*voxel, 1])[:3] * [-1, -1, 1]


def dicom_mark(folder: Path) -> NDArray[np.float64]:
    """LPS place of the brightest pixel as DICOM (PS3.3 C.7.6.2.1.1) has it."""
    files = [pydicom.dcmread(path) for path in sorted(folder.glob("*.dcm"))]
    file = max(files, key=lambda f: int(f.pixel_array.max()))
    down, across = np.unravel_index(np.argmax(file.pixel_array), file.pixel_array.shape)
    row, column = np.array(file.ImageOrientationPatient, float).reshape(2, 3)
    between_rows, between_columns = (float(v) for v in file.PixelSpacing)
    first = np.array(file.ImagePositionPatient, float)
    return first + across * between_columns * row + down * between_rows * column


def ismrmrd_mark(path: Path) -> NDArray[np.float64]:
    """LPS place of the brightest voxel as a reader of its header finds it."""
    with ismrmrd.Dataset(str(path), "dataset", mode="r") as dataset:
        count = dataset.number_of_images("image_1")
        images = [dataset.read_image("image_1", i) for i in range(count)]
    image = max(images, key=lambda i: float(i.data.max()))
    _, z, y, x = np.unravel_index(np.argmax(image.data), image.data.shape)
    size = np.array(image.matrix_size)
    voxel = np.array(image.field_of_view) / size
    offset = (np.array([x, y, z]) - size // 2) * voxel
    axes = np.array([image.read_dir, image.phase_dir, image.slice_dir])
    return np.array(image.position) + offset @ axes


def test_staggered_slices_have_one_place_in_every_format(tmp_path: Path) -> None:
    shape = (1, 6, 9)
    base = oblique(2, (180.0, 60.0, 4.0))
    step = 6 * np.array(base.slice_dir) + 4 * np.array(base.read_dir)
    geometries = [oblique(2, base.fov, np.array(base.position) + s * step) for s in range(5)]
    images = [marked(shape, (0, 0, 0), g, Index(slice=s)) for s, g in enumerate(geometries)]
    images[4].data[0, 5, 8] = 9
    series = ImageSeries(images, None, PROVENANCE)
    write_nifti(tmp_path / "a.nii", series)
    write_dicom(tmp_path / "a.dcm", series)
    nifti = nib.load(tmp_path / "a.nii")
    assert (nifti.header["sform_code"], nifti.header["qform_code"]) == (1, 0)
    truth = place(geometries[4], shape, (0, 5, 8))
    np.testing.assert_allclose((nifti.affine @ [8, 5, 4, 1])[:3] * [-1, -1, 1], truth, atol=1e-3)
    np.testing.assert_allclose(dicom_mark(tmp_path), truth, atol=1e-3)
    spacings = [float(pydicom.dcmread(path).SpacingBetweenSlices) for path in tmp_path.glob("*.dcm")]
    assert spacings == pytest.approx([6] * 5)


def test_first_voxel_of_an_even_slice_is_dicoms() -> None:
    geometry = oblique(3, (256.0, 192.0, 5.0))
    first = affine_lps(geometry, (1, 96, 128))[:3, 3]
    expected = (
        np.array(geometry.position) - 128 * np.array(geometry.read_dir) - 96 * np.array(geometry.phase_dir)
    )
    np.testing.assert_allclose(first, expected, atol=1e-9)


@given(n=st.tuples(*[st.integers(1, 40)] * 3), crop=st.tuples(*[st.integers(0, 9)] * 3))
@settings(deadline=None, max_examples=50)
def test_centred_crop_keeps_every_voxel_in_place(n: tuple[int, int, int], crop: tuple[int, int, int]) -> None:
    small = tuple(max(1, a - b) for a, b in zip(n, crop, strict=True))
    whole = oblique(4, (3.0 * n[2], 2.0 * n[1], 1.5 * n[0]))
    part = oblique(4, (3.0 * small[2], 2.0 * small[1], 1.5 * small[0]))
    start = [a // 2 - b // 2 for a, b in zip(reversed(n), reversed(small), strict=True)]
    np.testing.assert_allclose(
        affine_lps(part, small) @ [0, 0, 0, 1], affine_lps(whole, n) @ [*start, 1], atol=1e-9
    )


def test_voxel_size_is_x_y_z() -> None:
    assert voxel_size(Geometry((100.0, 60.0, 8.0)), (2, 30, 25)) == (4.0, 2.0, 4.0)


def test_slices_of_one_position_lie_side_by_side() -> None:
    geometry = Geometry((10.0, 10.0, 3.0))
    images = [Image(np.zeros((1, 4, 4), np.complex64), geometry, Index(slice=s)) for s in (2, 0, 1)]
    ordered, affine = stack(images)
    assert [image.index.slice for image in ordered] == [0, 1, 2]
    np.testing.assert_allclose(affine[:3, 2], [0, 0, 3])


@pytest.mark.parametrize(
    ("places", "words"),
    [
        ((0, 3, 6), None),
        ((6, 3, 0), None),
        ((0, 6, 3), "not numbered"),
        ((5, 5, 5), "one position"),
        ((4,), None),
    ],
)
def test_what_is_assumed_of_slices_is_said(places: tuple[int, ...], words: str | None) -> None:
    images = [
        Image(
            np.zeros((1, 4, 4), np.complex64),
            Geometry((9, 9, 3), (0, 0, place)),
            Index(repetition=r, slice=s),
        )
        for r in range(2)
        for s, place in enumerate(places)
    ]
    notes = place_notes(images)
    assert not notes if words is None else words in notes[0]


def test_slices_of_a_localiser_lie_where_they_say() -> None:
    turned = Geometry((9, 9, 3), read_dir=(0, 1, 0), phase_dir=(0, 0, 1), slice_dir=(1, 0, 0))
    pixels = np.zeros((1, 4, 4), np.complex64)
    assert place_notes([Image(pixels, Geometry((9, 9, 3))), Image(pixels, turned, Index(slice=1))]) == []


@pytest.mark.parametrize(
    ("geometries", "message"),
    [
        ([Geometry((9, 9, 3)), Geometry((9, 9, 3), (0, 0, 3)), Geometry((9, 9, 3), (0, 0, 9))], "evenly"),
        (
            [Geometry((9, 9, 3)), Geometry((9, 9, 3), (0, 0, 3), read_dir=(0, 1, 0), phase_dir=(1, 0, 0))],
            "read_dir",
        ),
        ([Geometry((9, 9, 3), (10.0 * s, 0, 0)) for s in range(3)], "beside each other"),
    ],
)
def test_slices_that_are_no_volume_are_refused(geometries: list[Geometry], message: str) -> None:
    images = [Image(np.zeros((1, 4, 4), np.complex64), g, Index(slice=s)) for s, g in enumerate(geometries)]
    with pytest.raises(ReconError, match=message):
        stack(images)


@given(n=st.integers(1, 40), data=st.data())
def test_a_cropped_axis_keeps_its_centre_where_the_centre_lies(n: int, data: st.DataObject) -> None:
    wanted = data.draw(st.integers(1, n))
    (kept,) = centre((n,), (wanted,))
    assert list(range(n))[kept][wanted // 2] == n // 2
    assert len(range(n)[kept]) == wanted
