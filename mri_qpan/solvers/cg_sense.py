"""CG-SENSE: the least-squares image by conjugate gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from mri_qpan.encoding import Normal
from mri_qpan.solvers._numpy import numpy_normal, run, to_numpy


class CGSense:
    """Minimise ½|A x − y|² + ½ lamda |x|² (Pruessmann et al., Magn Reson Med 2001;46:638).

    Parameters
    ----------
    lamda
        Tikhonov weight; it does not depend on the image's scale.
    iterations
        Conjugate gradient steps. The entries of a batch are one system: they share the step sizes.
    """

    linear = True
    least_squares = True

    def __init__(self, lamda: float = 1e-2, iterations: int = 30) -> None:
        self.lamda = lamda
        self.iterations = iterations

    def __call__(self, adjoint: Tensor, normal: Normal) -> Tensor:
        """Return the image for A^H y, (batch, *spatial) complex64, and A^H A."""
        # Here, because SigPy takes seconds to import.
        from sigpy.alg import ConjugateGradient

        AHA = numpy_normal(normal, adjoint)
        b = to_numpy(adjoint)
        x = 0 * b
        tolerance = 1e-7 * float(adjoint.detach().norm())
        run(
            ConjugateGradient(
                lambda v: AHA(v) + self.lamda * v, b, x, max_iter=self.iterations, tol=tolerance
            )
        )
        return torch.from_numpy(x).to(adjoint.device)
