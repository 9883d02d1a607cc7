"""Does an unfolded network settle? Its last layer near its result, as a map that contracts errors or not.

Source: Mardani et al., "Neural Proximal Gradient Descent for Compressive Imaging", NeurIPS 2018, Section 4.
There the true image x* is known and a layer is M(x) (x - alpha A^H (A x - y)), M linear at fixed masks of the
ReLUs. Here a layer is a map g of images, linear between the kinks of its ReLUs and proximal operators, and
the network's own result stands for x*, which no measurement tells. With d = x(T-1) - x(T), the error that the
last layer met, and J the linear map that g is near x(T):

    g(x + d) - x = J d + [g(x + d) - g(x) - J d] + [g(x) - x]                     (Eq. 10)
    |g(x + d) - x| <= (eta1 + eta2) |d| + |g(x) - x|                              (Eq. 13, 14)

with eta1 = |J d| / |d| (Eq. 11), eta2 = |g(x + d) - g(x) - J d| / |d| (Eq. 12), epsilon = |g(x) - x| / |x|
(assumption A1). Where eta1 + eta2 < 1 and epsilon is small, further layers would not leave the result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

NEAR = 1e-3
"""Size of the perturbation that J is measured with, relative to the image: few masks change, and float32's
rounding stays a hundred times smaller."""


@dataclass(frozen=True)
class Contraction:
    """A network's last layer near its result.

    Attributes
    ----------
    epsilon
        (batch,): how far one more layer would move the image, relative to it.
    eta1, eta2
        (batch,): how much of the last layer's step is left after one more layer: through the linear map
        that the layer is near the result, and through the masks that the step changes.
    """

    epsilon: Tensor
    eta1: Tensor
    eta2: Tensor


def contraction(layer: Callable[[Tensor], Tensor], before: Tensor, image: Tensor) -> Contraction:
    """Measure how a layer acts near an image; see the module.

    Parameters
    ----------
    layer
        g, a map of images (batch, ...).
    before, image
        x(T-1) and x(T), (batch, ...).
    """
    step = before - image
    size, length = _norm(image), _norm(step)
    tiny = torch.finfo(length.dtype).tiny
    share = NEAR * size / length.clamp_min(tiny)
    fixed = layer(image)
    linear = (layer(image + _each(share, step) * step) - fixed) / _each(share.clamp_min(tiny), step)
    masks = layer(before) - fixed - linear
    return Contraction(
        epsilon=_norm(fixed - image) / size.clamp_min(tiny),
        eta1=_norm(linear) / length.clamp_min(tiny),
        eta2=_norm(masks) / length.clamp_min(tiny),
    )


def of_contraction(found: Contraction) -> dict[str, Tensor]:
    """Return the figures by the names that `likeness` and a report have for them, each (batch,)."""
    return {
        "further": found.epsilon,
        "contraction": found.eta1 + found.eta2,
        "eta1": found.eta1,
        "eta2": found.eta2,
    }


def _norm(x: Tensor) -> Tensor:
    return x.abs().flatten(1).square().sum(1).sqrt()


def _each(values: Tensor, images: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (images.ndim - 1))
