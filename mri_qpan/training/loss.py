"""What a training lessens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mri_qpan.networks import Network
from mri_qpan.scaling import robust_scale
from mri_qpan.training.recipe import Recipe
from mri_qpan.training.simulate import Case

PHASE = 0.1
"""Weight of the last image's complex error beside that of its magnitude, which is what people look at.

The least complex error alone leaves the magnitude too small wherever noise is as large as the signal: a
measured image has a noise floor, its complex expectation has none.
"""

TYPICAL_ERROR = 5e-3
"""Mean squared error of a typical start image at unit scale; see `loss_of`."""

REACHED = 1e-3
"""Weight of the logarithm of a real image's error: about what that error is, over its start's, in the end."""


def loss_of(
    network: Network[Any],
    case: Case,
    constrained: frozenset[int],
    recipe: Recipe,
    teacher: Network[Any] | None,
) -> Tensor:
    """Eq. 9 at unit scale, each image weighted by how hard it is, earlier layers supervised a little.

    The last image of a complex network is asked for the target's magnitude, and a little for its phase. Its
    weight is one over the error of the image that the network starts from, so that one coil at 15 % does not
    drown eight coils at 50 %.

    Of real images, those of the published experiment, the logarithm of the error counts, as in the mean PSNR
    that they are compared by: 16 minutes of it raised a `brain-pan++` that had been trained to its end with
    the other weight by 0.14 dB on validation images, as many of the other by 0.02.
    """
    encoding = case.encoding()
    adjoint = encoding.adjoint(case.kspace)
    scale = robust_scale(adjoint) if adjoint.is_complex() else adjoint.new_ones(())
    adjoint, target = adjoint / scale, case.target / scale
    images, constraint = network.forward_for_training(adjoint, encoding.normal, constrained)
    start, *layers = images
    errors = [_mean_square(image - target) for image in reversed(layers)]
    if target.is_complex():
        errors[0] = PHASE * errors[0] + _mean_square(layers[-1].abs() - target.abs())
    if teacher is not None:
        with torch.no_grad():
            taught = teacher(adjoint, encoding.normal)
        share = recipe.distillation
        errors[0] = (1 - share) * errors[0] + share * _mean_square(layers[-1] - taught)
    if target.is_complex():
        weight = (TYPICAL_ERROR / _mean_square(start - target).clamp_min(1e-9)).clamp(0.1, 20.0)
        graded = [weight * e for e in errors]
    else:
        graded = [REACHED * e.clamp_min(1e-9).log() for e in errors]
    error = sum(
        (recipe.supervision**index * e.mean() for index, e in enumerate(graded)),
        torch.zeros_like(constraint),
    )
    return error + recipe.constraint * recipe.network.layers / max(1, len(constrained)) * constraint


def _mean_square(image: Tensor) -> Tensor:
    parts = torch.view_as_real(image) if image.is_complex() else image
    return parts.square().flatten(1).mean(1)
