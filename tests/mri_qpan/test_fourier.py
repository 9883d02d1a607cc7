import numpy as np
import pytest
import sigpy as sp
import torch

from mri_qpan import fourier

SHAPES = [(2, 8, 8), (2, 9, 8), (3, 7, 5), (2, 4, 5, 6)]


def random_complex(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", SHAPES)
def test_equals_sigpys(shape) -> None:
    x = random_complex(*shape)
    axes = tuple(range(1 - len(shape), 0))
    np.testing.assert_allclose(fourier.fft(x, axes), sp.fft(x.numpy(), axes=axes), atol=1e-5)
    np.testing.assert_allclose(fourier.ifft(x, axes), sp.ifft(x.numpy(), axes=axes), atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_numpy_twins_are_equal(shape) -> None:
    x = random_complex(*shape)
    axes = tuple(range(1 - len(shape), 0))
    np.testing.assert_array_equal(fourier.fft_numpy(x.numpy(), axes), fourier.fft(x, axes))
    np.testing.assert_array_equal(fourier.ifft_numpy(x.numpy(), axes), fourier.ifft(x, axes))
    assert fourier.fft_numpy(x.real.double().numpy(), axes).dtype == np.complex64


@pytest.mark.parametrize("shape", SHAPES)
def test_inverse_and_adjoint(shape) -> None:
    x, y = random_complex(*shape), random_complex(*shape).flip(0)
    axes = tuple(range(1 - len(shape), 0))
    torch.testing.assert_close(fourier.ifft(fourier.fft(x, axes), axes), x)
    torch.testing.assert_close(
        torch.vdot(fourier.fft(x, axes).flatten(), y.flatten()),
        torch.vdot(x.flatten(), fourier.ifft(y, axes).flatten()),
    )


@pytest.mark.parametrize("size", [8, 9])
def test_zero_frequency_and_centre_lie_at_half_the_size(size: int) -> None:
    dc = fourier.fft(torch.ones(size, dtype=torch.complex64), (0,))
    assert int(dc.abs().argmax()) == size // 2
    impulse = torch.zeros(size, dtype=torch.complex64)
    impulse[size // 2] = 1
    flat = fourier.fft(impulse, (0,))
    torch.testing.assert_close(flat, torch.full_like(flat, size**-0.5))
