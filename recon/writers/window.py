"""The range of intensities that shows the anatomy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mri_qpan.recon.kspace import Image, ImageSeries

QUANTILE = 0.99


def display_range(images: Sequence[Image]) -> tuple[float, float]:
    """Return the intensities (low, high) to show as black and white: one window for a whole series.

    High is the largest 99th percentile of any of the images: fat, often the brightest, may saturate, and a
    slice at the edge of the object does not decide. It is 1 where all are zero.
    """
    high = max((float(np.quantile(np.abs(image.data), QUANTILE)) for image in images), default=0.0)
    return 0.0, high or 1.0


def window_of(series: ImageSeries) -> tuple[float, float]:
    """Return what to show as black and white: `display_range`, or the whole circle of a phase."""
    if series.quantity is not None and series.quantity.angle:
        return -math.pi, math.pi
    return display_range(series.images)
