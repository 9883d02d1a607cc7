"""Views of training images as research sets hold them."""

import numpy as np
import pytest

from mri_qpan.training import views


def test_a_window_is_as_8_bit_images_are_written():
    rng = np.random.default_rng(3)
    image = rng.random((40, 30)).astype(np.float32)
    image /= image.max()
    seen = [views.window(image, rng) for _ in range(40)]
    assert all(view.min() >= 0 and view.max() == 1 for view in seen)
    same = [np.array_equal(view, image) for view in seen]
    assert 10 < sum(same) < 32
    for view in seen:
        assert (view >= image).all()
        inside = view < 1
        ratio = view[inside] / np.maximum(image[inside], 1e-6)
        np.testing.assert_allclose(ratio, ratio[0], rtol=1e-4)
    black = np.zeros((4, 4), np.float32)
    assert all(np.array_equal(views.window(black, rng), black) for _ in range(4))


def test_noise_is_what_a_magnitude_image_has():
    rng = np.random.default_rng(0)
    image = np.zeros((64, 64), np.float32)
    image[:, 32:] = 0.5
    found = [views.noisy(image, 0.1, rng) for _ in range(300)]
    kept = [x for x in found if x is image]
    assert 60 < len(kept) < 140  # a third
    for x in found:
        if x is image:
            continue
        level = x[:, 32:].std()
        assert 0.009 < level < 0.11
        # Rayleigh where there is no signal.
        assert x[:, :32].mean() == pytest.approx(level * np.sqrt(np.pi / 2), rel=0.1)


def made_head(size=160):
    """A brain with a dark ventricle, dark skull around it and bright scalp around that."""
    y, x = np.meshgrid(*(np.arange(size) - size / 2,) * 2, indexing="ij")
    r = np.hypot(y / 1.15, x)
    brain = r < 0.3 * size
    image = 0.6 * brain + 0.9 * ((r > 0.36 * size) & (r < 0.4 * size))
    image[np.hypot(y, x) < 0.04 * size] = 0.05
    return image.astype(np.float32) / np.float32(0.9), brain


@pytest.mark.parametrize("seed", range(12))
def test_the_brain_is_kept_and_nothing_around_it(seed):
    image, brain = made_head()
    rng = np.random.default_rng(seed)
    noise = 0.02 * rng.standard_normal((2, *image.shape), dtype=np.float32)
    found = views.extracted(np.hypot(image + noise[0], noise[1]), rng)
    assert (found > 0)[brain].mean() > 0.97 - (np.hypot(*np.indices((13, 13)) - 6) < 6.4).sum() / brain.sum()
    assert (found[~brain] == 0).mean() > 0.97
    assert found.max() == 1
    assert found.dtype == np.float32


def test_an_image_without_a_large_part_stays_as_it_is():
    rng = np.random.default_rng(0)
    black = np.zeros((32, 32), np.float32)
    assert views.extracted(black, rng) is black
    spot = black.copy()
    spot[3:6, 3:6] = 1
    assert all(views.extracted(spot, rng) is spot for _ in range(9))


def test_a_turned_image_is_smoother_and_elsewhere():
    image, _ = made_head()
    rng = np.random.default_rng(4)
    texture = (image * (1 + 0.1 * rng.standard_normal(image.shape))).clip(0).astype(np.float32)
    texture /= texture.max()
    for _ in range(8):
        found = views.turned(texture, rng)
        assert found.shape == texture.shape
        assert found.min() == 0
        assert found.max() == 1
        inner = np.s_[60:72, 70:90]
        assert (
            np.diff(found[inner]).std()
            < np.diff(texture[inner]).std() / texture[inner].mean() * found[inner].mean()
        )
    bar = np.zeros((65, 65), np.float32)
    bar[30:35] = 1
    angles = []
    for _ in range(60):
        y, x = np.nonzero(views.turned(bar, rng) > 0.5)
        angles.append(
            np.degrees(0.5 * np.arctan2(2 * np.cov(y, x)[0, 1], np.cov(y, x)[1, 1] - np.cov(y, x)[0, 0]))
        )
    assert max(map(abs, angles)) < views.TURN + 2
    assert min(angles) < -30
    assert max(angles) > 30
