"""Image quality against a reference, as the field defines it.

Every function takes the reference first, both images as magnitude arrays (y, x) or (z, y, x) of one shape
in the same units, and returns a float. A complex image is refused: whose phase counts is the caller's to say.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import convolve
from skimage.metrics import structural_similarity

LOG_SIGMA = 1.5
LOG_WIDTH = 15


def psnr(reference: NDArray[Any], image: NDArray[Any], data_range: float | None = None) -> float:
    """Return the peak signal-to-noise ratio, 20 log10(data_range / RMSE).

    Parameters
    ----------
    reference, image
        Magnitudes, (y, x) or (z, y, x); the error is taken over all voxels.
    data_range
        The peak; the maximum of `reference` by default.

    Returns
    -------
    float
        In dB; infinite for equal images.

    Raises
    ------
    ValueError
        If the images are complex, differ in shape, or the peak is not positive.
    """
    reference, image = _pair(reference, image)
    peak = _peak(reference, data_range)
    mse = np.mean((reference - image) ** 2)
    return float("inf") if mse == 0 else float(10 * np.log10(peak**2 / mse))


def ssim(reference: NDArray[Any], image: NDArray[Any], data_range: float | None = None) -> float:
    """Return the structural similarity (Wang et al. 2004), scikit-image's default 7x7 window.

    Parameters
    ----------
    reference, image
        Magnitudes, (y, x) or (z, y, x); of a volume, the mean over its slices.
    data_range
        The range of values; the maximum of `reference` by default.

    Raises
    ------
    ValueError
        If the images are complex, differ in shape or are smaller than the window.
    """
    reference, image = _pair(reference, image)
    peak = _peak(reference, data_range)
    slices = zip(_slices(reference), _slices(image), strict=True)
    return float(np.mean([structural_similarity(r, i, data_range=peak) for r, i in slices]))


def nmse(reference: NDArray[Any], image: NDArray[Any]) -> float:
    """Return the normalised mean squared error, |image - reference|^2 / |reference|^2.

    Raises
    ------
    ValueError
        If the images are complex or differ in shape, or the reference is zero.
    """
    reference, image = _pair(reference, image)
    return _relative(np.sum((image - reference) ** 2), np.sum(reference**2))


def hfen(reference: NDArray[Any], image: NDArray[Any]) -> float:
    """Return the high-frequency error norm, |LoG(image - reference)| / |LoG(reference)|.

    LoG is the rotationally symmetric Laplacian-of-Gaussian filter of 15x15 pixels and a standard deviation
    of 1.5 pixels, applied slice by slice with zeros outside. Ravishankar and Bresler (IEEE Trans Med Imaging
    2011;30:1028) state the numerator alone; divided by the reference's, the figure no longer hangs on units.

    Raises
    ------
    ValueError
        If the images are complex or differ in shape, or nothing of the reference passes the filter.
    """
    reference, image = _pair(reference, image)
    kernel = log_kernel()
    error = sum(np.sum(convolve(s, kernel, mode="constant") ** 2) for s in _slices(image - reference))
    detail = sum(np.sum(convolve(s, kernel, mode="constant") ** 2) for s in _slices(reference))
    return _relative(error, detail) ** 0.5


def log_kernel(width: int = LOG_WIDTH, sigma: float = LOG_SIGMA) -> NDArray[np.float64]:
    """Return the Laplacian-of-Gaussian kernel, (width, width), summing to zero (MATLAB's fspecial "log")."""
    offset = np.arange(width) - (width - 1) / 2
    squared = offset[:, None] ** 2 + offset**2
    gaussian = np.exp(-squared / (2 * sigma**2))
    kernel = gaussian / gaussian.sum() * (squared - 2 * sigma**2) / sigma**4
    return kernel - kernel.mean()


def _pair(reference: NDArray[Any], image: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if np.iscomplexobj(reference) or np.iscomplexobj(image):
        raise ValueError("metrics compare magnitudes: take numpy.abs of a complex image first")
    if np.shape(reference) != np.shape(image):
        raise ValueError(f"reference is {np.shape(reference)}, image is {np.shape(image)}: shapes must agree")
    if np.ndim(reference) not in (2, 3):
        raise ValueError(f"an image is (y, x) or (z, y, x), got {np.shape(reference)}")
    return np.asarray(reference, np.float64), np.asarray(image, np.float64)


def _peak(reference: NDArray[np.float64], data_range: float | None) -> float:
    peak = float(reference.max()) if data_range is None else float(data_range)
    if not peak > 0:
        raise ValueError(f"the data range must be positive, got {peak}")
    return peak


def _slices(image: NDArray[np.float64]) -> NDArray[np.float64]:
    return image.reshape(-1, *image.shape[-2:])


def _relative(error: float, reference: float) -> float:
    if not reference > 0:
        raise ValueError("the reference is zero: a relative error is not defined")
    return float(error / reference)
