"""The centred, orthonormal discrete Fourier transform, as SigPy, BART and ISMRMRD define it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def fft(x: Tensor, dims: Sequence[int]) -> Tensor:
    """Centred orthonormal FFT of `x` along `dims`: the zero frequency lies at index n // 2."""
    shifted = torch.fft.ifftshift(x, dim=tuple(dims))
    return torch.fft.fftshift(torch.fft.fftn(shifted, dim=tuple(dims), norm="ortho"), dim=tuple(dims))


def ifft(x: Tensor, dims: Sequence[int]) -> Tensor:
    """Inverse (and adjoint) of `fft`."""
    shifted = torch.fft.ifftshift(x, dim=tuple(dims))
    return torch.fft.fftshift(torch.fft.ifftn(shifted, dim=tuple(dims), norm="ortho"), dim=tuple(dims))


def fft_numpy(x: NDArray[Any], axes: Sequence[int]) -> NDArray[np.complex64]:
    """`fft` for NumPy arrays, computed in single precision."""
    tensor = torch.from_numpy(np.ascontiguousarray(x, dtype=np.complex64))
    return fft(tensor, axes).numpy()


def ifft_numpy(x: NDArray[Any], axes: Sequence[int]) -> NDArray[np.complex64]:
    """`ifft` for NumPy arrays, computed in single precision."""
    tensor = torch.from_numpy(np.ascontiguousarray(x, dtype=np.complex64))
    return ifft(tensor, axes).numpy()
