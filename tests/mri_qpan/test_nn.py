"""The reconstruction as a module of torch: gradients, batches, compilation. `test_export` exports it."""

import numpy as np
import pytest
import torch
from small_networks import measurement, shaken, shipped_config

from mri_qpan.app import QPanRecon
from mri_qpan.encoding import Encoding
from mri_qpan.models import DEFAULT
from mri_qpan.networks.consistency import data_consistency
from mri_qpan.nn import Reconstruction

SHIPPED = shipped_config()
FIRST_LAYERS = {"network.layers.0.carry"}
"""Nothing is carried into the first layer."""


def test_it_is_the_shipped_model_that_sigpys_app_runs():
    kspace, mps, mask = measurement(1, 4, (32, 24))
    kspace = kspace * mask
    found = Reconstruction()(kspace, mps, mask)
    app = QPanRecon(kspace[0].numpy(), mps[0].numpy(), mask[0].numpy(), model=DEFAULT, show_pbar=False).run()
    # The App takes the fastest engine, of 8-bit features where there is one.
    assert np.linalg.norm(found[0].numpy() - app) < 0.05 * np.linalg.norm(app)


def test_several_slices_in_one_call_are_one_by_one():
    module = Reconstruction()
    kspace, mps, mask = measurement(3, 2, (24, 20))
    kspace[1] *= 100
    together = module(kspace, mps, mask)
    for i in range(3):
        torch.testing.assert_close(
            together[i], module(kspace[[i]], mps[[i]], mask[[i]])[0], rtol=1e-4, atol=1e-4
        )
    shared = module(kspace, mps, mask[:1])
    torch.testing.assert_close(shared[0], together[0], rtol=1e-4, atol=1e-4)


def test_gradients_of_the_encoding_are_its_adjoint():
    kspace, mps, mask = measurement(1, 2, (5, 4), torch.complex128)
    encoding = Encoding(mask, mps)
    image = torch.randn(1, 5, 4, dtype=torch.complex128, requires_grad=True)
    kspace.requires_grad_()
    assert torch.autograd.gradcheck(encoding.forward, (image,))
    assert torch.autograd.gradcheck(encoding.adjoint, (kspace,))
    assert torch.autograd.gradcheck(encoding.normal, (image,))
    (gradient,) = torch.autograd.grad(encoding.forward(image), image, kspace.detach())
    torch.testing.assert_close(gradient, encoding.adjoint(kspace.detach()))


def test_gradients_of_every_operator_reach_maps_that_require_them():
    kspace, mps, mask = measurement(1, 2, (4, 3), torch.complex128)
    image = torch.randn(1, 4, 3, dtype=torch.complex128)
    mps.requires_grad_()
    for operator, x in (("forward", image), ("adjoint", kspace), ("normal", image)):
        assert torch.autograd.gradcheck(lambda m, o=operator, x=x: getattr(Encoding(mask, m), o)(x), (mps,))


def test_gradients_pass_through_data_consistency():
    """With step lengths given, as autograd sees them, it is linear in the data and in the layer's image."""
    kspace, mps, mask = measurement(1, 2, (5, 4), torch.complex128)
    encoding = Encoding(mask, mps)
    target = encoding.adjoint(kspace)
    z = torch.randn_like(target)
    mu = torch.tensor(0.3, dtype=torch.float64)

    def solve(z, target):
        return data_consistency(z, target - encoding.normal(z), target, encoding.normal, mu, 12)

    # Solved to the end it is (A^H A + mu)^-1 (A^H y + mu z), self-adjoint in the data.
    target.requires_grad_()
    cotangent = target.detach() + 0.0
    (gradient,) = torch.autograd.grad(solve(z, target), target, cotangent)
    exact = solve(torch.zeros_like(z), cotangent)
    assert abs(torch.vdot(gradient.flatten(), exact.flatten())) > 0.9 * gradient.norm() * exact.norm()


@pytest.mark.parametrize("seed", range(3))
def test_the_whole_networks_gradient_is_near_finite_differences(seed):
    """Near, not equal: scale, step lengths and what thresholds follow count as constants."""
    network = shaken(SHIPPED, torch.float64)
    module = Reconstruction(network)
    kspace, mps, mask = measurement(1, 2, (12, 10), torch.complex128)
    torch.manual_seed(seed)
    wanted = torch.randn(1, 12, 10, dtype=torch.complex128)

    def loss(kspace):
        return (module(kspace, mps, mask) - wanted).abs().square().sum()

    kspace.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(kspace), kspace)
    assert bool((gradient[~mask.unsqueeze(1).expand_as(gradient)] == 0).all())
    step = 1e-5 * gradient / gradient.norm()
    with torch.no_grad():
        slope = (loss(kspace + step) - loss(kspace - step)) / 2e-5
    assert 0.6 < float(slope / gradient.norm()) < 1.6


def test_every_weight_learns_through_data_consistency():
    module = Reconstruction(shaken(SHIPPED))
    kspace, mps, mask = measurement()
    mps.requires_grad_()
    module(kspace, mps, mask).abs().square().sum().backward()
    assert float(mps.grad.abs().max()) > 0
    for name, parameter in module.named_parameters():
        if name in FIRST_LAYERS:
            continue
        assert parameter.grad is not None, name
        assert bool(torch.isfinite(parameter.grad).all()), name
        assert float(parameter.grad.abs().max()) > 0, name


def test_it_compiles_as_one_graph_and_learns():
    module = Reconstruction(shaken(shipped_config(layers=1)))
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    problem = measurement()
    expected, found = module(*problem), compiled(*problem)
    assert float((found - expected).detach().norm() / expected.detach().norm()) < 2e-5
    gradients = []
    for image in (expected, found):
        module.zero_grad()
        image.abs().square().sum().backward()
        named = {name: p.grad for name, p in module.named_parameters() if name not in FIRST_LAYERS}
        gradients.append([gradient.clone() for gradient in named.values()])
    for theirs, ours in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-3 * float(theirs.abs().max()))


def test_what_was_not_acquired_does_not_count():
    kspace, mps, mask = measurement(1, 4, (32, 24))
    module = Reconstruction()
    wanted = module(kspace, mps, mask)
    assert torch.equal(module(torch.where(mask[:, None], kspace, float("nan")), mps, mask), wanted)
    assert torch.equal(module(kspace, mps, mask.to(torch.uint8) * 255), wanted)
    with pytest.raises(ValueError, match="1 coils and maps of 4"):
        module(kspace[:, :1], mps, mask)


def test_a_normal_operator_may_give_one_buffer_again_and_again():
    kspace, mps, mask = measurement(1, 4, (32, 24))
    encoding = Encoding(mask, mps)
    adjoint = encoding.adjoint(kspace)
    buffer = torch.empty_like(adjoint)

    def normal(image):
        return buffer.copy_(encoding.normal(image))

    network = Reconstruction().network
    with torch.no_grad():
        wanted = network(adjoint, encoding.normal)
        torch.testing.assert_close(network(adjoint, normal), wanted)
        conjugate = network(adjoint, lambda x: encoding.normal(x).conj().resolve_conj().conj())
    torch.testing.assert_close(conjugate, wanted)
    for wrong in (adjoint[0], adjoint[:0]):
        with pytest.raises(ValueError, match="images are"):
            network(wrong, encoding.normal)
