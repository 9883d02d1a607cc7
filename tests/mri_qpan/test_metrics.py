import numpy as np
import pytest
from scipy.signal import convolve2d
from skimage import metrics as skimage_metrics

from mri_qpan import metrics


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    reference = rng.random((33, 40)) * 7
    return reference, reference + 0.3 * rng.standard_normal(reference.shape)


def test_psnr_is_scikit_images(pair: tuple[np.ndarray, np.ndarray]) -> None:
    expected = skimage_metrics.peak_signal_noise_ratio(*pair, data_range=pair[0].max())
    assert metrics.psnr(*pair) == pytest.approx(expected, abs=1e-10)


def test_psnr_with_a_given_range(pair: tuple[np.ndarray, np.ndarray]) -> None:
    expected = skimage_metrics.peak_signal_noise_ratio(*pair, data_range=255)
    assert metrics.psnr(*pair, data_range=255) == pytest.approx(expected, abs=1e-10)


def test_psnr_of_equal_images_is_infinite(pair: tuple[np.ndarray, np.ndarray]) -> None:
    assert metrics.psnr(pair[0], pair[0]) == float("inf")


def test_ssim_is_scikit_images(pair: tuple[np.ndarray, np.ndarray]) -> None:
    expected = skimage_metrics.structural_similarity(*pair, data_range=pair[0].max())
    assert metrics.ssim(*pair) == pytest.approx(expected, abs=1e-12)


def test_ssim_of_a_volume_is_the_mean_over_slices(pair: tuple[np.ndarray, np.ndarray]) -> None:
    reference, image = pair
    volume = np.stack([reference, reference]), np.stack([image, reference])
    assert metrics.ssim(*volume) == pytest.approx((metrics.ssim(*pair) + 1) / 2)
    # The range is the volume's, of dim slices too.
    dim = np.stack([reference, reference / 4]), np.stack([reference, image / 4])
    expected = skimage_metrics.structural_similarity(reference / 4, image / 4, data_range=reference.max())
    assert metrics.ssim(*dim) == pytest.approx((1 + expected) / 2)


def test_nmse_is_scikit_images_squared(pair: tuple[np.ndarray, np.ndarray]) -> None:
    expected = skimage_metrics.normalized_root_mse(*pair) ** 2
    assert metrics.nmse(*pair) == pytest.approx(expected, abs=1e-12)


def test_hfen_by_its_definition(pair: tuple[np.ndarray, np.ndarray]) -> None:
    y, x = np.mgrid[-7:8, -7:8]
    gaussian = np.exp(-(x**2 + y**2) / (2 * 1.5**2))
    kernel = (x**2 + y**2 - 2 * 1.5**2) / 1.5**4 * gaussian / gaussian.sum()
    kernel -= kernel.sum() / kernel.size
    reference, image = pair
    filtered = [convolve2d(a, kernel, mode="same") for a in (image - reference, reference)]
    expected = np.linalg.norm(filtered[0]) / np.linalg.norm(filtered[1])
    assert metrics.hfen(reference, image) == pytest.approx(expected, rel=1e-10)


def test_hfen_is_blind_to_a_slow_ramp_inside() -> None:
    y, x = np.mgrid[:64, :64]
    ramp = 1.0 * x + 2.0 * y
    kernel = metrics.log_kernel()
    assert abs(kernel.sum()) < 1e-15
    assert np.abs(convolve2d(ramp, kernel, mode="valid")).max() < 1e-10


@pytest.mark.parametrize("metric", [metrics.psnr, metrics.ssim, metrics.nmse, metrics.hfen])
def test_bad_input_is_refused(metric) -> None:
    image = np.ones((16, 16))
    with pytest.raises(ValueError, match="magnitudes"):
        metric(image, image + 1j)
    with pytest.raises(ValueError, match="shapes must agree"):
        metric(image, np.ones((16, 17)))
    with pytest.raises(ValueError, match=r"\(y, x\)"):
        metric(np.ones(16), np.ones(16))
    with pytest.raises(ValueError, match=r"range must be positive|not defined"):
        metric(np.zeros((16, 16)), image)


@pytest.mark.parametrize("metric", [metrics.psnr, metrics.ssim, metrics.nmse, metrics.hfen])
def test_common_units_do_not_matter(metric, pair: tuple[np.ndarray, np.ndarray]) -> None:
    reference, image = pair
    assert metric(1e-6 * reference, 1e-6 * image) == pytest.approx(metric(reference, image), rel=1e-9)
