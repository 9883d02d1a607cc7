"""ADMM-Net and its general form ADMM-CSNet: ADMM's iterations with learned filters and nonlinearities.

Source: Yang, Sun, Li and Xu, "Deep ADMM-Net for compressive sensing MRI", NIPS 2016, and "ADMM-CSNet", TPAMI
2018. ADMM-Net's reconstruction layer solves its system by division in k-space, as published, where A^H A is a
circular convolution (one coil, Cartesian samples), and by conjugate gradients for any other A: several coils
and non-Cartesian samples too. ADMM-CSNet's, simpler, is solved by conjugate gradients always.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.compiler import is_compiling
from torch.nn import functional as F

from mri_qpan.encoding import Normal
from mri_qpan.networks.base import Network
from mri_qpan.networks.config import ADMMConfig
from mri_qpan.networks.consistency import data_consistency, solve

CIRCULAR = 1e-4
"""Largest difference, relative to A^H A x, at which A^H A passes for a circular convolution."""

SILENT = 1e-4
"""Least divisor, for frequencies that are neither measured nor heard by any filter."""

SMALL = 0.1
"""Size of ADMM-CSNet's start filters: its denoiser starts near the identity."""


class PiecewiseLinear(nn.Module):
    """A learned function of each filter's output: linear between control points, of slope 1 beyond them.

    Parameters
    ----------
    filters
        How many.
    points
        Control points, spread evenly over [-1, 1].
    threshold
        It starts as soft thresholding.
    """

    def __init__(self, filters: int, points: int, threshold: float) -> None:
        super().__init__()
        at = torch.linspace(-1, 1, points)
        self.values = nn.Parameter(F.softshrink(at, threshold).repeat(filters, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return S(x), (batch, filter, y, x)."""
        out: Tensor = _Interpolation.apply(x, self.values)
        return out


class _Interpolation(torch.autograd.Function):
    """`PiecewiseLinear`, whose gradient counts into bins: autograd's for an index is many times slower."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor) -> Tensor:
        filters, points = values.shape
        inside = x.clamp(-1, 1)
        place = (inside + 1) * ((points - 1) / 2)
        left = place.floor().clamp(max=points - 2).nan_to_num()
        share = place - left
        index = left.long() + points * torch.arange(filters, device=x.device).reshape(-1, 1, 1)
        low = values.flatten()[index]
        rise = values.flatten()[index + 1] - low
        ctx.save_for_backward(index, share, torch.where(x == inside, rise * ((points - 1) / 2), 1.0))
        ctx.shape = values.shape
        return low + share * rise + (x - inside)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        index, share, slope = ctx.saved_tensors
        filters, points = ctx.shape
        if not ctx.needs_input_grad[1]:
            return grad * slope, None
        upper = grad * share
        into = [
            torch.bincount(i.flatten(), weights=g.flatten(), minlength=filters * points)
            for i, g in ((index, grad - upper), (index + 1, upper))
        ]
        return grad * slope, (into[0] + into[1]).to(grad.dtype).reshape(ctx.shape)


class Stage(nn.Module):
    """The learned parameters of one stage of either network."""

    def __init__(self, config: ADMMConfig, last: bool = False) -> None:
        super().__init__()
        general = config.layer == "admm-csnet"
        rho = torch.full((1 if general else config.filters,), math.log(math.expm1(config.penalty)))
        self.raw_rho = nn.Parameter(rho)
        if not general:
            self.H = nn.Parameter(_basis(config.filters))
        if last:
            return
        self.D = nn.Parameter(_basis(config.filters) * (SMALL if general else 1.0))
        self.S = PiecewiseLinear(config.filters, config.points, config.threshold)
        self.eta = nn.Parameter(torch.ones(1 if general else config.filters))
        if general:
            self.back = nn.Parameter(_basis(config.filters) * SMALL)
            self.keep = nn.Parameter(torch.tensor([0.5, 0.5]))

    def penalties(self) -> Tensor:
        """Return sum rho_l H_l^T H_l as one convolution's kernel, (1, 1, 5, 5)."""
        maps = self.H.transpose(0, 1)
        weighted = maps * self.rho().reshape(-1, 1, 1)
        return F.conv2d(weighted, maps, padding=self.H.shape[-1] - 1)

    def rho(self) -> Tensor:
        """Return rho > 0, one a filter (ADMM-CSNet: one)."""
        return F.softplus(self.raw_rho)


class ADMMNetwork(Network[ADMMConfig]):
    """ADMM-Net or ADMM-CSNet.

    Parameters
    ----------
    config, dtype
        See `Network`; it computes in float32 whatever `dtype` says.
    """

    def __init__(self, config: ADMMConfig, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(config, dtype)
        stages = config.layers
        self.layers = nn.ModuleList(Stage(config, last=i == stages) for i in range(stages + 1))

    def _unfold(
        self, target: Tensor, normal: Normal, constrained: frozenset[int], power: float | None = None
    ) -> tuple[list[Tensor], Tensor]:
        run = self._general if self.config.layer == "admm-csnet" else self._net
        images = run(target, normal)
        return images if self._needs_gradient(target) else images[-2:], target.real.new_zeros(())

    def _net(self, target: Tensor, normal: Normal) -> list[Tensor]:
        x, images = target, [target]
        z = multiplier = torch.zeros((), device=target.device)
        transfer = _transfer(target, normal)
        for stage in self.layers:
            assert isinstance(stage, Stage)
            x = self._reconstruct(stage, x, z - multiplier, target, normal, transfer)
            images.append(x)
            if len(images) > self.config.layers + 1:
                break
            c = self._filter(x, stage.D)
            z = stage.S(c + multiplier)
            multiplier = multiplier + stage.eta.reshape(-1, 1, 1) * (c - z)
        return images

    def _reconstruct(
        self,
        stage: Stage,
        x: Tensor,
        wanted: Tensor,
        target: Tensor,
        normal: Normal,
        transfer: Tensor | None,
    ) -> Tensor:
        """Solve (A^H A + sum rho_l H_l^T H_l) x = A^H y + sum rho_l H_l^T wanted_l."""
        rho = stage.rho().reshape(-1, 1, 1)
        kernel = stage.penalties()
        right = target if wanted.ndim == 0 else target + self._back(rho * wanted, stage.H, target)
        if transfer is not None:
            return _divide(right, transfer, kernel)

        def system(image: Tensor) -> Tensor:
            return normal(image) + self._like(self._filter(image, kernel), image)

        return solve(x, right - system(x), target, system, self.config.solve)

    def _general(self, target: Tensor, normal: Normal) -> list[Tensor]:
        z, multiplier, images = target, torch.zeros_like(target), [target]
        for stage in self.layers:
            assert isinstance(stage, Stage)
            near = z - multiplier
            residual = target - normal(near)
            x = data_consistency(near, residual, target, normal, stage.rho(), self.config.solve)
            images.append(x)
            if len(images) > self.config.layers + 1:
                break
            seen = self._back(stage.S(self._filter(z, stage.D)), stage.back, z)
            z = stage.keep[0] * z + stage.keep[1] * (x + multiplier) - seen
            multiplier = multiplier + stage.eta * (x - z)
        return images

    def _filter(self, image: Tensor, filters: Tensor) -> Tensor:
        """Return every filter's output for every real plane, (planes, filter, y, x); images are periodic."""
        return F.conv2d(_periodic(self._planes(image), filters), filters)

    def _back(self, features: Tensor, filters: Tensor, like: Tensor) -> Tensor:
        """Apply the transpose of `_filter`."""
        turned = filters.flip((-2, -1)).transpose(0, 1)
        return self._like(F.conv2d(_periodic(features, turned), turned), like)

    def _like(self, planes: Tensor, like: Tensor) -> Tensor:
        if not like.is_complex():
            return planes.reshape(like.shape)
        return torch.complex(*planes.reshape(2, *like.shape).unbind())

    def _planes(self, image: Tensor) -> Tensor:
        parts = torch.stack([image.real, image.imag]) if image.is_complex() else image
        return parts.reshape(-1, 1, *image.shape[-2:])


def _periodic(planes: Tensor, filters: Tensor) -> Tensor:
    """Continue images by what a filter reaches over their edges, as the DFT does."""
    reach = filters.shape[-1] // 2
    return F.pad(planes, [reach] * 4, mode="circular")


def _transfer(like: Tensor, normal: Normal) -> Tensor | None:
    """Return the DFT's factors of A^H A, shaped as `like`, or None if it does not convolve each (y, x)."""
    if is_compiling():
        return None  # a traced graph cannot look
    impulse = torch.zeros_like(like)
    impulse[..., 0, 0] = 1
    factors = torch.fft.fft2(normal(impulse)).real  # with a gradient, where A has parameters
    with torch.no_grad():
        # Of an image without symmetries: what coils, samples or a third dimension do, differs by place.
        draw = torch.Generator().manual_seed(0)
        noise = torch.rand(like.shape, generator=draw).to(like.device, like.dtype)
        seen, convolved = normal(noise), torch.fft.ifft2(torch.fft.fft2(noise) * factors)
        apart = (seen - convolved).abs().max()
        return factors if bool(apart < CIRCULAR * seen.abs().max()) else None


def _divide(right: Tensor, transfer: Tensor, kernel: Tensor) -> Tensor:
    """Return the image whose convolution by A^H A and by `kernel` is `right`."""
    reach = kernel.shape[-1] // 2
    y, x = right.shape[-2:]
    # Not by index: a kernel larger than the image wraps around it.
    at = torch.arange(-reach, reach + 1, device=right.device)
    placed = kernel.new_zeros(y * x).index_add(
        0, ((at % y)[:, None] * x + at % x).flatten(), kernel.flatten()
    )
    whole = (transfer + torch.fft.fft2(placed.reshape(y, x)).real).clamp_min(SILENT)
    if right.is_complex():
        return torch.fft.ifft2(torch.fft.fft2(right) / whole)
    return torch.fft.irfft2(torch.fft.rfft2(right) / whole[..., : x // 2 + 1], s=(y, x))


def _basis(filters: int) -> Tensor:
    """Return the 3x3 DCT without its constant, as published; beyond those eight, random filters of norm 1."""
    n = torch.arange(3)
    waves = torch.cos(math.pi / 3 * (n + 0.5) * n[:, None])
    waves = waves / waves.norm(dim=1, keepdim=True)
    basis = torch.einsum("iy,jx->ijyx", waves, waves).reshape(9, 1, 3, 3)[1:]
    more = F.normalize(torch.randn(max(0, filters - 8), 9)).reshape(-1, 1, 3, 3)
    return torch.cat([basis, more])[:filters]
