"""Radial ISMRMRD files, made here and real."""

from pathlib import Path

import ismrmrd
import numpy as np
import pytest
import sigpy as sp
import sigpy.mri as mr
from mrd_files import header_xml, refused, write
from numpy.typing import NDArray
from typer.testing import CliRunner

from mri_qpan.cli.main import app
from mri_qpan.errors import InputError
from mri_qpan.methods import get_method
from mri_qpan.recon.kspace import Index
from mri_qpan.recon.pipeline import reconstruct
from mri_qpan.recon.prepare import prepare
from mri_qpan.recon.readers import open_kspace
from mri_qpan.recon.study import Undersampling, study

N, COILS, SPOKES = 32, 4, 40
XML = header_xml((2 * N, 2 * N, 1), (N, N, 1), trajectory="radial")


def phantom() -> tuple[NDArray[np.complex64], NDArray[np.complex64]]:
    """Image (y, x), not symmetric, and maps."""
    image = sp.shepp_logan((N, N)).astype(np.complex64)
    image[N // 4, N // 2 :] += 1
    return image, mr.birdcage_maps((COILS, N, N), dtype=np.complex64)


def spokes() -> NDArray[np.float32]:
    """Cycles over the N pixels delivered, (spoke, sample, (y, x)), two-fold oversampled."""
    return mr.radial((SPOKES, 2 * N, 2), (N, N), golden=True).astype(np.float32)


def acquisitions(
    unit: float = 1 / N, extra: int = 0, dimensions: int = 2, **counters: int
) -> list[ismrmrd.Acquisition]:
    image, mps = phantom()
    coord = spokes()
    samples = sp.nufft(mps * image, coord, oversamp=2, width=6).astype(np.complex64)
    made = []
    for number in range(SPOKES):
        data = np.pad(samples[:, number], [(0, 0), (extra, 0)])
        path = np.zeros((2 * N + extra, dimensions), np.float32)
        path[extra:, :2] = coord[number][:, ::-1] * unit
        acquisition = ismrmrd.Acquisition.from_array(np.ascontiguousarray(data), path)
        acquisition.discard_pre = extra
        acquisition.idx.kspace_encode_step_1 = number
        for axis, vector in zip(("read_dir", "phase_dir", "slice_dir"), np.eye(3), strict=True):
            for i in range(3):
                getattr(acquisition, axis)[i] = vector[i]
        for name, value in counters.items():
            setattr(acquisition.idx, name, value)
        made.append(acquisition)
    return made


@pytest.mark.parametrize("unit", [1 / N, 2.0])  # cycles a pixel, cycles over the encoded field of view
def test_coordinates_are_over_the_field_of_view_delivered(path: Path, unit: float) -> None:
    write(path, XML, acquisitions(unit))
    (kspace,) = open_kspace(path)
    np.testing.assert_allclose(kspace.coord, spokes().reshape(-1, 2), atol=1e-4)
    assert kspace.data.shape == (COILS, 1, 1, SPOKES * 2 * N)
    assert kspace.recon_shape == (1, N, N)
    assert kspace.geometry.fov == (N, N, 1)


@pytest.mark.parametrize(("unit", "words"), [(2 * np.pi / N, "radians a pixel"), (2 / N, "from -1 to 1")])
def test_other_units_are_refused(path: Path, unit: float, words: str) -> None:
    message = refused(write(path, XML, acquisitions(unit)))
    assert words in message
    assert "cycles a pixel (0.5) or over the field of view (32)" in message


@pytest.mark.parametrize(("unit", "told"), [(1 / N, False), (2.0, False), (1.0, True)])
def test_coordinates_that_may_be_over_the_field_of_view_delivered_are_told_of(
    path: Path, unit: float, told: bool
) -> None:
    write(path, XML, acquisitions(unit))
    (kspace,) = open_kspace(path)
    assert told == any("its unit is taken wrongly" in note for note in kspace.notes)


def test_a_trajectory_of_the_centre_alone_is_read_and_told_of(path: Path) -> None:
    made = acquisitions(2.0)
    for acquisition in made:
        acquisition.discard_post = 7 * N // 4
    write(path, XML, made)
    (kspace,) = open_kspace(path)
    np.testing.assert_allclose(kspace.coord, spokes()[:, : N // 4].reshape(-1, 2), atol=1e-4)
    assert "reaches 3.5 of 32 cycles" in str(kspace.notes)


@pytest.mark.parametrize("compress", [None, 3])
def test_the_image_stands_where_the_object_is(path: Path, compress: int | None) -> None:
    write(path, XML, acquisitions())
    (kspace,) = open_kspace(path)
    result = reconstruct(kspace, get_method("cg-sense"), compress=compress)
    truth = np.abs(phantom()[0])
    error = np.abs(result.image.data[0]) - truth
    inside = truth > 0.05
    assert np.linalg.norm(error[inside]) < 0.2 * np.linalg.norm(truth)
    for turned in (truth.T, truth[::-1], truth[:, ::-1]):
        assert np.linalg.norm(error) < 0.8 * np.linalg.norm(np.abs(result.image.data[0]) - turned)
    assert 0.2 < result.figures.ratio < 1
    assert result.figures.residual < 0.2


def test_samples_beyond_the_delivered_resolution_are_left_out(path: Path) -> None:
    """The DFT along a trajectory is periodic: they would come out as low frequencies."""
    half = header_xml((2 * N, 2 * N, 1), (N // 2, N // 2, 1), recon_fov=(N, N, 1), trajectory="radial")
    write(path, half, acquisitions())
    (kspace,) = open_kspace(path)
    assert 0.3 < kspace.data.shape[3] / (SPOKES * 2 * N) < 0.8
    assert float(np.abs(kspace.coord).max()) <= N / 4
    assert any("beyond the delivered resolution" in note for note in kspace.notes)
    small = reconstruct(kspace, get_method("cg-sense"))
    assert small.figures.residual < 0.25


@pytest.mark.parametrize(
    ("dwell", "bandwidth", "power"),
    [((20.0, 5.0), None, 8.0), ((20.0, 5.0), 0.5, 16.0), ((0.0, 0.0), 0.5, 4.0)],
)
def test_the_noise_scan_has_its_own_bandwidth(
    path: Path, dwell: tuple[float, float], bandwidth: float | None, power: float
) -> None:
    rng = np.random.default_rng(0)
    samples = rng.standard_normal((2, COILS, 4000), np.float32)
    noise = ismrmrd.Acquisition.from_array((samples[0] + 1j * samples[1]).astype(np.complex64))
    noise.set_flag(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
    noise.sample_time_us = dwell[0]
    made = acquisitions()
    for acquisition in made:
        acquisition.sample_time_us = dwell[1]
    name = "relativeReceiverNoiseBandwidth"
    system = "" if bandwidth is None else f"<{name}>{bandwidth}</{name}>"
    write(path, header_xml((2 * N, 2 * N, 1), (N, N, 1), trajectory="radial", system=system), [noise, *made])
    (kspace,) = open_kspace(path)
    np.testing.assert_allclose(np.diag(kspace.noise_covariance).real, power, rtol=0.1)


def test_network_and_maps(path: Path) -> None:
    write(path, XML, acquisitions())
    (kspace,) = open_kspace(path)
    estimated = reconstruct(kspace, get_method("qpan+-1bit"))
    given = reconstruct(kspace, get_method("qpan+-1bit"), mps=phantom()[1])
    assert given.figures.residual < estimated.figures.residual
    assert any("maps as given" in note for note in given.notes)


def test_no_sample_can_be_put_back(path: Path) -> None:
    write(path, XML, acquisitions())
    (kspace,) = open_kspace(path)
    with pytest.raises(InputError, match=r"--hard-dc: .* along a trajectory"):
        reconstruct(kspace, get_method("qpan+-1bit"), hard_dc=True)


def test_discarded_samples_and_further_dimensions_are_left_out(path: Path) -> None:
    made = acquisitions(extra=5, dimensions=3, slice=2)
    write(path, XML, made)
    (kspace,) = open_kspace(path)
    assert kspace.index == Index(slice=2)
    assert len(kspace.coord) == SPOKES * 2 * N
    assert any("only kx and ky" in note for note in kspace.notes)


def test_density_is_computed_once_a_trajectory(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, XML, acquisitions())
    (kspace,) = open_kspace(path)
    first = prepare(kspace).weights
    monkeypatch.setattr("mri_qpan.noncartesian.density", None)
    assert prepare(kspace).weights is first


def test_files_that_cannot_be_used(path: Path) -> None:
    made = acquisitions()
    made[3] = ismrmrd.Acquisition.from_array(made[3].data)
    assert "no coordinates" in refused(write(path, XML, made))
    assert "rescale" in refused(write(path.with_name("3.h5"), XML, acquisitions(unit=50.0)))
    assert "zero everywhere" in refused(write(path.with_name("4.h5"), XML, acquisitions(unit=0.0)))
    made = acquisitions()
    made[5].traj[7] = np.nan
    assert "not finite" in refused(write(path.with_name("5.h5"), XML, made))


def test_a_zero_filled_image_is_as_bright_as_the_object(path: Path) -> None:
    write(path, XML, acquisitions())
    (kspace,) = open_kspace(path)
    image, mps = phantom()
    for method in ("zero-filled", "cg-sense"):
        found = reconstruct(kspace, get_method(method), mps=mps[:, None]).image.data[0]
        assert 0.85 < abs(np.vdot(found, image) / np.vdot(found, found)) < 1.15


def test_nothing_is_said_to_fold(path: Path) -> None:
    write(path, XML, acquisitions())
    (kspace,) = open_kspace(path)
    assert not any("larger than the field of view" in note for note in prepare(kspace).notes)


def test_a_study_needs_a_grid(path: Path) -> None:
    write(path, XML, acquisitions())
    (kspace,) = open_kspace(path)
    with pytest.raises(InputError, match="along a trajectory"):
        study(kspace, get_method("zero-filled"), Undersampling.parse("lines:0.5"))


def test_info(path: Path) -> None:
    result = CliRunner().invoke(app, ["info", str(write(path, XML, acquisitions()))])
    assert "40 readouts of 64 samples along the trajectory" in result.output


def test_a_real_radial_phantom(shared_data: Path) -> None:
    (kspace,) = open_kspace(shared_data / "kspace/radial_phantom_16ch_69spokes_traj.h5")
    assert kspace.data.shape == (16, 1, 1, 69 * 384)
    assert float(np.abs(kspace.coord).max()) == pytest.approx(95.75, abs=0.1)
    image = np.abs(reconstruct(kspace, get_method("cg-sense"), compress=6).image.data[0])
    y, x = np.ogrid[-96:96, -96:96]
    disc, corners = image[(y + 3) ** 2 + x**2 < 70**2], image[y**2 + x**2 > 92**2]
    assert np.median(disc) > 3 * np.median(corners)
