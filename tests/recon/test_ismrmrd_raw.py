import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import h5py
import ismrmrd
import numpy as np
import pytest
from ismrmrd import constants

from mri_qpan import fourier
from mri_qpan.phantom import coil_covariance, combined
from mri_qpan.phantom_head import FOV, head
from mri_qpan.recon.kspace import Geometry, Index, KSpace, Stamp
from mri_qpan.recon.readers import open_kspace
from mri_qpan.recon.writers.ismrmrd_raw import NoiseScan, draw_noise_scan, write_raw

COILS, Z, Y, X = 3, 2, 24, 40
OBLIQUE = Geometry(
    fov=(150.0, 180.0, 8.0),
    position=(3.0, -12.5, 40.0),
    read_dir=(0.8, 0.6, 0.0),
    phase_dir=(-0.6, 0.8, 0.0),
    slice_dir=(0.0, 0.0, 1.0),
    table_position=(0.0, 0.0, -1100.0),
)


def image(seed: int = 0, z: int = 1, **changes: object) -> KSpace:
    rng = np.random.default_rng(seed)
    data = rng.normal(size=(2, COILS, z, Y, X)).astype(np.float32)
    whole = KSpace(
        data=data[0] + 1j * data[1],
        mask=np.ones((z, Y, X), bool),
        recon_shape=(z, Y, X // 2),
        geometry=OBLIQUE,
        stamp=Stamp(measurement_uid=7, acquisition_time_stamp=99, user_int=(1, 2, 3, 4, 5, 6, 7, 8)),
    )
    return replace(whole, **changes)  # type: ignore[arg-type]


def acquisitions(path: Path) -> list[ismrmrd.Acquisition]:
    with ismrmrd.Dataset(str(path), "dataset", mode="r") as dataset:
        return [dataset.read_acquisition(i) for i in range(dataset.number_of_acquisitions())]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "raw.h5"


def test_reader_gets_back_what_was_written(path: Path) -> None:
    mask = np.zeros((1, Y, X), bool)
    mask[:, ::3] = True
    series = [image(i, index=Index(slice=i % 2, repetition=i // 2)) for i in range(4)]
    series = [replace(k, mask=mask, data=k.data * mask) for k in series]
    write_raw(path, series)
    for written, back in zip(series, open_kspace(path), strict=True):
        np.testing.assert_array_equal(back.data, written.data)
        np.testing.assert_array_equal(back.mask, written.mask)
        assert (back.recon_shape, back.index, back.stamp) == (
            written.recon_shape,
            written.index,
            written.stamp,
        )
        assert back.noise_covariance is None
        assert back.calib is None
        for name in ("fov", "position", "read_dir", "phase_dir", "slice_dir", "table_position"):
            assert getattr(back.geometry, name) == pytest.approx(getattr(written.geometry, name), abs=1e-5)


def test_partitions_of_a_slab(path: Path) -> None:
    slab = image(z=Z)
    write_raw(path, [slab])
    (back,) = open_kspace(path)
    np.testing.assert_array_equal(back.data, slab.data)
    assert back.recon_shape == (Z, Y, X // 2)


def test_images_of_one_index_are_averages(path: Path) -> None:
    pair = [image(0), image(1)]
    write_raw(path, pair)
    (back,) = open_kspace(path)
    np.testing.assert_allclose(back.data, (pair[0].data + pair[1].data) / 2, rtol=1e-5)
    assert [a.idx.average for a in acquisitions(path)] == [0] * Y + [1] * Y


def test_backward_lines_and_late_echoes(path: Path) -> None:
    late = np.ones((1, Y, X), bool)
    late[..., :9] = False
    asymmetric = image(mask=late, data=image().data * late)
    write_raw(path, [asymmetric], reverse=True)
    (back,) = open_kspace(path)
    np.testing.assert_array_equal(back.data, asymmetric.data)
    np.testing.assert_array_equal(back.mask, late)
    first, second = acquisitions(path)[:2]
    assert not first.is_flag_set(constants.ACQ_IS_REVERSE)
    assert second.is_flag_set(constants.ACQ_IS_REVERSE)
    assert (first.number_of_samples, first.center_sample) == (X - 9, X // 2 - 9)


def test_calibration_lines_in_the_image_and_before_it(path: Path) -> None:
    mask = np.zeros((1, Y, X), bool)
    mask[:, ::2] = True
    calib_mask = np.zeros_like(mask)
    calib_mask[:, Y // 2 - 2 : Y // 2 + 2] = True
    full = image()
    write_raw(
        path, [image(mask=mask, data=full.data * mask, calib=full.data * calib_mask, calib_mask=calib_mask)]
    )
    lines = acquisitions(path)
    alone = [
        a.idx.kspace_encode_step_1 for a in lines if a.is_flag_set(constants.ACQ_IS_PARALLEL_CALIBRATION)
    ]
    both = [
        a.idx.kspace_encode_step_1
        for a in lines
        if a.is_flag_set(constants.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING)
    ]
    assert (alone, both) == ([11, 13], [10, 12])
    (back,) = open_kspace(path)
    np.testing.assert_array_equal(back.data, full.data * mask)
    assert back.calib is not None
    np.testing.assert_array_equal(back.calib, full.data * calib_mask)
    np.testing.assert_array_equal(back.calib_mask, calib_mask)


def test_flags_tell_where_slices_and_the_measurement_end(path: Path) -> None:
    series = [image(index=Index(slice=s, repetition=r)) for r in range(2) for s in range(2)]
    write_raw(path, series)
    lines = acquisitions(path)

    def where(flag: int) -> list[int]:
        return [a.scan_counter for a in lines if a.is_flag_set(flag)]

    assert where(constants.ACQ_FIRST_IN_SLICE) == [0, Y, 2 * Y, 3 * Y]
    assert where(constants.ACQ_LAST_IN_SLICE) == [Y - 1, 2 * Y - 1, 3 * Y - 1, 4 * Y - 1]
    assert where(constants.ACQ_LAST_IN_REPETITION) == [2 * Y - 1, 4 * Y - 1]
    assert where(constants.ACQ_LAST_IN_MEASUREMENT) == [4 * Y - 1]
    assert all(a.isChannelActive(c) for a in lines for c in range(COILS))
    assert not lines[0].isChannelActive(COILS)


def test_noise_scan_is_of_its_own_dwell_time_and_whitens(path: Path) -> None:
    covariance = coil_covariance(COILS, 0.3)
    write_raw(path, [image()], noise=draw_noise_scan(covariance, seed=1))
    lines = acquisitions(path)
    assert lines[0].is_flag_set(constants.ACQ_IS_NOISE_MEASUREMENT)
    assert lines[0].sample_time_us != lines[-1].sample_time_us
    (back,) = open_kspace(path)
    assert back.noise_covariance is not None
    np.testing.assert_allclose(back.noise_covariance, covariance, atol=0.01)


def test_header_is_valid(path: Path) -> None:
    mask = np.zeros((1, Y, X), bool)
    mask[:, ::4] = True
    write_raw(path, [image(mask=mask, index=Index(slice=s)) for s in range(3)])
    with ismrmrd.Dataset(str(path), "dataset", mode="r") as dataset:
        header = ismrmrd.xsd.CreateFromDocument(dataset.read_xml_header())
    encoding = header.encoding[0]
    assert (encoding.encodedSpace.matrixSize.x, encoding.reconSpace.matrixSize.x) == (X, X // 2)
    assert encoding.encodedSpace.fieldOfView_mm.x == 2 * encoding.reconSpace.fieldOfView_mm.x == 300.0
    assert encoding.encodingLimits.kspace_encoding_step_1.center == Y // 2
    assert encoding.encodingLimits.slice.maximum == 2
    assert encoding.parallelImaging.accelerationFactor.kspace_encoding_step_1 == 4


def test_what_does_not_fit_together_is_refused(path: Path) -> None:
    gap = np.ones((1, Y, X), bool)
    gap[0, 3, 5] = False
    half = np.ones((1, Y, X), bool)
    half[..., X // 2 :] = False
    for images, words in (
        ([], "no images"),
        ([image(), image(z=Z)], "one matrix"),
        ([image(), image(geometry=replace(OBLIQUE, fov=(1.0, 1.0, 1.0)))], "field of view"),
        ([image(mask=np.zeros((1, Y, X), bool))], "no samples"),
        ([image(mask=gap)], "gaps"),
        ([image(mask=half)], "echo"),
    ):
        with pytest.raises(ValueError, match=words):
            write_raw(path, images)
    with pytest.raises(ValueError, match="4 coils"):
        write_raw(path, [image()], noise=NoiseScan(np.zeros((1, 4, 8), np.complex64)))
    assert not any(path.parent.iterdir())


def _phantom_file(path: Path) -> np.ndarray:
    """Write a full single slice with readout oversampling; return its image (y, x)."""
    phantom = head(2, 1)
    data = phantom.kspace((48, 96), (FOV[0], 2 * FOV[1]))
    geometry = Geometry(fov=(FOV[1], FOV[0], 5.0))
    write_raw(path, [KSpace(data, np.ones((1, 48, 96), bool), (1, 48, 48), geometry)])
    return combined(data)[0, :, 24:72]


@pytest.mark.skipif(
    shutil.which("ismrmrd_recon_cartesian_2d") is None, reason="Debian's ismrmrd-tools are not installed"
)
def test_debian_tools_read_it(path: Path) -> None:
    expected = _phantom_file(path)
    subprocess.run(["ismrmrd_recon_cartesian_2d", path], capture_output=True, check=True, timeout=60)
    with h5py.File(path) as file:
        found = np.squeeze(
            next(v for k, v in file["dataset"].items() if k not in ("data", "xml"))["data"][()]
        )
    assert found.shape == (48, 48)
    found = found / found.max() * expected.max()
    np.testing.assert_allclose(found, expected, atol=0.01)


def test_phantom_survives_the_reader(path: Path) -> None:
    expected = _phantom_file(path)
    (back,) = open_kspace(path)
    coils = fourier.ifft_numpy(back.data, (-2, -1))[:, 0, :, 24:72]
    np.testing.assert_allclose(np.sqrt((np.abs(coils) ** 2).sum(0)), expected, atol=1e-5)
