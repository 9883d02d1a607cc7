"""Conjugate gradients: the image that an unfolded network starts from, and a layer's data consistency."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.compiler import is_compiling

from mri_qpan.encoding import Normal

DAMPING = 1e-3
CONVERGED = 1e-6
"""Residual, relative to A^H y, at which iterations stop early: one coil needs a single one."""


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
    damping = adjoint.real.new_full((), DAMPING)
    x = adjoint / (1 + DAMPING)  # what one coil ends at
    return _iterate(x, adjoint - normal(x) - DAMPING * x, damping, adjoint, normal, iterations)


def data_consistency(
    image: Tensor,
    residual: Tensor,
    adjoint: Tensor,
    normal: Normal,
    mu: Tensor,
    iterations: int,
    applied: Tensor | None = None,
) -> Tensor:
    """Return some CG steps on (A^H A + mu) x = A^H y + mu z from z, the image given.

    The inner products count as constants in the gradient, which is then close to that of the polynomial in
    A^H A that the iterations amount to (exact for one step), and stays finite where an image has converged.

    Parameters
    ----------
    image
        z, (batch, ...).
    residual
        A^H y - A^H A z, shaped as `image`.
    adjoint
        A^H y, shaped as `image`.
    normal
        The map x -> A^H A x.
    mu
        Trust in z against the data, positive: one number, or one for each of the batch.
    iterations
        CG steps.
    applied
        A^H A residual, if known already.
    """
    damping = mu.reshape(-1, *[1] * (_real(image).ndim - 1))
    return _iterate(image, residual, damping, adjoint, normal, iterations, applied)


def solve(x: Tensor, residual: Tensor, adjoint: Tensor, system: Normal, iterations: int) -> Tensor:
    """Return some CG steps on a positive system from x, whose residual is given.

    Step lengths count as constants in the gradient.

    Parameters
    ----------
    x, residual, adjoint
        As `data_consistency`'s, all of one shape.
    system
        The map x -> (system) x.
    iterations
        CG steps.
    """
    return _iterate(x, residual, adjoint.real.new_zeros(()), adjoint, system, iterations)


def energy(image: Tensor) -> Tensor:
    """Return abs(x)^2 of each of the batch, without a gradient."""
    return _dot(_real(image), _real(image)).flatten()


def mismatch(residual: Tensor, scale: Tensor) -> Tensor:
    """Return the logarithm of abs(A^H y - A^H A z) / abs(A^H y) of each of the batch, at least log 0.0001.

    After a layer it is about the noise that the layer took away, so it tells clean data from noisy ones.

    Parameters
    ----------
    residual
        A^H y - A^H A z, (batch, ...).
    scale
        abs(A^H y)^2, (batch,).
    """
    return 0.5 * torch.log((energy(residual) / (scale + torch.finfo(scale.dtype).tiny)).clamp_min(1e-8))


def conditioning(residual: Tensor, applied: Tensor) -> Tensor:
    """Return the logarithm of |A r|^2 / |r|^2 of each of the batch, at least -5.

    It is 0 where A^H A is a projection, as with one coil, and below where coils unfold: what is kept of the
    data then costs noise.

    Parameters
    ----------
    residual
        r, in the range of A^H.
    applied
        A^H A r.
    """
    r = _real(residual.detach())
    tiny = torch.finfo(r.dtype).tiny
    share = (_dot(r, _real(applied)).flatten() + tiny) / (_dot(r, r).flatten() + tiny)
    return torch.log(share.clamp(math.exp(-5.0), 1.0))


def _iterate(
    x: Tensor,
    residual: Tensor,
    damping: Tensor,
    adjoint: Tensor,
    normal: Normal,
    iterations: int,
    applied: Tensor | None = None,
) -> Tensor:
    # Real views: products of complex images with real numbers take twice as long.
    x, residual, reference = _real(x), _real(residual), _real(adjoint)
    direction = residual
    power = _dot(residual, residual)
    scale = _dot(reference, reference)
    # A batch entry that has converged keeps its image: its step is 0 / tiny.
    tiny = 1e-12 * scale + torch.finfo(power.dtype).tiny
    for iteration in range(iterations):
        # Neither a GPU nor a traced graph waits for a number to decide by.
        if not (power.is_cuda or is_compiling()) and bool((power <= CONVERGED**2 * scale).all()):
            break
        if applied is None or iteration:
            applied = normal(_as(direction, adjoint))
        image = _real(applied)
        step = power / (_dot(direction, image) + damping * _dot(direction, direction) + tiny)
        x = torch.addcmul(x, step, direction)
        if iteration + 1 == iterations:
            break
        residual = torch.addcmul(residual, step, torch.addcmul(image, damping, direction), value=-1)
        previous, power = power, _dot(residual, residual)
        direction = torch.addcmul(residual, power / (previous + tiny), direction)
    return _as(x, adjoint)


def _real(x: Tensor) -> Tensor:
    return torch.view_as_real(x.resolve_conj()) if x.is_complex() else x


def _as(x: Tensor, like: Tensor) -> Tensor:
    return torch.view_as_complex(x) if like.is_complex() else x


def _dot(a: Tensor, b: Tensor) -> Tensor:
    a, b = a.detach(), b.detach()
    # Asked in this order: a traced graph must not look at its batch.
    if not is_compiling() and a.device.type == "cpu" and len(a) == 1:
        # BLAS reads both once, without a product written to memory in between.
        found = torch.dot(a.reshape(-1), b.reshape(-1))
    else:
        found = (a * b).flatten(1).sum(1)
    return found.reshape(-1, *[1] * (a.ndim - 1))
