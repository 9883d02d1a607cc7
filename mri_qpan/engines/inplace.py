"""The proximal step without gradients: features are worked in place, in pieces that stay in the cache."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mri_qpan.engines.convolutions import convolve, fits

PIECE = 1 << 17
"""Features worked at a time on a CPU: with its buffers a piece fits the second-level cache."""


def fast_dtype(device: torch.device | str) -> torch.dtype:
    """Return the type in which convolutions run fastest on `device` at no visible loss.

    bfloat16 on a GPU and on CPUs with instructions for it (AVX-512 BF16, AMX), else float32.
    """
    if torch.device(device).type == "cuda":
        return torch.bfloat16
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", bool)  # not in every version
    return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() and native() else torch.float32


def proximal_step(
    r: Tensor,
    carried: Tensor | None,
    weights: Sequence[Tensor],
    lam: Tensor,
    gamma: Tensor,
    a: Tensor,
    penalties: tuple[str, ...],
    dtype: torch.dtype,
    shares: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the image and the features that `networks.pan.proximal_step` returns, for inference.

    Parameters
    ----------
    r
        Image after the gradient step, (batch, channels, y, x) float32.
    carried
        Features of the layer before, or None.
    weights
        H1, H2, T1, T2 for PAN; D, H1, H2, T1, T2, G for PAN+.
    lam, gamma, a
        Thresholds and shapes of the penalties.
    penalties
        Names of the averaged penalties.
    dtype
        Type of features and weights in the convolutions.
    shares
        Weights of the proximal operators; None: equal.
    """
    weights = [w.to(dtype=dtype, memory_format=torch.channels_last) for w in weights]
    residual = len(weights) == 6
    z = r.to(dtype)
    if residual:
        z = convolve(z, weights[0])
    if carried is not None:
        z.add_(carried)
    h1, h2, t1, t2 = weights[1:5] if residual else weights
    features = _rectified(convolve(z, h1), h2)
    parts = None if shares is None else shares.tolist()
    proximal_average_(features, lam.tolist(), float(gamma), float(a), penalties, parts)
    back = _rectified(convolve(features, t1), t2)
    if not residual:
        return back.to(r.dtype), back
    return r + convolve(back, weights[5]).to(r.dtype), back


def _rectified(x: Tensor, weight: Tensor) -> Tensor:
    """Return the convolution of max(x, 0), which may take x's place."""
    return convolve(x, weight, rectified=True) if fits(x, weight) else convolve(x.relu_(), weight)


def proximal_average_(
    features: Tensor,
    lam: Sequence[float],
    gamma: float,
    a: float,
    penalties: Sequence[str],
    shares: Sequence[float] | None = None,
) -> None:
    """Replace `features` by their proximal average (see `penalties.proximal_average`).

    Parameters
    ----------
    features
        Real, any shape, dense in some order of its dimensions (contiguous or channels-last).
    lam, gamma, a, penalties, shares
        As there.
    """
    strides = features.stride()
    order = sorted(range(features.ndim), key=lambda d: -strides[d])
    flat = features.permute(order).view(-1)
    size = flat.numel() if flat.is_cuda else min(PIECE, flat.numel())
    weights = [1 / len(penalties)] * len(penalties) if shares is None else shares
    buffers = torch.empty(3, size, dtype=flat.dtype, device=flat.device)
    for x in flat.split(size):
        magnitude, part, total = (b[: x.numel()] for b in buffers)
        torch.abs(x, out=magnitude)
        for index, (name, threshold, weight) in enumerate(zip(penalties, lam, weights, strict=True)):
            target = part if index else total
            torch.sub(magnitude, threshold, out=target).clamp_min_(0)
            if name == "mcp":
                torch.minimum(target.mul_(gamma / (gamma - 1)), magnitude, out=target)
            elif name == "scad":
                _scad_(target, magnitude, threshold, a)
            if index:
                total.add_(part, alpha=weight)
            else:
                total.mul_(weight)
        torch.copysign(total, x, out=x)


def _scad_(soft: Tensor, magnitude: Tensor, lam: float, a: float) -> None:
    middle = magnitude * ((a - 1) / (a - 2))
    middle.sub_(a * lam / (a - 2))
    torch.maximum(middle, soft, out=soft)
    torch.minimum(soft, magnitude, out=soft)
