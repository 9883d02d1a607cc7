"""Conjugate gradients: the image that an unfolded network starts from, and a layer's data consistency."""

from __future__ import annotations

import torch
from torch import Tensor

from mri_qpan.encoding import Normal

DAMPING = 1e-3


@torch.no_grad()
def conjugate_gradient(adjoint: Tensor, normal: Normal, iterations: int) -> Tensor:
    """Return some steps of CG-SENSE (Pruessmann et al. 2001) from A^H y: unfolded, noise not yet amplified.

    A layer's gradient step cannot unfold a strongly undersampled multi-coil image in a handful of layers;
    conjugate gradients do most of it at the price of FFTs alone. With one coil A^H A is a projection and the
    result is A^H y, the published start.

    Parameters
    ----------
    adjoint
        A^H y, (batch, ...).
    normal
        The map x -> A^H A x.
    iterations
        CG steps on (A^H A + 0.001) x = A^H y.
    """
    if iterations == 0:
        return adjoint
    damping = torch.full((), DAMPING, device=adjoint.device)
    residual = adjoint - normal(adjoint) - damping * adjoint
    return _iterate(adjoint, residual, damping, adjoint, normal, iterations)


def data_consistency(image: Tensor, adjoint: Tensor, normal: Normal, mu: Tensor, iterations: int) -> Tensor:
    """Return some CG steps on (A^H A + mu) x = A^H y + mu z from z, the image given.

    The step lengths count as constants in the gradient, which is then that of the polynomial in A^H A that
    the iterations amount to, and stays finite where an image has converged.

    Parameters
    ----------
    image
        z, (batch, ...).
    adjoint
        A^H y, shaped as `image`.
    normal
        The map x -> A^H A x.
    mu
        Trust in z against the data, positive, one number.
    iterations
        CG steps.
    """
    return _iterate(image, adjoint - normal(image), mu, adjoint, normal, iterations)


def _iterate(
    x: Tensor, residual: Tensor, damping: Tensor, adjoint: Tensor, normal: Normal, iterations: int
) -> Tensor:
    direction = residual
    power = _dot(residual, residual)
    # A batch entry that has converged keeps its image: its step is 0 / tiny.
    tiny = 1e-12 * _dot(adjoint, adjoint) + torch.finfo(power.dtype).tiny
    for iteration in range(iterations):
        image = normal(direction) + damping * direction
        step = power / (_dot(direction, image) + tiny)
        x = x + step * direction
        if iteration + 1 == iterations:
            break
        residual = residual - step * image
        previous, power = power, _dot(residual, residual)
        direction = residual + power / (previous + tiny) * direction
    return x


@torch.no_grad()
def _dot(a: Tensor, b: Tensor) -> Tensor:
    products = (a.conj() * b).real.flatten(1).sum(1)
    return products.reshape(-1, *[1] * (a.ndim - 1))
