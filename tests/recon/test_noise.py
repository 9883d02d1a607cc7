"""Maps of noise, held against Pruessmann's equation for the g-factor and the measurement's own noise."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import Tensor

from mri_qpan.encoding import Normal
from mri_qpan.fourier import fft_numpy, ifft_numpy
from mri_qpan.methods import Method, as_reconstructor, get_method
from mri_qpan.recon.kspace import KSpace
from mri_qpan.recon.noise import GFACTOR, SNR, SNR_LIKE, UNCERTAINTY
from mri_qpan.recon.pipeline import reconstruct
from mri_qpan.recon.study import Undersampling, study
from mri_qpan.solvers import CGSense

Maker = Callable[..., KSpace]
SENSE = Method("sense", CGSense(lamda=0, iterations=40), linear=True, least_squares=True)
SIGMA = 0.02


def identity(adjoint: Tensor, normal: Normal) -> Tensor:
    return adjoint


def correlated() -> NDArray[np.complex64]:
    """A noise covariance of four channels that are neither alike nor independent."""
    rng = np.random.default_rng(3)
    mixing = np.eye(4) + 0.3 * (rng.normal(size=(4, 4)) + 1j * rng.normal(size=(4, 4)))
    return (SIGMA**2 * mixing @ mixing.conj().T).astype(np.complex64)


def every(kspace: KSpace, step: int) -> KSpace:
    """Keep every `step`th line, the central one among them."""
    rows = np.arange(kspace.mask.shape[1])
    mask = np.zeros(kspace.mask.shape, bool)
    mask[:, (rows - rows.size // 2) % step == 0] = True
    return replace(kspace, data=kspace.data * mask, mask=mask)


def pruessmann(mps: NDArray[np.complex64], psi: NDArray[np.complex64], step: int) -> NDArray[np.float64]:
    """Return sqrt([(S^H Psi^-1 S)^-1]_ii [S^H Psi^-1 S]_ii), (y, x) (Magn Reson Med 42:952, 1999, eq. 23)."""
    _, ny, nx = mps.shape
    inverse = np.linalg.inv(psi.astype(np.complex128))
    g = np.zeros((ny, nx))
    for y in range(ny):
        rows = (y + np.arange(step) * ny // step) % ny
        for x in range(nx):
            S = mps[:, rows, x]
            gram = S.conj().T @ inverse @ S
            g[y, x] = np.sqrt((np.linalg.inv(gram)[0, 0] * gram[0, 0]).real)
    return g


def wide_maps(ny: int, nx: int) -> NDArray[np.complex64]:
    """Four smooth coils without holes, which reach beyond the object, (coil, 1, y, x)."""
    y, x = np.mgrid[:ny, :nx] / ny
    corners = [(0.1, 0.7), (1.3, 0.2), (0.4, 1.1), (0.9, 0.5)]
    maps = [np.exp(-((y - a) ** 2) - (x - b) ** 2 + 2j * (a * x + b * y)) for a, b in corners]
    return np.stack(maps)[:, None].astype(np.complex64)


@pytest.mark.parametrize("step", [2, 3])
def test_the_g_factor_is_pruessmanns(small_kspace: Maker, step: int) -> None:
    mps, psi = wide_maps(24, 20), correlated()
    kspace = replace(every(small_kspace(ny=24, nx=20), step), noise_covariance=psi)
    result = reconstruct(kspace, SENSE, mps=mps, replicas=50)
    expected = pruessmann(mps[:, 0], psi, step)
    ratio = result.maps[GFACTOR].data[0].real / expected
    assert expected.max() > 1.2
    assert np.median(ratio) == pytest.approx(1, abs=0.015)
    # By chance 0.5 / sqrt(49), as the note says.
    assert np.std(ratio) == pytest.approx(0.071, abs=0.015)
    assert f"g-factor for R = {step}" in result.notes[-1]
    assert "7% by chance" in result.notes[-1]


def test_the_g_factor_of_full_encoding_is_1(small_kspace: Maker) -> None:
    kspace = replace(small_kspace(ny=24, nx=20), noise_covariance=correlated())
    result = reconstruct(kspace, SENSE, mps=wide_maps(24, 20), replicas=50)
    g = result.maps[GFACTOR].data.real
    assert np.median(g) == pytest.approx(1, abs=0.01)
    assert np.sqrt(np.mean(g**2)) == pytest.approx(1, abs=0.01)


def test_the_g_factor_does_not_ask_how_strong_the_noise_is(small_kspace: Maker) -> None:
    """Without a noise scan its level is a guess, which cancels."""
    kspace = every(small_kspace(ny=24, nx=20), 2)
    white = replace(kspace, noise_covariance=(1e-4 * np.eye(4)).astype(np.complex64))
    known, guessed = (
        reconstruct(k, SENSE, mps=wide_maps(24, 20), replicas=10).maps[GFACTOR].data for k in (white, kspace)
    )
    np.testing.assert_allclose(guessed.real, known.real, rtol=1e-2)


def test_oversampled_readouts_change_nothing(small_kspace: Maker) -> None:
    """R counts the matrix without readout oversampling, the fully encoded noise that of its image."""
    mps, psi = wide_maps(24, 20), correlated()
    narrow = every(small_kspace(ny=24, nx=20), 2)
    wide = np.zeros((4, 1, 24, 40), np.complex64)
    wide[..., 10:30] = ifft_numpy(narrow.data, (-1,))
    mask = np.repeat(narrow.mask, 2, axis=2)
    oversampled = replace(narrow, data=fft_numpy(wide, (-1,)), mask=mask, noise_covariance=psi)
    g = reconstruct(oversampled, SENSE, mps=mps, replicas=30).maps[GFACTOR].data[0].real
    assert np.median(g / pruessmann(mps[:, 0], psi, 2)) == pytest.approx(1, abs=0.02)


def one_coil(small_kspace: Maker) -> KSpace:
    return replace(small_kspace(coils=1), noise_covariance=np.full((1, 1), SIGMA**2, np.complex64))


def test_uncertainty_of_one_coil_is_the_noise_itself(small_kspace: Maker) -> None:
    result = reconstruct(one_coil(small_kspace), identity, replicas=40)
    bright = np.abs(result.image.data) > 1
    # Of a strong signal's magnitude, noise moves the part in phase with it alone.
    found = np.abs(result.maps[UNCERTAINTY].data)[bright].mean()
    assert found == pytest.approx(SIGMA / np.sqrt(2), rel=0.05)
    assert "40 replicas with noise of 0.02, by the noise scan" in result.notes[-1]


def test_snr_of_a_linear_method_is_in_units_of_the_noise(small_kspace: Maker) -> None:
    result = reconstruct(one_coil(small_kspace), get_method("zero-filled"), replicas=40)
    noise = np.abs(result.image.data) / result.maps[SNR].data.real
    # Everywhere, where there is no signal too: there the magnitude's deviation is 0.66 of it.
    assert set(result.maps) == {UNCERTAINTY, SNR}
    dark = np.abs(result.image.data) < SIGMA / 10
    assert dark.sum() > 100
    for where in (dark, ~dark):
        assert noise[where].mean() == pytest.approx(SIGMA / np.sqrt(2), rel=0.02)


def test_a_method_that_is_not_linear_has_no_g_factor(small_kspace: Maker) -> None:
    def shrink(adjoint: Tensor, normal: Normal) -> Tensor:
        return adjoint * (adjoint.abs() > 0.5)

    result = reconstruct(one_coil(small_kspace), shrink, replicas=3)
    assert set(result.maps) == {UNCERTAINTY, SNR_LIKE}
    image, deviation = (np.abs(i.data) for i in (result.image, result.maps[UNCERTAINTY]))
    moved = deviation > 0
    expected = image[moved] / deviation[moved]
    np.testing.assert_allclose(result.maps[SNR_LIKE].data.real[moved], expected, rtol=1e-5)
    assert not moved.all()
    assert not result.maps[SNR_LIKE].data[~moved].any()


def test_a_function_says_what_it_is(small_kspace: Maker) -> None:
    def mine(adjoint: Tensor, normal: Normal) -> Tensor:
        return CGSense(lamda=0)(adjoint, normal)

    kspace = every(small_kspace(), 2)
    assert set(reconstruct(kspace, as_reconstructor(mine), replicas=2).maps) == {UNCERTAINTY, SNR_LIKE}
    mine.linear = mine.least_squares = True
    method = as_reconstructor(mine)
    assert set(reconstruct(kspace, method, replicas=2).maps) == {UNCERTAINTY, SNR, GFACTOR}
    assert GFACTOR not in reconstruct(kspace, method, hard_dc=True, replicas=2).maps


def test_a_study_has_the_g_factor_of_its_mask(small_kspace: Maker) -> None:
    kspace = replace(small_kspace(), noise_covariance=correlated())
    result = study(kspace, get_method("cg-sense"), Undersampling.parse("lines:0.5"), replicas=4).result
    assert "g-factor for R = 2" in result.notes[-1]
    inside = np.abs(result.image.data) > 0.5
    assert 0.6 < np.median(result.maps[GFACTOR].data.real[inside]) < 2


def test_two_sets_of_maps(small_kspace: Maker) -> None:
    large = small_kspace(ny=96)
    half = replace(large, data=large.data[:, :, ::2], mask=large.mask[:, ::2], recon_shape=(1, 48, 40))
    kspace = replace(half, noise_covariance=(1e-6 * np.eye(4)).astype(np.complex64))
    result = reconstruct(kspace, replace(SENSE, run=CGSense(lamda=0, iterations=10)), replicas=20)
    bright = np.abs(result.image.data) > 0.5
    # Fully sampled, and the sets are orthonormal: every layer has a coil's noise.
    assert np.median(result.maps[GFACTOR].data.real[bright]) == pytest.approx(1, abs=0.05)
    assert any("two sets" in note for note in result.notes)


def test_a_trajectory_has_no_g_factor(small_kspace: Maker) -> None:
    kspace = small_kspace(ny=24, nx=24)
    y, x = (np.mgrid[:24, :24] - 12).reshape(2, -1).astype(np.float32)
    along = replace(
        kspace,
        data=kspace.data.reshape(4, 1, 1, -1),
        mask=np.ones((1, 1, 576), bool),
        coord=np.stack([y, x], axis=1),
    )
    result = reconstruct(along, SENSE, mps=wide_maps(24, 24), replicas=2)
    assert set(result.maps) == {UNCERTAINTY, SNR}
    assert "no g-factor: samples along a trajectory" in result.notes[-1]


def test_without_a_noise_scan_it_says_where_the_noise_is_from(small_kspace: Maker) -> None:
    result = reconstruct(small_kspace(coils=1), identity, replicas=2)
    assert "outermost samples, at most" in result.notes[-1]
    assert not reconstruct(small_kspace(coils=1), identity).maps
