"""Wavelet compressed sensing, as `sigpy.mri.app.L1WaveletRecon` solves it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mri_qpan.encoding import Normal
from mri_qpan.solvers._numpy import numpy_normal, run, to_numpy


class Wavelet:
    """Minimise ½|A x − y|² + lamda |W x|_1 by FISTA (Lustig et al., Magn Reson Med 2007;58:1182).

    Parameters
    ----------
    lamda
        Weight of the wavelet coefficients, for an image of robust maximum 1.
    iterations
        Accelerated gradient steps of size 1: the norm of A must be at most 1.
    wave_name
        PyWavelets' name of the wavelet.
    """

    def __init__(self, lamda: float = 3e-3, iterations: int = 100, wave_name: str = "db4") -> None:
        self.lamda = lamda
        self.iterations = iterations
        self.wave_name = wave_name

    def __call__(self, adjoint: Tensor, normal: Normal) -> Tensor:
        """Return the image for A^H y, (batch, *spatial) complex64, and A^H A."""
        # Here, because SigPy takes seconds to import.
        from sigpy.alg import GradientMethod
        from sigpy.linop import Wavelet as WaveletTransform
        from sigpy.prox import L1Reg, UnitaryTransform

        AHA = numpy_normal(normal, adjoint)
        AHy = to_numpy(adjoint)
        x = 0 * AHy
        W = WaveletTransform(AHy.shape[1:], wave_name=self.wave_name)
        shrink = UnitaryTransform(L1Reg(W.oshape, self.lamda), W)

        def prox(alpha: float, images: NDArray[Any]) -> NDArray[Any]:
            return np.stack([shrink(alpha, image) for image in images])

        run(
            GradientMethod(
                lambda v: AHA(v) - AHy, x, 1.0, proxg=prox, accelerate=True, max_iter=self.iterations
            )
        )
        return torch.from_numpy(x).to(adjoint.device)
