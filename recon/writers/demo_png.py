"""The demonstration's picture: reference and reconstructions, a part of them enlarged, and their errors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL.PngImagePlugin import PngInfo

from mri_qpan._version import __version__
from mri_qpan.recon.writers.png import ERROR_GAIN, Tile, sheet

if TYPE_CHECKING:
    from mri_qpan.recon.demo import Demo

SATURATED = 0.01
FRAME = (0.96, 0.84)
"""Share of the height and the width that is shown, about the centre: what lies beyond is air."""
DETAIL = ((0.44, 0.74), (0.19, 0.4525))
"""Enlarged part, from and to as shares of the height and of the width."""


def write_demo_png(path: Path, demo: Demo) -> None:
    """Write the middle slice: images, the part with the resolution bars enlarged, and five times the errors.

    A column for the reference and one for each method; below the reference the sampled lines.

    Parameters
    ----------
    path
        The file to make.
    demo
        What to show.
    """
    number = len(demo.slices) // 2
    shown = demo.slices[number]
    outcomes = [shown.outcomes[name] for name in demo.methods]
    images = [shown.reference, *(o.image for o in outcomes)]
    figures = ["fully sampled, noise-free", *(f"PSNR {o.psnr:.2f} dB   SSIM {o.ssim:.3f}" for o in outcomes)]
    high = float(np.quantile(shown.reference, 1 - SATURATED))
    errors = [ERROR_GAIN * np.abs(o.image - shown.reference) / high for o in outcomes]
    lines = f"{shown.mask.mean():.1%} of the lines"
    rows = [
        [
            _tile(_frame(image) / high, name, words)
            for image, name, words in zip(images, ["reference", *demo.methods], figures, strict=True)
        ],
        [_tile(_detail(image) / high) for image in images],
        [
            _tile(_frame(shown.mask.astype(np.float32)), "measured samples", lines),
            *(
                _tile(_frame(e), f"{ERROR_GAIN} x error of {n}")
                for e, n in zip(errors, demo.methods, strict=True)
            ),
        ],
    ]
    title = [
        "mri-qpan demo:",
        f"phantom, {demo.protocol.coils} coils, {lines} measured with noise,",
        f"slice {number + 1} of {len(demo.slices)}",
    ]
    info = PngInfo()
    info.add_text("Software", f"mri-qpan {__version__}")
    sheet(rows, title).save(path, format="PNG", pnginfo=info, optimize=True)


def _tile(pixels: NDArray[np.float32], *lines: str) -> Tile:
    return Tile(pixels, pixels.shape[1] / pixels.shape[0], lines)


def _frame(image: NDArray[np.float32]) -> NDArray[np.float32]:
    cuts = [round(n * (1 - share) / 2) for n, share in zip(image.shape, FRAME, strict=True)]
    return image[cuts[0] : image.shape[0] - cuts[0], cuts[1] : image.shape[1] - cuts[1]]


def _detail(image: NDArray[np.float32]) -> NDArray[np.float32]:
    y, x = (slice(round(a * n), round(b * n)) for n, (a, b) in zip(image.shape, DETAIL, strict=True))
    return image[y, x]
