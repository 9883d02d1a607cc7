"""The published style of network in straightforward eager PyTorch, as a yardstick for speed alone.

ISTA-Net+'s arithmetic (Zhang and Ghanem, CVPR 2018, Eq. 9-13) as one would write it down: real images, one
coil, float32, every operation a call of its own. Its weights are random: it is timed, not looked at.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FILTERS = 32


class Stage(nn.Module):
    """A gradient step, then the residual proximal step with a soft threshold."""

    def __init__(self) -> None:
        super().__init__()
        self.rho = nn.Parameter(torch.tensor(0.5))
        self.theta = nn.Parameter(torch.tensor(0.01))
        shapes = {"d": (FILTERS, 1), **dict.fromkeys(("h1", "h2", "t1", "t2"), (FILTERS,) * 2)}
        for name, shape in {**shapes, "g": (1, FILTERS)}.items():
            self.register_parameter(name, nn.Parameter(nn.init.xavier_normal_(torch.empty(*shape, 3, 3))))

    d: Tensor
    h1: Tensor
    h2: Tensor
    t1: Tensor
    t2: Tensor
    g: Tensor

    def forward(
        self, x: Tensor, adjoint: Tensor, mask: Tensor, symmetry: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return the image (batch, 1, y, x) and the symmetry term that training constrains, if asked for."""
        gradient = torch.fft.ifft2(torch.fft.fft2(x) * mask).real - adjoint
        x = x - self.rho * gradient
        wide = F.conv2d(x, self.d, padding=1)
        features = F.conv2d(F.relu(F.conv2d(wide, self.h1, padding=1)), self.h2, padding=1)
        shrunk = torch.sign(features) * F.relu(torch.abs(features) - self.theta)
        back = F.conv2d(F.relu(F.conv2d(shrunk, self.t1, padding=1)), self.t2, padding=1)
        image = x + F.conv2d(back, self.g, padding=1)
        if not symmetry:
            return image, None
        inverse = F.conv2d(F.relu(F.conv2d(features, self.t1, padding=1)), self.t2, padding=1)
        return image, inverse - wide


class Yardstick(nn.Module):
    """Some stages, one after the other.

    Parameters
    ----------
    stages
        9 as ISTA-Net+ was published, 11 as PAN+ has.
    symmetry
        Compute each stage's symmetry term at inference too, as the published code does.
    """

    def __init__(self, stages: int, symmetry: bool) -> None:
        super().__init__()
        self.stages = nn.ModuleList(Stage() for _ in range(stages))
        self.symmetry = symmetry

    def forward(self, adjoint: Tensor, mask: Tensor) -> Tensor:
        """Return the image for A^H y (batch, 1, y, x) real and a mask (y, x), its DC at the corner."""
        x = adjoint
        kept = []
        for stage in self.stages:
            x, term = stage(x, adjoint, mask, self.symmetry)
            kept.append(term)
        return x
