"""The image that an unfolded network starts from."""

from __future__ import annotations

import torch
from torch import Tensor

from mri_qpan.encoding import Normal

DAMPING = 1e-3


@torch.no_grad()
def conjugate_gradient(adjoint: Tensor, normal: Normal, iterations: int) -> Tensor:
    """Return some steps of CG-SENSE (Pruessmann et al. 2001) from A^H y: unfolded, noise not yet amplified.

    A layer takes one gradient step, and a handful of those cannot unfold a strongly undersampled multi-coil
    image; conjugate gradients do most of it at the price of FFTs alone. With one coil A^H A is a projection
    and the result is A^H y, the published start.

    Parameters
    ----------
    adjoint
        A^H y, (batch, ...).
    normal
        The map x -> A^H A x.
    iterations
        CG steps on (A^H A + 0.001) x = A^H y.
    """
    x = adjoint
    residual = adjoint - normal(x) - DAMPING * x
    direction = residual
    power = _dot(residual, residual)
    # A batch entry that has converged keeps its image: its step is 0 / tiny.
    tiny = 1e-12 * _dot(adjoint, adjoint) + torch.finfo(power.dtype).tiny
    for _ in range(iterations):
        image = normal(direction) + DAMPING * direction
        step = power / (_dot(direction, image) + tiny)
        x = x + step * direction
        residual = residual - step * image
        previous, power = power, _dot(residual, residual)
        direction = residual + power / (previous + tiny) * direction
    return x


def _dot(a: Tensor, b: Tensor) -> Tensor:
    products = (a.conj() * b).real.flatten(1).sum(1)
    return products.reshape(-1, *[1] * (a.ndim - 1))
