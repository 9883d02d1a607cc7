import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import sigpy
import sigpy.mri
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mri_qpan.errors import InputError
from mri_qpan.fourier import fft_numpy, ifft_numpy
from mri_qpan.recon import coils, espirit
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


def _white(shape: tuple[int, ...]) -> NDArray[np.complex128]:
    """Complex noise of variance 1."""
    white = np.random.default_rng(11).standard_normal((2, *shape))
    return (white[0] + 1j * white[1]) / np.sqrt(2)


def folded_images() -> NDArray[np.complex64]:
    """Coil images of an object twice as long as the field of view along y."""
    whole = coil_images((2 * N, N))
    return whole[:, :N] + whole[:, N:]


def slab_images(seed: int, far_apart: bool = False) -> NDArray[np.complex64]:
    """A real ball in a random array, or a rod in one of two groups that hardly see each other's end."""
    rng, shape, number = np.random.default_rng(seed), (20, 20, 48), 6
    z, y, x = np.meshgrid(*((np.arange(n) - n // 2) / n * 2 for n in shape), indexing="ij")
    images = np.empty((number, *shape), np.complex64)
    for coil in range(number):
        place = rng.normal(size=3)
        place *= 1.3 / np.linalg.norm(place)
        reach = np.full(shape, 1.0)
        if far_apart:
            middle, place[2] = (-0.6 if coil < number // 2 else 0.6), 0.0
            reach = np.exp(-((x - middle) ** 2) / 0.08)
        distance = (z - place[0]) ** 2 + (y - place[1]) ** 2 + (not far_apart) * (x - place[2]) ** 2
        phase = rng.uniform(-3, 3) + rng.uniform(-1, 1) * x + rng.uniform(-1, 1) * y
        images[coil] = reach / (1 + distance / 0.8) ** 1.5 * np.exp(1j * phase)
    return images * (z**2 + y**2 + (not far_apart) * x**2 < 0.8) * (1 + 0.2 * np.cos(5 * x))


@pytest.fixture(scope="module")
def images() -> NDArray[np.complex64]:
    return coil_images(noise=0.002)


@pytest.fixture(scope="module")
def maps(images) -> NDArray[np.complex64]:
    return espirit.espirit(calibration(images), (N, N))


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
        maps = espirit.espirit(calibration(images, 20), (45, 60))
        assert maps.shape == (6, 45, 60)
        assert projection_error(maps[None], images) < 0.02

    def test_what_the_readouts_filter_cut_off_does_not_fold(self):
        """An object that reaches beyond a cropped field of view along x."""
        y, x = np.meshgrid((np.arange(N) - N // 2) / N, (np.arange(2 * N) - N) / N, indexing="ij")
        turn = 2 * np.pi * np.arange(6)[:, None, None] / 6
        far = (x - 0.9 * np.cos(turn)) ** 2 + (y - 0.6 * np.sin(turn)) ** 2
        waves = np.exp(1j * (turn + x * np.cos(turn) + y * np.sin(turn)))
        images = np.exp(-far / 0.6) * waves * ((x / 0.7) ** 2 + (y / 0.4) ** 2 < 1)
        cropped = images[:, :, N // 2 : -N // 2].astype(np.complex64)
        assert espirit.folded_share(calibration(cropped)) < 0.02

    @pytest.mark.parametrize("side", [24, 48, 63, 64])
    def test_a_region_larger_than_the_coarse_grid_keeps_its_centre(self, side):
        calib = np.zeros((1, side, side), np.complex64)
        calib[0, side // 2, side // 2] = 1
        low = espirit._low_resolution(calib, (48, 48))
        assert low.angle().abs().max() < 1e-5

    def test_two_sets_for_a_folded_object(self):
        images = folded_images()
        calib = calibration(images)
        one = projection_error(espirit.espirit(calib, (N, N))[None], images)
        two = projection_error(espirit.espirit(calib, (N, N), sets=2), images)
        assert two < 0.05
        assert two < 0.5 * one
        assert espirit.folded_share(calib) > 0.2

    @pytest.mark.parametrize(("amplitude", "noise"), [(0.06, 0.001), (0.04, 0.001), (0.04, 0.0)])
    def test_a_dim_structure_apart_from_a_bright_one_is_kept(self, amplitude, noise):
        sides = (192, 192)
        y, x = np.meshgrid(*(np.arange(n) - n // 2 for n in sides), indexing="ij")
        bright, dim = np.hypot(x + 32, y) < 29, np.hypot(x - 48, y) < 14
        images = sigpy.mri.birdcage_maps((8, *sides)) * (bright + amplitude * dim)
        images = images + noise * np.sqrt(2) * _white(images.shape)
        region = calibration(images.astype(np.complex64), 32)
        given = np.sqrt(2) * noise
        maps = espirit.espirit(region, sides, noise=given)
        assert (maps[:, dim] == 0).all(0).mean() > 0.3  # as SigPy's and BART's
        before = maps.copy()
        espirit.add_faint(maps[None], region, given)
        assert not (maps[:, dim] == 0).all(0).any()
        assert projection_error(maps[None], images * dim) < (0.3 if noise else 0.1)
        kept = (before != 0).any(0)
        np.testing.assert_array_equal(maps[:, kept], before[:, kept])
        air = ~bright & ~dim & (np.hypot(x + 32, y) > 40) & (np.hypot(x - 48, y) > 26)
        assert (maps[:, air] != 0).any(0).mean() < 0.02
        mask = np.ones(sides, bool)
        whole = coils.maps_of_slice(fft_numpy(images, (1, 2)), mask, given)
        assert not (whole[:, dim] == 0).all(0).any()

    def test_a_dim_structure_in_a_slab_is_kept(self):
        shape = (32, 64, 8)
        z, y, x = np.meshgrid(*(np.arange(n) - n // 2 for n in shape), indexing="ij")
        bright, dim = np.hypot(z, y + 14) < 10, np.hypot(z, y - 20) < 6
        images = sigpy.mri.birdcage_maps((6, *shape)) * (bright + 0.03 * dim) * np.hanning(10)[1:-1]
        region = sigpy.resize(fft_numpy(images, (1, 2, 3)), (6, 32, 32, 8)).astype(np.complex64)
        found, without = (coils.slab_maps(region, shape, 0, faint=faint) for faint in (True, False))
        inside = dim & (np.abs(x) < 2)
        assert (without[:, inside] == 0).all(0).mean() > 0.5
        assert (found[:, inside] == 0).all(0).mean() < 0.02

    def test_no_fold(self, images):
        assert espirit.folded_share(calibration(images)) < 0.02

    def test_noise_alone_has_no_maps(self):
        generator = np.random.default_rng(0)
        noise = generator.standard_normal((2, 4, 24, 24)).astype(np.float32)
        calib = (noise[0] + 1j * noise[1]).astype(np.complex64)
        assert not espirit.espirit(calib, (N, N), noise=2**0.5 * 1.2).any()
        assert espirit.folded_share(calib, noise=2**0.5 * 1.2) == 0

    def test_zeros(self):
        assert not espirit.espirit(np.zeros((3, 24, 24), np.complex64), (N, N), sets=2).any()

    def test_too_small_a_region(self):
        with pytest.raises(InputError, match="5 x 24"):
            espirit.espirit(np.ones((3, 5, 24), np.complex64), (N, N))

    def test_slab(self):
        images = coil_images((16, 32, 24), number=4)
        kspace = fft_numpy(images, (1, 2, 3))
        maps = coils.slab_maps(np.ascontiguousarray(kspace[:, 2:14, 8:24]), (16, 32, 24), 0)
        assert maps.shape == (4, 16, 32, 24)
        assert projection_error(maps[None], images) < 0.1

    @pytest.mark.parametrize("far_apart", [False, True])
    @pytest.mark.parametrize("seed", range(4))
    def test_the_phase_of_a_slab_goes_on_along_x(self, seed, far_apart):
        """Of a real object it is that of the coils, which turns slowly: reconstruction must not add to it."""
        images = slab_images(seed, far_apart)
        shape = images.shape[1:]
        maps = coils.slab_maps(np.ascontiguousarray(fft_numpy(images, (1, 2, 3))[:, 2:18, 2:18]), shape, 0)
        combined = (maps.conj() * images).sum(axis=0)
        steps = combined[..., 1:] * combined[..., :-1].conj()
        assert np.count_nonzero(steps) > 0.3 * steps.size
        assert np.abs(np.angle(steps[steps != 0])).max() < 0.5

    def test_planes_along_z_need_fewer_phase_encodings(self):
        """8 x 16 of them are too few equations in (z, y)."""
        images = slab_images(0)
        block = slice(6, 14), slice(2, 18), slice(8, 40)
        calib = np.ascontiguousarray(fft_numpy(images, (1, 2, 3))[:, *block])
        assert not coils.slab_is_covered(coils.strongest_plane(calib), images.shape[1:3])
        maps = coils.slab_maps(calib, images.shape[1:], block[0].start, along=0)
        assert projection_error(maps[None], images) < 0.05
        other = coils.slab_maps(calib, images.shape[1:], block[2].start)
        assert projection_error(other[None], images) > 0.5

    def test_a_slab_of_zeros_has_no_maps(self):
        assert not coils.slab_maps(np.zeros((3, 12, 12, 8), np.complex64), (16, 16, 8), 0).any()

    def test_real_head(self, shared_data):
        from mri_qpan.recon.readers import open_kspace

        full = next(open_kspace(shared_data / "kspace/head_8ch_256.h5"))
        part = next(open_kspace(shared_data / "kspace/head_8ch_256_R3_acs24.h5"))
        block = coils.calibration_region(part.mask)
        maps = espirit.espirit(np.ascontiguousarray(part.data[:, *block][:, 0]), (256, 256))
        assert projection_error(maps[None], ifft_numpy(full.data[:, 0], (1, 2))) < 0.09

    @pytest.mark.skipif(shutil.which("bart") is None, reason="BART is not installed")
    @pytest.mark.parametrize("sets", [1, 2])
    def test_as_good_as_barts(self, shared_data, tmp_path, sets):
        from mri_qpan.recon.readers import open_kspace

        name = {1: "head_8ch_256", 2: "brain_8ch_wrap_320x168"}[sets]
        kspace = next(open_kspace(shared_data / f"kspace/{name}.h5")).data[:, 0]
        images = ifft_numpy(kspace, (1, 2))
        ours = espirit.espirit(calibration(images), images.shape[1:], sets=sets)
        theirs = bart_maps(kspace, sets, tmp_path)
        errors = projection_error(ours if sets > 1 else ours[None], images), projection_error(theirs, images)
        assert errors[0] < 1.02 * errors[1]
        if sets > 1:
            assert shared_span(ours, theirs) > 0.98


def span_errors(
    maps: NDArray[np.complex64], gram: NDArray[np.complex64]
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Where maps (set, coil, y, x) have as many sets as eigenvalues tell, and their spans' distance there.

    The eigenvalues and eigenvectors are NumPy's, of the matrices (y, x, coil, coil).
    """
    values, vectors = np.linalg.eigh(gram)
    values, vectors = values[..., ::-1][..., : len(maps)], vectors[..., ::-1][..., : len(maps)]
    there = values > espirit.CROP
    wanted = vectors * there[..., None, :]
    found = maps.transpose(2, 3, 1, 0)
    same = ((abs(found) ** 2).sum(-2) > 0.5) == there
    spans = [v @ v.conj().swapaxes(-1, -2) for v in (found, wanted)]
    return same.all(-1), np.linalg.norm(spans[0] - spans[1], axis=(-2, -1))


def gram_of(calib: NDArray[np.complex64], shape: tuple[int, int]) -> NDArray[np.complex64]:
    correlation = espirit._kernel_correlation(calib, 0.0)[0]
    assert correlation is not None
    return espirit._gram(correlation, shape, slice(0, shape[0])).numpy()


class TestSeveralSets:
    """Subspace iteration from a coarse grid, against NumPy's full eigendecomposition of every pixel."""

    @pytest.mark.parametrize("sets", [2, 3])
    @pytest.mark.parametrize("shape", [(128, 96), (45, 140)])
    def test_are_the_eigenvectors(self, shape, sets):
        whole = coil_images((2 * shape[0], shape[1]))
        calib = calibration(whole[:, : shape[0]] + whole[:, shape[0] :])
        maps = espirit.espirit(calib, shape, sets=sets)
        same, distance = span_errors(maps, gram_of(calib, shape))
        assert same.mean() > 0.999
        assert distance[same].max() < 0.02
        assert np.sqrt((distance[same] ** 2).mean()) < 2e-3

    def test_of_a_real_head_that_folds_over(self, shared_data):
        from mri_qpan.recon.readers import open_kspace

        kspace = next(open_kspace(shared_data / "kspace/brain_8ch_wrap_320x168.h5")).data[:, 0]
        calib = sigpy.resize(kspace, (8, 24, 24))
        maps = espirit.espirit(calib, kspace.shape[1:], sets=2)
        assert 0.1 < (abs(maps[1]).sum(0) > 0).mean() < 0.2
        part = (slice(None, None, 3), slice(None, None, 2))  # NumPy takes its time
        same, distance = span_errors(maps[:, :, *part], gram_of(calib, kspace.shape[1:])[part])
        assert same.mean() > 0.999
        assert distance[same].max() < 0.01
        assert np.sqrt((distance[same] ** 2).mean()) < 2e-3

    def test_are_orthonormal(self):
        maps = espirit.espirit(calibration(folded_images()), (N, N), sets=2).transpose(2, 3, 0, 1)
        products = maps.conj() @ maps.swapaxes(-1, -2)
        there = products[..., [0, 1], [0, 1]].real > 0.5
        np.testing.assert_allclose(products, np.eye(2) * there[..., None, :], atol=1e-4)

    def test_in_parts_as_in_one(self, monkeypatch):
        calib = calibration(folded_images())
        whole = espirit.espirit(calib, (N, N), sets=2)
        monkeypatch.setattr(espirit, "CHUNK", 8 * 6 * 6 * N * 5)  # five rows at a time, the last four
        np.testing.assert_allclose(espirit.espirit(calib, (N, N), sets=2), whole, atol=1e-5)

    def test_more_sets_than_coils_are_empty(self):
        calib = calibration(coil_images(number=1))
        maps = espirit.espirit(calib, (N, N), sets=2)
        assert maps[0].any()
        assert not maps[1].any()

    @settings(deadline=None, max_examples=40)
    @given(seed=st.integers(0, 2**31), count=st.integers(2, 9), sets=st.integers(1, 4))
    def test_subspace_iteration_of_any_matrices(self, seed, count, sets):
        """With a gap after the wanted eigenvalues it settles on them, whatever it starts at."""
        rng = np.random.default_rng(seed)
        sets = min(sets, count)
        values = np.sort(np.r_[rng.uniform(0.6, 1, sets), rng.uniform(0, 0.1, count - sets)])
        vectors = np.linalg.qr(rng.standard_normal((5, count, 2 * count)).view(complex))[0]
        gram = (vectors * values) @ vectors.conj().swapaxes(-1, -2)
        start = torch.from_numpy(rng.standard_normal((5, count, 2 * sets)).view(complex))
        found, values_found = espirit._subspace(torch.from_numpy(gram), start, 20)
        np.testing.assert_allclose(values_found, np.tile(values[::-1][:sets], (5, 1)), atol=1e-6)
        np.testing.assert_allclose(gram @ found.mT.numpy(), found.mT.numpy() * values[::-1][:sets], atol=1e-5)

    @pytest.mark.skipif(shutil.which("bart") is None, reason="BART is not installed")
    def test_span_what_barts_do(self, tmp_path):
        images = folded_images()
        ours = espirit.espirit(calibration(images), (N, N), sets=2)
        assert shared_span(ours, bart_maps(fft_numpy(images, (1, 2)), 2, tmp_path)) > 0.98


def shared_span(ours: NDArray[np.complex64], theirs: NDArray[np.complex64]) -> float:
    """Share (1: all) of two spans (set, coil, y, x) in each other, in 95 % of the pixels with both."""
    norms = np.linalg.norm(theirs, axis=1)
    both = (np.linalg.norm(ours, axis=1).min(0) > 0.5) & (norms.min(0) > 0.5)
    assert both.mean() > 0.1
    span = np.einsum("scyx,tcyx->styx", ours.conj(), theirs / np.maximum(norms, 1e-6)[:, None])
    return float(np.quantile((abs(span) ** 2).sum((0, 1))[both] / len(ours), 0.05))


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
