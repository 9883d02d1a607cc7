import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.draw import polygon2mask

from mri_qpan import fourier
from mri_qpan.phantom import (
    Ellipse,
    Phantom,
    Polygon,
    Series,
    Shape,
    coil_covariance,
    combined,
    noise,
)
from mri_qpan.phantom_head import FOV, head

KY = np.array([-0.2, -0.031, 0.0, 0.007, 0.05])
KX = np.array([-0.11, 0.0, 0.013, 0.24])
UNIT = Series(np.ones((1, 1), complex), 440.0)

places = st.floats(-60, 60)
sizes = st.floats(2, 50)
angles = st.floats(-4, 4)


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return head(coils=3, slices=2)


def single(*shapes: Shape, coils: Series | None = None, phase: Series = UNIT) -> Phantom:
    return Phantom((shapes,), (0.0,), phase, coils or Series(np.ones((1, 1, 1), complex), 440.0))


def raster(shape: Shape, step: float, extent: float = 60.0) -> tuple[np.ndarray, np.ndarray]:
    """Values of a shape at the midpoints of a fine grid, (y, x), and the midpoints of either axis."""
    axis = np.arange(-extent + step / 2, extent, step)
    if isinstance(shape, Polygon):
        corners = (shape.vertices[:, ::-1] - axis[0]) / step
        return shape.intensity * polygon2mask((axis.size, axis.size), corners), axis
    x, y = axis[None] - shape.centre[0], axis[:, None] - shape.centre[1]
    cos, sin = np.cos(shape.angle), np.sin(shape.angle)
    u, v = (cos * x + sin * y) / shape.semi_axes[0], (cos * y - sin * x) / shape.semi_axes[1]
    return shape.intensity * (u**2 + v**2 <= 1), axis


def integral(values: np.ndarray, axis: np.ndarray, ky: np.ndarray, kx: np.ndarray) -> np.ndarray:
    """Fourier integral by the midpoint rule."""
    rows, columns = (np.exp(-2j * np.pi * np.outer(k, axis)) for k in (ky, kx))
    return rows @ values @ columns.T * (axis[1] - axis[0]) ** 2


SHAPES = {
    "ellipse": Ellipse(0.7, (6.0, -11.0), (31.0, 12.0), 0.6),
    "polygon": Polygon(0.7, np.array([[-20, -30], [25, -22], [30, 10], [4, 2], [-12, 35.0]])),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_transform_is_the_limit_of_fine_rasters(shape: Shape) -> None:
    exact = shape.transform(KY, KX)
    errors = [np.abs(integral(*raster(shape, step), KY, KX) - exact).max() for step in (1.0, 0.25, 0.0625)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert errors[2] < 1e-3 * exact.real.max()


@settings(deadline=None, max_examples=40)
@given(x=places, y=places, a=sizes, b=sizes, angle=angles)
def test_ellipse_shift_rotation_area_and_centroid(
    x: float, y: float, a: float, b: float, angle: float
) -> None:
    ellipse = Ellipse(1.0, (x, y), (a, b), angle)
    values = ellipse.transform(KY, KX)
    centred = Ellipse(1.0, (0.0, 0.0), (a, b), angle).transform(KY, KX)
    shift = np.exp(-2j * np.pi * (KX * x + KY[:, None] * y))
    np.testing.assert_allclose(values, centred * shift, atol=1e-9)
    for k in (0.02, 0.17):
        turned = np.array([k * np.sin(angle)]), np.array([k * np.cos(angle)])
        upright = Ellipse(1.0, (0.0, 0.0), (a, b)).transform(np.zeros(1), np.array([k]))
        np.testing.assert_allclose(Ellipse(1.0, (0, 0), (a, b), angle).transform(*turned), upright, atol=1e-8)
    tiny = 1e-6
    area = ellipse.transform(np.zeros(1), np.array([0.0, tiny]))[0]
    assert area[0] == pytest.approx(np.pi * a * b)
    assert -np.angle(area[1]) / (2 * np.pi * tiny) == pytest.approx(x, abs=1e-3)


@settings(deadline=None, max_examples=15)
@given(x=places, y=places, a=sizes, b=sizes, angle=angles)
def test_polygon_of_many_corners_is_the_ellipse(x: float, y: float, a: float, b: float, angle: float) -> None:
    turn = np.arange(3000) / 3000 * 2 * np.pi
    cos, sin = np.cos(angle), np.sin(angle)
    u, v = a * np.cos(turn), b * np.sin(turn)
    outline = np.stack([x + cos * u - sin * v, y + sin * u + cos * v], axis=1)
    ellipse = Ellipse(1.0, (x, y), (a, b), angle).transform(KY, KX)
    np.testing.assert_allclose(Polygon(1.0, outline).transform(KY, KX), ellipse, atol=2e-6 * np.pi * a * b)
    np.testing.assert_allclose(
        Polygon(1.0, outline[::-1]).transform(KY, KX), -ellipse, atol=2e-6 * np.pi * a * b
    )


def test_rectangle_has_its_closed_form() -> None:
    k = (np.arange(64) - 32) / 120
    rectangle = Polygon(1.0, np.array([[-5, -10], [20, -10], [20, 30], [-5, 30.0]]))
    wave = np.exp(-2j * np.pi * (k[:, None] * 10 + k * 7.5))
    exact = 1000 * np.outer(np.sinc(40 * k), np.sinc(25 * k)) * wave
    np.testing.assert_allclose(rectangle.transform(k, k), exact, atol=1e-7)


@pytest.mark.parametrize(("matrix", "fov"), [((64, 48), (128.0, 96.0)), ((33, 40), (132.0, 100.0))])
def test_convention_is_that_of_the_fft(matrix: tuple[int, int], fov: tuple[float, float]) -> None:
    """The inverse DFT shows the ellipse in its units, at its place, and nothing beside it."""
    ellipse = Ellipse(2.0, (12.0, -20.0), (21.0, 14.0), 0.3)
    kspace = single(ellipse).kspace(matrix, fov)
    assert kspace.shape == (1, 1, *matrix)
    assert kspace.dtype == np.complex64
    centre = kspace[0, 0, matrix[0] // 2, matrix[1] // 2]
    assert centre == pytest.approx(2 * np.pi * 21 * 14 * np.sqrt(np.prod(matrix)) / np.prod(fov), rel=1e-6)
    image = fourier.ifft_numpy(kspace, (-2, -1))[0, 0]
    dy, dx = fov[0] / matrix[0], fov[1] / matrix[1]
    assert abs(image[round(-20 / dy) + matrix[0] // 2, round(12 / dx) + matrix[1] // 2]) == pytest.approx(
        2, rel=0.05
    )
    weight = np.abs(image) ** 2 / np.sum(np.abs(image) ** 2)
    rows, columns = ((np.arange(n) - n // 2) * length / n for n, length in zip(matrix, fov, strict=True))
    assert weight.sum(1) @ rows == pytest.approx(-20, abs=0.3)
    assert weight.sum(0) @ columns == pytest.approx(12, abs=0.3)


def test_real_object_of_one_coil_has_hermitian_kspace() -> None:
    kspace = single(*SHAPES.values()).kspace((33, 41), (140.0, 160.0))[0, 0]
    np.testing.assert_allclose(kspace, kspace[::-1, ::-1].conj(), atol=1e-5)


def test_coils_and_phase_multiply_the_image() -> None:
    rng = np.random.default_rng(0)
    coils = Series(rng.normal(size=(2, 3, 3)) + 1j * rng.normal(size=(2, 3, 3)), 200.0)
    phase = Series(rng.normal(size=(3, 3)) + 0j, 200.0)
    shape = SHAPES["ellipse"]
    kspace = single(shape, coils=coils, phase=phase).kspace((5, 4), (130.0, 150.0))
    ky, kx = (np.arange(5) - 2) / 130, (np.arange(4) - 2) / 150
    values, axis = raster(shape, 0.1)
    scale = np.sqrt(20) / (130 * 150)
    for coil, expected in zip(kspace[:, 0], coils(axis, axis) * phase(axis, axis) * values, strict=True):
        np.testing.assert_allclose(coil, scale * integral(expected, axis, ky, kx), rtol=1e-3)


def test_series_is_on_the_grid_of_the_maps(phantom: Phantom) -> None:
    maps = phantom.maps((10, 8), (200.0, 160.0))
    assert maps.shape == (3, 1, 10, 8)
    np.testing.assert_allclose(maps[:, 0, 5, 4], phantom.coils.coefficients.sum((1, 2)), rtol=1e-5)


def test_readout_oversampling_holds_the_same_image(phantom: Phantom) -> None:
    """A wider field of view at the same resolution adds rows of air, and every other sample is the same."""
    single_fov = phantom.kspace((24, 32), FOV)
    double_fov = phantom.kspace((24, 64), (FOV[0], 2 * FOV[1]))
    np.testing.assert_allclose(double_fov[..., ::2] * np.sqrt(2), single_fov, atol=2e-5)


def test_head_is_one(phantom: Phantom) -> None:
    kspace = phantom.kspace((128, 128), FOV)
    image = combined(kspace)
    assert image.shape == (2, 128, 128)
    air = image[:, :4].max()
    assert air < 0.05 * image.max()
    assert np.abs(image[0] - image[1]).mean() > 0.02
    assert 0.3 < np.median(image[0, 50:80, 50:80]) < 1
    assert np.ptp(np.angle(fourier.ifft_numpy(kspace[:1], (-2, -1))[0, 0, 40:90, 40:90])) > 0.5


def test_head_is_the_same_every_time() -> None:
    first, again, other = (head(2, 1, seed=seed).kspace((16, 16), FOV) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3


def test_noise_has_the_covariance_asked_for() -> None:
    covariance = coil_covariance(4, 0.5)
    samples = noise((4, 40, 500), covariance, seed=3)
    measured = np.tensordot(samples, samples.conj(), axes=((1, 2), (1, 2))) / 20000
    np.testing.assert_allclose(measured, covariance, atol=0.02)
    np.testing.assert_array_equal(samples, noise((4, 40, 500), covariance, seed=3))
    assert np.any(samples != noise((4, 40, 500), covariance, seed=4))


@pytest.mark.parametrize("coils", [1, 2, 3, 8])
def test_coil_covariance_is_positive_definite(coils: int) -> None:
    covariance = coil_covariance(coils, 0.02)
    np.testing.assert_allclose(covariance, covariance.conj().T)
    assert np.linalg.eigvalsh(covariance).min() > 0
