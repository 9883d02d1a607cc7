import numpy as np
import pytest
import pywt
import torch

from mri_qpan.frames import haar_analysis, haar_synthesis

SHAPES = [(1, 16, 16), (2, 9, 12), (1, 7, 5), (1, 3, 8, 6)]


def random_complex(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("levels", [0, 1, 3])
def test_the_frame_is_tight(shape, levels: int) -> None:
    x = random_complex(*shape)
    coefficients = haar_analysis(x, levels)
    assert [len(bands) for bands in coefficients] == [2 ** (len(shape) - 1) - 1] * levels + [1]
    torch.testing.assert_close(haar_synthesis(coefficients), x)
    energy = sum(bands.abs().square().sum() for bands in coefficients)
    torch.testing.assert_close(energy, x.abs().square().sum())


@pytest.mark.parametrize("shape", SHAPES)
def test_synthesis_is_the_adjoint(shape) -> None:
    x = random_complex(*shape)
    coefficients = haar_analysis(x, 2)
    others = [torch.randn_like(bands) for bands in coefficients]
    left = sum(torch.vdot(o.flatten(), c.flatten()) for o, c in zip(others, coefficients, strict=True))
    right = torch.vdot(haar_synthesis(others).flatten(), x.flatten())
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4)


def test_it_moves_with_the_image() -> None:
    x = random_complex(1, 16, 12)
    for bands, moved in zip(haar_analysis(x, 2), haar_analysis(x.roll((3, 5), (1, 2)), 2), strict=True):
        torch.testing.assert_close(bands.roll((3, 5), (2, 3)), moved)


def test_levels_are_those_of_pywavelets() -> None:
    x = random_complex(1, 16, 16).real.double()
    ours = haar_analysis(x, 2)
    theirs = pywt.swt2(x[0].numpy(), "haar", level=2, norm=True, trim_approx=True)
    for bands, expected in zip(ours[:-1], reversed(theirs[1:]), strict=True):
        for band in bands[:, 0].numpy():
            # pywt's Haar looks the other way and has another sign: the energies agree
            assert any(np.isclose(np.linalg.norm(band), np.linalg.norm(e)) for e in expected)
    assert np.isclose(np.linalg.norm(ours[-1]), np.linalg.norm(theirs[0]))
