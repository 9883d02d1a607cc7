import copy
from collections.abc import Callable

import numpy as np
import pytest
import sigpy as sp
import torch
from torch import Tensor

from mri_qpan import fourier
from mri_qpan.encoding import Encoding, RealEncoding, from_linop
from mri_qpan.engines import normal as compiled
from mri_qpan.linop import sense

SPATIAL = [(8, 8), (9, 8), (7, 9), (3, 4, 5), (4, 6, 3)]
MAPS = [(), (1,), (3,), (2, 3)]
BATCHES = [1, 2]


def random_complex(*shape: int, seed: int = 0, dtype: torch.dtype = torch.complex64) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def random_mask(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(7)) < 0.4


def unit_mps(*shape: int, spatial: int, dtype: torch.dtype = torch.complex64) -> Tensor:
    """Maps (batch, [set,] coil, *spatial) whose squared sum over sets and coils is 1 everywhere."""
    mps = random_complex(*shape, seed=3, dtype=dtype)
    axes = tuple(range(1, mps.ndim - spatial))
    return mps / mps.abs().square().sum(axes, keepdim=True).sqrt()


def build(spatial: tuple[int, ...], maps: tuple[int, ...], batch: int) -> tuple[Encoding, tuple, tuple]:
    """An encoding with the shapes of its image and its k-space."""
    mask = random_mask(batch, *spatial)
    mps = unit_mps(batch, *maps, *spatial, spatial=len(spatial)) if maps else None
    image = (batch, *maps[:-1], *spatial)
    kspace = (batch, maps[-1] if maps else 1, *spatial)
    return Encoding(mask, mps), image, kspace


def assert_adjoint(
    forward: Callable[[Tensor], Tensor], adjoint: Callable[[Tensor], Tensor], ishape: tuple, oshape: tuple
) -> None:
    x, y = random_complex(*ishape, seed=1), random_complex(*oshape, seed=2)
    Ax, AHy = forward(x), adjoint(y)
    assert Ax.shape == oshape
    assert AHy.shape == ishape
    left, right = torch.vdot(y.flatten(), Ax.flatten()), torch.vdot(AHy.flatten(), x.flatten())
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("spatial", SPATIAL)
@pytest.mark.parametrize("maps", MAPS)
@pytest.mark.parametrize("batch", BATCHES)
class TestEveryEncoding:
    def test_adjoint_identity(self, spatial, maps, batch) -> None:
        encoding, image, kspace = build(spatial, maps, batch)
        assert_adjoint(encoding.forward, encoding.adjoint, image, kspace)

    def test_normal_is_adjoint_after_forward(self, spatial, maps, batch) -> None:
        encoding, image, _ = build(spatial, maps, batch)
        x = random_complex(*image)
        torch.testing.assert_close(encoding.normal(x), encoding.adjoint(encoding.forward(x)))

    def test_norm_is_at_most_one(self, spatial, maps, batch) -> None:
        encoding, image, _ = build(spatial, maps, batch)
        x = random_complex(*image)
        for _ in range(30):
            x = encoding.normal(x / x.norm())
        assert x.norm() <= 1 + 1e-5

    def test_gradient_of_normal_is_autograds(self, spatial, maps, batch) -> None:
        encoding, image, _ = build(spatial, maps, batch)
        x = random_complex(*image).requires_grad_()
        cotangent = random_complex(*image, seed=5)
        (ours,) = torch.autograd.grad(encoding.normal(x), x, cotangent)
        (theirs,) = torch.autograd.grad(encoding.adjoint(encoding.forward(x)), x, cotangent)
        torch.testing.assert_close(ours, theirs)

    def test_gradient_of_forward_is_the_adjoint(self, spatial, maps, batch) -> None:
        encoding, image, kspace = build(spatial, maps, batch)
        x = random_complex(*image).requires_grad_()
        cotangent = random_complex(*kspace, seed=5)
        (gradient,) = torch.autograd.grad(encoding.forward(x), x, cotangent)
        torch.testing.assert_close(gradient, encoding.adjoint(cotangent))

    def test_entries_of_a_batch_do_not_mix(self, spatial, maps, batch) -> None:
        encoding, image, _ = build(spatial, maps, batch)
        x = random_complex(*image)
        for b in range(batch):
            mps = None if encoding.mps is None else encoding.mps[b : b + 1]
            alone = Encoding(encoding.mask[b : b + 1], mps)
            torch.testing.assert_close(alone.normal(x[b : b + 1]), encoding.normal(x)[b : b + 1])


def test_one_mask_serves_a_batch() -> None:
    mask, x = random_mask(1, 8, 9), random_complex(3, 8, 9)
    torch.testing.assert_close(Encoding(mask).normal(x), Encoding(mask.expand(3, -1, -1)).normal(x))


def test_full_sampling_with_unit_maps_is_the_identity() -> None:
    mask = torch.ones(1, 8, 9, dtype=torch.bool)
    encoding = Encoding(mask, unit_mps(1, 4, 8, 9, spatial=2))
    x = random_complex(1, 8, 9)
    torch.testing.assert_close(encoding.normal(x), x)


def test_adjoint_ignores_what_was_not_acquired() -> None:
    encoding, _, kspace = build((8, 9), (3,), 1)
    y = random_complex(*kspace)
    torch.testing.assert_close(encoding.adjoint(y), encoding.adjoint(y * encoding.mask[:, None]))


def test_second_derivatives_stay_right() -> None:
    encoding = Encoding(random_mask(1, 3, 4), unit_mps(1, 2, 3, 4, spatial=2, dtype=torch.complex128))
    x = random_complex(1, 3, 4, dtype=torch.complex128).requires_grad_()
    assert torch.autograd.gradcheck(encoding.normal, (x,))
    assert torch.autograd.gradgradcheck(encoding.normal, (x,))


def test_to_keeps_the_operator() -> None:
    encoding, image, _ = build((8, 9), (2, 3), 1)
    x = random_complex(*image)
    torch.testing.assert_close(encoding.to("cpu").normal(x), encoding.normal(x))


def test_shapes_that_do_not_fit_are_refused() -> None:
    mask = torch.ones(1, 8, 8, dtype=torch.bool)
    for bad in [(1, 8, 8), (1, 2, 8, 9), (1, 2, 2, 2, 8, 8)]:
        with pytest.raises(ValueError, match="does not fit"):
            Encoding(mask, torch.ones(bad, dtype=torch.complex64))
    with pytest.raises(ValueError, match="mask must be"):
        Encoding(mask[0])


def test_real_encoding() -> None:
    mask = random_mask(2, 8, 9)
    x = random_complex(2, 8, 9).real.clone()
    encoding = RealEncoding(mask)
    expected = fourier.ifft(fourier.fft(x + 0j, (-2, -1)) * mask, (-2, -1)).real
    torch.testing.assert_close(encoding.normal(x), expected)
    torch.testing.assert_close(encoding.adjoint(encoding.forward(x)), expected)
    x.requires_grad_()
    cotangent = torch.ones_like(x)
    (gradient,) = torch.autograd.grad(encoding.normal(x), x, cotangent)
    torch.testing.assert_close(gradient, encoding.normal(cotangent))


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("shape", [(8, 9), (9, 8), (12, 10), (7, 7)])
@pytest.mark.parametrize("images", [1, 2, 3])
@pytest.mark.parametrize("lines", [False, True])
def test_real_images_are_worked_in_pairs_or_by_real_transforms(monkeypatch, kernel, shape, images, lines):
    if not kernel:
        monkeypatch.setattr(compiled, "fits", lambda mask, mps: False)
    mask = random_mask(1, *shape)
    mask = mask[:, :1].expand(1, *shape).contiguous() if lines else mask
    x = random_complex(images, *shape).real.clone()
    expected = fourier.ifft(fourier.fft(x + 0j, (-2, -1)) * mask, (-2, -1)).real
    encoding = RealEncoding(mask)
    torch.testing.assert_close(encoding.normal(x), expected)
    torch.testing.assert_close(copy.deepcopy(encoding).normal(x), expected)
    torch.testing.assert_close(encoding.normal(x.double()).float(), expected)


@pytest.mark.parametrize("other", [float("nan"), float("inf"), 1e8, 0.0])
def test_an_image_does_not_depend_on_its_neighbour_in_the_batch(other: float) -> None:
    encoding = RealEncoding(random_mask(1, 12, 10))
    x = random_complex(1, 12, 10).real.clone()
    (expected,) = encoding.normal(x)
    for together in (torch.cat([x, other * x]), torch.cat([other * x, x]).flip(0)):
        torch.testing.assert_close(encoding.normal(together)[0], expected)


class TestFromLinop:
    def test_equals_the_encoding(self) -> None:
        encoding, image, kspace = build((9, 8), (3,), 1)
        adjoint, normal = from_linop(sense(encoding.mask[0].numpy(), encoding.mps[0].numpy()))
        x, y = random_complex(*image), random_complex(*kspace)
        torch.testing.assert_close(adjoint(y[0].numpy()), encoding.adjoint(y))
        torch.testing.assert_close(normal(x), encoding.normal(x))

    def test_its_gradient_is_the_normal_map(self) -> None:
        encoding, image, _ = build((9, 8), (3,), 1)
        _, normal = from_linop(sense(encoding.mask[0].numpy(), encoding.mps[0].numpy()))
        x, cotangent = random_complex(*image).requires_grad_(), random_complex(*image, seed=5)
        (gradient,) = torch.autograd.grad(normal(x), x, cotangent)
        torch.testing.assert_close(gradient, encoding.normal(cotangent))

    def test_a_batch_is_worked_image_by_image(self) -> None:
        encoding, *_ = build((9, 8), (3,), 1)
        _, normal = from_linop(sense(encoding.mask[0].numpy(), encoding.mps[0].numpy()))
        x = random_complex(3, 9, 8)
        torch.testing.assert_close(normal(x), torch.cat([encoding.normal(one[None]) for one in x]))

    def test_a_nufft_feeds_it(self) -> None:
        coord = np.random.default_rng(0).uniform(-4, 4, (60, 2)).astype(np.float32)
        A = sp.linop.NUFFT((8, 8), coord)
        adjoint, normal = from_linop(A)
        x = random_complex(1, 8, 8)
        torch.testing.assert_close(normal(x), adjoint(A(x[0].numpy())), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shape", [(9, 8), (4, 7, 6)])
@pytest.mark.parametrize("sets", [(), (2,)])
@pytest.mark.parametrize("constant", [(), (-1,), (-2,), (-1, -2)])
def test_the_normal_operator_is_the_adjoint_of_the_forward_one(shape, sets, constant):
    """Along whole lines it leaves the DFT out, and it works coil by coil: the result must not tell."""
    torch.manual_seed(0)
    mask = torch.rand(3, *shape) < 0.5
    for dim in constant:
        mask = mask.narrow(dim, 0, 1).expand(3, *shape).contiguous()
    mps = torch.randn(3, *sets, 4, *shape, dtype=torch.complex128)
    image = torch.randn(3, *sets, *shape, dtype=torch.complex128)
    for encoding in (Encoding(mask, mps), Encoding(mask[:1], mps)):
        assert torch.allclose(encoding.normal(image), encoding.adjoint(encoding.forward(image)), atol=1e-12)
    single = Encoding(mask)
    one = torch.randn(3, *shape, dtype=torch.complex128)
    assert torch.allclose(single.normal(one), single.adjoint(single.forward(one)), atol=1e-6)


@pytest.mark.parametrize("images", [1, 2])
def test_real_images_with_an_8_bit_picture_of_a_mask(images):
    mask = torch.rand(1, 16, 12) < 0.5
    x = torch.randn(images, 16, 12)
    picture = RealEncoding(255 * mask.to(torch.uint8))
    torch.testing.assert_close(picture.normal(x), RealEncoding(mask).normal(x))


def test_one_image_under_several_masks() -> None:
    """`forward` and `adjoint` broadcast it, so does what they compose to."""
    rng = np.random.default_rng(0)
    masks = torch.from_numpy(rng.random((3, 16, 12)) < 0.5)
    mps = torch.randn(1, 2, 16, 12, dtype=torch.complex64)
    image = torch.randn(1, 16, 12, dtype=torch.complex64)
    encoding = Encoding(masks, mps)
    expected = encoding.adjoint(encoding.forward(image))
    torch.testing.assert_close(encoding.normal(image), expected, atol=1e-5, rtol=1e-4)
