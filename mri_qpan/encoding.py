"""The measurement A = P F S in torch: coil sensitivities, centred orthonormal DFT, sampling mask."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.compiler import is_compiling

from mri_qpan import fourier
from mri_qpan.engines import normal as compiled

Normal = Callable[[Tensor], Tensor]
"""The map x -> A^H A x."""

Reconstructor = Callable[[Tensor, Normal], Tensor]
"""What a network, a classical solver and a user's own function have in common: (A^H y, A^H A) -> x."""

ALIKE = 10
"""Ratio of the peaks of two real images up to which they are worked as one complex image."""


class Encoding:
    """A = P F S, batched, with its adjoint and the normal operator A^H A.

    `spatial` is (y, x) or (z, y, x) below; the DFT runs over all of it.

    Parameters
    ----------
    mask
        True where a sample is acquired, (batch, *spatial); batch may be 1 for all.
    mps
        Coil sensitivities, (batch, coil, *spatial) complex, or (batch, set, coil, *spatial) with several
        sets of maps (soft SENSE). None: one coil of unit sensitivity.

    Notes
    -----
    The image is (batch, *spatial), or (batch, set, *spatial) with several sets; k-space is
    (batch, coil, *spatial). With sum_c abs(S_c)^2 <= 1 the largest eigenvalue of A^H A is at most 1.
    The mask and the maps must not change afterwards.

    Raises
    ------
    ValueError
        If `mps` does not fit `mask`.
    """

    def __init__(self, mask: Tensor, mps: Tensor | None = None) -> None:
        self._dims = tuple(range(1 - mask.ndim, 0))
        if len(self._dims) not in (2, 3):
            raise ValueError(f"mask must be (batch, y, x) or (batch, z, y, x), got shape {tuple(mask.shape)}")
        if mps is not None and (
            mps.ndim - mask.ndim not in (1, 2) or mps.shape[-len(self._dims) :] != mask.shape[1:]
        ):
            raise ValueError(f"mps of shape {tuple(mps.shape)} does not fit a mask of {tuple(mask.shape)}")
        if mps is not None and mps.shape[0] != mask.shape[0] and 1 not in (mps.shape[0], mask.shape[0]):
            raise ValueError(f"{len(mask)} masks do not fit maps of {len(mps)} images")
        mask = mask if mask.dtype == torch.bool else mask != 0  # of an 8-bit picture 255 is true
        self.mask = mask
        self.mps = mps
        self._sets = mps is not None and mps.ndim == mask.ndim + 2
        dtype = torch.float32 if mps is None else mps.real.dtype
        self._weights = mask.to(dtype).unsqueeze(1)
        # Where whole lines are acquired the DFT along them cancels in the normal operator. What is left
        # runs along x: along y it would be slower than the DFT of the whole plane.
        varying = [d for d in self._dims if is_compiling() or bool((mask != mask.narrow(d, 0, 1)).any())]
        self._transposed = varying == [-2]
        self._normal_dims = (-1,) if self._transposed else tuple(varying) or self._dims[-1:]
        # F^H M F is a circular convolution, so it commutes with the shifts that centre the DFT:
        # the normal operator moves the mask once instead of the image at every call.
        corner = torch.fft.ifftshift(self._weights, dim=self._dims)
        corner = self._turn(corner)
        corner = corner / math.prod([corner.shape[d] for d in self._normal_dims])
        # Once for the real and once for the imaginary part: a complex product would take twice as long.
        self._corner_weights = torch.stack([corner, corner], dim=-1)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the compiled operators out of copies: they hold addresses."""
        return {name: value for name, value in self.__dict__.items() if name != "_kernels"}

    def forward(self, image: Tensor) -> Tensor:
        """Return A x: image (batch, *spatial) to k-space (batch, coil, *spatial)."""
        return fourier.fft(self._expand(image), self._dims) * self._weights

    __call__ = forward

    def adjoint(self, kspace: Tensor) -> Tensor:
        """Return A^H y: k-space (batch, coil, *spatial) to image (batch, *spatial)."""
        self._check(kspace)
        # Not times the mask: 0 times NaN is NaN.
        acquired = torch.where(self.mask.unsqueeze(1), kspace, 0)
        return self._combine(fourier.ifft(acquired, self._dims))

    def _check(self, kspace: Tensor) -> None:
        coils = 1 if self.mps is None else self.mps.shape[2 if self._sets else 1]
        if kspace.shape[1] != coils:
            raise ValueError(f"k-space of {kspace.shape[1]} coils and maps of {coils} do not fit each other")

    def normal(self, image: Tensor) -> Tensor:
        """Return A^H A x; its gradient is A^H A again, so nothing is kept for the backward pass.

        Where the maps require a gradient, or the call is traced, it is the plain composition instead.
        """
        if is_compiling() or (self.mps is not None and self.mps.requires_grad):
            return self._composed(image)
        return SelfAdjoint.apply(image, self._normal)

    def to(self, device: torch.device | str) -> Encoding:
        """Return this operator on `device`."""
        return Encoding(self.mask.to(device), None if self.mps is None else self.mps.to(device))

    def _normal(self, image: Tensor) -> Tensor:
        if self._kernels is not None and image.dtype == torch.complex64 and image.device.type == "cpu":
            images = image if self._sets else image.unsqueeze(1)
            kernels = self._kernels if len(self._kernels) > 1 else self._kernels * len(images)
            images = images.expand(len(kernels), *images.shape[1:]) if len(images) == 1 else images
            done = [kernel(x) for kernel, x in zip(kernels, images, strict=True)]
            stacked = torch.stack(done) if len(done) > 1 else done[0].unsqueeze(0)
            return stacked if self._sets else stacked.squeeze(1)
        if self.mps is None:
            return self._composed(image)
        if image.is_cuda:
            return self._composed(image)
        # On a CPU one coil after the other stays in the cache: twice as fast as all at once.
        image = self._turn(image)
        total = torch.zeros_like(image)
        for mps, conjugate in self._coils:
            coil = (mps * image).sum(1) if self._sets else mps * image
            coil = self._filter(coil)
            total.addcmul_(conjugate, coil.unsqueeze(1) if self._sets else coil)
        return self._turn(total)

    def _composed(self, image: Tensor) -> Tensor:
        if self.mps is None:
            return self._turn(self._filter(self._turn(image)))
        return self._combine(self._turn(self._filter(self._turn(self._expand(image)))))

    def _turn(self, image: Tensor) -> Tensor:
        return image.transpose(-1, -2).contiguous() if self._transposed else image

    def _filter(self, image: Tensor) -> Tensor:
        """Return F^H M F x, x and y exchanged where that is faster; any coils stand in dimension 1."""
        weights = self._corner_weights if image.ndim > self.mask.ndim else self._corner_weights[:, 0]
        kspace = torch.fft.fftn(image, dim=self._normal_dims)
        torch.view_as_real(kspace).mul_(weights)
        return torch.fft.ifftn(kspace, dim=self._normal_dims, norm="forward")

    @cached_property
    def _kernels(self) -> list[compiled.Normal] | None:
        """One compiled normal operator for each of the batch (one for all if mask and maps are), or None."""
        if not compiled.fits(self.mask, self.mps):
            return None
        mps = None if self.mps is None else self.mps if self._sets else self.mps.unsqueeze(1)
        count = max(len(self.mask), 1 if mps is None else len(mps))
        return [
            compiled.Normal(self.mask[i % len(self.mask)], None if mps is None else mps[i % len(mps)])
            for i in range(count)
        ]

    @cached_property
    def _coils(self) -> list[tuple[Tensor, Tensor]]:
        """Maps and their conjugates, each (batch, [set,] *spatial), turned as the images."""
        assert self.mps is not None
        maps = self._turn(self.mps).movedim(-1 - len(self._dims), 0)
        return [(coil.contiguous(), coil.conj().resolve_conj().contiguous()) for coil in maps]

    def _expand(self, image: Tensor) -> Tensor:
        if self.mps is None:
            return image.unsqueeze(1)
        if self._sets:
            return (self.mps * image.unsqueeze(2)).sum(1)
        return self.mps * image.unsqueeze(1)

    def _combine(self, coils: Tensor) -> Tensor:
        if self.mps is None:
            return coils.squeeze(1)
        if self._sets:
            return (self.mps.conj() * coils.unsqueeze(1)).sum(2)
        return (self.mps.conj() * coils).sum(1)


class RealEncoding:
    """The published experiment's operator for real images: x -> P F x with the normal map Re F^H M F x.

    Parameters
    ----------
    mask
        True where a sample is acquired, (batch, y, x), centred.
    """

    def __init__(self, mask: Tensor) -> None:
        mask = mask.bool()  # 8-bit pictures of masks have 255
        self._encoding = Encoding(mask)
        # On real images M acts as the mean of M and its mirror, which keeps real images real.
        corner = torch.fft.ifftshift(mask.to(torch.float32), dim=(-2, -1))
        corner = (corner + corner.flip((-2, -1)).roll((1, 1), (-2, -1))) / 2
        self._mirrored = torch.fft.fftshift(corner, dim=(-2, -1))
        self._half = corner[..., : corner.shape[-1] // 2 + 1]

    def __getstate__(self) -> dict[str, Any]:
        """Leave the compiled operator out of copies: it holds addresses."""
        return {name: value for name, value in self.__dict__.items() if name != "_kernel"}

    def forward(self, image: Tensor) -> Tensor:
        """Return P F x: image (batch, y, x) real to k-space (batch, 1, y, x) complex."""
        return self._encoding.forward(image.to(torch.complex64))

    def adjoint(self, kspace: Tensor) -> Tensor:
        """Return Re F^H M y as (batch, y, x)."""
        return self._encoding.adjoint(kspace).real

    def normal(self, image: Tensor) -> Tensor:
        """Return Re F^H M F x."""
        return SelfAdjoint.apply(image, self._normal)

    def _normal(self, image: Tensor) -> Tensor:
        fits = image.dtype == torch.float32 and image.device.type == "cpu"
        if not (fits and compiled.fits(self._encoding.mask, None)):
            return torch.fft.irfft2(torch.fft.rfft2(image) * self._half, s=image.shape[-2:])
        if len(self._mirrored) > 1:
            return self._encoding._normal(image.to(torch.complex64)).real
        peaks = image.abs().amax((1, 2)).tolist()
        done = torch.empty_like(image)
        for i in range(0, len(image), 2):
            two = image[i : i + 2]
            if len(two) == 2 and _are_alike(*peaks[i : i + 2]):
                pair = self._kernel(torch.complex(*two)[None])[0]
                done[i], done[i + 1] = pair.real, pair.imag
            else:
                done[i : i + 2] = self._encoding._normal(two.to(torch.complex64)).real
        return done

    @cached_property
    def _kernel(self) -> compiled.Normal:
        """Works two images of one mask as the parts of a complex one, at the price of one."""
        return compiled.Normal(self._mirrored[0], None)


def _are_alike(first: float, second: float) -> bool:
    """Return whether rounding errors and NaN of either image do no harm to the other."""
    return first <= ALIKE * second and second <= ALIKE * first


class SelfAdjoint(torch.autograd.Function):
    """A self-adjoint linear map: its gradient is the map itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, apply: Normal) -> Tensor:
        """Return the map of x."""
        ctx.map = apply
        return apply(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Return the map of the gradient."""
        return SelfAdjoint.apply(grad, ctx.map), None  # so that it can be differentiated again


def from_linop(A: Any) -> tuple[Callable[[NDArray[Any]], Tensor], Normal]:
    """Let any SigPy `Linop` feed a network or solver.

    Parameters
    ----------
    A
        A `sigpy.linop.Linop` on the CPU whose input is an image (y, x) or (z, y, x). Divide an operator of
        another norm than 1 by it first (`sigpy.app.MaxEig`).

    Returns
    -------
    adjoint
        Takes samples (NumPy, the Linop's output shape) and returns A^H y as (1, *image) complex64.
    normal
        Takes images (batch, *image) and returns A^H A x of each.
    """

    def adjoint(samples: NDArray[Any]) -> Tensor:
        return _batched(A.H(samples))

    def normal(image: Tensor) -> Tensor:
        def apply(x: Tensor) -> Tensor:
            return torch.cat([_batched(A.N(one.detach().cpu().numpy())) for one in x]).to(x.device)

        return SelfAdjoint.apply(image, apply)

    return adjoint, normal


def _batched(image: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image, dtype=np.complex64))[None]
