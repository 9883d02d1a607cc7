from typing import Any

import numpy as np
import pytest
import sigpy as sp
import sigpy.mri
import torch
from torch import Tensor

from mri_qpan import metrics
from mri_qpan.encoding import Encoding, from_linop
from mri_qpan.linop import sense
from mri_qpan.scaling import robust_scale
from mri_qpan.solvers import PAISA, SOLVERS, CGSense, TotalVariation, Wavelet


class Problem:
    """A phantom of robust maximum about 1, two coils, 45 % of the samples and a fully sampled centre."""

    def __init__(self, *spatial: int, noise: float = 0.0) -> None:
        rng = np.random.default_rng(0)
        self.image = np.abs(sp.shepp_logan(spatial)).astype(np.complex64)
        self.mps = sp.mri.birdcage_maps((2, *spatial)).astype(np.complex64)
        self.mps /= np.sqrt((abs(self.mps) ** 2).sum(0))
        self.mask = rng.random(spatial) < 0.4
        centre = tuple(slice(n // 2 - 3, n // 2 + 3) for n in spatial)
        self.mask[centre] = True
        full = sp.fft(self.mps * self.image, axes=range(1, 1 + len(spatial)))
        disturbance = rng.standard_normal(full.shape) + 1j * rng.standard_normal(full.shape)
        self.kspace = ((full + noise * disturbance) * self.mask).astype(np.complex64)
        self.encoding = Encoding(torch.from_numpy(self.mask)[None], torch.from_numpy(self.mps)[None])
        self.adjoint = self.encoding.adjoint(torch.from_numpy(self.kspace)[None])

    def app(self, kind: Any, lamda: float, iterations: int) -> np.ndarray:
        """What SigPy's own app makes of it."""
        weights = self.mask.astype(np.float32)
        app = kind(self.kspace, self.mps, lamda, weights=weights, max_iter=iterations, show_pbar=False)
        with np.errstate(invalid="ignore"):
            return app.run()

    def solve(self, method: Any) -> np.ndarray:
        return method(self.adjoint, self.encoding.normal)[0].numpy()


@pytest.fixture(scope="module")
def problem() -> Problem:
    return Problem(48, 44, noise=0.02)


def relative(image: np.ndarray, reference: np.ndarray) -> float:
    return float(np.linalg.norm(image - reference) / np.linalg.norm(reference))


@pytest.mark.parametrize("name", SOLVERS)
class TestEverySolver:
    def test_keeps_shape_and_type(self, name) -> None:
        problem = Problem(24, 20)
        before = problem.adjoint.clone()
        image = SOLVERS[name]()(problem.adjoint, problem.encoding.normal)
        assert image.shape == problem.adjoint.shape
        assert image.dtype == torch.complex64
        torch.testing.assert_close(problem.adjoint, before, rtol=0, atol=0)

    def test_beats_or_equals_zero_filling(self, name, problem) -> None:
        reference = abs(problem.image)
        image = problem.solve(SOLVERS[name]())
        zero_filled = abs(problem.adjoint[0].numpy())
        gain = metrics.psnr(reference, abs(image)) - metrics.psnr(reference, zero_filled)
        assert gain >= (0 if name == "zero-filled" else 2.5)

    def test_batch_entries_are_solved_alike(self, name) -> None:
        problem = Problem(24, 20)
        adjoint = torch.cat([problem.adjoint, 1j * problem.adjoint])
        image = SOLVERS[name]()(adjoint, problem.encoding.normal)
        torch.testing.assert_close(1j * image[0], image[1], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(
            image[0], torch.from_numpy(problem.solve(SOLVERS[name]())), rtol=1e-3, atol=1e-3
        )

    def test_three_dimensions(self, name) -> None:
        problem = Problem(8, 16, 12)
        assert np.isfinite(problem.solve(SOLVERS[name]())).all()

    def test_zero_stays_zero(self, name) -> None:
        problem = Problem(16, 16)
        image = SOLVERS[name]()(torch.zeros_like(problem.adjoint), problem.encoding.normal)
        assert image.abs().max() == 0


def test_defaults_fit_the_pipelines_scale(problem) -> None:
    assert robust_scale(problem.adjoint).item() == pytest.approx(1, abs=0.5)


def test_cg_sense_solves_the_normal_equations(problem) -> None:
    lamda = 0.05
    x = CGSense(lamda, iterations=200)(problem.adjoint, problem.encoding.normal)
    torch.testing.assert_close(problem.encoding.normal(x) + lamda * x, problem.adjoint, rtol=1e-4, atol=1e-4)


def test_cg_sense_is_sigpys_sense_recon(problem) -> None:
    theirs = problem.app(sp.mri.app.SenseRecon, 0.05, 100)
    assert relative(problem.solve(CGSense(0.05, iterations=100)), theirs) < 1e-4


@pytest.mark.parametrize("shape", [(48, 44), (33, 40)])
def test_wavelet_is_sigpys_l1_wavelet_recon(shape) -> None:
    problem = Problem(*shape, noise=0.02)
    theirs = problem.app(sp.mri.app.L1WaveletRecon, 0.01, 300)
    assert relative(problem.solve(Wavelet(0.01, iterations=300)), theirs) < 1e-3


@pytest.mark.parametrize("lamda", [0.003, 0.03])
def test_tv_is_sigpys_total_variation_recon(problem, lamda) -> None:
    theirs = problem.app(sp.mri.app.TotalVariationRecon, lamda, 3000)
    assert relative(problem.solve(TotalVariation(lamda, iterations=2000)), theirs) < 1e-3
    assert relative(problem.solve(TotalVariation(lamda)), theirs) < 1e-2


def test_paisa_at_rest_is_a_fixed_point(problem) -> None:
    longer = problem.solve(PAISA(iterations=400))
    assert relative(problem.solve(PAISA(iterations=401)), longer) < 1e-3


def test_paisa_without_threshold_is_landweber(problem) -> None:
    x = problem.adjoint
    for _ in range(5):
        x = x - 0.7 * (problem.encoding.normal(x) - problem.adjoint)
    assert relative(problem.solve(PAISA(0.0, iterations=5, rho=0.7)), x[0].numpy()) < 1e-5


def test_any_linop_feeds_a_solver(problem) -> None:
    adjoint, normal = from_linop(sense(problem.mask, problem.mps))
    image: Tensor = Wavelet(iterations=20)(adjoint(problem.kspace), normal)
    assert relative(image[0].numpy(), problem.solve(Wavelet(iterations=20))) < 1e-4
