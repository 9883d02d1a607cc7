import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mri_qpan import quantize

bits_of = st.integers(1, 4)


@settings(deadline=None, max_examples=100)
@given(bits=bits_of, count=st.integers(1, 200), seed=st.integers(0, 2**31))
def test_pack_and_unpack_are_bit_exact(bits, count, seed):
    generator = torch.Generator().manual_seed(seed)
    integers = 2 * torch.randint(0, 2**bits, (count,), generator=generator) - (2**bits - 1)
    packed = quantize.pack(integers, bits)
    assert packed.dtype == torch.uint8
    assert packed.numel() == -(-count * bits // 8)
    assert torch.equal(quantize.unpack(packed, bits, count), integers.float())


@pytest.mark.parametrize("bad", [[0.0], [2.0], [5.0], [1.5], [float("nan")]])
def test_pack_refuses_what_is_no_level(bad):
    with pytest.raises(ValueError, match="odd integers"):
        quantize.pack(torch.tensor(bad), 2)


def test_unpack_refuses_a_wrong_length():
    with pytest.raises(ValueError, match="cannot hold"):
        quantize.unpack(torch.zeros(3, dtype=torch.uint8), 2, 4)


@pytest.mark.parametrize("bits", [0, 5])
def test_bits_are_bounded(bits):
    with pytest.raises(ValueError, match="bits"):
        quantize.fit(torch.ones(2, 2), bits)


@settings(deadline=None, max_examples=60)
@given(bits=bits_of, seed=st.integers(0, 2**31), scale=st.floats(1e-3, 1e3))
def test_levels_are_the_nearest_odd_integers(bits, seed, scale):
    weight = torch.randn(50, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale * 2
    chosen = quantize.levels(weight, torch.tensor(scale, dtype=torch.float64), bits)
    grid = torch.arange(-(2**bits - 1), 2**bits, 2, dtype=torch.float64)
    distance = (weight[:, None] - scale * grid).abs().min(1).values
    assert torch.allclose((weight - scale * chosen).abs(), distance)


def test_one_bit_is_the_sign_and_the_mean_magnitude():
    weight = torch.randn(4, 3, 3, 3)
    scale, integers = quantize.fit(weight, 1)
    assert torch.equal(integers, weight.sign())
    assert torch.allclose(scale.flatten(), weight.abs().mean((1, 2, 3)))


@pytest.mark.parametrize(("bits", "per"), list(itertools.product((1, 2, 3), ("tensor", "filter"))))
def test_fit_is_near_the_best_scale_by_brute_force(bits, per):
    weight = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    scale, integers = quantize.fit(weight, bits, per)
    error = (weight - scale * integers).square().sum()
    groups = [weight] if per == "tensor" else list(weight)
    best = sum(
        min(
            float((g - v * quantize.levels(g, v, bits)).square().sum())
            for v in torch.linspace(0.02, 2, 1500, dtype=torch.float64)
        )
        for g in groups
    )
    assert float(error) <= 1.06 * best


@settings(deadline=None, max_examples=30)
@given(bits=st.integers(2, 4), seed=st.integers(0, 1000))
def test_alternation_never_makes_it_worse(bits, seed):
    weight = torch.randn(3, 10, generator=torch.Generator().manual_seed(seed))
    errors = []
    for iterations in (1, 2, 5, 30):
        scale, integers = quantize.fit(weight, bits, "tensor", iterations)
        errors.append(float((weight - scale * integers).square().sum()))
    assert errors == sorted(errors, reverse=True) or max(errors) - min(errors) < 1e-5


def test_more_bits_fit_better():
    weight = torch.randn(32, 32, 3, 3)
    errors = []
    for bits in (1, 2, 3, 4):
        scale, integers = quantize.fit(weight, bits)
        errors.append(float((weight - scale * integers).square().mean()))
    assert errors == sorted(errors, reverse=True)
    assert errors[0] == pytest.approx(1 - 2 / torch.pi, abs=0.02)  # a Gaussian's one-bit distortion


def test_straight_through_quantizes_forward_and_passes_the_gradient():
    weight = torch.randn(4, 5, requires_grad=True)
    scale, integers = quantize.fit(weight.detach(), 2)
    used = quantize.straight_through(weight, scale, 2)
    assert torch.equal(used, scale * integers)
    seen = torch.randn(4, 5)
    (used * seen).sum().backward()
    assert torch.equal(weight.grad, seen)


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_a_clipped_gradient_stops_beyond_the_levels(bits):
    scale = torch.tensor(0.5)
    weight = torch.linspace(-6, 6, 97, requires_grad=True)
    quantize.straight_through(weight, scale, bits, "clipped").sum().backward()
    reach = 0.5 * 2**bits
    torch.testing.assert_close(weight.grad, (weight.detach().abs() <= reach).float())


def test_zero_weights_do_not_divide_by_zero():
    scale, integers = quantize.fit(torch.zeros(2, 3), 3)
    assert bool(torch.isfinite(scale).all())
    assert bool((scale > 0).all())
    assert float((scale * integers).abs().max()) < 1e-10
