"""Networks that take the level of the image that a part is of."""

import pytest
import torch
from small_networks import problem

from mri_qpan.encoding import Encoding
from mri_qpan.models import load_model
from mri_qpan.networks import SYSTEMS, build, named_config
from mri_qpan.scaling import Level, robust_scale


def level_of(image):
    scale = float(robust_scale(image))
    return Level(scale, float((image / scale).abs().square().mean()))


@pytest.mark.parametrize("system", [*SYSTEMS, "admm-net", "admm-csnet"])
def test_a_level_is_that_of_the_image_that_a_part_is_of(system):
    config = named_config(system, layers=2, filters=8 if "admm" in system else 4, channels=2)
    network = build(config).eval()
    adjoint, normal = problem()
    with torch.no_grad():
        own = network(adjoint, normal)
        level = level_of(adjoint)
        torch.testing.assert_close(network.reconstruct(adjoint, normal, level)[0], own, rtol=1e-5, atol=1e-5)
        brighter = Level(3 * level.scale, level.power)
        dim = network.reconstruct(adjoint, normal, brighter)[0]
        assert float((dim - own).norm() / own.norm()) > 1e-3
        scaled = network.reconstruct(3 * adjoint, normal, Level(9 * level.scale, level.power))[0]
        torch.testing.assert_close(scaled, 3 * dim, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("engine", ["float32", "bfloat16", "auto"])
def test_a_part_alone_is_what_it_is_in_the_image(engine):
    """Parts that A^H A does not tie together, one of a tenth of the other's brightness, in noise."""
    network = load_model("qpan+-3bit", engine=engine)
    draw = torch.Generator().manual_seed(0)
    y, x = torch.linspace(-1, 1, 96)[:, None], torch.linspace(0, 40, 192)
    image = (1 + 0.3 * torch.sin(9 * y + x)) * (y.abs() < 0.7) * torch.where(x < 20, 1.0, 0.1)
    image = image + 0.04 * torch.randn(1, 96, 192, generator=draw, dtype=torch.complex64)
    lines = torch.rand(96, 1, generator=draw) < 0.4
    lines[40:56] = True
    whole, part = (Encoding(lines.expand(1, 96, columns)) for columns in (192, 96))
    adjoint = whole.adjoint(whole.forward(image))
    dim = adjoint[..., 96:].contiguous()
    with torch.inference_mode():
        wanted = network(adjoint, whole.normal)[..., 96:]
        found = network.reconstruct(dim, part.normal, level_of(adjoint))[0]
        rescaled = network(dim, part.normal)
    away = slice(8, 88)  # from the edges, over which layers look
    errors = [float((one - wanted)[..., away].norm() / wanted[..., away].norm()) for one in (found, rescaled)]
    assert errors[0] < 0.05 < 0.1 < errors[1]
