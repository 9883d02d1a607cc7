"""The penalties l1, MCP and SCAD, their proximal operators and the proximal average.

Source: Nareddy et al., "Quantized Proximal Averaging Network for Analysis Sparse Coding", Table 1 and Eq. 7.
The quadratic term of MCP is printed there as x^2 / (2 lambda gamma), which is discontinuous at
gamma lambda; x^2 / (2 gamma) is the form whose minimiser is the printed proximal operator.

All functions work element by element with unit step on real or complex tensors; a complex value keeps
its phase. Parameters are floats or tensors that broadcast, with lam > 0, gamma > 1, a > 2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Parameter = float | Tensor

PENALTIES = ("l1", "mcp", "scad")


def l1(x: Tensor, lam: Parameter) -> Tensor:
    """Return the l1 penalty lam abs(x)."""
    return lam * x.abs()


def mcp(x: Tensor, lam: Parameter, gamma: Parameter) -> Tensor:
    """Return the minimax-concave penalty of `x` (Zhang 2010)."""
    magnitude = x.abs()
    inner = lam * magnitude - magnitude**2 / (2 * gamma)
    return torch.where(magnitude <= gamma * lam, inner, gamma * lam**2 / 2 * torch.ones_like(magnitude))


def scad(x: Tensor, lam: Parameter, a: Parameter) -> Tensor:
    """Return the smoothly clipped absolute deviation of `x` (Fan and Li 2001)."""
    magnitude = x.abs()
    middle = (2 * a * lam * magnitude - magnitude**2 - lam**2) / (2 * (a - 1))
    outer = (a + 1) * lam**2 / 2 * torch.ones_like(magnitude)
    return torch.where(magnitude <= lam, lam * magnitude, torch.where(magnitude <= a * lam, middle, outer))


def prox_l1(x: Tensor, lam: Parameter) -> Tensor:
    """Soft threshold, the proximal operator of `l1`."""
    return _with_sign(_soft(x.abs(), lam), x)


def prox_mcp(x: Tensor, lam: Parameter, gamma: Parameter) -> Tensor:
    """Firm threshold, the proximal operator of `mcp`."""
    return _with_sign(_firm(x.abs(), lam, gamma), x)


def prox_scad(x: Tensor, lam: Parameter, a: Parameter) -> Tensor:
    """Return the proximal operator of `scad`."""
    return _with_sign(_scad(x.abs(), lam, a), x)


def proximal_average(
    x: Tensor,
    lam: Sequence[Parameter],
    gamma: Parameter,
    a: Parameter,
    penalties: Sequence[str] = PENALTIES,
    shares: Sequence[Parameter] | None = None,
) -> Tensor:
    """Return the mean of the penalties' proximal operators (Eq. 7).

    Parameters
    ----------
    x
        Real or complex values of any shape.
    lam
        One threshold for each of `penalties`, in their order.
    gamma, a
        Shapes of MCP and SCAD; unused without them.
    penalties
        Any of "l1", "mcp", "scad".
    shares
        Their weights alpha, of sum 1; None weights them equally.
    """
    magnitude = x.abs()
    total: Tensor | None = None
    weights = [None] * len(penalties) if shares is None else shares
    for name, threshold, weight in zip(penalties, lam, weights, strict=True):
        if name == "l1":
            part = _soft(magnitude, threshold)
        elif name == "mcp":
            part = _firm(magnitude, threshold, gamma)
        elif name == "scad":
            part = _scad(magnitude, threshold, a)
        else:
            raise ValueError(f"unknown penalty {name!r}: choose from {', '.join(PENALTIES)}")
        part = part if weight is None else weight * part
        total = part if total is None else total + part
    if total is None:
        raise ValueError("a proximal average needs at least one penalty")
    return _with_sign(total * (1 / len(penalties)) if shares is None else total, x)


def _soft(magnitude: Tensor, lam: Parameter) -> Tensor:
    return torch.relu(magnitude - lam)


def _firm(magnitude: Tensor, lam: Parameter, gamma: Parameter) -> Tensor:
    return torch.minimum(magnitude, gamma / (gamma - 1) * torch.relu(magnitude - lam))


def _scad(magnitude: Tensor, lam: Parameter, a: Parameter) -> Tensor:
    middle = ((a - 1) * magnitude - a * lam) / (a - 2)
    return torch.minimum(magnitude, torch.maximum(torch.relu(magnitude - lam), middle))


def _with_sign(magnitude: Tensor, x: Tensor) -> Tensor:
    if x.is_complex():
        return magnitude * torch.sgn(x)
    return torch.copysign(magnitude, x)
