"""Samples along a trajectory, held against SigPy's operators."""

import copy
import pickle

import numpy as np
import pytest
import sigpy as sp
import sigpy.mri as mr
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mri_qpan.engines import kernels
from mri_qpan.noncartesian import ACCURATE, NonCartesian, balanced, density

SHAPE, COILS = (24, 20), 3


def maps() -> np.ndarray:
    mps = mr.birdcage_maps((COILS, *SHAPE), dtype=np.complex64)
    return (mps / np.sqrt((np.abs(mps) ** 2).sum(0)).max()).astype(np.complex64)


def spokes(number: int = 15) -> np.ndarray:
    return mr.radial((number, 40, 2), SHAPE, golden=True).astype(np.float32)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))


def sigpys(coord: np.ndarray, weights: np.ndarray) -> sp.linop.Linop:
    coils = sp.linop.Multiply(SHAPE, maps())
    along = sp.linop.NUFFT((COILS, *SHAPE), coord, **ACCURATE)
    return sp.linop.Multiply(along.oshape, np.sqrt(weights)) * along * coils


@pytest.mark.parametrize("kernel", [True, False])
def test_it_is_sigpys_operator_over_its_norm(kernel: bool) -> None:
    coord = spokes()
    weights = density(coord, SHAPE)
    ours, theirs = NonCartesian(coord, maps(), weights), sigpys(coord, weights)
    assert (ours._kernel is not None) == (kernels.width() > 0)
    if not kernel:
        ours._kernel = None
    x = random(1, *SHAPE)
    expected = theirs.N(x[0].numpy())
    found = ours.normal(x)[0].numpy()
    scale = np.vdot(expected, found) / np.vdot(expected, expected)
    assert np.linalg.norm(found - scale * expected) < 1e-3 * np.linalg.norm(found)
    norm = sp.app.MaxEig(theirs.N, dtype=np.complex64, max_iter=100, show_pbar=False).run()
    assert scale.real == pytest.approx(1 / norm, rel=0.03)
    projected = ours.forward(x)[0].numpy() / np.sqrt(scale.real)
    np.testing.assert_allclose(projected, theirs(x[0].numpy()), atol=2e-3 * np.abs(projected).max())


@given(seed=st.integers(0, 99), number=st.integers(1, 20))
@settings(deadline=None, max_examples=10)
def test_adjoint_and_normal(seed: int, number: int) -> None:
    rng = np.random.default_rng(seed)
    coord = ((rng.random((number, 2)) - 0.5) * SHAPE).astype(np.float32)
    A = NonCartesian(coord, maps(), rng.random(number).astype(np.float32) + 0.1)
    x, y = random(1, *SHAPE, seed=seed), random(1, COILS, number, seed=seed + 1)
    left, right = (
        torch.vdot(y.flatten(), A.forward(x).flatten()),
        torch.vdot(A.adjoint(y).flatten(), x.flatten()),
    )
    assert abs(left - right) < 1e-4 * float(y.norm() * x.norm())
    both = A.adjoint(A.forward(x))
    assert float((A.normal(x) - both).norm()) < 2e-3 * float(both.norm() + 1e-3 * x.norm())


def test_gradient_flows() -> None:
    A = NonCartesian(spokes(), maps())
    x = random(1, *SHAPE).requires_grad_()
    v = random(1, *SHAPE, seed=3)
    A.normal(x).backward(v)
    assert torch.allclose(x.grad, A.normal(v), atol=1e-6)


def test_samples_are_weighted_as_the_operator_is() -> None:
    coord = spokes()
    A = NonCartesian(coord, maps())
    x = random(1, *SHAPE)
    coils = maps() * x[0].numpy()
    samples = sp.nufft(coils, coord, **ACCURATE).astype(np.complex64)
    assert torch.allclose(A.measured(samples), A.forward(x), atol=1e-5)


def test_batches_and_double_precision_go_without_the_kernel() -> None:
    encoding = NonCartesian(spokes(), maps())
    x = random(2, *SHAPE)
    one = torch.cat([encoding.normal(x[:1]), encoding.normal(x[1:])])
    torch.testing.assert_close(encoding.normal(x), one, rtol=1e-3, atol=1e-4)
    double = encoding.normal(x[:1].to(torch.complex128))
    torch.testing.assert_close(double.to(torch.complex64), one[:1], rtol=1e-3, atol=1e-4)


def test_samples_of_a_batch_are_worked_one_by_one() -> None:
    operator = NonCartesian(spokes(), maps())
    images = random(3, *SHAPE)
    samples = operator.forward(images)
    torch.testing.assert_close(samples, torch.cat([operator.forward(one[None]) for one in images]))
    back = torch.cat([operator.adjoint(one[None]) for one in samples])
    torch.testing.assert_close(operator.adjoint(samples), back)


def test_copies_work_as_it_does() -> None:
    encoding = NonCartesian(spokes(), maps())
    x = random(1, *SHAPE)
    expected = encoding.normal(x)
    for twin in (pickle.loads(pickle.dumps(encoding)), copy.deepcopy(encoding)):
        assert torch.equal(twin.normal(x), expected)


@given(seed=st.integers(0, 99), power=st.floats(-2, 2))
@settings(deadline=None, max_examples=15)
def test_balanced_weights_keep_what_tells_readouts_apart(seed: int, power: float) -> None:
    """Whatever a density compensation does, by the distance from the centre, drops out."""
    coord = spokes()
    rng = np.random.default_rng(seed)
    gate = rng.uniform(0.1, 1, (len(coord), 1)) * np.ones(coord.shape[:-1])
    gate[rng.integers(len(coord))] = 0
    found = balanced(gate, coord, SHAPE)
    distance = np.rint(np.linalg.norm(coord, axis=-1))
    np.testing.assert_allclose(balanced(gate * (1 + distance) ** power, coord, SHAPE), found, rtol=2e-4)
    used = gate > 0
    assert ((found > 0) == used).all()
    compensation, most = density(coord[used], SHAPE), found.max()
    for radius in np.unique(distance):
        below = (distance[used] == radius) & (found[used] < 0.999 * most)
        kept = found[used][below] / (compensation * gate[used])[below]
        np.testing.assert_allclose(kept, np.full_like(kept, kept.mean() if kept.size else 0), rtol=2e-4)
    assert (found[used] > 0.999 * most).mean() < 0.1


def test_balanced_weights_of_one_value_are_the_density_compensation() -> None:
    coord = spokes()
    np.testing.assert_allclose(
        balanced(np.full(coord.shape[:-1], 3.0), coord, SHAPE), density(coord, SHAPE), rtol=0.02
    )
    assert not balanced(np.zeros(coord.shape[:-1]), coord, SHAPE).any()
