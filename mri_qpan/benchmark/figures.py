"""A picture of a case: what each method made of it, and what it missed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

ERROR_GAIN = 5
BAR = 16
WHITE = 255


def comparison(reference: NDArray[Any], images: Sequence[tuple[str, NDArray[Any]]]) -> Image.Image:
    """Draw the reference and `images` in a row, and below each its error, five times brighter.

    Parameters
    ----------
    reference
        Magnitude (y, x) of the fully sampled image; grey values are windowed to its 99.8th percentile.
    images
        (label, magnitude (y, x)), from left to right.

    Returns
    -------
    PIL.Image.Image
        8-bit grey.
    """
    white = float(np.quantile(reference, 0.998)) or 1.0
    panels = [_panel("fully sampled", reference / white, 0 * reference)]
    for label, image in images:
        panels.append(_panel(label, image / white, ERROR_GAIN * np.abs(image - reference) / white))
    width = sum(panel.width for panel in panels)
    sheet = Image.new("L", (width, panels[0].height))
    left = 0
    for panel in panels:
        sheet.paste(panel, (left, 0))
        left += panel.width
    return sheet


def _panel(label: str, image: NDArray[Any], error: NDArray[Any]) -> Image.Image:
    """Draw an image above its error, under a label."""
    grey = (WHITE * np.clip(np.concatenate([image, error]), 0, 1)).round().astype(np.uint8)
    panel = Image.new("L", (grey.shape[1], BAR + grey.shape[0]))
    panel.paste(Image.fromarray(grey), (0, BAR))
    ImageDraw.Draw(panel).text((3, 2), label, fill=WHITE, font=ImageFont.load_default(11))
    return panel
