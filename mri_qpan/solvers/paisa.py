"""PAISA: the proximal-averaged iterative shrinkage algorithm, the ancestor of the networks."""

from __future__ import annotations

import torch
from torch import Tensor

from mri_qpan.encoding import Normal
from mri_qpan.frames import haar_analysis, haar_synthesis
from mri_qpan.penalties import PENALTIES, proximal_average


class PAISA:
    """Iterate x = F~(P(F(x − rho A^H(A x − y)))): the proximal average of l1, MCP and SCAD on a tight frame.

    Source: Nareddy et al., "Quantized Proximal Averaging Network for Analysis Sparse Coding", Algorithm 1.
    The frame F is the undecimated Haar wavelet; its approximation passes unshrunk.

    Parameters
    ----------
    lamda
        Threshold of an orthonormal Haar coefficient, for an image of robust maximum 1; the three penalties
        share it.
    iterations
        Shrinkage steps.
    rho
        Gradient step; with the norm of A at most 1, below 2 is stable.
    gamma, a
        Shapes of MCP (above 1) and SCAD (above 2).
    levels
        Levels of the wavelet.
    """

    def __init__(
        self,
        lamda: float = 1e-2,
        iterations: int = 100,
        rho: float = 1.0,
        gamma: float = 3.0,
        a: float = 3.7,
        levels: int = 4,
    ) -> None:
        self.lamda = lamda
        self.iterations = iterations
        self.rho = rho
        self.gamma = gamma
        self.a = a
        self.levels = levels

    def __call__(self, adjoint: Tensor, normal: Normal) -> Tensor:
        """Return the image for A^H y, (batch, *spatial) complex64, and A^H A."""
        with torch.no_grad():
            x = adjoint
            for _ in range(self.iterations):
                x = self._shrink(x - self.rho * (normal(x) - adjoint))
        return x

    def _shrink(self, image: Tensor) -> Tensor:
        *details, approximation = haar_analysis(image, self.levels)
        axes = image.ndim - 1
        shrunk = []
        for level, bands in enumerate(details, start=1):
            threshold = self.lamda * 2 ** (-axes * level / 2)
            shrunk.append(proximal_average(bands, (threshold,) * len(PENALTIES), self.gamma, self.a))
        return haar_synthesis([*shrunk, approximation])
