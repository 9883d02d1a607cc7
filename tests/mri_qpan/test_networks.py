import numpy as np
import pytest
import torch
from small_networks import problem

from mri_qpan import quantize
from mri_qpan.encoding import Encoding, RealEncoding, from_linop
from mri_qpan.networks import SYSTEMS, NetworkConfig, ProximalNetwork, config_from_dict, named_config
from mri_qpan.networks.consistency import DAMPING, conditioning, conjugate_gradient, data_consistency
from mri_qpan.networks.convolution import Convolution
from mri_qpan.sampling_masks import spokes

SMALL = {"layers": 2, "filters": 4}


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("bits", [None, 1, 2, 3, 4])
def test_every_system_runs_and_trains(system, channels, bits):
    network = ProximalNetwork(named_config(system, **SMALL, channels=channels, bits=bits))
    adjoint, normal = problem(channels, batch=2)
    images, constraint = network.forward_for_training(adjoint, normal, frozenset({0, 1}))
    assert len(images) == 3
    image = images[-1]
    assert image.shape == adjoint.shape
    assert image.dtype == adjoint.dtype
    assert float(constraint.detach()) > 0
    (image.abs().square().mean() + constraint).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert bool(torch.isfinite(parameter.grad).all()), name


def test_ista_net_plus_is_pan_plus_with_soft_thresholds_alone():
    config = named_config("ista-net+", **SMALL)
    assert config.penalties == ("l1",)
    names = [name for name, _ in ProximalNetwork(config).named_parameters()]
    assert not any("gamma" in name or "raw_a" in name for name in names)


def test_parameters_stay_in_their_bounds_whatever_training_does():
    network = ProximalNetwork(NetworkConfig(**SMALL))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "raw" in name:
                parameter.fill_(-30.0)
    lam, gamma, a = network.layers[0].thresholds()
    assert bool((lam > 0).all())
    assert float(gamma.detach()) >= 1
    assert float(a.detach()) >= 2
    assert float(network.layers[0].step().detach()) > 0


def test_start_values_are_those_of_the_configuration():
    network = ProximalNetwork(NetworkConfig(**SMALL, threshold=0.02, gamma=1.5, a=2.7, step=0.5))
    lam, gamma, a = (t.detach() for t in network.layers[1].thresholds())
    assert torch.allclose(lam, torch.full((3,), 0.02))
    assert float(gamma) == pytest.approx(1.5)
    assert float(a) == pytest.approx(2.7)
    assert float(network.layers[1].step().detach()) == pytest.approx(0.5)


def test_each_penalty_has_a_start_of_its_own():
    network = ProximalNetwork(NetworkConfig(**SMALL, threshold=(0.01, 0.5, 0.4)))
    torch.testing.assert_close(network.layers[0].thresholds()[0].detach(), torch.tensor([0.01, 0.5, 0.4]))


def test_learned_shares_start_equal_and_are_learned():
    adjoint, normal = problem()
    torch.manual_seed(0)
    equal = ProximalNetwork(NetworkConfig(**SMALL))
    learned = ProximalNetwork(NetworkConfig(**SMALL, shares="learned"))
    learned.load_state_dict(equal.state_dict(), strict=False)
    torch.testing.assert_close(learned(adjoint, normal), equal(adjoint, normal))
    images, _ = learned.forward_for_training(adjoint, normal, frozenset())
    images[-1].abs().sum().backward()
    gradients = torch.stack([layer.raw_shares.grad for layer in learned.layers])
    assert gradients.abs().min() > 0
    torch.testing.assert_close(
        torch.stack([layer.shares() for layer in learned.layers]).sum(1), torch.ones(2)
    )


def test_the_image_scales_with_the_data():
    network = ProximalNetwork(NetworkConfig(**SMALL))
    adjoint, normal = problem()
    with torch.no_grad():
        small, large = network(adjoint, normal), network(1e4 * adjoint, normal)
    assert torch.allclose(large, 1e4 * small, rtol=1e-3, atol=1.0)


def test_batches_are_worked_independently():
    network = ProximalNetwork(NetworkConfig(**SMALL))
    torch.manual_seed(1)
    mask = torch.rand(3, 12, 10) < 0.5
    kspace = torch.randn(3, 1, 12, 10, dtype=torch.complex64)
    whole = Encoding(mask)
    with torch.no_grad():
        together = network(whole.adjoint(kspace), whole.normal)
        for index in range(3):
            one = Encoding(mask[index : index + 1])
            alone = network(one.adjoint(kspace[index : index + 1]), one.normal)
            assert torch.allclose(together[index], alone[0], atol=1e-5)


def test_volumes_are_worked_slice_by_slice():
    network = ProximalNetwork(NetworkConfig(**SMALL))
    mask = torch.rand(1, 3, 8, 6) < 0.6
    encoding = Encoding(mask)
    kspace = torch.randn(1, 1, 3, 8, 6, dtype=torch.complex64)
    with torch.no_grad():
        volume = network(encoding.adjoint(kspace), encoding.normal)
    assert volume.shape == (1, 3, 8, 6)


def test_one_coil_starts_from_the_zero_filled_image():
    encoding = Encoding(torch.rand(2, 12, 10) < 0.5)
    adjoint = encoding.adjoint(torch.randn(2, 1, 12, 10, dtype=torch.complex64))
    assert torch.allclose(conjugate_gradient(adjoint, encoding.normal, 5), adjoint, rtol=2e-3, atol=1e-3)


def test_conjugate_gradients_solve_what_sigpy_solves():
    import sigpy as sp

    torch.manual_seed(3)
    mask = torch.rand(2, 12, 10) < 0.6
    mps = torch.randn(2, 4, 12, 10, dtype=torch.complex64)
    encoding = Encoding(mask, mps / mps.abs().square().sum(1, keepdim=True).sqrt())
    kspace = torch.randn(2, 4, 12, 10, dtype=torch.complex64)
    kspace[1] = 0  # an entry that is solved from the start must not turn into NaN
    adjoint = encoding.adjoint(kspace)
    image = conjugate_gradient(adjoint, encoding.normal, 60)
    x = np.zeros((12, 10), np.complex64)

    def system(x):
        pair = torch.from_numpy(x).expand(2, -1, -1)
        return (encoding.normal(pair)[0] + DAMPING * torch.from_numpy(x)).numpy()

    solver = sp.alg.ConjugateGradient(system, adjoint[0].numpy(), x, max_iter=60, tol=0)
    while not solver.done():
        solver.update()
    assert torch.allclose(image[0], torch.from_numpy(x), atol=2e-3)
    assert float(image[1].abs().max()) == 0


def dense(normal, shape):
    """Return A^H A as a matrix."""
    basis = torch.eye(shape[0] * shape[1], dtype=torch.complex64).reshape(-1, *shape)
    return torch.stack([normal(image[None])[0].flatten() for image in basis], dim=1)


def consistent(z, adjoint, normal, mu, iterations=60):
    return data_consistency(z, adjoint - normal(z), adjoint, normal, mu, iterations)


def test_data_consistency_solves_its_equation():
    adjoint, normal = problem()
    z = torch.randn_like(adjoint)
    mu = torch.tensor(0.1)
    system = dense(normal, z.shape[1:]) + mu * torch.eye(z[0].numel())
    expected = torch.linalg.solve(system, (adjoint + mu * z).flatten()).reshape(z.shape)
    assert torch.allclose(consistent(z, adjoint, normal, mu), expected, atol=1e-4)


def test_data_consistency_passes_gradients_to_image_and_trust():
    adjoint, normal = problem()
    z = torch.randn_like(adjoint).requires_grad_()
    mu = torch.tensor(0.1, requires_grad=True)
    probe = torch.randn_like(adjoint)
    (consistent(z, adjoint, normal, mu).conj() * probe).real.sum().backward()
    system = dense(normal, z.shape[1:]) + 0.1 * torch.eye(z[0].numel())
    expected = 0.1 * torch.linalg.solve(system, probe.flatten()).reshape(z.shape)
    assert torch.allclose(z.grad, expected, atol=1e-4)
    with torch.no_grad():
        high, low = (consistent(z, adjoint, normal, mu + d) for d in (1e-2, -1e-2))
        slope = ((high - low).conj() * probe).real.sum() / 2e-2
    assert float(mu.grad) == pytest.approx(float(slope), rel=0.05)


def test_one_coil_needs_one_step_of_data_consistency():
    encoding = Encoding(torch.rand(2, 12, 10) < 0.5)
    kspace = torch.randn(2, 1, 12, 10, dtype=torch.complex64) * encoding.mask[:, None]
    z = torch.randn(2, 12, 10, dtype=torch.complex64)
    x = consistent(z, encoding.adjoint(kspace), encoding.normal, torch.tensor(1e-6), 1)
    assert torch.allclose(encoding.forward(x), kspace, atol=1e-4)
    unseen = Encoding(~encoding.mask)
    assert torch.allclose(unseen.forward(x), unseen.forward(z), atol=1e-4)


def test_data_consistency_of_a_solved_image_stays_finite():
    encoding = Encoding(torch.ones(1, 12, 10, dtype=torch.bool))
    z = torch.randn(1, 12, 10, dtype=torch.complex64).requires_grad_()
    adjoint = encoding.adjoint(encoding.forward(z.detach()))
    x = consistent(z, adjoint, encoding.normal, torch.tensor(0.1), 3)
    x.abs().sum().backward()
    assert torch.allclose(x.detach(), z.detach(), atol=1e-5)
    assert bool(torch.isfinite(torch.view_as_real(z.grad)).all())


def test_a_network_with_conjugate_gradients_ends_at_the_data():
    torch.manual_seed(0)
    network = ProximalNetwork(NetworkConfig(**SMALL, consistency=2, step=1e-5))
    encoding = Encoding(torch.rand(1, 12, 10) < 0.5)
    kspace = torch.randn(1, 1, 12, 10, dtype=torch.complex64) * encoding.mask[:, None]
    with torch.no_grad():
        image = network(encoding.adjoint(kspace), encoding.normal)
    assert torch.allclose(encoding.forward(image), kspace, atol=1e-3)


def test_carried_features_enter_through_the_gate_alone():
    config = NetworkConfig(**SMALL, carry=True)
    network = ProximalNetwork(config)
    plain = ProximalNetwork(NetworkConfig(**SMALL))
    plain.load_state_dict({k: v for k, v in network.state_dict().items() if "carry" not in k})
    adjoint, normal = problem()
    with torch.no_grad():
        assert torch.allclose(network(adjoint, normal), plain(adjoint, normal), atol=1e-6)
        network.layers[0].carry.fill_(1.0)  # nothing comes before the first layer
        assert torch.allclose(network(adjoint, normal), plain(adjoint, normal), atol=1e-6)
        network.layers[1].carry.fill_(1.0)
        assert not torch.allclose(network(adjoint, normal), plain(adjoint, normal), atol=1e-3)


def test_adaptive_thresholds_are_those_of_the_layer_times_the_gain():
    """Of a batch of a clean and a noisy measurement each gets its own, as alone."""
    torch.manual_seed(0)
    network = ProximalNetwork(
        NetworkConfig(**{**SMALL, "layers": 3}, consistency=2, step=0.1, carry=True, adaptive=True)
    )
    for layer in network.layers:
        torch.nn.init.normal_(layer.carry)
        layer.powers.data = torch.tensor([0.7, 0.4, 0.3])
    mask = torch.rand(2, 16, 12) < 0.5
    encoding = Encoding(mask)
    kspace = encoding.forward(torch.ones(2, 16, 12, dtype=torch.complex64))
    kspace[1] += 0.3 * mask[1] * torch.randn(1, 16, 12, dtype=torch.complex64)
    adjoint = encoding.adjoint(kspace)
    with torch.no_grad():
        together = network(adjoint, encoding.normal)
        for index in range(2):
            one = Encoding(mask[index : index + 1])
            alone = network(adjoint[index : index + 1], one.normal)
            assert torch.allclose(together[index], alone[0], atol=1e-4)
        layer = network.layers[1]
        apart = torch.tensor([-1.0])
        r = torch.randn(1, 2, 9, 7)
        gain = layer.gain(apart)
        scaled = gain * network._work(layer, r / gain, None, False, False)[0]
        thresholds = layer.thresholds()
        layer.thresholds = lambda: (thresholds[0] * gain, *thresholds[1:])
        assert torch.allclose(network._work(layer, r, None, False, False)[0], scaled, atol=1e-5)


def test_adaptive_networks_start_as_plain_ones():
    config = {**SMALL, "consistency": 2, "step": 0.1, "carry": True}
    adaptive = ProximalNetwork(NetworkConfig(**config, adaptive=True))
    plain = ProximalNetwork(NetworkConfig(**config))
    plain.load_state_dict({k: v for k, v in adaptive.state_dict().items() if "powers" not in k})
    adjoint, normal = problem(batch=2)
    with torch.no_grad():
        assert torch.allclose(adaptive(adjoint, normal), plain(adjoint, normal), atol=1e-5)
    images, _ = adaptive.forward_for_training(adjoint, normal, frozenset())
    images[-1].abs().square().sum().backward()
    assert float(adaptive.layers[1].powers.grad.abs().min()) > 0


@pytest.mark.parametrize("mu", [0.05, 0.7])
def test_the_gradient_by_mu_is_that_of_the_solution_with_one_coil(mu):
    encoding = Encoding(torch.rand(1, 12, 10, generator=torch.Generator().manual_seed(0)) < 0.5)
    adjoint = encoding.adjoint(torch.randn(1, 1, 12, 10, dtype=torch.complex64))
    z = torch.randn(1, 12, 10, dtype=torch.complex64)
    trust = torch.tensor(mu, requires_grad=True)
    consistent(z, adjoint, encoding.normal, trust, 3).abs().square().sum().backward()
    step = 1e-2
    above, below = (
        consistent(z, adjoint, encoding.normal, torch.tensor(mu + s), 3).abs().square().sum()
        for s in (step, -step)
    )
    assert float(trust.grad) == pytest.approx(float(above - below) / (2 * step), rel=0.02)


def test_conditioning_is_0_for_a_projection_and_below_where_coils_unfold():
    draw = torch.Generator().manual_seed(0)
    mask = torch.zeros(2, 16, 12, dtype=torch.bool)
    mask[:, ::4] = True
    for mps, expected in (
        (None, True),
        (torch.randn(2, 3, 16, 12, generator=draw, dtype=torch.complex64), False),
    ):
        if mps is not None:
            mps = mps / mps.abs().square().sum(1, keepdim=True).sqrt()
        encoding = Encoding(mask, mps)
        samples = torch.randn(2, 1 if mps is None else 3, 16, 12, generator=draw, dtype=torch.complex64)
        residual = encoding.adjoint(samples)
        found = conditioning(residual, encoding.normal(residual))
        assert found.shape == (2,)
        assert bool((found.abs() < 1e-4).all() if expected else (found < -0.05).all())
    assert conditioning(torch.zeros(1, 4, 4), torch.zeros(1, 4, 4)).tolist() == [0.0]


def test_any_sigpy_linop_feeds_a_network():
    import sigpy as sp

    shape = (12, 10)
    rng = np.random.default_rng(0)
    mask = rng.random(shape) < 0.5
    A = sp.linop.Multiply(shape, mask) * sp.linop.FFT(shape)
    adjoint, normal = from_linop(A)
    kspace = (A * (rng.standard_normal(shape) + 0j)).astype(np.complex64)
    network = ProximalNetwork(NetworkConfig(**SMALL))
    ours = Encoding(torch.from_numpy(mask)[None])
    with torch.no_grad():
        image = network(adjoint(kspace), normal)
        expected = network(ours.adjoint(torch.from_numpy(kspace)[None, None]), ours.normal)
    assert torch.allclose(image, expected, atol=1e-4)


@pytest.mark.parametrize("symmetric", [True, False])
def test_an_exact_network_ends_with_the_measured_samples(symmetric):
    torch.manual_seed(3)
    mask = torch.rand(2, 12, 10) < 0.4
    if symmetric:  # A^H A of real images is a projection
        mask = torch.from_numpy(spokes((12, 10), 5))[None].repeat(2, 1, 1)
    encoding = RealEncoding(mask)
    truth = torch.rand(2, 12, 10)
    adjoint = encoding.adjoint(encoding.forward(truth))
    plain = ProximalNetwork(NetworkConfig(**SMALL, channels=1))
    exact = ProximalNetwork(NetworkConfig(**SMALL, channels=1, exact=True))
    exact.load_state_dict(plain.state_dict())
    with torch.no_grad():
        before, after = plain(adjoint, encoding.normal), exact(adjoint, encoding.normal)
        assert torch.allclose(after, before - (encoding.normal(before) - adjoint), atol=1e-6)
        assert torch.allclose(encoding.normal(after), adjoint, atol=1e-5) == symmetric
    assert ((after - truth).square().sum((1, 2)) < (before - truth).square().sum((1, 2))).all()


def test_an_exact_network_is_for_clean_data_of_one_coil_and_older_files_have_none():
    with pytest.raises(ValueError, match="exact"):
        NetworkConfig(exact=True)
    older = NetworkConfig(channels=1).to_dict()
    del older["exact"]
    assert config_from_dict(older) == NetworkConfig(channels=1)


def test_a_real_network_refuses_complex_images_and_the_other_way_round():
    adjoint, normal = problem(2)
    with pytest.raises(ValueError, match="real"):
        ProximalNetwork(NetworkConfig(**SMALL, channels=1))(adjoint, normal)
    adjoint, normal = problem(1)
    with pytest.raises(ValueError, match="complex"):
        ProximalNetwork(NetworkConfig(**SMALL))(adjoint, normal)


def test_bfloat16_stays_near_float32():
    torch.manual_seed(2)
    exact = ProximalNetwork(NetworkConfig(layers=3, filters=8))
    rounded = ProximalNetwork(NetworkConfig(layers=3, filters=8), torch.bfloat16)
    rounded.load_state_dict(exact.state_dict())
    adjoint, normal = problem()
    with torch.no_grad():
        a, b = exact(adjoint, normal), rounded(adjoint, normal)
    assert float((a - b).norm() / a.norm()) < 0.02


def test_quantizer_scale_follows_the_weight_with_momentum():
    convolution = Convolution(4, 4, bits=3)
    before = convolution.scale.clone()
    with torch.no_grad():
        convolution.weight.mul_(2)
    convolution.follow()
    integers = quantize.levels(convolution.weight.detach(), before, 3)
    fitted = quantize.fit_scale(convolution.weight.detach(), integers, "filter")
    torch.testing.assert_close(convolution.scale, 0.9 * before + 0.1 * fitted)
    convolution.refit()
    assert torch.allclose(convolution.scale, 2 * before, rtol=1e-4)


@pytest.mark.parametrize(
    "change",
    [
        {"layer": "unet"},
        {"penalties": ()},
        {"penalties": ("l1", "l1")},
        {"layers": 0},
        {"filters": 2.5},
        {"channels": 3},
        {"bits": 9},
        {"scale_per": "row"},
        {"threshold": 0.0},
        {"threshold": (0.1, 0.2)},
        {"shares": "some"},
        {"estimator": "sign"},
        {"gamma": 1.0},
        {"a": 2.0},
        {"consistency": -1},
        {"adaptive": True},
        {"carry": True, "layer": "pan"},
    ],
)
def test_impossible_configurations_are_named(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        NetworkConfig(**change)


def test_configuration_round_trip_and_unknown_fields():
    config = named_config("pan", bits=2)
    assert config_from_dict(config.to_dict()) == config
    several = named_config("pan+", threshold=[0.1, 0.2, 0.3], shares="learned")
    assert config_from_dict(several.to_dict()) == several
    with pytest.raises(ValueError, match="colour"):
        config_from_dict({**config.to_dict(), "colour": 1})
    with pytest.raises(ValueError, match="unknown network"):
        named_config("unet")
