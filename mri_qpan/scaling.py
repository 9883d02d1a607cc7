"""The intensity scale that networks and solvers see."""

import torch
from torch import Tensor

QUANTILE = 0.998


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
    rank = max(1, round((1 - QUANTILE) * magnitude.shape[1]))
    scale = torch.topk(magnitude, rank, dim=1).values[:, -1]
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return scale.reshape(-1, *[1] * (image.ndim - 1))
