import numpy as np
import pytest
import torch
from sigpy.app import LinearLeastSquares
from sigpy.prox import L1Reg

from mri_qpan import metrics, penalties
from mri_qpan.linop import sense
from mri_qpan.phantom_head import FOV, head
from mri_qpan.prox import MCPReg, ProximalAverage, QPanReg, SCADReg
from mri_qpan.sampling_masks import make_mask

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


@pytest.mark.parametrize("reg", [MCPReg, SCADReg])
def test_integers_are_shrunk_as_numbers(reg) -> None:
    x = np.array([0, 1, 2, -3])
    assert np.allclose(reg((4,), 0.5)(1.0, x), reg((4,), 0.5)(1.0, x.astype(float)))
    assert reg((4,), 0.5)(1.0, x.astype(np.float32)).dtype == np.float32


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


@pytest.fixture(scope="module")
def scan():
    """A head of four coils at a third of the lines: A, y, what full samples show, Gaussian noise in both."""
    shape = (80, 64)
    phantom = head(4, 1, seed=3)
    maps = phantom.maps(shape, FOV)[:, 0]
    maps = maps / np.sqrt((abs(maps) ** 2).sum(0))
    kspace = phantom.kspace(shape, FOV)[:, 0]
    rng = np.random.default_rng(0)
    kspace = kspace + 0.01 * (rng.standard_normal(kspace.shape) + 1j * rng.standard_normal(kspace.shape))
    mask = make_mask("lines", shape, 0.33, seed=2)
    reference = sense(np.ones(shape, bool), maps).H(kspace.astype(np.complex64))
    return sense(mask, maps), (kspace * mask).astype(np.complex64), reference


def test_a_layer_plugs_into_sigpys_app_and_improves_the_image(scan) -> None:
    A, y, reference = scan
    app = LinearLeastSquares(
        A, y, proxg=QPanReg(A.ishape), alpha=1, accelerate=False, max_iter=60, show_pbar=False
    )
    quality = [metrics.psnr(abs(reference), abs(A.H(y)))]
    while not app.alg.done():
        app.alg.update()
        if app.alg.iter % 20 == 0:
            quality.append(metrics.psnr(abs(reference), abs(app.x)))
    assert quality == sorted(quality)
    assert quality[-1] > quality[0] + 3
    assert np.linalg.norm(app.x) < 1.1 * np.linalg.norm(reference)


def test_a_layer_scales_with_its_input_and_takes_stacks(scan) -> None:
    A, y, _ = scan
    x = A.H(y)
    single = QPanReg(x.shape, lamda=0.5)
    worked = single(1, x)
    assert worked.dtype == np.complex64
    assert np.linalg.norm(worked - x) > 0.01 * np.linalg.norm(x)
    np.testing.assert_allclose(single(1, 1000 * x), 1000 * worked, rtol=1e-3, atol=1e-2)
    real = QPanReg(x.shape, lamda=0.5)(1, x.real)  # without a warning of lost parts
    np.testing.assert_allclose(real, QPanReg(x.shape, lamda=0.5)(1, x.real + 0j).real, atol=1e-6)
    stacked = QPanReg((2, *x.shape), lamda=0.5)(1, np.stack([x, x]))
    np.testing.assert_allclose(stacked, np.stack([worked, worked]), atol=1e-4)
    # (1 + w) P_w(x) - x = w f(x) for every weight w = alpha lamda.
    full = QPanReg(x.shape, lamda=2.0)(0.5, x)
    np.testing.assert_allclose(2 * full - x, (1.5 * worked - x) / 0.5, atol=1e-4)


def test_thresholds_and_steps_of_every_entry() -> None:
    values = np.linspace(-3, 3, 12).reshape(3, 4)
    steps = np.linspace(0.2, 0.9, 12).reshape(3, 4)
    for kind in (MCPReg, SCADReg):
        found = kind(values.shape, np.full(values.shape, 0.5))(steps, values)
        each = [kind((1,), 0.5)(t, np.array([v]))[0] for t, v in zip(steps.flat, values.flat, strict=True)]
        np.testing.assert_allclose(found.ravel(), each)
        with pytest.raises(ValueError, match="lamda > 0"):
            kind(values.shape, np.array([1.0, 0.0, 1.0, 1.0]))
    image = np.random.default_rng(0).standard_normal((16, 16))
    layer = QPanReg(image.shape, 0.1)
    np.testing.assert_allclose(layer(np.full(image.shape, 0.5), image), layer(0.5, image), rtol=1e-6)
    np.testing.assert_allclose(layer(np.array([0.5]), image), layer(0.5, image), rtol=1e-6)
    whole = np.round(100 * image).astype(int)
    assert layer(0.5, whole).dtype == np.float64
    np.testing.assert_allclose(layer(0.5, whole), layer(0.5, whole.astype(float)), rtol=1e-6)
    with pytest.raises(ValueError, match="shape must end with"):
        QPanReg((16,), 0.1)


@pytest.mark.parametrize("scale", [1e-60, 1e-40, 1e60])
def test_a_layer_takes_numbers_beyond_float32(scale: float) -> None:
    rng = np.random.default_rng(0)
    image = rng.standard_normal((32, 32)) + 1j * rng.standard_normal((32, 32))
    reg = QPanReg(image.shape)
    np.testing.assert_allclose(reg(1, image * scale) / scale, reg(1, image), rtol=1e-5, atol=1e-6)
    assert np.isfinite(reg(1, (1e-40 * image).astype(np.complex64))).all()


@pytest.mark.parametrize("reg", [MCPReg, SCADReg])
def test_infinite_values_stay(reg) -> None:
    with np.errstate(invalid="ignore"):
        assert np.array_equal(reg((3,), 0.1)(1, np.array([np.inf, -np.inf, 0.0])), [np.inf, -np.inf, 0])


def test_what_is_no_layer_is_refused() -> None:
    with pytest.raises(ValueError, match="lamda must be positive"):
        QPanReg([8, 8], lamda=0)
    with pytest.raises(ValueError, match="no layer 8"):
        QPanReg([8, 8], layer=8)
