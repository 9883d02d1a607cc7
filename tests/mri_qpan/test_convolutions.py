"""The float32 convolution kernels against PyTorch's convolutions in float64, forward and backward."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from mri_qpan.engines import convolutions, kernels

pytestmark = pytest.mark.skipif(
    not kernels.width(), reason="no C++ kernels: none were built here, or this processor lacks AVX2"
)

CHANNELS = [(32, 32), (64, 32), (32, 96), (1, 32), (32, 1), (2, 32), (64, 2)]


def error(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach().double(), expected.detach()
    return float((found - expected).norm() / expected.norm().clamp_min(1e-30))


def both(x: Tensor, weight: Tensor, rectified: bool, gradient: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return output and both gradients, the kernels' beside float64's."""
    ours = [t.clone().requires_grad_() for t in (x, weight)]
    theirs = [t.double().requires_grad_() for t in (x, weight)]
    found = convolutions.convolve(ours[0], ours[1], rectified)
    expected = F.conv2d(theirs[0].relu() if rectified else theirs[0], theirs[1], padding=1)
    found.backward(gradient)
    expected.backward(gradient.double())
    gradients = [(a.grad, b.grad) for a, b in zip(ours, theirs, strict=True)]
    return [(found, expected), *((a, b) for a, b in gradients if a is not None and b is not None)]


@pytest.mark.parametrize("width", [256, 512])
@pytest.mark.parametrize("channels", CHANNELS)
@settings(max_examples=12, deadline=None)
@given(
    batch=st.integers(1, 3),
    height=st.integers(1, 40),
    width_of_image=st.integers(1, 150),
    rectified=st.booleans(),
    last=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_output_and_gradients_are_those_of_float64(
    width: int,
    channels: tuple[int, int],
    batch: int,
    height: int,
    width_of_image: int,
    rectified: bool,
    last: bool,
    seed: int,
) -> None:
    if width > kernels.width():
        pytest.skip(f"this processor has no {width}-bit vectors")
    torch.manual_seed(seed)
    inputs, outputs = channels
    form = torch.channels_last if last else torch.contiguous_format
    x = torch.randn(batch, inputs, height, width_of_image).to(memory_format=form)
    weight = torch.randn(outputs, inputs, 3, 3).to(memory_format=form)
    gradient = torch.randn(batch, outputs, height, width_of_image)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convolutions, "WIDTH", width)
        pairs = both(x, weight, rectified, gradient)
    assert len(pairs) == 3
    for found, expected in pairs:
        assert error(found, expected) < 2e-5


def test_images_may_be_as_wide_as_any_file_has_them() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(1, 32, 20, 12000), torch.randn(1, 32, 3, 3)
    for image, by in ((x, weight), (x[:, :1], weight.transpose(0, 1))):
        assert error(convolutions.convolve(image, by), F.conv2d(image, by, padding=1)) < 2e-5


def test_any_number_of_threads_gives_the_same_output() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(2, 32, 37, 70), torch.randn(32, 32, 3, 3)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(convolutions.convolve(x, weight))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize(
    ("x", "weight"),
    [
        (torch.randn(1, 24, 9, 9), torch.randn(32, 24, 3, 3)),
        (torch.randn(1, 32, 9, 9).bfloat16(), torch.randn(32, 32, 3, 3).bfloat16()),
        (torch.randn(1, 1, 9, 9), torch.randn(1, 1, 3, 3)),
    ],
)
def test_what_the_kernels_do_not_take_is_pytorchs(x: Tensor, weight: Tensor) -> None:
    assert not convolutions.fits(x, weight)
    assert torch.equal(convolutions.convolve(x, weight, True), F.conv2d(x.relu(), weight, padding=1))


def test_operators_keep_pytorchs_rules() -> None:
    """Their stand-ins for tracing, gradients and aliasing hold, as `torch.library.opcheck` sees them."""
    for inputs, outputs, rectified in ((32, 32, True), (1, 32, False), (32, 2, False)):
        x = torch.randn(1, inputs, 12, 10).requires_grad_()
        weight = torch.randn(outputs, inputs, 3, 3).requires_grad_()
        torch.library.opcheck(torch.ops.mri_qpan.convolve.default, (x, weight, rectified))


@pytest.mark.parametrize("rectified", [False, True])
@pytest.mark.parametrize("place", ["image", "weight"])
def test_what_is_no_number_shows_in_outputs_and_gradients(place: str, rectified: bool) -> None:
    """Or a training would not see that a batch is broken."""
    x, weight = torch.randn(1, 32, 12, 12), torch.randn(32, 32, 3, 3)
    (x if place == "image" else weight)[0, 3] = torch.nan
    for found, expected in both(x, weight, rectified, torch.ones(1, 32, 12, 12)):
        assert bool(found.isnan().any()) == bool(expected.isnan().any())
        assert not (expected.isnan() & ~found.isnan()).any()


@pytest.mark.parametrize(
    ("x", "weight"),
    [
        ((1, 32, 8, 8), (32, 32, 1, 1)),
        ((1, 32, 8, 8), (32, 32, 5, 5)),
        ((1, 32, 8, 8), (32, 64, 3, 3)),
        ((32, 8, 8), (32, 32, 3, 3)),
    ],
)
def test_the_kernels_leave_what_they_are_not_made_for(x: tuple[int, ...], weight: tuple[int, ...]) -> None:
    assert not convolutions.fits(torch.zeros(x), torch.zeros(weight))
    assert not convolutions.fits(torch.zeros(1, 32, 8, 8), torch.zeros(32, 32, 3, 3, device="meta"))


def test_very_wide_images() -> None:
    x, weight = torch.randn(1, 1, 1, 1_050_000), torch.randn(32, 1, 3, 3)
    found = convolutions.convolve(x, weight)[..., -200:]
    assert error(found, F.conv2d(x[..., -300:].double(), weight.double(), padding=1)[..., -200:]) < 1e-4
