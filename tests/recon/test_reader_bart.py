"""BART's files as raw data in and images out; Debian's BART is the judge where it is installed."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mrd_files import few, random_kspace, refused

from mri_qpan import bart
from mri_qpan.errors import InputError, ReconError
from mri_qpan.recon.kspace import Geometry, Image, ImageSeries, Index
from mri_qpan.recon.maps import load_maps
from mri_qpan.recon.readers import open_kspace
from mri_qpan.recon.writers.arrays import write_cfl_pair, write_npy

PROVENANCE: dict[str, object] = {"command": "mri-qpan recon k.cfl", "version": "1", "method": "tv"}


@pytest.mark.parametrize("suffix", [".cfl", ".hdr"])
def test_one_slice(tmp_path: Path, suffix: str) -> None:
    kspace = random_kspace(3, 1, 6, 8)
    kspace[:, :, ::2] = 0
    bart.write_cfl(tmp_path / "k.x", kspace)
    (image,) = open_kspace(tmp_path / f"k.x{suffix}")
    np.testing.assert_array_equal(image.data, kspace)
    np.testing.assert_array_equal(image.mask, np.broadcast_to(np.arange(6)[:, None] % 2 > 0, (1, 6, 8)))
    assert image.recon_shape == (1, 6, 8)
    assert image.geometry.fov == (8, 6, 1)


@given(sizes=st.tuples(*[st.integers(1, 3)] * 4), sets=st.integers(1, 2))
@few()
def test_counters(
    tmp_path_factory: pytest.TempPathFactory, sizes: tuple[int, int, int, int], sets: int
) -> None:
    slices, phases, repetitions, contrasts = sizes
    folder = tmp_path_factory.mktemp("bart")
    kspace = random_kspace(slices, sets, phases, repetitions, 1, 1, 1, 1, contrasts, 1, 2, 1, 4, 5)
    bart.write_cfl(folder / "k", kspace)
    stream = open_kspace(folder / "k.cfl")
    assert len(stream) == sets * np.prod(sizes)
    images = list(stream)
    assert [image.index for image in images] == sorted(image.index for image in images)
    for image in images:
        i = image.index
        expected = kspace[i.slice, i.set, i.phase, i.repetition, 0, 0, 0, 0, i.contrast, 0]
        np.testing.assert_array_equal(image.data, expected)
    series = ImageSeries([Image(i.data[0], i.geometry, i.index) for i in images], None, PROVENANCE)
    write_cfl_pair(folder / "image.cfl", series)
    back = bart.read_cfl(folder / "image").reshape(*kspace.shape[:-4], 4, 5)
    np.testing.assert_array_equal(back, kspace[..., 0, 0, :, :])


def test_averages_are_averaged_where_they_were_measured(tmp_path: Path) -> None:
    kspace = random_kspace(2, *[1] * 10, 3, 1, 4, 5)  # dimensions 14 (averages) to 0
    kspace[1, ..., 0, :] = 0
    bart.write_cfl(tmp_path / "k", kspace)
    (image,) = open_kspace(tmp_path / "k.cfl")
    first, second = kspace.reshape(2, 3, 1, 4, 5)
    np.testing.assert_allclose(image.data[:, :, 1:], (first + second)[:, :, 1:] / 2, rtol=1e-6)
    np.testing.assert_array_equal(image.data[:, :, 0], first[:, :, 0])
    assert image.mask.all()


@pytest.mark.parametrize(
    ("shape", "words"),
    [((2, 4, 1, 6, 8), "dimension 4"), ((2, 9, 16, 1), "not Cartesian")],
)
def test_arrays_that_are_no_cartesian_kspace(tmp_path: Path, shape: tuple[int, ...], words: str) -> None:
    bart.write_cfl(tmp_path / "k", random_kspace(*shape))
    assert words in refused(tmp_path / "k.cfl")


def test_damaged_pairs(tmp_path: Path) -> None:
    bart.write_cfl(tmp_path / "k", random_kspace(2, 1, 6, 8))
    data = (tmp_path / "k.cfl").read_bytes()
    (tmp_path / "k.cfl").write_bytes(data[:-8])
    assert "is the file complete" in refused(tmp_path / "k.cfl")
    (tmp_path / "k.cfl").write_bytes(data[:-8] + np.array([np.nan, 0], np.float32).tobytes())
    assert "NaN" in refused(tmp_path / "k.cfl")
    (tmp_path / "k.hdr").unlink()
    with pytest.raises(InputError, match=r"k\.hdr: No such file"):
        open_kspace(tmp_path / "k.cfl")


def test_provenance_is_in_the_header(tmp_path: Path) -> None:
    series = ImageSeries([Image(np.ones((1, 3, 4), np.complex64), Geometry((4, 3, 1)))], None, PROVENANCE)
    write_cfl_pair(tmp_path / "a.cfl", series)
    assert "# Command\nmri-qpan recon k.cfl\n" in (tmp_path / "a.hdr").read_text()


def test_npy_is_complex(tmp_path: Path) -> None:
    data = random_kspace(2, 1, 3, 4)
    images = [Image(d, Geometry((4, 3, 1)), Index(slice=s)) for s, d in enumerate(data)]
    write_npy(tmp_path / "a.npy", ImageSeries(images, None, PROVENANCE))
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), data)
    images[1] = Image(data[1, :, :2], Geometry((4, 3, 1)), Index(slice=1))
    with pytest.raises(ReconError, match="size"):
        write_npy(tmp_path / "b.npy", ImageSeries(images, None, PROVENANCE))


def test_maps_from_bart(tmp_path: Path) -> None:
    maps = random_kspace(4, 1, 6, 8)
    bart.write_cfl(tmp_path / "maps", maps)
    np.testing.assert_array_equal(load_maps(tmp_path / "maps.cfl"), maps)
    slices = random_kspace(3, *[1] * 8, 2, 4, 1, 6, 8)  # dimensions 13 (slices) to 0, two sets
    bart.write_cfl(tmp_path / "slices", slices)
    loaded = load_maps(tmp_path / "slices.cfl")
    np.testing.assert_array_equal(loaded, slices.reshape(3, 2, 4, 6, 8).transpose(1, 2, 0, 3, 4))
    bart.write_cfl(tmp_path / "echoes", random_kspace(2, 1, 4, 1, 6, 8))
    with pytest.raises(InputError, match="dimensions"):
        load_maps(tmp_path / "echoes.cfl")
    with pytest.raises(InputError):
        load_maps(tmp_path / "none.cfl")


@pytest.mark.skipif(not bart.available(), reason="BART is not installed")
def test_barts_own_phantom(tmp_path: Path) -> None:
    bart.run(["phantom", "-x", "32", "-k", "-s", "4", "k"], tmp_path, threads=1)
    bart.run(["fft", "-i", "-u", "3", "k", "coils"], tmp_path, threads=1)
    (image,) = open_kspace(tmp_path / "k.cfl")
    from mri_qpan.fourier import ifft_numpy

    coils = bart.read_cfl(tmp_path / "coils").reshape(image.data.shape)
    np.testing.assert_allclose(ifft_numpy(image.data, (-2, -1)), coils, atol=1e-4 * np.abs(coils).max())


def test_a_name_without_its_suffix_is_told_of(tmp_path: Path) -> None:
    bart.write_cfl(tmp_path / "kb", np.ones((8, 8), np.complex64))
    for read in (open_kspace, load_maps):
        with pytest.raises(InputError, match=r"no such file, but kb\.cfl"):
            read(tmp_path / "kb")


@pytest.mark.parametrize("name", ["x.nii.gz", "x.png", "X.DCM"])
def test_images_are_no_kspace(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"any")
    with pytest.raises(InputError, match="not k-space"):
        open_kspace(tmp_path / name)
