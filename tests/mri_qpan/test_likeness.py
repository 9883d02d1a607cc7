"""Statistics that tell a measurement from those of training."""

import numpy as np
import pytest
import torch

from mri_qpan.encoding import Encoding
from mri_qpan.likeness import WORDS, statistics, unlike
from mri_qpan.networks import ADMMConfig, NetworkConfig, build
from mri_qpan.training.ranges import ranges_of
from mri_qpan.training.simulate import Case

RANGES = {
    "fall": (10.0, 30.0),
    "gap": (0.0, 0.2),
    "peak": (1.0, 2.0),
    "filled": (0.2, 0.6),
    "alias": (0.0, 0.5),
    "moved": (0.0, 0.1),
    "further": (0.0, 0.1),
    "contraction": (0.0, 0.8),
}


def measurement(power=2.0, n=64):
    """White noise whose power falls with a power of the distance from the centre, all acquired."""
    rng = np.random.default_rng(0)
    radius = np.hypot(*np.meshgrid(*[(np.arange(n) - n // 2) / n] * 2, indexing="ij"))
    samples = rng.standard_normal((2, n, n)) / np.maximum(radius, 1 / n) ** (power / 2)
    return samples.astype(np.complex64)


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_the_fall_is_that_of_the_power_law(power):
    samples = measurement(power)
    found = statistics(samples, np.ones(samples.shape[1:], bool), samples[0], 1.0)["fall"]
    # Mean of r^-p over the disc r < 0.05 against the ring 0.1 < r < 0.2, per area.
    radii = [np.linspace(a, b, 20001)[1:] for a, b in ((1 / 64, 0.05), (0.1, 0.2))]
    near, ring = (np.average(np.maximum(r, 1 / 64) ** -power, weights=r) for r in radii)
    assert found == pytest.approx(10 * np.log10(near / ring), abs=1.5)


def test_a_centre_without_signal_has_no_fall():
    samples = measurement()
    samples[:, 24:41, 24:41] = 0
    found = statistics(samples, np.ones(samples.shape[1:], bool), samples[0], 1.0)
    assert "fall" not in found
    assert not any("signal falls" in words for words in unlike(found, RANGES))


def test_the_gap_is_the_largest_empty_circle():
    mask = np.ones((40, 80), bool)
    mask[20 - 8 : 20 + 9, 40 - 16 : 40 + 17] = False
    found = statistics(np.ones((1, 40, 80), np.complex64), mask, np.ones((40, 80), np.complex64), 1.0)
    assert found["gap"] == pytest.approx(min(9 / 40, 17 / 80))


def test_peak_and_filling_count_pixels():
    image = np.zeros((10, 10), np.complex64)
    image[:3] = 0.5
    image[5, 5] = 4j
    found = statistics(np.ones((1, 10, 10), np.complex64), np.ones((10, 10), bool), image, 2.0)
    assert found["peak"] == 2.0
    assert found["filled"] == pytest.approx(0.31)


def spread_of(mask, coils=1):
    ones = np.ones((coils, *mask.shape), np.complex64)
    return statistics(ones, mask, ones[0], 1.0).get("alias")


def test_evenly_spaced_samples_of_one_coil_have_an_alias_as_strong_as_the_point():
    mask = np.zeros((60, 48), bool)
    mask[::3] = True
    assert spread_of(mask) == pytest.approx(1.0)
    assert spread_of(mask.T) == pytest.approx(1.0)
    assert spread_of(mask, coils=2) is None
    mask[24:36] = True  # 8 lines more at the centre, the other 20 still in step
    assert spread_of(mask) == pytest.approx((20 - 8 / 2) / 28, abs=0.1)


def test_scattered_samples_have_weak_aliases():
    assert spread_of(np.random.default_rng(0).random((64, 64)) < 0.3) < 0.15
    assert spread_of(np.ones((64, 64), bool)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"fall": 20.0, "gap": 0.2, "peak": 1.5, "filled": 0.4, "moved": 0.01}, []),
        ({"fall": 31.9, "gap": 0.21, "peak": 2.09, "filled": 0.17}, []),  # within the margin
        ({"fall": 33.0}, ["33 dB from the k-space centre outward, in training by 10 to 30"]),
        ({"fall": 5.0}, ["signal falls by 5 dB"]),
        ({"gap": 0.3}, ["a radius of 30% of the matrix"]),
        ({"peak": 5.0, "filled": 0.01}, ["5.0 times", "fills 1%"]),
        ({"moved": 0.5}, ["moves the image by 50.0%"]),
        ({"further": 0.5, "contraction": 1.2}, ["move the image by 50.0%", "leave 1.20 times"]),
        ({"gap": -1.0, "peak": 0.1, "moved": -1.0}, []),  # less of these is no trouble
        ({"unknown": 3.0}, []),
    ],
)
def test_what_lies_outside_is_said(found, words):
    said = unlike(found, RANGES)
    assert len(said) == len(words)
    for one, word in zip(said, words, strict=True):
        assert word in one


def problem(batch=2):
    torch.manual_seed(0)
    mask = torch.rand(batch, 16, 16) < 0.5
    mps = torch.randn(batch, 2, 16, 16, dtype=torch.complex64) / 3
    target = torch.randn(batch, 16, 16, dtype=torch.complex64)
    return Case(Encoding(mask, mps).forward(target), mask, mps, target)


@pytest.mark.parametrize(
    "config",
    [
        NetworkConfig(layers=3, filters=4),
        NetworkConfig(layers=1, filters=4, start=2, consistency=2, adaptive=True, floor=True),
        ADMMConfig(layers=2),
    ],
)
def test_moved_is_the_last_layers_step(config):
    torch.manual_seed(1)
    network = build(config).eval()
    case = problem()
    encoding = case.encoding()
    adjoint = encoding.adjoint(case.kspace)
    with torch.enable_grad():  # keeps every layer's image
        images, _ = network.forward_for_training(adjoint.requires_grad_(), encoding.normal, frozenset())
    with torch.inference_mode():
        image, moved = network.reconstruct(adjoint, encoding.normal)
        assert torch.equal(image, network(adjoint, encoding.normal))
    for index in range(2):
        before, last = (i[index].detach().numpy() for i in images[-2:])
        wanted = np.linalg.norm(last - before) / np.linalg.norm(last)
        assert float(moved[index]) == pytest.approx(wanted, rel=1e-4)


def test_ranges_span_the_cases():
    case = problem(3)
    encoding = case.encoding()
    network = build(NetworkConfig(layers=2, filters=4)).eval()
    ranges = ranges_of(network, [case], torch.device("cpu"))
    assert set(ranges) == set(WORDS) - {"alias"}  # which several coils have none of
    adjoint = encoding.adjoint(case.kspace)
    moved = network.reconstruct(adjoint, encoding.normal)[1].detach()
    assert ranges["moved"] == pytest.approx((float(moved.min()), float(moved.max())), abs=1e-4)
    assert unlike({"moved": float(moved.max())}, ranges) == []
