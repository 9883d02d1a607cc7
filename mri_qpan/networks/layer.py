"""The learned parameters of a layer of PAN, PAN+ and their one-penalty cases."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mri_qpan.networks.config import NetworkConfig
from mri_qpan.networks.convolution import Convolution

TYPICAL_MISMATCH = -3.0
"""Logarithm of abs(A^H y - A^H A z) / abs(A^H y) at which powers of it are 1."""

SMALL = 0.1
"""Start size of G's weights, and in PAN of T2's beside the image that it hands through, to Kaiming's."""

LOUD = 2.0
"""Gain with which H1 and H2 hand the image through at the start, so that thresholds take little of it."""


class Layer(nn.Module):
    """The learned parameters of one unfolded iteration.

    Positivity and the bounds gamma > 1, a > 2 hold by construction (softplus).
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        wide, narrow = config.filters, config.channels
        residual = config.layer == "pan+"
        shapes = {"H1": (wide, wide), "H2": (wide, wide), "T1": (wide, wide), "T2": (wide, wide)}
        if residual:
            shapes = {"D": (narrow, wide), **shapes, "G": (wide, narrow)}
        else:
            shapes["H1"], shapes["T2"] = (narrow, wide), (wide, narrow)
        self.convolutions = nn.ModuleDict(
            {
                # A small G starts every PAN+ layer near the identity, so that all of them train at once.
                name: Convolution(
                    *shape,
                    config.bits,
                    config.scale_per,  # type: ignore[arg-type]
                    SMALL if name == "G" else 1.0,
                    config.estimator,  # type: ignore[arg-type]
                )
                for name, shape in shapes.items()
            }
        )
        middle: list[Convolution] = list(self.convolutions.values())  # type: ignore[arg-type]
        if residual:
            _hand_through(middle[1:-1], wide // 2, 1.0, 0.0)
        elif wide >= 2 * narrow:
            _hand_through(middle, narrow, LOUD, SMALL)
        self.raw_step = _parameter(config.step)
        self.raw_thresholds = nn.Parameter(torch.stack([_parameter(t).detach() for t in config.thresholds]))
        if config.shares == "learned":
            self.raw_shares = nn.Parameter(torch.zeros(len(config.penalties)))
        if config.carry:
            self.carry = nn.Parameter(torch.zeros(wide))
        if config.adaptive:
            self.powers = nn.Parameter(torch.zeros(3))
        if "mcp" in config.penalties:
            self.raw_gamma = _parameter(config.gamma - 1)
        if "scad" in config.penalties:
            self.raw_a = _parameter(config.a - 2)

    def step(self) -> Tensor:
        """Return rho > 0, or mu > 0 with data consistency by conjugate gradients."""
        return F.softplus(self.raw_step)

    def trust(self, mismatch: Tensor, conditioning: Tensor) -> Tensor:
        """Return mu for each of the batch: about step() times learned powers of both (see `consistency`)."""
        if not hasattr(self, "powers"):
            return self.step()
        far = self.powers[0] * (mismatch - TYPICAL_MISMATCH) + self.powers[2] * conditioning
        return F.softplus(self.raw_step + far)

    def gain(self, mismatch: Tensor) -> Tensor:
        """Return for each of the batch how many times larger its thresholds are than a typical image's."""
        return torch.exp(self.powers[1] * (mismatch - TYPICAL_MISMATCH))

    def thresholds(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return lambda > 0 (one for each penalty), gamma > 1 and a > 2."""
        one = self.raw_thresholds.new_ones(())
        gamma = 1 + F.softplus(self.raw_gamma) if hasattr(self, "raw_gamma") else 2 * one
        a = 2 + F.softplus(self.raw_a) if hasattr(self, "raw_a") else 3 * one
        gamma, a = gamma.clamp_min(1 + 1e-6), a.clamp_min(2 + 1e-6)  # float32 rounds what is less to 1 and 2
        return F.softplus(self.raw_thresholds), gamma, a

    def shares(self) -> Tensor | None:
        """Return the weights alpha of the proximal operators, of sum 1; None where they are equal."""
        return torch.softmax(self.raw_shares, 0) if hasattr(self, "raw_shares") else None

    def weights(self) -> list[Tensor]:
        """Return the weights in use, in the order of the convolutions."""
        return [convolution() for convolution in self.convolutions.values()]


@torch.no_grad()
def _hand_through(convolutions: list[Convolution], count: int, gain: float, others: float) -> None:
    """Let H and H~ start as the identity of their first channels, in place.

    Two of H1's filters hold a channel and its negative, which the rectifier leaves as two halves; H2 joins
    them to one feature again, and so do T1 and T2, with the inverse gain. Dozens of random convolutions in
    a row, as in PAN, would hardly train, and PAN+ trains faster so: after 180 steps of `brain-pan+` it was
    0.6 dB ahead on validation images.

    Parameters
    ----------
    convolutions
        H1, H2, T1, T2.
    count
        Channels to hand through.
    gain
        Of H1 and of H2.
    others
        What T2's weights of these channels are multiplied by.
    """
    h1, h2, t1, t2 = (convolution.weight for convolution in convolutions)
    halves = torch.tensor([1.0, -1.0])
    for first, second, size, kept in ((h1, h2, gain, 0.0), (t1, t2, 1 / gain, others)):
        for channel in range(count):
            pair = slice(2 * channel, 2 * channel + 2)
            first[pair] = 0.0
            second[channel] *= kept
            first[pair, channel, 1, 1] = second[channel, pair, 1, 1] = size * halves
    for convolution in convolutions:
        convolution.refit()


def _parameter(value: float) -> nn.Parameter:
    return nn.Parameter(torch.log(torch.expm1(torch.tensor(value))))
