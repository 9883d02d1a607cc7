"""Images are turned as they are looked at, and nothing moves in the patient."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from origins import PROVENANCE
from PIL import Image as Picture
from scipy.spatial.transform import Rotation

from mri_qpan.recon.geometry import affine_lps
from mri_qpan.recon.kspace import Geometry, Image, ImageSeries, Index, Vector
from mri_qpan.recon.upright import TIE, turn_of, turns_of, upright
from mri_qpan.recon.writers import write_dicom, write_png

L, P, H = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
R, A, F = (-1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, -1.0)


def image(read: Vector, phase: Vector, shape: tuple[int, int, int] = (1, 6, 8)) -> Image:
    rng = np.random.default_rng(0)
    data = (rng.random(shape) + 0.1).astype(np.complex64)
    through = tuple(float(v) for v in np.cross(read, phase))
    return Image(data, Geometry((80.0, 90.0, 5.0), (1.0, 2.0, 3.0), read, phase, through))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("views", "right", "down"),
    [
        ([(L, P), (P, L), (R, A), (A, R), (L, A), (R, P)], L, P),  # axial
        ([(L, F), (H, L), (R, H), (F, R)], L, F),  # coronal
        ([(P, F), (H, A), (F, P), (A, H)], P, F),  # sagittal
    ],
)
def test_radiologys_views(views: list[tuple[Vector, Vector]], right: Vector, down: Vector) -> None:
    for read, phase in views:
        geometry = upright(image(read, phase)).geometry
        assert geometry.read_dir == right
        assert geometry.phase_dir == down


def test_an_upright_image_stays_as_it_is() -> None:
    axial = image(L, P)
    np.testing.assert_array_equal(upright(axial).data, axial.data)
    assert upright(axial).geometry == axial.geometry


@given(
    seed=st.integers(0, 2**31),
    shape=st.tuples(*[st.integers(1, 7)] * 3),
    mirrored=st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_every_voxel_stays_where_it_was(seed: int, shape: tuple[int, int, int], mirrored: bool) -> None:
    axes = Rotation.random(random_state=seed).as_matrix().T * (-1 if mirrored else 1)
    read, phase, through = (tuple(float(v) for v in axis) for axis in axes)
    values = np.arange(np.prod(shape)).reshape(shape).astype(np.complex64)
    before = Image(values, Geometry((70.0, 30.0, 9.0), (5.0, -4.0, 2.0), read, phase, through))  # type: ignore[arg-type]
    after = upright(before)
    assert turn_of(after.geometry) == turn_of(image(L, P).geometry)  # turned once, it stays
    for value in values.ravel():
        places = []
        for kept in (before, after):
            ((z, y, x),) = np.argwhere(kept.data == value)
            places.append(affine_lps(kept.geometry, kept.data.shape) @ [x, y, z, 1])
        np.testing.assert_allclose(places[0], places[1], atol=1e-9)


def between(normal: float, slices: int = 4, spread: float = 1e-6) -> list[Image]:
    """A stack whose normal lies at an angle to patient x, rounded anew for each slice."""
    images = []
    for s in range(slices):
        angle = normal + spread * (-1) ** s
        through = np.array([np.cos(angle), np.sin(angle), 0])
        read, phase = F, tuple(float(v) for v in np.cross(through, F))
        made = image(read, phase)  # type: ignore[arg-type]
        position = tuple(float(v) for v in 6.0 * s * through)
        geometry = replace(made.geometry, position=position)  # type: ignore[arg-type]
        images.append(replace(made, geometry=geometry, index=Index(slice=s)))
    return images


@pytest.mark.parametrize("shift", [0, 1e-3, -1e-3, np.sqrt(2) / 2 * 1e-3])
def test_slices_of_one_stack_are_turned_alike(shift: float) -> None:
    assert len(set(turns_of(between(np.pi / 4 + shift, spread=1e-4)))) == 1
    assert turn_of(between(np.pi / 4)[0].geometry) == turn_of(between(np.pi / 4)[1].geometry)


def test_planes_of_other_directions_are_turned_by_their_own() -> None:
    planes = [image(P, F), image(R, A), image(P, F)]
    assert turns_of(planes) == [turn_of(plane.geometry) for plane in planes]


def test_an_oblique_stack_is_one_volume_in_dicom(tmp_path: Path) -> None:
    stack = between(np.pi / 4 + np.arcsin(TIE / np.sqrt(2)))
    assert len({turn_of(plane.geometry) for plane in stack}) == 2  # each by itself, at the tolerance's edge
    write_dicom(tmp_path / "a.dcm", ImageSeries(stack, None, PROVENANCE))
    files = [pydicom.dcmread(path) for path in sorted(tmp_path.glob("*.dcm"))]
    assert np.ptp([np.array(file.ImageOrientationPatient, float) for file in files], axis=0).max() < 1e-5
    assert {round(float(file.SpacingBetweenSlices), 3) for file in files} == {6}


def test_a_sagittal_head_is_upright_in_dicom_and_png(tmp_path: Path) -> None:
    lying = image(F, P, (1, 40, 60))  # the readout runs from head to foot, as of many sagittal scans
    lying.data[:] = 0.1
    lying.data[0, :, :6] = 1  # the top of the head
    lying = replace(lying, geometry=replace(lying.geometry, fov=(60.0, 40.0, 5.0)))
    series = ImageSeries([lying], None, PROVENANCE)
    write_dicom(tmp_path / "a.dcm", series)
    file = pydicom.dcmread(tmp_path / "a_0001.dcm")
    assert (file.Rows, file.Columns) == (60, 40)
    assert [float(v) for v in file.ImageOrientationPatient] == [*P, *F]
    assert file.InPlanePhaseEncodingDirection == "ROW"
    assert file.pixel_array[:6].min() > file.pixel_array[6:].max()
    write_png(tmp_path / "a.png", series)
    page = np.asarray(Picture.open(tmp_path / "a.png"))
    bright = np.argwhere(page[60:-30] > 200)  # between the heading and the label
    height, width = np.ptp(bright, axis=0)
    assert width > 3 * height
