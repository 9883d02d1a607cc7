"""Views of a magnitude image as research data sets hold them: windowed, noisy, turned, the brain alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

TURN = 45.0
"""Largest angle in degrees of an image registered to another."""

SMALLEST = 0.04
"""Share of the image below which the largest part that hangs together is no brain."""


def window(image: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Return `image` (y, x), maximum 1, brighter by chance and cut at 1, as 8-bit images are written.

    One hot spot of fat or blood else leaves a whole head dark, and the penalties' thresholds are absolute.
    """
    tissue = image[image > 0.05]
    if rng.random() < 0.5 or not tissue.size:
        return image
    return (image / np.quantile(tissue, rng.uniform(0.97, 1.0))).clip(0, 1).astype(np.float32)


def noisy(image: NDArray[np.float32], largest: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return the magnitude of `image` (y, x), maximum 1, with complex noise, as a single acquisition has it.

    Volumes averaged over repetitions, or interpolated, leave less at high spatial frequencies than most
    scans do; a third of the images keep what they have.
    """
    if rng.random() < 1 / 3:
        return image
    level = np.float32(largest * 0.1 ** rng.random())
    noise = level * rng.standard_normal((2, *image.shape), dtype=np.float32)
    return np.hypot(image + noise[0], noise[1]).clip(0, 1)


def turned(image: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Return `image` (y, x), maximum 1, turned by interpolation, as volumes registered to an atlas are.

    Linear or cubic: either leaves less at high spatial frequencies, unevenly over directions.
    """
    angle, order = rng.uniform(-TURN, TURN), int(rng.choice([1, 3]))
    return _bright(ndimage.rotate(image, angle, reshape=False, order=order))


def extracted(image: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Return the brain of a head `image` (y, x) alone, its maximum 1, nothing around it.

    An opening parts the brain from the scalp, as dura and skull are dark; the largest part that hangs
    together is kept, of any other organ too. Its edge is hard, its background without noise: no acquired
    image is so, and many a research set is. Where no large part is found, the image as it is.
    """
    smooth = ndimage.gaussian_filter(image, 1.0)
    if not smooth.any():
        return image
    bright = smooth > rng.uniform(0.3, 0.6) * np.median(smooth[smooth > 0.1 * smooth.max()])
    radius = int(rng.integers(2, 6))
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disc = x**2 + y**2 <= radius**2
    parts, count = ndimage.label(ndimage.binary_erosion(bright, disc))
    sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
    if not count or sizes.max() < SMALLEST * image.size:
        return image
    brain = ndimage.binary_dilation(parts == 1 + sizes.argmax(), disc)
    if rng.random() < 0.7:
        brain = ndimage.binary_fill_holes(brain)
    return _bright(image * brain)


def _bright(image: NDArray[np.float32]) -> NDArray[np.float32]:
    image = image.clip(0)
    return (image / max(float(image.max()), 1e-6)).astype(np.float32)
