"""A bias-free 3x3 convolution whose weights can be K-bit integers times a scale."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mri_qpan import quantize


class Convolution(nn.Module):
    """Holds a full-precision weight (out, in, 3, 3) and hands out the weight that the network uses.

    Parameters
    ----------
    inputs, outputs
        Channels.
    bits
        K-bit weights, or None for full precision.
    scale_per
        One quantizer scale a "tensor" or an output "filter".
    gain
        Standard deviation of the start weights, relative to Kaiming's.
    estimator
        See `quantize.straight_through`.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        bits: int | None = None,
        scale_per: quantize.ScalePer = "filter",
        gain: float = 1.0,
        estimator: quantize.Estimator = "identity",
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3) * gain * (2 / (9 * inputs)) ** 0.5)
        self.bits = bits
        self.scale_per: quantize.ScalePer = scale_per
        self.estimator: quantize.Estimator = estimator
        if bits is not None:
            self.register_buffer("scale", quantize.fit(self.weight.detach(), bits, scale_per)[0])

    scale: Tensor

    @torch.no_grad()
    def refit(self) -> None:
        """Fit the quantizer to the present full-precision weight, forgetting the old scale."""
        if self.bits is not None:
            self.scale.copy_(quantize.fit(self.weight, self.bits, self.scale_per)[0])

    @torch.no_grad()
    def follow(self) -> None:
        """Move the scale one training step towards its least-squares value (momentum for K > 1)."""
        if self.bits is None:
            return
        integers = quantize.levels(self.weight, self.scale, self.bits)
        target = quantize.fit_scale(self.weight, integers, self.scale_per)
        keep = quantize.MOMENTUM if self.bits > 1 else 0.0
        self.scale.mul_(keep).add_(target, alpha=1 - keep)

    def forward(self) -> Tensor:
        """Return the weight in use: v b with a straight-through gradient, or the weight itself."""
        if self.bits is None:
            return self.weight
        return quantize.straight_through(self.weight, self.scale, self.bits, self.estimator)
