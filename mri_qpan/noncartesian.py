"""The measurement of samples along a trajectory (radial, spiral), in torch: A = sqrt(W) N S over its norm.

W is the density compensation, N SigPy's non-uniform DFT. The normal operator is a convolution with the
trajectory's point spread, done by DFTs of twice the matrix (Fessler et al., IEEE Trans Signal Process
53:3393, 2005), so that an iteration costs no gridding.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mri_qpan.encoding import Normal, SelfAdjoint
from mri_qpan.engines import normal as compiled

POWER_STEPS = 60
POWER_STEPS_3D = 10
"""Of volumes, whose steps are dear: the eigenvalue is found to about a tenth."""

CAP = 0.95
"""Share of the samples whose weights are left as they are."""

ACCURATE: dict[str, float] = {"oversamp": 2, "width": 6}
"""Of SigPy's gridding: its defaults are 0.5 % off, and it runs but twice an image."""


def density(coord: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return a trajectory's density compensation, at most 1 (Pipe and Menon, Magn Reson Med 41:179, 1999).

    A few samples get many times the weight of those beside them, at the ends of spokes above all. As A^H A's
    norm is then theirs, it leaves all others little: they get what 95 % of the samples do not exceed.

    Parameters
    ----------
    coord
        (..., ndim) cycles a field of view.
    shape
        Matrix of the image.
    """
    from sigpy.mri import dcf  # SigPy takes a second to load, which samples on a grid need not wait for

    return _capped(np.abs(dcf.pipe_menon_dcf(coord, shape, show_pbar=False)))


def _capped(weights: NDArray[Any]) -> NDArray[np.float32]:
    most = np.quantile(weights, CAP)
    return (np.minimum(weights, most) / most).astype(np.float32)


def balanced(weights: NDArray[Any], coord: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return weights of samples without what they say of density, which takes its compensation's place.

    Few layers reach every spatial frequency only where A^H A treats all alike. So the weights over their mean
    at the same distance from the k-space centre count, times `density`: a readout that was given a tenth of
    another's weight keeps it, while a ramp, its square or its root, or ones, are all the same.

    Parameters
    ----------
    weights
        (...) and not negative.
    coord
        (..., ndim) cycles a field of view.
    shape
        Matrix of the image.
    """
    used = weights > 0
    found = np.zeros(weights.shape, np.float32)
    if used.any():
        compensation = density(np.ascontiguousarray(coord[used], np.float32), shape)
        found[used] = _capped(compensation * over_mean(weights[used], coord[used], compensation))
    return found


def over_mean(
    weights: NDArray[Any], coord: NDArray[Any], shares: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Return positive weights (sample,) over their mean at the same distance from the k-space centre.

    Parameters
    ----------
    weights
        (sample,), positive.
    coord
        (sample, ndim) cycles a field of view.
    shares
        (sample,): of k-space, that a sample stands for in the mean. None: alike.
    """
    distance = np.rint(np.linalg.norm(coord, axis=-1)).astype(np.intp)
    shares = np.ones(len(weights), np.float32) if shares is None else shares
    mean = np.bincount(distance, shares * weights)[distance] / np.bincount(distance, shares)[distance]
    return (weights / mean).astype(np.float32)


def grid(samples: NDArray[Any], coord: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.complex64]:
    """Return N^H of samples (..., *coord.shape[:-1]): images (..., *shape)."""
    from sigpy import nufft_adjoint

    outer = samples.shape[: samples.ndim - coord.ndim + 1]
    return nufft_adjoint(samples, coord, (*outer, *shape), **ACCURATE)


class NonCartesian:
    """A = sqrt(W) N S / c with its adjoint and normal operator; c makes the largest eigenvalue of A^H A 1.

    With 2-D coordinates and maps of a volume it is one such operator for every plane (a stack of stars, say,
    transformed along z). Of a volume the eigenvalue may be some 1.1: fewer steps look for it.

    Parameters
    ----------
    coord
        Coordinates of the samples, (..., ndim) in cycles a field of view, y before x, as in SigPy.
    mps
        Coil sensitivities, (coil, y, x) or (coil, z, y, x) complex64.
    weights
        W, (...) and not negative. None: `density`.
    device
        Where images live.

    Notes
    -----
    Images are (1, *spatial) and samples (1, coil, [z,] ...): a batch of one.
    """

    def __init__(
        self,
        coord: NDArray[Any],
        mps: NDArray[np.complex64],
        weights: NDArray[Any] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = mps.shape[-coord.shape[-1] :]
        self._shape = shape
        self._planes = mps.ndim - 1 > len(shape)
        self._coord = np.ascontiguousarray(coord, np.float32)
        weights = density(self._coord, shape) if weights is None else weights
        self._weights = np.broadcast_to(weights, coord.shape[:-1]).astype(np.float32)
        self.mps = torch.from_numpy(np.ascontiguousarray(mps))[None].to(device)
        self._dims = tuple(range(-len(shape), 0))
        self._wide = tuple(2 * n for n in shape)
        self._inside: tuple[Any, ...] = (..., *(slice(n) for n in shape))
        spectrum = _point_spread(self._coord, self._weights, shape)
        generator = torch.Generator().manual_seed(0)
        start = torch.randn(1, *mps.shape[1:], dtype=torch.complex64, generator=generator)
        self._spectrum = torch.fft.ifftshift(spectrum, dim=self._dims).to(device)
        self._gain = 1.0
        self._kernel = self._made_kernel()
        steps = POWER_STEPS if mps.ndim - 1 == 2 else POWER_STEPS_3D
        self._gain = 1 / largest_eigenvalue(self._normal, start.to(device), steps)
        self._scale = np.float32(self._gain**0.5)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the kernel out of copies: it holds addresses."""
        return self.__dict__ | {"_kernel": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Become a copy, with a kernel of its own."""
        self.__dict__ |= state
        self._kernel = self._made_kernel()

    def _made_kernel(self) -> compiled.Normal | None:
        """Return the compiled operator of one slice, None where it does not fit."""
        if self.mps.ndim - 2 != 2:
            return None
        maps = self.mps.new_zeros(1, self.mps.shape[1], *self._wide)
        maps[self._inside] = self.mps
        spectrum = torch.fft.fftshift(self._spectrum, dim=self._dims)
        return compiled.Normal(spectrum, maps) if compiled.fits(spectrum[None], maps) else None

    def measured(self, samples: NDArray[np.complex64]) -> Tensor:
        """Return acquired samples (coil, ...) as this operator measures: y of A x = y, (1, coil, ...)."""
        weighted = samples * (self._scale * np.sqrt(self._weights))
        return torch.from_numpy(weighted.astype(np.complex64))[None].to(self.mps.device)

    def forward(self, image: Tensor) -> Tensor:
        """Return A x."""
        coils = (self.mps * image.unsqueeze(1)).cpu().numpy()
        from sigpy import nufft

        return torch.cat([self.measured(nufft(one, self._coord, **ACCURATE)) for one in coils])

    def adjoint(self, samples: Tensor) -> Tensor:
        """Return A^H y."""
        return torch.cat([self._adjoint(one) for one in samples.cpu().numpy()])

    def _adjoint(self, samples: NDArray[np.complex64]) -> Tensor:
        coils = grid(samples * (self._scale * np.sqrt(self._weights)), self._coord, self._shape)
        combined = (self.mps[0].cpu().numpy().conj() * coils).sum(0, keepdims=True)
        return torch.from_numpy(combined.astype(np.complex64)).to(self.mps.device)

    def normal(self, image: Tensor) -> Tensor:
        """Return A^H A x; its gradient is A^H A again."""
        return SelfAdjoint.apply(image, self._normal)

    def _normal(self, image: Tensor) -> Tensor:
        if self._kernel is not None and len(image) == 1 and image.dtype == torch.complex64:
            wide = image.new_zeros(1, *self._wide)
            wide[self._inside] = image
            return self._gain * self._kernel(wide)[self._inside]
        if self._planes:
            planes = [self._convolved(image[:, z], self.mps[:, :, z]) for z in range(image.shape[1])]
            return self._gain * torch.stack(planes, dim=1)
        return self._gain * self._convolved(image, self.mps)

    def _convolved(self, image: Tensor, mps: Tensor) -> Tensor:
        """Return S^H N^H W N S x; of a volume coil by coil, for a volume of twice the matrix is large."""
        total = torch.zeros_like(image)
        for maps in mps.split(1 if len(self._dims) == 3 else mps.shape[1], dim=1):
            kspace = torch.fft.fftn(maps * image.unsqueeze(1), self._wide, self._dims)
            coils = torch.fft.ifftn(kspace.mul_(self._spectrum), dim=self._dims)[self._inside]
            total += (maps.conj() * coils).sum(1)
        return total


def _point_spread(coord: NDArray[np.float32], weights: NDArray[np.float32], shape: tuple[int, ...]) -> Tensor:
    """Return the spectrum of N^H W N's convolution on twice the matrix, centred, real."""
    from sigpy import nufft_adjoint

    wide = tuple(2 * n for n in shape)
    spread = nufft_adjoint(weights.astype(np.complex64), 2 * coord, wide, **ACCURATE)
    # SigPy's NUFFT is orthonormal on its matrix: here on the wide one, where N^H W N is on the small one.
    spread = spread * (math.sqrt(math.prod(wide)) / math.prod(shape))
    spectrum = np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(spread)))
    return torch.from_numpy(np.ascontiguousarray(spectrum.real, np.float32))


def largest_eigenvalue(normal: Normal, x: Tensor, steps: int) -> float:
    """Return that of x -> A^H A x by power iteration from x."""
    value = 1.0
    for _ in range(steps):
        x = normal(x / x.norm())
        value = float(x.norm())
    return value
