"""The noise floor of a magnitude image, which no complex expectation has.

Of an image x = m + n, where n is what the noise of samples that were not acquired would have added, the
magnitude is expected at about sqrt(|m|^2 + E|n|^2) (Gudbjartsson and Patz, Magn Reson Med 34:910, 1995): a
fully sampled image is grey where nothing is, and dark tissue is brighter in it than its signal. A network
that returns m alone is darker there than what it is compared with and read beside.

The noise of the acquired samples shows in what the last layer's image leaves of them, r = A^H y - A^H A z:
with one coil |r|^2 has the share s of the noise that was acquired, and (1 - s) / s times it is missing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mri_qpan.encoding import Normal

SMALLEST_SHARE = 0.02
SOFT = 0.1
"""Magnitude, relative to the floor, below which the phase is too weak to be lifted whole."""


def floor_of(learned: Tensor, residual: Tensor, conditioning: Tensor, share: Tensor) -> Tensor:
    """Return the missing noise power a pixel, for each of the batch.

    Parameters
    ----------
    learned
        (2,): logarithm of a factor that is 1 for one coil and white noise, and a power of the conditioning.
    residual
        r, (batch, ...).
    conditioning
        As `consistency.conditioning` returns it, (batch,).
    share
        Share of the samples that were acquired, (batch,).
    """
    power = residual.abs().square().flatten(1).mean(1)
    return torch.exp(learned[0] + learned[1] * conditioning) * power * (1 - share) / share


def share_acquired(image: Tensor, normal: Normal) -> Tensor:
    """Return the peak of A^H A's point spread at each image's brightest pixel, (batch,).

    With maps whose squares sum to 1 there it is the share of the samples that were acquired.
    """
    place = image.abs().flatten(1).argmax(1, keepdim=True)
    point = torch.zeros_like(image).flatten(1).scatter(1, place, 1.0)
    spread = normal(point.reshape(image.shape)).flatten(1).gather(1, place)
    return spread.detach().real.squeeze(1).clamp(SMALLEST_SHARE, 1.0)


def lifted(image: Tensor, floor: Tensor) -> Tensor:
    """Return `image` with magnitude sqrt(|x|^2 + floor) and its phase."""
    power = image.abs().square()
    floor = floor.reshape(-1, *[1] * (image.ndim - 1))
    tiny = torch.finfo(power.dtype).tiny
    return image * torch.sqrt((power + floor + tiny) / (power + SOFT**2 * floor + tiny))
