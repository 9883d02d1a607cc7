"""The intensity scale that networks and solvers see."""

from typing import NamedTuple

import torch
from torch import Tensor

LARGEST = 500
"""One pixel in so many is brighter than the robust maximum: integers, so that sizes can be symbols."""


class Level(NamedTuple):
    """How strong an image's A^H y is, for what has to treat another part of it alike.

    Attributes
    ----------
    scale
        Its robust maximum.
    power
        Mean of abs(A^H y)^2, at that scale.
    """

    scale: float
    power: float


def robust_scale(image: Tensor) -> Tensor:
    """Return a robust maximum of abs(image) for each batch entry.

    Parameters
    ----------
    image
        A^H y, (batch, *spatial).

    Returns
    -------
    Tensor
        (batch, 1, ..., 1) real, positive: the 99.8th percentile of the magnitude; 1 where that is zero.
    """
    magnitude = image.detach().abs().flatten(1)
    rank = torch.sym_max(1, (magnitude.shape[1] + LARGEST // 2) // LARGEST)
    scale = torch.topk(magnitude, rank, dim=1).values[:, -1]
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return scale.reshape(-1, *[1] * (image.ndim - 1))
