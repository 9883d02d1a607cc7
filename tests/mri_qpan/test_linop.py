import pickle

import numpy as np
import pytest
import sigpy as sp
import sigpy.mri
import torch

from mri_qpan.encoding import Encoding
from mri_qpan.linop import sense

SHAPES = [(8, 8), (9, 8), (8, 7), (7, 9), (4, 6, 5), (3, 5, 8)]


def random_complex(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)


def unit_mps(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Random maps (..., coil, *spatial) whose squares sum to 1 over everything but `spatial`."""
    mps = random_complex(rng, *shape)
    axes = tuple(range(len(shape) - 2))
    return mps / np.sqrt((abs(mps) ** 2).sum(axes, keepdims=True))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("spatial", SHAPES)
@pytest.mark.parametrize(("coils", "sets"), [(None, None), (1, None), (3, None), (1, 2), (3, 2)])
def test_equals_the_torch_encoding(rng, spatial, coils, sets) -> None:
    leading = () if coils is None else (coils,) if sets is None else (sets, coils)
    mask = rng.random(spatial) < 0.4
    mps = None if coils is None else random_complex(rng, *leading, *spatial)
    A = sense(mask, mps)
    encoding = Encoding(torch.from_numpy(mask)[None], None if mps is None else torch.from_numpy(mps)[None])

    image = random_complex(rng, *(() if sets is None else (sets,)), *spatial)
    kspace = random_complex(rng, coils or 1, *spatial)
    for mine, torchs in [
        (A(image), encoding.forward(torch.from_numpy(image)[None])),
        (A.H(kspace), encoding.adjoint(torch.from_numpy(kspace)[None])),
        (A.N(image), encoding.normal(torch.from_numpy(image)[None])),
    ]:
        assert mine.shape == tuple(torchs.shape[1:])
        assert mine.dtype == np.complex64
        np.testing.assert_allclose(mine, torchs[0].numpy(), atol=1e-5 * max(1, abs(mine).max()))


@pytest.mark.parametrize("spatial", SHAPES)
def test_adjoint_identity(rng, spatial) -> None:
    A = sense(rng.random(spatial) < 0.4, unit_mps(rng, 3, *spatial))
    x, y = random_complex(rng, *A.ishape), random_complex(rng, *A.oshape)
    assert np.vdot(y, A(x)) == pytest.approx(np.vdot(A.H(y), x), rel=1e-4)


def test_norm_is_at_most_one(rng) -> None:
    A = sense(rng.random((12, 15)) < 0.5, unit_mps(rng, 4, 12, 15))
    assert sp.app.MaxEig(A.N, dtype=np.complex64, max_iter=50, show_pbar=False).run() <= 1 + 1e-5


def test_equals_sigpys_sense(rng) -> None:
    mask, mps = rng.random((10, 9)) < 0.4, random_complex(rng, 3, 10, 9)
    theirs = sp.mri.linop.Sense(mps, weights=mask.astype(np.float32))
    image = random_complex(rng, 10, 9)
    np.testing.assert_allclose(sense(mask, mps)(image), theirs(image), atol=1e-5)


def test_bad_shapes_are_refused() -> None:
    mask = np.ones((8, 8), bool)
    with pytest.raises(ValueError, match="does not fit"):
        sense(mask, np.ones((2, 8, 9), np.complex64))
    with pytest.raises(ValueError, match="does not fit"):
        sense(mask, np.ones((8, 8), np.complex64))
    with pytest.raises(ValueError, match="must be"):
        sense(np.ones(8, bool))


@pytest.mark.parametrize("leading", [(1,), (3,), (2, 3)])
@pytest.mark.parametrize("spatial", [(7, 9), (3, 5, 8)])
class TestAsSigPyTestsItsOwn:
    """What every operator goes through in SigPy's tests/test_linop.py."""

    @pytest.fixture
    def A(self, rng, leading, spatial) -> sp.linop.Linop:  # noqa: N802
        return sense(rng.random(spatial) < 0.4, random_complex(rng, *leading, *spatial))

    def test_linear(self, rng, A) -> None:
        a = random_complex(rng, 1)[0]
        x, y = random_complex(rng, *A.ishape), random_complex(rng, *A.ishape)
        np.testing.assert_allclose(A(a * x + y), a * A(x) + A(y), rtol=1e-4, atol=1e-4)

    def test_adjoint(self, rng, A) -> None:
        x, y = random_complex(rng, *A.ishape), random_complex(rng, *A.oshape)
        assert np.vdot(A.H * A * x, x) == pytest.approx(np.vdot(A * x, A * x), rel=1e-4)
        assert np.vdot(A.H.H * x, y) == pytest.approx(np.vdot(x, A.H * y), rel=1e-4)

    def test_normal(self, rng, A) -> None:
        x = random_complex(rng, *A.ishape)
        np.testing.assert_allclose(A.H * (A * x), A.N * x, rtol=1e-4, atol=1e-4)

    def test_pickle(self, rng, A) -> None:
        copied = pickle.loads(pickle.dumps(A))
        x = random_complex(rng, *A.ishape)
        assert copied.ishape == A.ishape
        assert copied.oshape == A.oshape
        np.testing.assert_array_equal(copied * x, A * x)


def test_a_mask_of_bytes_is_a_mask() -> None:
    mask = (np.arange(48).reshape(8, 6) % 3 == 0).astype(np.uint8) * 255
    x = np.random.default_rng(0).standard_normal((8, 6)).astype(np.complex64)
    assert np.array_equal(sense(mask, None)(x), sense(mask > 0, None)(x))
