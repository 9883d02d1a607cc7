"""The noise floor of the last image."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mri_qpan.encoding import Encoding
from mri_qpan.networks import NetworkConfig, ProximalNetwork, config_from_dict
from mri_qpan.networks.floor import floor_of, lifted, share_acquired
from mri_qpan.sampling_masks import make_mask

SHAPE = (48, 40)


def noise(*shape: int, seed: int = 0, sigma: float = 1.0) -> torch.Tensor:
    return sigma * torch.randn(*shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))


def masks(*ratios: float) -> torch.Tensor:
    return torch.from_numpy(np.stack([make_mask("random2d", SHAPE, ratio) for ratio in ratios]))


def test_share_is_the_ratio_of_every_mask() -> None:
    mask = masks(0.2, 0.5)
    encoding = Encoding(mask)
    share = share_acquired(noise(2, *SHAPE), encoding.normal)
    assert torch.allclose(share, mask.float().mean((1, 2)), atol=1e-4)


def test_share_with_coils_is_the_ratio_where_their_squares_sum_to_one() -> None:
    mask = masks(0.3)
    maps = noise(1, 4, *SHAPE)
    maps = maps / maps.abs().square().sum(1, keepdim=True).sqrt()
    share = share_acquired(noise(1, *SHAPE), Encoding(mask, maps).normal)
    assert torch.allclose(share, mask.float().mean((1, 2)), atol=1e-4)


@pytest.mark.parametrize("ratio", [0.2, 0.5])
def test_floor_is_the_noise_that_was_not_acquired(ratio: float) -> None:
    """An object of nothing: all of the samples is noise, and the estimate is nothing."""
    mask, sigma = masks(ratio), 0.3
    encoding = Encoding(mask)
    full = noise(1, 1, *SHAPE, sigma=sigma)
    residual = encoding.adjoint(full)
    share = share_acquired(residual, encoding.normal)
    floor = floor_of(torch.zeros(2), residual, torch.zeros(1), share)
    expected = sigma**2 * (1 - float(mask.float().mean()))
    assert float(floor) == pytest.approx(expected, rel=0.1)
    # So the magnitude is as large as the fully sampled one's, on the mean of squares.
    whole = Encoding(torch.ones(1, *SHAPE, dtype=torch.bool)).adjoint(full)
    found = lifted(residual, floor).abs().square().mean()
    assert float(found) == pytest.approx(float(whole.abs().square().mean()), rel=0.1)


@given(scale=st.floats(0.01, 100), floor=st.floats(0, 10))
@settings(deadline=None, max_examples=20)
def test_phase_stays_and_magnitude_rises(scale: float, floor: float) -> None:
    image = scale * noise(1, *SHAPE)
    found = lifted(image, torch.tensor([floor]))
    assert (found.abs() >= image.abs() * (1 - 1e-5)).all()
    assert (found.abs().square() <= image.abs().square() + floor + 1e-4 * scale**2 + 1e-5 * floor).all()
    turned = found * image.conj()
    assert (turned.imag.abs() <= 1e-4 * turned.abs() + 1e-12).all()


def test_nothing_stays_nothing() -> None:
    found = lifted(torch.zeros(1, *SHAPE, dtype=torch.complex64), torch.zeros(1))
    assert torch.equal(found, torch.zeros_like(found))


def network(floor: bool) -> ProximalNetwork:
    torch.manual_seed(0)
    config = NetworkConfig(layers=2, filters=4, start=2, consistency=2, adaptive=True, floor=floor)
    return ProximalNetwork(config)


def test_a_network_lifts_its_image_and_learns_how_far() -> None:
    encoding = Encoding(masks(0.3, 0.3))
    adjoint = encoding.adjoint(noise(2, 1, *SHAPE))
    plain, lifting = network(False), network(True)
    lifting.load_state_dict(plain.state_dict() | {"floor": torch.zeros(2)})
    with torch.no_grad():
        low, high = plain(adjoint, encoding.normal), lifting(adjoint, encoding.normal)
    assert (high.abs() > low.abs()).float().mean() > 0.99
    images, _ = lifting.forward_for_training(adjoint, encoding.normal, frozenset())
    images[-1].abs().square().mean().backward()
    assert lifting.floor.grad is not None
    assert float(lifting.floor.grad[0]) > 0


def test_images_of_a_batch_do_not_touch_each_other() -> None:
    model = network(True)
    mask = masks(0.25, 0.4)
    samples = noise(2, 1, *SHAPE) * torch.tensor([1.0, 30.0]).reshape(2, 1, 1, 1)
    both = Encoding(mask)
    with torch.no_grad():
        together = model(both.adjoint(samples), both.normal)
        for i in range(2):
            one = Encoding(mask[i : i + 1])
            alone = model(one.adjoint(samples[i : i + 1]), one.normal)
            assert torch.allclose(alone[0], together[i], rtol=1e-3, atol=1e-3 * float(alone.abs().max()))


def test_configurations() -> None:
    with pytest.raises(ValueError, match="floor"):
        NetworkConfig(floor=True)
    with pytest.raises(ValueError, match="floor"):
        NetworkConfig(floor=True, consistency=2, channels=1)
    older = NetworkConfig().to_dict()
    del older["floor"]
    assert config_from_dict(older) == NetworkConfig()
    with pytest.raises(ValueError, match="steps"):
        config_from_dict(older | {"steps": 1})
