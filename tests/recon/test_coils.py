import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import sigpy
import sigpy.mri
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mri_qpan.errors import InputError
from mri_qpan.fourier import fft_numpy, ifft_numpy
from mri_qpan.recon import coils
from mri_qpan.sampling_masks import make_mask
from mri_qpan.training.simulate import random_maps

N = 64


def coil_images(
    shape: tuple[int, ...] = (N, N), number: int = 6, noise: float = 0.0
) -> NDArray[np.complex64]:
    """Images of a head-like phantom through birdcage coils, (coil, *shape)."""
    maps = sigpy.mri.birdcage_maps((number, *shape))
    images = maps * sigpy.shepp_logan(shape)
    generator = np.random.default_rng(3)
    white = generator.standard_normal((2, *images.shape)) * noise
    return (images + white[0] + 1j * white[1]).astype(np.complex64)


def calibration(images: NDArray[np.complex64], width: int = 24) -> NDArray[np.complex64]:
    axes = tuple(range(1, images.ndim))
    return sigpy.resize(fft_numpy(images, axes), (len(images), *[width] * len(axes)))


def projection_error(maps: NDArray[np.complex64], images: NDArray[np.complex64]) -> float:
    """Share of the coil images that the maps, (set, coil, ...), cannot represent."""
    combined = np.einsum("sc...,c...->s...", maps.conj(), images)
    return float(
        np.linalg.norm(images - np.einsum("sc...,s...->c...", maps, combined)) / np.linalg.norm(images)
    )


def folded_images() -> NDArray[np.complex64]:
    """Coil images of an object twice as long as the field of view along y."""
    whole = coil_images((2 * N, N))
    return whole[:, :N] + whole[:, N:]


@pytest.fixture(scope="module")
def images() -> NDArray[np.complex64]:
    return coil_images(noise=0.002)


@pytest.fixture(scope="module")
def maps(images) -> NDArray[np.complex64]:
    return coils.espirit(calibration(images), (N, N))


class TestCalibrationRegion:
    @settings(deadline=None, max_examples=60)
    @given(seed=st.integers(0, 2**31), share=st.sampled_from([0.5, 0.8, 0.95, 1.0]), odd=st.booleans())
    def test_is_the_largest_around_the_centre(self, seed, share, odd):
        shape = (1, 9, 7) if odd else (1, 8, 10)
        mask = np.random.default_rng(seed).random(shape) < share
        centre = tuple(n // 2 for n in shape)
        found = coils.calibration_region(mask)
        if not mask[centre]:
            assert found is None
            return
        assert found is not None
        assert mask[found].all()
        assert all(s.start <= c < s.stop for s, c in zip(found, centre, strict=True))
        best = max(
            (y1 - y0) * (x1 - x0)
            for y0 in range(centre[1] + 1)
            for y1 in range(centre[1] + 1, shape[1] + 1)
            for x0 in range(centre[2] + 1)
            for x1 in range(centre[2] + 1, shape[2] + 1)
            if mask[0, y0:y1, x0:x1].all()
        )
        assert mask[found].size == best

    def test_width_is_limited(self):
        block = coils.calibration_region(np.ones((1, 100, 90), bool), 24)
        assert block == (slice(0, 1), slice(38, 62), slice(33, 57))

    def test_lines(self):
        mask = np.zeros((1, 64, 64), bool)
        mask[:, ::4] = mask[:, 24:40] = True
        assert coils.calibration_region(mask) == (slice(0, 1), slice(24, 41), slice(16, 48))

    def test_slab(self):
        mask = np.zeros((32, 64, 48), bool)
        mask[::2, ::2] = mask[10:22, 24:40] = True
        block = coils.calibration_region(mask)
        assert block is not None
        assert mask[block].all()
        assert [s.stop - s.start for s in block] == [12, 16, 48]

    def test_slab_without_centre(self):
        mask = np.ones((8, 8, 8), bool)
        mask[4, 4] = False
        assert coils.calibration_region(mask) is None


class TestEspirit:
    def test_normalised_inside_and_zero_outside(self, maps):
        power = (abs(maps) ** 2).sum(axis=0)
        inside = power > 0
        np.testing.assert_allclose(power[inside], 1, atol=1e-5)
        assert 0.3 < inside.mean() < 0.95

    def test_represents_the_coil_images(self, images, maps):
        clean = coil_images()
        assert projection_error(maps[None], clean) < 0.02

    def test_equals_sigpys(self, images, maps):
        kspace = fft_numpy(images, (1, 2))
        theirs = sigpy.mri.app.EspiritCalib(kspace, calib_width=24, show_pbar=False).run()
        ours, support = abs(maps).sum(axis=0) > 0, abs(theirs).sum(axis=0) > 0
        assert (ours == support).mean() > 0.998
        overlap = abs((maps.conj() * theirs).sum(axis=0))[ours & support]
        assert np.quantile(overlap, 0.05) > 0.999
        errors = projection_error(maps[None], images), projection_error(theirs[None], images)
        assert errors[0] == pytest.approx(errors[1], abs=2e-3)

    def test_phase_is_smooth(self, images, maps):
        brain = abs(coil_images()).sum(axis=0) > 0
        steps = abs(np.diff(maps, axis=1))[:, brain[1:] & brain[:-1]]
        assert np.quantile(steps, 0.99) < 0.1

    def test_shape_need_not_be_square_or_even(self):
        images = coil_images((45, 60))
        maps = coils.espirit(calibration(images, 20), (45, 60))
        assert maps.shape == (6, 45, 60)
        assert projection_error(maps[None], images) < 0.02

    def test_two_sets_for_a_folded_object(self):
        images = folded_images()
        calib = calibration(images)
        one = projection_error(coils.espirit(calib, (N, N))[None], images)
        two = projection_error(coils.espirit(calib, (N, N), sets=2), images)
        assert two < 0.05
        assert two < 0.5 * one
        assert coils.folded_share(calib) > 0.2

    def test_no_fold(self, images):
        assert coils.folded_share(calibration(images)) < 0.02

    def test_noise_alone_has_no_maps(self):
        generator = np.random.default_rng(0)
        noise = generator.standard_normal((2, 4, 24, 24)).astype(np.float32)
        calib = (noise[0] + 1j * noise[1]).astype(np.complex64)
        assert not coils.espirit(calib, (N, N), noise=2**0.5 * 1.2).any()
        assert coils.folded_share(calib, noise=2**0.5 * 1.2) == 0

    def test_zeros(self):
        assert not coils.espirit(np.zeros((3, 24, 24), np.complex64), (N, N), sets=2).any()

    def test_too_small_a_region(self):
        with pytest.raises(InputError, match="5 x 24"):
            coils.espirit(np.ones((3, 5, 24), np.complex64), (N, N))

    def test_slab(self):
        images = coil_images((16, 32, 24), number=4)
        kspace = fft_numpy(images, (1, 2, 3))
        maps = coils.slab_maps(np.ascontiguousarray(kspace[:, 2:14, 8:24]), (16, 32, 24), 0)
        assert maps.shape == (4, 16, 32, 24)
        assert projection_error(maps[None], images) < 0.1

    def test_real_head(self, shared_data):
        from mri_qpan.recon.readers import open_kspace

        full = next(open_kspace(shared_data / "kspace/head_8ch_256.h5"))
        part = next(open_kspace(shared_data / "kspace/head_8ch_256_R3_acs24.h5"))
        block = coils.calibration_region(part.mask)
        maps = coils.espirit(np.ascontiguousarray(part.data[:, *block][:, 0]), (256, 256))
        assert projection_error(maps[None], ifft_numpy(full.data[:, 0], (1, 2))) < 0.09

    @pytest.mark.skipif(shutil.which("bart") is None, reason="BART is not installed")
    @pytest.mark.parametrize("sets", [1, 2])
    def test_as_good_as_barts(self, shared_data, tmp_path, sets):
        from mri_qpan.recon.readers import open_kspace

        name = {1: "head_8ch_256", 2: "brain_8ch_wrap_320x168"}[sets]
        kspace = next(open_kspace(shared_data / f"kspace/{name}.h5")).data[:, 0]
        images = ifft_numpy(kspace, (1, 2))
        ours = coils.espirit(calibration(images), images.shape[1:], sets=sets)
        theirs = bart_maps(kspace, sets, tmp_path)
        errors = projection_error(ours if sets > 1 else ours[None], images), projection_error(theirs, images)
        assert errors[0] < 1.02 * errors[1]


class TestOtherMaps:
    def test_low_resolution(self):
        images = coil_images(number=4)
        mask = np.zeros((1, N, N), bool)
        mask[:, N // 2 - 3 : N // 2 + 3] = True
        maps = coils.low_resolution_maps(fft_numpy(images[:, None], (2, 3)) * mask, mask)
        np.testing.assert_allclose((abs(maps) ** 2).sum(axis=0), 1, atol=1e-4)
        assert projection_error(maps[None], images[:, None]) < 0.15

    def test_normalise(self):
        maps = coils.normalise(np.array([[3, 0, 1e-12], [4j, 0, 0]], np.complex64))
        np.testing.assert_allclose(maps, [[0.6, 0, 0], [0.8j, 0, 0]], atol=1e-6)


def bart_maps(kspace: NDArray[np.complex64], sets: int, folder: Path) -> NDArray[np.complex64]:
    """BART's ESPIRiT maps, (set, coil, y, x)."""
    data = kspace.transpose(2, 1, 0)[:, :, None]
    (folder / "k.hdr").write_text("# Dimensions\n" + " ".join(map(str, data.shape)) + "\n")
    data.ravel(order="F").tofile(folder / "k.cfl")
    command = ["bart", "ecalib", "-m", str(sets), "-r", "24", "k", "m"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    shape = [int(n) for n in (folder / "m.hdr").read_text().splitlines()[1].split()][:5]
    found = np.fromfile(folder / "m.cfl", np.complex64).reshape(shape, order="F")
    return found[:, :, 0].transpose(3, 2, 1, 0)


@pytest.mark.parametrize("count", [2, 8])
def test_maps_of_an_undersampled_slice_are_found(count):
    rng = np.random.default_rng(3)
    y, x = np.mgrid[-1:1:64j, -1:1:48j]
    image = (np.hypot(y, x) < 0.8).astype(np.complex64)
    true = random_maps((64, 48), count, rng)
    kspace = fft_numpy(true * image, (-2, -1))
    mask = make_mask("lines", (64, 48), 0.5, seed=1)
    found = coils.maps_of_slice(kspace * mask, mask)
    inside = np.hypot(y, x) < 0.7
    overlap = np.abs((found.conj() * true).sum(0))[inside]
    assert overlap.mean() > 0.98
    with_no_centre = mask.copy()
    with_no_centre[32] = False
    assert coils.maps_of_slice(kspace * with_no_centre, with_no_centre).shape == found.shape
