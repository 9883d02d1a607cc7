"""The contraction figures of a network's last layer."""

import copy

import pytest
import torch
from small_networks import measurement, shaken, shipped_config

from mri_qpan.encoding import Encoding
from mri_qpan.models import load_model
from mri_qpan.networks import NetworkConfig, ProximalNetwork
from mri_qpan.networks.contraction import contraction


def problem():
    samples, maps, mask = measurement()
    encoding = Encoding(mask, maps)
    return encoding.adjoint(samples), encoding.normal


def test_a_linear_layer_has_no_masks_to_change():
    """A gradient step x - rho (A x - b): each direction shrinks by 1 - rho times its eigenvalue."""
    torch.manual_seed(0)
    diagonal, b = torch.rand(2, 30), torch.randn(2, 30)
    before, image = torch.randn(2, 30), torch.randn(2, 30)
    found = contraction(lambda x: x - 0.7 * (diagonal * x - b), before, image)
    step = before - image
    wanted = ((1 - 0.7 * diagonal) * step).norm(dim=1) / step.norm(dim=1)
    torch.testing.assert_close(found.eta1, wanted, rtol=2e-3, atol=0)
    assert found.eta2.max() < 2e-3
    further = 0.7 * (diagonal * image - b).norm(dim=1) / image.norm(dim=1)
    torch.testing.assert_close(found.epsilon, further)


def test_a_rectifier_s_kink_counts_for_eta2():
    image, before = torch.tensor([[1.0, 1.0]]), torch.tensor([[-1.0, 2.0]])
    found = contraction(lambda x: 0.5 * x.relu(), before, image)
    # Of the step (-2, 1) the linear map leaves (-1, 0.5); the rectifier stops the first at -0.5.
    assert float(found.eta1) == pytest.approx(0.5, rel=1e-3)
    assert float(found.eta2) == pytest.approx(0.5 / 5**0.5, rel=1e-3)
    assert float(found.epsilon) == pytest.approx(0.5)


def test_an_image_that_rests_has_figures_of_0():
    image = torch.ones(1, 4)
    found = contraction(lambda x: x, image, image)
    assert found.epsilon == found.eta1 == found.eta2 == 0
    assert not contraction(lambda x: x, torch.zeros(1, 4), torch.zeros(1, 4)).epsilon.isnan()


@pytest.mark.parametrize(
    "config",
    [
        NetworkConfig(layers=3, filters=4),
        NetworkConfig(layer="pan", layers=2, filters=4),
        shipped_config(bits=None),
        shipped_config(bits=2),
    ],
    ids=["pan+", "pan", "carried features", "2 bit"],
)
def test_epsilon_is_the_step_of_a_layer_more(config):
    """Against a network with its last layer twice."""
    network = shaken(config).eval()
    longer = copy.deepcopy(network)
    longer.layers.append(copy.deepcopy(network.layers[-1]))
    adjoint, normal = problem()
    found = network.contraction(adjoint, normal)
    # The noise floor is no step of the iteration: both networks lift their last image alone.
    longer.config = network.config = type(config)(**{**vars(config), "floor": False})
    apart = longer.reconstruct(adjoint, normal)[0] - network(adjoint, normal)
    wanted = apart.flatten(1).norm(dim=1) / network(adjoint, normal).flatten(1).norm(dim=1)
    torch.testing.assert_close(found.epsilon, wanted, rtol=1e-3, atol=1e-6)


def test_the_bound_holds():
    """Eq. 13: what the layer leaves of its last step is at most the sum of the three."""
    network = shaken(NetworkConfig(layers=3, filters=4)).eval()
    adjoint, normal = problem()
    found = network.contraction(adjoint, normal)
    with torch.enable_grad():  # keeps every layer's image
        images, _ = network.forward_for_training(adjoint, normal, frozenset())
    before, image = (x.detach().flatten(1) for x in images[-2:])
    # Without carried features the layer takes `before` to `image` itself: nothing is left, and |g(x) - x| is
    # what the two parts together undo.
    step = (before - image).norm(dim=1)
    assert (found.epsilon * image.norm(dim=1) <= (found.eta1 + found.eta2) * step * 1.001).all()


@pytest.mark.parametrize("engine", ["float32", "bfloat16", "auto"])
def test_every_engine_has_the_same_figures(engine):
    network = load_model("qpan+-3bit", engine=engine)
    assert isinstance(network, ProximalNetwork)
    samples, maps, mask = measurement(1, 2, (64, 64))
    encoding = Encoding(mask, maps)
    found = network.contraction(encoding.adjoint(samples), encoding.normal)
    plain = load_model("qpan+-3bit", engine="float32").contraction(encoding.adjoint(samples), encoding.normal)
    for name in ("epsilon", "eta1", "eta2"):
        torch.testing.assert_close(getattr(found, name), getattr(plain, name), rtol=1e-4, atol=1e-5)
