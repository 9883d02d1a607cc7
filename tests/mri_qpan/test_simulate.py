"""Simulated measurements: consistent, and their images changed as scans differ."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mri_qpan.encoding import Encoding
from mri_qpan.training import simulate


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    coils=st.sampled_from([1, 2, 8]),
    shape=st.tuples(st.integers(20, 40), st.integers(20, 40)),
    source=st.tuples(st.integers(16, 60), st.integers(16, 60)),
)
def test_simulated_measurements_are_consistent(seed, coils, shape, source):
    rng = np.random.default_rng(seed)
    image = rng.random(source).astype(np.float32)
    case = simulate.simulate(image, shape, coils, (0.3, 0.6), rng)
    assert case.kspace.shape == (1, coils, *shape)
    assert case.mask.shape == (1, *shape)
    # Six vessels, each at most eight times brighter, may meet in one place.
    assert 0.2 < float(case.target.abs().max()) < 2 * 49
    assert float((case.kspace.abs() * ~case.mask[:, None]).max()) == 0
    power = case.mps.abs().square().sum(1)
    assert bool(((power - 1).abs() < 1e-3).logical_or(power == 0).all())
    predicted = Encoding(case.mask, case.mps).forward(case.target)
    difference = (predicted - case.kspace).norm() / case.kspace.norm()
    assert float(difference) < 0.75


def test_a_calibration_gives_the_maps(monkeypatch):
    monkeypatch.setattr(simulate, "CALIBRATED", 1.0)

    def calibrate(kspace, mask, noise):
        assert kspace.shape == (4, 24, 20)
        assert float(np.abs(kspace * ~mask).max()) == 0
        return np.full(kspace.shape, 0.5, np.complex64)

    rng = np.random.default_rng(0)
    case = simulate.simulate(np.ones((24, 20), np.float32), (24, 20), 4, (0.3, 0.6), rng, calibrate)
    assert bool((case.mps == 0.5).all())


def test_vessels_are_bright_and_small_with_a_phase_of_their_own():
    rng = np.random.default_rng(1)
    image = rng.uniform(0.2, 1, (40, 30)).astype(np.float32)
    ratio = simulate.brighten_vessels(image, rng) / image
    assert np.abs(ratio).min() > 0.999
    assert 1.5 < np.abs(ratio).max() < 49
    assert (np.abs(ratio) > 1.5).mean() < 0.5
    assert np.abs(np.angle(ratio)).max() > 0.1
    assert np.abs(np.angle(ratio[np.abs(ratio) < 1.001])).max() < 0.01
    assert np.abs(simulate.brighten_vessels(np.zeros((8, 8), np.float32), rng)).max() == 0


def test_two_tissues_differ_in_phase_alone():
    image = np.where(np.arange(12) < 6, 0.1, 1.0).astype(np.float32) * np.ones((10, 1), np.float32)
    found = simulate.dephase_bright(image, np.random.default_rng(2))
    assert np.abs(found) == pytest.approx(image)
    assert np.abs(np.angle(found[:, :6])).max() < 0.05
    assert np.abs(np.angle(found[:, 6:])).min() > 0.05


def test_shading_is_smooth_and_keeps_phase():
    rng = np.random.default_rng(1)
    image = rng.random((40, 30)).astype(np.float32) * np.exp(1j * rng.random((40, 30))).astype(np.complex64)
    image /= np.abs(image).max()
    shaded = simulate.shade(image, rng)
    assert np.abs(np.angle(shaded / image)).max() < 1e-5
    assert np.abs(shaded).max() == pytest.approx(1)
    steps = np.diff(np.log(np.abs(shaded / image)), axis=0)
    assert np.abs(steps).max() < 0.3  # smooth


def test_small_images_are_enlarged_towards_the_matrix_alone():
    image = np.ones((100, 80), np.float32)
    sizes = []
    for seed in range(200):
        found = simulate.augment(image, (128, 128), np.random.default_rng(seed), 1.5)
        assert found.shape == (128, 128)
        sizes.append(max((found > 0.5).any(axis).sum() for axis in (0, 1)))
    assert min(sizes) < 104
    assert 124 < max(sizes) <= 128  # 1.28 times: the matrix is full
    same = simulate.augment(image, (128, 128), np.random.default_rng(3))
    assert (same > 0.5).sum() == image.size
