"""Total variation, the problem of `sigpy.mri.app.TotalVariationRecon`."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from mri_qpan.encoding import Normal
from mri_qpan.solvers._numpy import numpy_normal, run, to_numpy

DUAL_STEP = 10


class TotalVariation:
    """Minimise ½|A x − y|² + lamda |G x|_1, G the circular differences (Block et al., MRM 2007;57:1086).

    SigPy's own app splits |A x − y|² off as a second dual variable, for which it needs A itself. Here the
    data term stays smooth and enters by its gradient (Condat, J Optim Theory Appl 2013;158:460;
    Vu, Adv Comput Math 2013;38:667), so that A^H y and A^H A suffice. The fixed point is the same.

    Parameters
    ----------
    lamda
        Weight of the differences, positive, for an image of robust maximum 1.
    iterations
        Primal-dual steps; the norm of A must be at most 1.
    """

    def __init__(self, lamda: float = 3e-3, iterations: int = 100) -> None:
        self.lamda = lamda
        self.iterations = iterations

    def __call__(self, adjoint: Tensor, normal: Normal) -> Tensor:
        """Return the image for A^H y, (batch, *spatial) complex64, and A^H A."""
        # Here, because SigPy takes seconds to import.
        from sigpy.alg import PrimalDualHybridGradient
        from sigpy.linop import FiniteDifference
        from sigpy.prox import Conj, L1Reg

        AHA = numpy_normal(normal, adjoint)
        AHy = to_numpy(adjoint)
        x = 0 * AHy
        G = FiniteDifference(AHy.shape, axes=range(1, AHy.ndim))
        # The dual variable's size is lamda, the image's 1: a dual step in proportion to lamda converges
        # fastest (measured from 0.001 to 0.03). It is stable if 1 / tau - sigma |G|^2 >= |A|^2 / 2,
        # where |G|^2 is at most 4 an axis.
        sigma = DUAL_STEP * self.lamda
        tau = 1 / (0.5 + 4 * (AHy.ndim - 1) * sigma)

        def gradient(u: NDArray[Any]) -> NDArray[Any]:
            return G.H(u) + AHA(x) - AHy

        run(
            PrimalDualHybridGradient(
                Conj(L1Reg(G.oshape, self.lamda)),
                lambda _, v: v,
                G,
                gradient,
                x,
                0 * G(x),
                tau,
                sigma,
                max_iter=self.iterations,
            )
        )
        return torch.from_numpy(x).to(adjoint.device)
