"""Files of fastMRI's layout: made here, by its documentation, as none may be shared."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from mrd_files import header_xml, limit_xml, random_kspace, refused
from numpy.typing import NDArray

from mri_qpan.errors import ReconError
from mri_qpan.fourier import fft_numpy, ifft_numpy
from mri_qpan.recon.kspace import Image, ImageSeries, Index
from mri_qpan.recon.readers import open_kspace
from mri_qpan.recon.writers.arrays import write_fastmri

NX, NY = 24, 18


def xml(recon: tuple[int, int] = (12, 12), first: int = 2, lines: int = 14) -> str:
    limits = limit_xml("kspace_encoding_step_1", lines - 1, NY // 2 - first)
    spaces = {"fov": (10 * NX, 10 * NY, 4.5), "recon_fov": (120, 120, 4.5)}
    return header_xml((NX, NY, 1), (*recon, 1), limits=limits, **spaces)


def write(
    path: Path,
    kspace: NDArray[np.complex64],
    header: str | None,
    mask: NDArray[np.bool_] | None = None,
) -> Path:
    with h5py.File(path, "w") as file:
        file["kspace"] = kspace
        if header is not None:
            file["ismrmrd_header"] = header
        if mask is not None:
            file["mask"] = mask
    return path


def test_a_multi_coil_volume(path: Path) -> None:
    kspace = random_kspace(3, 2, NX, NY)
    write(path, kspace, xml())
    images = list(open_kspace(path))
    assert [image.index.slice for image in images] == [0, 1, 2]
    for image, samples in zip(images, kspace, strict=True):
        assert image.data.shape == (2, 1, NY, NX)
        expected = samples.transpose(0, 2, 1).copy()
        expected[:, [0, 1, 16, 17]] = 0  # outside of the header's limits: padding
        np.testing.assert_array_equal(image.data[:, 0], expected)
        assert image.mask[0, :, 0].tolist() == [False] * 2 + [True] * 14 + [False] * 2
        assert image.recon_shape == (1, 12, 12)
        assert image.geometry.fov == (120, 120, 4.5)


def test_one_coil_has_no_coil_axis(path: Path) -> None:
    write(path, random_kspace(2, NX, NY), xml())
    assert [image.data.shape for image in open_kspace(path)] == [(1, 1, NY, NX)] * 2


def test_masked_files_of_the_challenge(path: Path) -> None:
    mask = np.zeros(NY, bool)
    mask[[0, 4, 8, 9, 10, 14]] = True
    write(path, random_kspace(1, 2, NX, NY) * mask, xml(), mask)
    (image,) = open_kspace(path)
    assert np.flatnonzero(image.mask[0, :, 3]).tolist() == [4, 8, 9, 10, 14]


def test_padding_shows_without_limits_too(path: Path) -> None:
    kspace = random_kspace(1, 2, NX, NY)
    kspace[..., :3] = 0
    write(path, kspace, None)
    (image,) = open_kspace(path)
    assert np.flatnonzero(image.mask[0, :, 0])[0] == 3
    assert image.recon_shape == (1, NY, NX)
    assert any("1 mm" in note for note in image.notes)


def test_limits_that_were_never_filled_in(path: Path) -> None:
    limits = limit_xml("kspace_encoding_step_1", 0, 0)
    write(path, random_kspace(1, 2, NX, NY), header_xml((NX, NY, 1), limits=limits))
    (image,) = open_kspace(path)
    assert image.mask.all()


def test_a_matrix_smaller_than_the_image_wanted(path: Path) -> None:
    write(path, random_kspace(1, 2, NX, NY), xml(recon=(40, 12)))
    (image,) = open_kspace(path)
    assert image.recon_shape == (1, 12, 12)
    assert image.geometry.fov == pytest.approx((120, 120, 4.5))
    assert any("asks for 40 pixels along x; delivered uninterpolated: 12" in note for note in image.notes)


def test_coarser_pixels_over_the_same_field_of_view_crop_nothing(path: Path) -> None:
    header = header_xml((NX, NY, 1), (NX // 2, NY // 2, 1), fov=(240, 180, 5), recon_fov=(240, 180, 5))
    write(path, random_kspace(1, 2, NX, NY), header)
    (image,) = open_kspace(path)
    assert image.recon_shape == (1, NY, NX)
    assert image.geometry.fov == (240, 180, 5)
    assert any("asks for 12 pixels along x; delivered uninterpolated: 24" in note for note in image.notes)


@pytest.mark.parametrize(
    ("matrix", "fov", "recon_fov"),
    [
        ((640, 368), (440, 252), (220, 220)),
        ((640, 372), (280, 162.8), (140, 140)),
        ((640, 368), (443, 250), (220, 220)),
    ],
)
def test_headers_that_round_are_cropped_as_they_ask(
    path: Path, matrix: tuple[int, int], fov: tuple[float, float], recon_fov: tuple[float, float]
) -> None:
    header = header_xml((*matrix, 1), (320, 320, 1), fov=(*fov, 5), recon_fov=(*recon_fov, 5))
    write(path, random_kspace(1, 1, *matrix), header)
    (image,) = open_kspace(path)
    assert image.recon_shape == (1, 320, 320)
    assert image.geometry.fov == pytest.approx((*recon_fov, 5))
    assert not any("asks for" in note for note in image.notes)


def test_an_encoded_field_of_view_alone_gives_the_pixels(path: Path) -> None:
    header = header_xml((NX, NY, 1), (12, 12, 1), fov=(48, 54, 5), recon_fov=(0, 0, 0))
    write(path, random_kspace(1, 2, NX, NY), header)
    (image,) = open_kspace(path)
    assert image.recon_shape == (1, 12, 12)
    assert image.geometry.fov == (24, 36, 5)
    assert not any("1 mm" in note for note in image.notes)


def test_the_zeros_before_an_asymmetric_echo_were_not_measured(path: Path) -> None:
    kspace = random_kspace(1, 2, NX, NY)
    kspace[:, :, :6] = 0
    write(path, kspace, xml())
    (image,) = open_kspace(path)
    assert not image.mask[..., :6].any()
    assert image.mask[0, 2:16, 6:].all()
    assert any("25.0% of the samples are zero in every channel" in note for note in image.notes)


def test_a_rounded_zero_was_measured(path: Path) -> None:
    kspace = random_kspace(1, 2, NX, NY)
    kspace[0, :, 3, 5] = 0
    write(path, kspace, None)
    (image,) = open_kspace(path)
    assert image.mask.all()
    assert not any("zero in every channel" in note for note in image.notes)


def test_reconstruction_has_fastmris_orientation(path: Path, tmp_path: Path) -> None:
    truth = np.zeros((NX, NY), np.complex64)
    truth[5, 2] = 1  # (x, y), as fastMRI stores images
    truth[12, 14] = 2
    write(path, fft_numpy(truth, (-2, -1))[None].astype(np.complex64), None)
    (image,) = open_kspace(path)
    pixels = ifft_numpy(image.data[0], (-2, -1)).astype(np.complex64)
    provenance: dict[str, object] = {"command": "test", "version": "0", "method": "zero-filled"}
    series = ImageSeries([Image(pixels, image.geometry)], None, provenance)
    write_fastmri(tmp_path / "out.h5", series)
    with h5py.File(tmp_path / "out.h5") as file:
        assert file["reconstruction"].shape == (1, NX, NY)
        np.testing.assert_allclose(file["reconstruction"][0], np.abs(truth), atol=1e-5)
        assert file.attrs["max"] == pytest.approx(2, rel=1e-5)


def test_a_series_that_fastmri_cannot_hold(tmp_path: Path, path: Path) -> None:
    write(path, random_kspace(1, NX, NY), None)
    (image,) = open_kspace(path)
    pixels = np.ones((1, 4, 4), np.complex64)
    images = [Image(pixels, image.geometry, Index(repetition=r)) for r in range(2)]
    with pytest.raises(ReconError, match="one stack"):
        write_fastmri(tmp_path / "out.h5", ImageSeries(images, None, {}))


@pytest.mark.parametrize(
    ("shape", "dtype", "words"),
    [
        ((3, NX), np.complex64, "complex"),
        ((1, NX, NY), np.float32, "complex"),
        ((0, 2, NX, NY), np.complex64, "0"),
    ],
)
def test_other_arrays_called_kspace(path: Path, shape: tuple[int, ...], dtype: type, words: str) -> None:
    with h5py.File(path, "w") as file:
        file["kspace"] = np.zeros(shape, dtype)
    assert words in refused(path)


def test_a_mask_of_another_size(path: Path) -> None:
    write(path, random_kspace(1, 2, NX, NY), xml(), np.ones(NY + 2, bool))
    assert "'mask' has 20 lines" in refused(path)


def test_samples_that_are_not_finite(path: Path) -> None:
    kspace = random_kspace(2, 2, NX, NY)
    kspace[1, 0, 3, 4] = np.nan
    write(path, kspace, xml())
    assert "slice 1 holds samples that are NaN" in refused(path)


@pytest.mark.parametrize("share", [0.2, 0.6, 0.95])
def test_truncated(path: Path, share: float) -> None:
    write(path, random_kspace(4, 2, NX, NY), xml())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    assert "damaged or truncated HDF5 file" in refused(path)


def test_absurd_size(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("kspace", (1, 64, 40000, 40000), np.complex64, chunks=(1, 1, 100, 100))
    assert "damaged" in refused(path)
