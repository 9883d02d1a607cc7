import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mri_qpan import models
from mri_qpan.encoding import Encoding, RealEncoding
from mri_qpan.models import card, store
from mri_qpan.networks import ADMMConfig, ADMMNetwork, config_from_dict, named_config
from mri_qpan.networks.admm import PiecewiseLinear, _Interpolation, _transfer

KINDS = ("admm-net", "admm-csnet")
SMALL = {"layers": 3, "filters": 8, "points": 21}
CARD = {"data": [], "training": {}, "figures": {}, "licence": "none"}


def measured(channels, shape=(24, 20), batch=2):
    draw = torch.Generator().manual_seed(0)
    mask = torch.rand(batch, *shape, generator=draw) < 0.5
    mask[:, shape[0] // 2, shape[1] // 2] = True  # the mean, which no filter hears
    encoding = RealEncoding(mask) if channels == 1 else Encoding(mask)
    image = torch.rand(batch, *shape, generator=draw)
    image = image if channels == 1 else image.to(torch.complex64)
    return encoding, encoding.adjoint(encoding.forward(image))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 2])
def test_shapes_types_and_gradients(kind, channels):
    encoding, adjoint = measured(channels)
    network = ADMMNetwork(named_config(kind, **SMALL, channels=channels))
    images, constraint = network.forward_for_training(adjoint, encoding.normal, frozenset())
    assert len(images) == SMALL["layers"] + 2  # the start, a stage's each, and the last reconstruction
    assert all(image.shape == adjoint.shape and image.dtype == adjoint.dtype for image in images)
    assert float(constraint) == 0
    images[-1].abs().square().sum().backward()
    for name, parameter in network.named_parameters():
        if kind == "admm-csnet" and name == "layers.0.raw_rho":
            continue  # with one coil the first reconstruction is its start, whatever rho
        assert parameter.grad is not None, name
        assert bool(torch.isfinite(parameter.grad).all()), name
    with torch.no_grad():
        torch.testing.assert_close(network(adjoint, encoding.normal), images[-1].detach())


def test_the_nonlinearity_starts_as_soft_thresholding_and_follows_its_points():
    function = PiecewiseLinear(3, 101, 0.1)  # 0.1 is a control point, so the start is exact
    x = torch.linspace(-2.5, 2.5, 3 * 7 * 5).reshape(1, 3, 7, 5)
    torch.testing.assert_close(function(x), F.softshrink(x, 0.1), atol=1e-6, rtol=0)
    with torch.no_grad():
        function.values.normal_()
    at = np.linspace(-1, 1, 101)
    inside = torch.linspace(-1, 1, 3 * 50).reshape(1, 3, 10, 5)
    for index in range(3):
        right = np.interp(inside[0, index].numpy(), at, function.values[index].detach().numpy())
        assert function(inside)[0, index].detach().numpy() == pytest.approx(right, abs=1e-4)
    beyond = function(torch.full((1, 3, 1, 1), 3.0)).flatten()
    torch.testing.assert_close(beyond, function.values[:, -1] + 2)


@pytest.mark.parametrize("channels", [1, 2])
def test_a_reconstruction_solves_its_system(channels):
    """Against a dense solve of (A^H A + sum rho H^T H) x = A^H y + sum rho H^T w."""
    encoding, adjoint = measured(channels, shape=(6, 5), batch=1)
    network = ADMMNetwork(named_config("admm-net", **SMALL, channels=channels, solve=60)).requires_grad_(
        False
    )
    stage = network.layers[0]
    wanted = torch.randn(channels, 8, 6, 5)
    transfer = _transfer(adjoint, encoding.normal)
    assert transfer is not None
    found = [
        network._reconstruct(stage, adjoint, wanted, adjoint, encoding.normal, t) for t in (transfer, None)
    ]
    rho = stage.rho().reshape(-1, 1, 1)

    def real(image):
        return torch.view_as_real(image).flatten() if image.is_complex() else image.flatten()

    def system(vector):
        image = vector.reshape(*adjoint.shape, 2) if channels == 2 else vector.reshape(adjoint.shape)
        image = torch.view_as_complex(image.contiguous()) if channels == 2 else image
        return real(
            encoding.normal(image) + network._back(rho * network._filter(image, stage.H), stage.H, image)
        )

    size = real(adjoint).numel()
    matrix = torch.stack([system(column) for column in torch.eye(size)], dim=1)
    torch.testing.assert_close(matrix, matrix.T, atol=1e-5, rtol=0)
    right = real(adjoint + network._back(rho * wanted, stage.H, adjoint))
    expected = torch.linalg.solve(matrix.double(), right.double()).float()
    torch.testing.assert_close(real(found[0]), expected, atol=1e-4, rtol=1e-4)  # by division
    torch.testing.assert_close(real(found[1]), expected, atol=1e-3, rtol=1e-3)  # by conjugate gradients


@pytest.mark.parametrize("channels", [1, 2])
def test_only_one_coil_passes_for_a_convolution(channels):
    encoding, adjoint = measured(channels)
    transfer = _transfer(adjoint, encoding.normal)
    assert transfer is not None
    image = torch.randn_like(adjoint)
    convolved = torch.fft.ifft2(torch.fft.fft2(image) * transfer)
    found = encoding.normal(image)
    torch.testing.assert_close(found, convolved if channels == 2 else convolved.real)
    maps = torch.rand(1, 2, *adjoint.shape[-2:]).to(torch.complex64)
    coils = Encoding(torch.rand(1, 24, 20) < 0.5, maps)
    assert _transfer(adjoint[:1].to(torch.complex64), coils.normal) is None


def test_what_couples_slices_or_sets_of_maps_passes_for_no_convolution():
    volume = Encoding(torch.rand(1, 6, 12, 10) < 0.5)
    assert _transfer(torch.zeros(1, 6, 12, 10, dtype=torch.complex64), volume.normal) is None
    sets = Encoding(torch.rand(1, 12, 10) < 0.5, torch.full((1, 2, 1, 12, 10), 0.7, dtype=torch.complex64))
    assert _transfer(torch.zeros(1, 2, 12, 10, dtype=torch.complex64), sets.normal) is None
    slices = Encoding(torch.rand(3, 12, 10) < 0.5)
    assert _transfer(torch.zeros(3, 12, 10, dtype=torch.complex64), slices.normal) is not None


def test_gradients_reach_the_operator_that_divides():
    network = ADMMNetwork(named_config("admm-net", **SMALL)).double().requires_grad_(False)
    draw = torch.Generator().manual_seed(0)
    adjoint = torch.randn(1, 8, 6, dtype=torch.complex128, generator=draw)
    share = torch.rand(1, 8, 6, dtype=torch.float64, generator=draw).add(0.2).requires_grad_()

    def power(share):
        return network(adjoint, lambda x: torch.fft.ifft2(share * torch.fft.fft2(x))).abs().square().sum()

    power(share).backward()
    for _ in range(3):
        way = torch.randn(share.shape, dtype=torch.float64, generator=draw)
        with torch.no_grad():
            slope = (power(share + 1e-6 * way) - power(share - 1e-6 * way)) / 2e-6
        assert float((share.grad * way).sum()) == pytest.approx(float(slope), rel=1e-4)


def test_an_exported_program_holds_it():
    encoding, adjoint = measured(2, shape=(12, 10), batch=1)
    network = ADMMNetwork(named_config("admm-net", **SMALL, solve=40)).requires_grad_(False)

    class Whole(torch.nn.Module):
        def forward(self, adjoint, weights):
            return network(adjoint, lambda x: torch.fft.ifft2(weights * torch.fft.fft2(x)))

    weights = torch.fft.ifftshift(encoding.mask.float(), dim=(-2, -1))
    program = torch.export.export(Whole(), (adjoint, weights))
    found = program.module()(adjoint, weights)
    assert float((found - network(adjoint, encoding.normal)).norm() / found.norm()) < 1e-3


def test_the_nonlinearity_has_autograds_gradients():
    function = PiecewiseLinear(3, 5, 0.1).double()
    with torch.no_grad():
        function.values.normal_()
    x = torch.linspace(-1.43, 1.5, 3 * 7 * 5, dtype=torch.float64).reshape(1, 3, 7, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, v: _Interpolation.apply(x, v), (x, function.values))


def test_filters_start_as_the_orthonormal_dct():
    filters = ADMMNetwork(named_config("admm-net", filters=10)).layers[0].D.detach().flatten(1)
    torch.testing.assert_close(filters[:8] @ filters[:8].T, torch.eye(8), atol=1e-6, rtol=0)
    assert float(filters[:8].sum(1).abs().max()) < 1e-6
    torch.testing.assert_close(filters.norm(dim=1), torch.ones(10))


@pytest.mark.parametrize("kind", KINDS)
def test_untrained_it_improves_a_piecewise_constant_image(kind):
    y, x = torch.meshgrid(torch.linspace(-1, 1, 48), torch.linspace(-1, 1, 48), indexing="ij")
    image = ((y.square() + x.square()).sqrt() < 0.7).float()[None] * 0.5 + (x.abs() < 0.2).float() * 0.4
    draw = torch.Generator().manual_seed(1)
    centre = (y.square() + x.square()).sqrt() < 0.3
    mask = ((torch.rand(48, 48, generator=draw) < 0.35) | centre)[None]
    encoding = RealEncoding(mask)
    adjoint = encoding.adjoint(encoding.forward(image))
    network = ADMMNetwork(named_config(kind, channels=1)).requires_grad_(False)
    error = (network(adjoint, encoding.normal) - image).norm()
    # ADMM with the DCT is a reconstruction already; ADMM-CSNet has its denoiser to learn.
    assert float(error) < (0.8 if kind == "admm-net" else 1.001) * float((adjoint - image).norm())


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_file_keeps_it(tmp_path, kind):
    network = ADMMNetwork(named_config(kind, **SMALL)).eval()
    path = tmp_path / "m.safetensors"
    store.save(path, network, "m", CARD)
    model = models.load_model(str(path))
    assert isinstance(model, ADMMNetwork)
    assert (model.name, model.engine, model.config) == ("m", model.engine, network.config)
    encoding, adjoint = measured(2)
    with torch.no_grad():
        torch.testing.assert_close(model(adjoint, encoding.normal), network(adjoint, encoding.normal))
    assert kind.replace("admm", "ADMM").replace("net", "Net").replace("cs", "CS") in card.describe(path)


@pytest.mark.parametrize(
    "change",
    [{"layers": 0}, {"points": 1}, {"threshold": 0.0}, {"penalty": -1.0}, {"solve": 0}, {"channels": 3}],
)
def test_an_impossible_configuration_is_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        ADMMConfig(**change)


def test_a_configuration_survives_json():
    config = named_config("admm-csnet", filters=16)
    assert config_from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match="colour"):
        config_from_dict({**config.to_dict(), "colour": 1})
