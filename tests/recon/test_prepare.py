from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import sigpy
import sigpy.mri
from mrd_files import random_kspace
from numpy.typing import NDArray

from mri_qpan.errors import InputError
from mri_qpan.fourier import fft_numpy, ifft_numpy
from mri_qpan.recon.kspace import Geometry, KSpace
from mri_qpan.recon.memo import Memo
from mri_qpan.recon.prepare import condition, prepare, whitening_matrix
from mri_qpan.recon.readers import open_kspace

NY, NX, COILS = 48, 40, 4


def phantom(width: int = NX) -> NDArray[np.complex64]:
    """Coil images (coil, 1, y, x)."""
    shape = (NY, width)
    return (sigpy.mri.birdcage_maps((COILS, *shape)) * sigpy.shepp_logan(shape))[:, None].astype(np.complex64)


def kspace_of(images: NDArray[np.complex64], width: int | None = None) -> KSpace:
    shape = images.shape[1:]
    recon_shape = shape if width is None else (*shape[:2], width)
    return KSpace(
        data=fft_numpy(images, (2, 3)),
        mask=np.ones(shape, bool),
        recon_shape=recon_shape,
        geometry=Geometry((recon_shape[2], recon_shape[1], 1)),
    )


def undersampled(kspace: KSpace, lines: NDArray[np.bool_]) -> KSpace:
    mask = kspace.mask & lines[:, None]
    return replace(kspace, data=kspace.data * mask, mask=mask)


def correlated_noise(samples: int = 20000) -> tuple[NDArray[np.complex64], NDArray[np.complex64]]:
    """Noise (coil, samples) and its covariance."""
    mixing = np.eye(COILS) + 0.4 * random_kspace(COILS, COILS, seed=1)
    noise = (mixing @ random_kspace(COILS, samples, seed=2)).astype(np.complex64)
    return noise, noise @ noise.conj().T / samples


class TestCompression:
    def test_dependent_channels_lose_nothing(self):
        mixing = random_kspace(3 * COILS, COILS, seed=5)
        many = kspace_of(np.tensordot(mixing, phantom(), axes=1).astype(np.complex64))
        found, mixer = condition(many, COILS)
        assert found.data.shape[0] == COILS
        eye = np.broadcast_to(np.eye(COILS), (NX, COILS, COILS))
        np.testing.assert_allclose(mixer @ mixer.conj().swapaxes(1, 2), eye, atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(found.data), np.linalg.norm(many.data), rtol=1e-5)
        assert any("compressed geometrically" in note and "to 4 with 100.00%" in note for note in found.notes)

    def test_white_noise_stays_white(self):
        _, covariance = correlated_noise()
        kspace = replace(kspace_of(phantom()), noise_covariance=covariance)
        found, mixer = condition(kspace, 2)
        expected = np.trace(covariance).real / COILS * np.eye(2)
        np.testing.assert_allclose(found.noise_covariance, expected, atol=1e-4)
        for place in mixer:
            np.testing.assert_allclose(place @ covariance @ place.conj().T, expected, atol=1e-3)

    def test_the_components_are_those_of_the_calibration(self):
        kspace = kspace_of(phantom())
        calib = kspace.data.copy()
        calib[1:] = 0
        found, mixer = condition(replace(kspace, calib=calib, calib_mask=kspace.mask), 1)
        np.testing.assert_allclose(np.abs(mixer), np.broadcast_to([[1, 0, 0, 0]], (NX, 1, 4)), atol=1e-6)
        np.testing.assert_allclose(np.abs(found.data[0]), np.abs(kspace.data[0]), rtol=1e-5)

    @pytest.mark.parametrize("number", [COILS, COILS + 3, None])
    def test_no_more_channels_than_there_are(self, number):
        found, mixer = condition(kspace_of(phantom()), number)
        assert mixer is None
        assert found.data.shape[0] == COILS

    def test_given_maps_are_mixed_alike(self):
        kspace, maps = kspace_of(phantom()), sigpy.mri.birdcage_maps((COILS, NY, NX))[:, None]
        every = prepare(kspace, mps=maps.astype(np.complex64))
        few = prepare(kspace, mps=maps.astype(np.complex64), compress=3)
        images = [
            (p.mps.conj() * ifft_numpy(p.data, (2, 3))).sum(0) / (np.abs(p.mps) ** 2).sum(0)
            for p in (every, few)
        ]
        assert np.linalg.norm(np.abs(images[0]) - np.abs(images[1])) < 0.05 * np.linalg.norm(images[0])


class TestWhitening:
    @pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
    def test_units_do_not_matter(self, unit):
        """A scanner's samples may be of 1e-6."""
        _, covariance = correlated_noise()
        kspace = replace(kspace_of(phantom()), noise_covariance=(unit**2 * covariance).astype(np.complex64))
        found, whitener = condition(kspace)
        assert whitener is not None
        assert any("whitened" in note for note in found.notes)

    def test_channels_become_white_at_the_same_power(self):
        noise, covariance = correlated_noise()
        white = whitening_matrix(covariance) @ noise
        power = np.trace(covariance).real / COILS
        np.testing.assert_allclose(white @ white.conj().T / noise.shape[1], power * np.eye(COILS), atol=1e-3)

    def test_samples_and_calibration_are_whitened(self):
        _, covariance = correlated_noise()
        kspace = kspace_of(phantom())
        kspace = replace(kspace, noise_covariance=covariance, calib=2 * kspace.data, calib_mask=kspace.mask)
        found, whitener = condition(kspace)
        np.testing.assert_allclose(found.data, np.tensordot(whitener, kspace.data, axes=1), atol=1e-4)
        np.testing.assert_allclose(found.calib, 2 * found.data, atol=1e-4)
        assert any("whitened" in note for note in found.notes)

    def test_is_done_once(self):
        _, covariance = correlated_noise()
        once, _ = condition(replace(kspace_of(phantom()), noise_covariance=covariance))
        twice, whitener = condition(once)
        assert whitener is None
        np.testing.assert_array_equal(once.data, twice.data)

    @pytest.mark.parametrize("fault", ["dead channel", "too short"])
    def test_singular_covariance_is_said(self, fault):
        _, covariance = correlated_noise()
        if fault == "dead channel":
            covariance[1] = covariance[:, 1] = 0
        else:
            one = random_kspace(COILS, 2)
            covariance = one @ one.conj().T
        found, whitener = condition(replace(kspace_of(phantom()), noise_covariance=covariance))
        assert whitener is None
        assert any("not whitened" in note for note in found.notes)


class TestReadoutOversampling:
    def test_crop_is_exact(self):
        images = phantom(2 * NX)
        found, _ = condition(kspace_of(images, NX))
        assert found.data.shape == (COILS, 1, NY, NX)
        expected = images[..., NX // 2 : NX // 2 + NX]
        np.testing.assert_allclose(ifft_numpy(found.data, (2, 3)), expected, atol=1e-5)

    @pytest.mark.parametrize(("wide", "narrow"), [(41, 20), (40, 21), (41, 21)])
    def test_keeps_the_centre(self, wide, narrow):
        images = np.zeros((1, 1, 8, wide), np.complex64)
        images[0, 0, 4, wide // 2] = 1
        found, _ = condition(kspace_of(images, narrow))
        cropped = abs(ifft_numpy(found.data, (2, 3)))[0, 0, 4]
        assert cropped.argmax() == narrow // 2

    def test_undersampled_lines(self):
        lines = np.arange(NY) % 2 == 0
        found, _ = condition(undersampled(kspace_of(phantom(2 * NX), NX), lines))
        assert found.mask.shape == (1, NY, NX)
        assert not found.data[:, ~found.mask].any()
        assert found.mask[0].all(axis=1).tolist() == lines.tolist()

    def test_asymmetric_echo_is_kept(self):
        kspace = kspace_of(phantom(2 * NX), NX)
        mask = kspace.mask.copy()
        mask[..., :10] = False
        found = prepare(replace(kspace, mask=mask, data=kspace.data * mask))
        assert found.data.shape == (COILS, 1, NY, 2 * NX)
        assert found.recon_shape == (1, NY, NX)

    def test_calibration_is_cropped_too(self):
        kspace = kspace_of(phantom(2 * NX), NX)
        found, _ = condition(replace(kspace, calib=3 * kspace.data, calib_mask=kspace.mask))
        np.testing.assert_allclose(found.calib, 3 * found.data, atol=1e-4)
        assert found.calib_mask.shape == (1, NY, NX)


class TestMaps:
    def test_estimated(self):
        images = phantom()
        lines = (np.arange(NY) % 3 == 0) | (abs(np.arange(NY) - NY // 2) < 10)
        found = prepare(undersampled(kspace_of(images), lines))
        combined = (found.mps.conj() * images).sum(axis=0)
        assert np.linalg.norm(found.mps * combined - images) < 0.03 * np.linalg.norm(images)
        assert any("ESPIRiT" in note for note in found.notes)

    def test_separate_calibration_is_used(self):
        images = phantom()
        kspace = kspace_of(images)
        calib_mask = np.zeros_like(kspace.mask)
        calib_mask[:, 14:34] = True
        apart = undersampled(
            replace(kspace, calib=kspace.data * calib_mask, calib_mask=calib_mask), np.arange(NY) % 3 == 0
        )
        found = prepare(apart)
        assert any("20 x 32" in note for note in found.notes)

    def test_one_channel(self):
        found = prepare(kspace_of(phantom()[:1]))
        np.testing.assert_array_equal(found.mps, np.ones((1, 1, NY, NX)))

    def test_no_calibration_region_is_said(self):
        found = prepare(undersampled(kspace_of(phantom()), np.arange(NY) % 2 == 0))
        assert any("no calibration region" in note for note in found.notes)
        assert np.isfinite(found.mps).all()

    def test_slab(self):
        shape = (16, 24, 20)
        images = sigpy.mri.birdcage_maps((COILS, *shape)) * sigpy.shepp_logan(shape)
        data = fft_numpy(images.astype(np.complex64), (1, 2, 3))
        kspace = KSpace(data, np.ones(shape, bool), shape, Geometry((20, 24, 16)))
        found = prepare(kspace)
        combined = (found.mps.conj() * images).sum(axis=0)
        assert np.linalg.norm(found.mps * combined - images) < 0.1 * np.linalg.norm(images)

    @pytest.mark.parametrize("depth", [2, 5, 8])
    def test_slab_of_few_partitions(self, depth):
        shape = (depth, 24, 40)
        images = sigpy.mri.birdcage_maps((8, *shape)) * sigpy.shepp_logan((24, 40))
        data = fft_numpy(images.astype(np.complex64), (1, 2, 3))
        found = prepare(KSpace(data, np.ones(shape, bool), shape, Geometry((40, 24, depth))))
        combined = (found.mps.conj() * images).sum(axis=0)
        assert np.linalg.norm(found.mps * combined - images) < 0.1 * np.linalg.norm(images)
        assert f"region of {depth // 2 * 2} x 24 x 40 (z, y, x): ESPIRiT" in found.notes[0]

    @pytest.mark.parametrize("lines", [8, 10])
    def test_few_lines_of_a_real_head_lose_nothing(self, shared_data, lines):
        full = next(open_kspace(shared_data / "kspace/head_8ch_256.h5"))
        y = np.arange(256)
        found = prepare(undersampled(full, (abs(y + 0.5 - 128) < lines / 2) | (y % 3 == 0)))
        images = ifft_numpy(full.data, (2, 3))
        combined = (found.mps.conj() * images).sum(axis=0)
        assert np.linalg.norm(found.mps * combined - images) < 0.15 * np.linalg.norm(images)

    @pytest.mark.parametrize("depth", [1, 4])
    def test_maps_that_miss_the_object_are_not_taken(self, depth):
        """Eight lines and many channels: ESPIRiT's eigenvalues stay below 1, and the image would be zero."""
        shape = (depth, 48, 12)
        rng = np.random.default_rng(0)
        images = ifft_numpy(rng.standard_normal((8, *shape)).astype(np.complex64), (1, 2, 3))
        mask = np.zeros(shape, bool)
        mask[:, ::4] = mask[:, 20:28] = True
        found = prepare(KSpace(fft_numpy(images, (1, 2, 3)) * mask, mask, shape, Geometry((12, 48, depth))))
        assert "ESPIRiT finds none" in found.notes[-1]
        np.testing.assert_allclose((abs(found.mps) ** 2).sum(axis=0), 1, atol=1e-4)

    def test_a_calibration_region_of_zeros(self):
        shape = (4, 24, 20)
        data = np.ones((COILS, *shape), np.complex64)
        mask, calib_mask = np.ones(shape, bool), np.zeros(shape, bool)
        calib_mask[:, 8:16] = True
        kspace = KSpace(data, mask, shape, Geometry((20, 24, 4)), calib=0 * data, calib_mask=calib_mask)
        assert prepare(kspace).mps.shape == data.shape

    def test_notes_begin_with_the_readers(self):
        assert prepare(replace(kspace_of(phantom()), notes=("assumed",))).notes[0] == "assumed"


class TestGivenMaps:
    def test_are_normalised(self):
        maps = sigpy.mri.birdcage_maps((COILS, NY, NX)).astype(np.complex64)
        found = prepare(kspace_of(phantom()), mps=5 * maps)
        np.testing.assert_allclose((abs(found.mps) ** 2).sum(axis=0), 1, atol=1e-5)
        np.testing.assert_allclose(found.mps[:, 0], maps / np.linalg.norm(maps, axis=0), atol=1e-5)

    def test_on_the_encoded_matrix_are_cropped(self):
        maps = sigpy.mri.birdcage_maps((COILS, 1, NY, 2 * NX))[:, 0][:, None].astype(np.complex64)
        found = prepare(kspace_of(phantom(2 * NX), NX), mps=maps)
        assert found.mps.shape == (COILS, 1, NY, NX)

    def test_are_whitened_with_the_channels(self):
        _, covariance = correlated_noise()
        images = phantom()
        kspace = replace(kspace_of(images), noise_covariance=covariance)
        maps = sigpy.mri.birdcage_maps((COILS, NY, NX)).astype(np.complex64)
        found = prepare(kspace, mps=maps)
        white = ifft_numpy(found.data, (2, 3))
        combined = (found.mps.conj() * white).sum(axis=0)
        np.testing.assert_allclose(found.mps * combined, white, atol=1e-4)

    @pytest.mark.parametrize(
        "shape", [(COILS, NY), (COILS, NY, NX + 1), (COILS - 1, 1, NY, NX), (COILS, 2, NY, NX)]
    )
    def test_of_another_shape(self, shape):
        with pytest.raises(InputError, match="do not fit"):
            prepare(kspace_of(phantom()), mps=np.ones(shape, np.complex64))

    @pytest.mark.parametrize("value", [0, np.nan])
    def test_of_no_use(self, value):
        with pytest.raises(InputError, match="coil maps hold"):
            prepare(kspace_of(phantom()), mps=np.full((COILS, 1, NY, NX), value, np.complex64))


class TestNothingThere:
    def test_all_zero(self):
        with pytest.raises(InputError, match="nothing to reconstruct"):
            prepare(kspace_of(0 * phantom()))


class TestRemembered:
    def test_maps_of_one_reference_scan_are_found_once(self, monkeypatch):
        kspace = kspace_of(phantom())
        calib = replace(kspace, calib=kspace.data * np.float32(1.25), calib_mask=kspace.mask)
        first = prepare(calib)
        monkeypatch.setattr("mri_qpan.recon.espirit.espirit", None)
        other = prepare(replace(calib, data=2 * kspace.data))
        assert other.mps is first.mps
        assert other.notes == first.notes
        with pytest.raises(TypeError):
            prepare(replace(calib, calib=3 * calib.calib))

    def test_the_longest_unused_leaves_first(self):
        memo = Memo(20, len)
        made = []

        def make(word):
            made.append(word)
            return word * 8

        for word in "abacab":
            assert memo.get(word, lambda word=word: make(word)) == word * 8
        assert made == ["a", "b", "c", "b"]
        assert len(memo.get("long", lambda: "x" * 99)) == 99

    def test_among_threads(self):
        memo = Memo(64, len)
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda n: memo.get(n % 20, lambda: str(n % 20) * 9), range(2000)))
        assert found == [str(n % 20) * 9 for n in range(2000)]
