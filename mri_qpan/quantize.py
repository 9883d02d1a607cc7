"""K-bit weights: Q(W) = v b with odd integers b and a scale v.

Source: Nareddy et al., "Quantized Proximal Averaging Network for Analysis Sparse Coding", Section 5. Levels
are {+-1, +-3, ..., +-(2^K - 1)}, fitted to W by alternating least squares: b is the odd level nearest
W / v, and v = <b, W> / <b, b>. The seed has one scale a tensor; one an output filter is offered too.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

ScalePer = Literal["tensor", "filter"]
Estimator = Literal["identity", "clipped"]

MAX_BITS = 4
MOMENTUM = 0.9
"""How much of the old scale stays at each training step, for K > 1 (Section 5)."""

STARTS = (1.5, 2.0, 2.5, 3.0, 3.5, 4.0)
"""Largest levels, in mean magnitudes of the weights, that a fit starts from."""


def levels(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Return the odd integer level nearest weight / scale, as a tensor of `weight`'s type.

    Parameters
    ----------
    weight
        Any shape.
    scale
        Positive, broadcasts against `weight`.
    bits
        K, 1 to 4.
    """
    _check_bits(bits)
    largest = 2**bits - 1
    return (2 * torch.floor(weight / scale / 2) + 1).clamp(-largest, largest)


def fit_scale(weight: Tensor, integers: Tensor, per: ScalePer) -> Tensor:
    """Return the least-squares scale <b, W> / <b, b>, shaped to broadcast against `weight` (out, ...)."""
    product, square = weight * integers, integers * integers
    if per == "tensor":
        scale = product.sum() / square.sum()
        scale = scale.reshape([1] * weight.ndim)
    else:
        axes = tuple(range(1, weight.ndim))
        scale = product.sum(axes, keepdim=True) / square.sum(axes, keepdim=True)
    return scale.clamp_min(torch.finfo(weight.dtype).tiny ** 0.5)


def fit(weight: Tensor, bits: int, per: ScalePer = "filter", iterations: int = 30) -> tuple[Tensor, Tensor]:
    """Fit scale and integers to `weight` by alternating least squares.

    Parameters
    ----------
    weight
        (out, in, ...) real.
    bits
        K, 1 to 4.
    per
        One scale for the "tensor" or one for each output "filter".
    iterations
        Alternations; the error never grows from one to the next.

    Returns
    -------
    scale
        (1, 1, ...) or (out, 1, ...).
    integers
        As `weight`, odd integers in its type.
    """
    _check_bits(bits)
    mean = fit_scale(weight, torch.sign(weight) + (weight == 0), per)
    axes = tuple(range(0 if per == "tensor" else 1, weight.ndim))
    best_scale, best_error = mean, torch.full_like(mean, torch.inf)
    # Alternation stops in the nearest of several minima, so it starts from several scales.
    for reach in STARTS if bits > 1 else (1.0,):
        scale = _alternate(weight, mean * reach / (2**bits - 1), bits, per, iterations)
        error = (weight - scale * levels(weight, scale, bits)).square().sum(axes, keepdim=True)
        better = error < best_error
        best_scale = torch.where(better, scale, best_scale)
        best_error = torch.where(better, error, best_error)
    return best_scale, levels(weight, best_scale, bits)


def _alternate(weight: Tensor, scale: Tensor, bits: int, per: ScalePer, iterations: int) -> Tensor:
    integers = levels(weight, scale, bits)
    for _ in range(iterations):
        scale = fit_scale(weight, integers, per)
        updated = levels(weight, scale, bits)
        if torch.equal(updated, integers):
            break
        integers = updated
    return scale


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, quantized: Tensor) -> Tensor:
        return quantized

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def straight_through(weight: Tensor, scale: Tensor, bits: int, estimator: Estimator = "identity") -> Tensor:
    """Return v b for `weight`, with a gradient that passes to the full-precision `weight`.

    Parameters
    ----------
    weight, scale, bits
        See `levels`.
    estimator
        "identity": the gradient passes unchanged (Section 5). "clipped": it is zero where the weight lies
        beyond the levels by more than half of their distance, as no change of it there changes v b.
    """
    with torch.no_grad():
        quantized = scale * levels(weight, scale, bits)
    if estimator == "clipped":
        weight = weight.clamp(-(2**bits) * scale, 2**bits * scale)
    return _StraightThrough.apply(weight, quantized)


def pack(integers: Tensor, bits: int) -> Tensor:
    """Pack odd integers into bytes, `bits` bits each.

    Parameters
    ----------
    integers
        Odd integers in +-(2^bits - 1), any shape and real type.
    bits
        K, 1 to 4.

    Returns
    -------
    Tensor
        uint8, ceil(n * bits / 8) long: the codes (b + 2^bits - 1) / 2, least significant bit first.

    Raises
    ------
    ValueError
        If a value is not one of the levels.
    """
    _check_bits(bits)
    largest = 2**bits - 1
    values = integers.detach().cpu().flatten().to(torch.int64)
    valid = (values.abs() <= largest) & (values % 2 == 1) & (values == integers.detach().cpu().flatten())
    if not bool(valid.all()):
        raise ValueError(f"not all values are odd integers in +-{largest}")
    codes = (values + largest) // 2
    stream = (codes[:, None] >> torch.arange(bits)) & 1
    stream = torch.nn.functional.pad(stream.flatten(), (0, -stream.numel() % 8)).reshape(-1, 8)
    return (stream << torch.arange(8)).sum(1).to(torch.uint8)


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """Invert `pack`: return `count` odd integers as float32.

    Raises
    ------
    ValueError
        If `packed` does not hold exactly `count` values.
    """
    _check_bits(bits)
    if packed.numel() != -(-count * bits // 8):
        raise ValueError(f"{packed.numel()} bytes cannot hold {count} values of {bits} bits")
    stream = (packed.to(torch.int64)[:, None] >> torch.arange(8)) & 1
    codes = (stream.flatten()[: count * bits].reshape(count, bits) << torch.arange(bits)).sum(1)
    return (2 * codes - (2**bits - 1)).to(torch.float32)


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= MAX_BITS:
        raise ValueError(f"bits must be 1 to {MAX_BITS}, got {bits}")
