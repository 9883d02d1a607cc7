"""Single layers, against the method's equations and what training starts from."""

from functools import partial

import numpy as np
import pytest
import torch
from small_networks import problem

from mri_qpan.engines import convolutions
from mri_qpan.networks import NetworkConfig, ProximalNetwork
from mri_qpan.networks.pan import proximal_step
from mri_qpan.penalties import proximal_average


def by_hand(layer, adjoint, normal):
    """A layer's r, its convolutions by name and its proximal average, by PyTorch's own operators."""
    w = {name: conv().detach() for name, conv in layer.convolutions.items()}
    lam, gamma, a = (t.detach() for t in layer.thresholds())
    r = (adjoint - layer.step().detach() * (normal(adjoint) - adjoint)).unsqueeze(1)
    return (
        r,
        lambda x, name: torch.nn.functional.conv2d(x, w[name], padding=1),
        lambda features: proximal_average(features, list(lam), gamma, a),
    )


def test_a_pan_plus_layer_is_equation_11():
    """One layer computed by hand from the method's text."""
    network = ProximalNetwork(NetworkConfig(layers=1, filters=4, channels=1))
    adjoint, normal = problem(1)
    r, conv, average = by_hand(network.layers[0], adjoint, normal)
    features = conv(conv(conv(r, "D"), "H1").relu(), "H2")
    shrunk = average(features)
    expected = r + conv(conv(conv(shrunk, "T1").relu(), "T2"), "G")
    assert torch.allclose(network(adjoint, normal), expected.squeeze(1), atol=1e-5)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_pan_layer_is_equation_8(compiled):
    """One layer computed by hand; 32 filters go through the kernels, in training and without gradients."""
    network = ProximalNetwork(NetworkConfig(layer="pan", layers=1, filters=32, channels=1))
    for parameter in network.parameters():
        if parameter.ndim == 4:
            torch.nn.init.normal_(parameter, std=0.2)
    adjoint, normal = problem(1)
    r, conv, average = by_hand(network.layers[0], adjoint, normal)
    shrunk = average(conv(conv(r, "H1").relu(), "H2"))
    expected = conv(conv(shrunk, "T1").relu(), "T2").squeeze(1)
    if compiled:
        network._proximal_step = partial(proximal_step, convolve=convolutions.convolve)
    assert torch.allclose(network(adjoint, normal), expected, atol=1e-4)
    with torch.no_grad():
        assert torch.allclose(network(adjoint, normal), expected, atol=1e-4)


@pytest.mark.parametrize("layer", ["pan", "pan+"])
@pytest.mark.parametrize("channels", [1, 2])
def test_layers_start_near_the_identity(layer, channels):
    image = problem(channels, shape=(32, 32))[0]
    image = image / image.abs().max()
    steps = []
    for seed in range(9):
        torch.manual_seed(seed)
        network = ProximalNetwork(NetworkConfig(layer=layer, channels=channels, layers=1))
        steps.append(float((network.proximal_step(0, image) - image).norm() / image.norm()))
    assert 0.05 < np.median(steps) < 0.4


def test_penalties_stay_what_they_are_at_extremes():
    layer = ProximalNetwork(NetworkConfig(layers=1, filters=2)).layers[0]
    for name in ("raw_gamma", "raw_a"):
        getattr(layer, name).data.fill_(-50)
    _, gamma, a = layer.thresholds()
    assert gamma > 1
    assert a > 2
    assert proximal_average(torch.linspace(-3, 3, 101), *layer.thresholds()).isfinite().all()
