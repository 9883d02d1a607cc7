import numpy as np
import pytest
import torch
from sigpy.prox import L1Reg

from mri_qpan import penalties
from mri_qpan.prox import MCPReg, ProximalAverage, SCADReg

LAMDA, GAMMA, A = 0.4, 2.5, 3.7


def mcp_value(u: np.ndarray) -> np.ndarray:
    return penalties.mcp(torch.from_numpy(u), LAMDA, GAMMA).numpy()


def scad_value(u: np.ndarray) -> np.ndarray:
    return penalties.scad(torch.from_numpy(u), LAMDA, A).numpy()


@pytest.mark.parametrize("alpha", [0.3, 1.0, 1.6])
@pytest.mark.parametrize(
    ("prox", "value"), [(MCPReg([41], LAMDA, GAMMA), mcp_value), (SCADReg([41], LAMDA, A), scad_value)]
)
def test_against_a_brute_force_minimiser(prox, value, alpha: float) -> None:
    x = np.linspace(-2.5, 2.5, 41)
    grid = np.linspace(-3, 3, 60001)
    objective = (grid - x[:, None]) ** 2 / 2 + alpha * value(grid)
    np.testing.assert_allclose(prox(alpha, x), grid[objective.argmin(1)], atol=2e-4)


def test_unit_step_is_the_torch_penalties() -> None:
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((50, 4)) + 1j * rng.standard_normal((50, 4))).astype(np.complex64)
    x[0, 0] = 0
    tensor = torch.from_numpy(x)
    for ours, expected in [
        (MCPReg(x.shape, LAMDA, GAMMA), penalties.prox_mcp(tensor, LAMDA, GAMMA)),
        (SCADReg(x.shape, LAMDA, A), penalties.prox_scad(tensor, LAMDA, A)),
    ]:
        result = ours(1, x)
        assert result.dtype == np.complex64
        np.testing.assert_allclose(result, expected.numpy(), atol=1e-6)


def test_proximal_average_is_the_torch_one() -> None:
    x = np.linspace(-3, 3, 101).astype(np.float32)
    proxs = [L1Reg(x.shape, LAMDA), MCPReg(x.shape, LAMDA, GAMMA), SCADReg(x.shape, LAMDA, A)]
    expected = penalties.proximal_average(torch.from_numpy(x), (LAMDA,) * 3, GAMMA, A)
    with np.errstate(invalid="ignore"):  # SigPy divides 0 by 0 on its way to the right answer
        np.testing.assert_allclose(ProximalAverage(proxs)(1, x), expected.numpy(), atol=1e-6)
    weighted = ProximalAverage(proxs[1:], [0.25, 0.75])(1, x)
    np.testing.assert_allclose(weighted, 0.25 * proxs[1](1, x) + 0.75 * proxs[2](1, x), atol=1e-6)


def test_bad_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match="gamma > 1"):
        MCPReg([3], 1.0, 1.0)
    with pytest.raises(ValueError, match="a > 2"):
        SCADReg([3], 1.0, 2.0)
    with pytest.raises(ValueError, match="below gamma"):
        MCPReg([3], 1.0, 2.0)._prox(2.0, np.ones(3))
    with pytest.raises(ValueError, match="below a - 1"):
        SCADReg([3], 1.0, 2.5)._prox(1.5, np.ones(3))
    with pytest.raises(ValueError, match="one shape"):
        ProximalAverage([L1Reg([3], 1), L1Reg([4], 1)])
    with pytest.raises(ValueError, match="sum 1"):
        ProximalAverage([L1Reg([3], 1), L1Reg([3], 1)], [0.5, 0.6])
