"""The compiled normal operator against NumPy's DFT, with every width of vectors that this machine has."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mri_qpan.encoding import Encoding
from mri_qpan.engines import kernels, normal

pytestmark = pytest.mark.skipif(
    kernels.width() == 0, reason="the kernels are not built here, or the processor lacks AVX2"
)
WIDTHS = [w for w in (256, 512) if w <= kernels.width()]
SIZES = st.integers(1, 200).filter(lambda n: n == 1 or normal.radices(n))


def expected(mask, mps, image):
    """A^H A x by its definition, in double precision."""
    maps = np.ones((1, 1, *mask.shape)) if mps is None else mps.numpy().astype(np.complex128)
    coils = (maps * image.numpy()[:, None]).sum(0)
    shifted = np.fft.fft2(np.fft.ifftshift(coils, axes=(-2, -1)))
    kept = shifted * np.fft.ifftshift(mask.numpy())
    back = np.fft.fftshift(np.fft.ifft2(kept), axes=(-2, -1))
    return (maps.conj() * back).sum(1)


def measured(shape, sets, coils, kind, seed):
    draw = torch.Generator().manual_seed(seed)
    chosen = torch.rand(shape, generator=draw) < 0.4
    mask = {"y": chosen[:, :1], "x": chosen[:1], "both": chosen}[kind].expand(shape)
    mps = torch.randn(sets, coils, *shape, generator=draw, dtype=torch.complex64) if coils else None
    image = torch.randn(sets if coils else 1, *shape, generator=draw, dtype=torch.complex64)
    return mask, mps, image


@settings(deadline=None, max_examples=80)
@given(
    shape=st.tuples(SIZES, SIZES),
    sets=st.integers(1, 3),
    coils=st.integers(0, 4),
    kind=st.sampled_from(["y", "x", "both"]),
    vectors=st.sampled_from(WIDTHS or [256]),
    seed=st.integers(0, 1000),
)
def test_it_is_the_normal_operator(shape, sets, coils, kind, vectors, seed):
    mask, mps, image = measured(shape, sets, coils, kind, seed)
    found = normal.Normal(mask, mps, vectors)(image).numpy()
    right = expected(mask, mps, image)
    scale = np.abs(image.numpy()).max() * (1 if mps is None else float(mps.abs().square().sum(1).max()))
    assert found == pytest.approx(right, abs=2e-6 * max(scale, 1e-3) * np.sqrt(max(shape)))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 11, 13, 16, 30, 121, 127, 143, 168, 256, 320, 332, 640])
def test_every_radix_undoes_itself(size):
    mask = torch.ones(size, 18, dtype=torch.bool)
    mask[size // 2, 3] = False  # so that both directions are transformed
    image = torch.randn(1, size, 18, dtype=torch.complex64)
    found = normal.Normal(mask, None)(image).numpy()
    assert found == pytest.approx(expected(mask, None, image), abs=1e-5)


def test_sizes_with_a_large_prime_are_declined():
    assert normal.radices(332) == [4, 83]
    assert normal.radices(640) == [4, 4, 4, 2, 5]
    assert normal.radices(2 * 131) == []
    mask = torch.rand(1, 131, 8) < 0.5
    assert not normal.fits(mask, None)
    with pytest.raises(ValueError, match="no transform of 131"):
        normal.Normal(mask[0], None)
    x = torch.randn(1, 131, 8, dtype=torch.complex64)
    torch.testing.assert_close(Encoding(mask).normal(x), Encoding(mask).adjoint(Encoding(mask).forward(x)))


@pytest.mark.parametrize("kind", ["y", "both"])
def test_threads_change_nothing(kind):
    mask, mps, image = measured((40, 36), 2, 3, kind, 0)
    operator = normal.Normal(mask, mps)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            results.append(operator(image))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


def test_an_image_of_another_shape_or_type_is_refused():
    operator = normal.Normal(*measured((8, 8), 1, 2, "both", 0)[:2])
    with pytest.raises(ValueError, match="does not fit"):
        operator(torch.zeros(1, 8, 9, dtype=torch.complex64))
    with pytest.raises(ValueError, match="does not fit"):
        operator(torch.zeros(1, 8, 8, dtype=torch.complex128))


@pytest.mark.parametrize("batch", [1, 2])
def test_an_encoding_uses_it_and_gives_what_it_gave_before(monkeypatch, batch):
    mask, mps, image = measured((16, 12), 2, 3, "both", 0)
    masks, maps, images = (t[None].repeat(batch, *[1] * t.ndim) for t in (mask, mps, image))
    fast = Encoding(masks, maps).normal(images)
    monkeypatch.setattr(normal, "fits", lambda *_: False)
    torch.testing.assert_close(fast, Encoding(masks, maps).normal(images), rtol=1e-4, atol=1e-4)


def test_an_encoding_survives_copies_and_second_derivatives():
    mask, mps, image = measured((16, 12), 1, 3, "both", 0)
    encoding = Encoding(mask[None], mps)
    x = image.requires_grad_()
    first = encoding.normal(x)
    torch.testing.assert_close(copy.deepcopy(encoding).normal(x), first)
    v = torch.randn_like(first)
    _, product = torch.autograd.functional.jvp(encoding.normal, x.detach(), v)
    torch.testing.assert_close(product, encoding.normal(v))


def test_masks_and_maps_of_different_batches_are_refused():
    with pytest.raises(ValueError, match="4 masks"):
        Encoding(torch.ones(4, 8, 8, dtype=torch.bool), torch.ones(2, 3, 8, 8, dtype=torch.complex64))
