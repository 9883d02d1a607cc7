"""Networks of the shipped architecture, cut down so that tests are quick."""

from dataclasses import replace
from typing import Any

import torch

from mri_qpan.encoding import Encoding, Normal, RealEncoding
from mri_qpan.models import DEFAULT, model_path, store
from mri_qpan.networks import NetworkConfig, ProximalNetwork, config_from_dict, named_config

CARD = {"data": [], "training": {}, "figures": {}, "licence": "for tests"}


def shipped_config(**changes: Any) -> NetworkConfig:
    """The default model's configuration with two narrow layers."""
    config = config_from_dict(store.read_header(model_path(DEFAULT))["config"])
    assert isinstance(config, NetworkConfig)
    return replace(config, **{"layers": 2, "filters": 4, **changes})


def shaken(config: NetworkConfig, dtype: torch.dtype = torch.float32) -> ProximalNetwork:
    """A network whose every parameter matters: none is at a start value of 0."""
    torch.manual_seed(0)
    network = ProximalNetwork(config, dtype).to(dtype)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    network.refit()
    return network


def kernel_network(seed: int = 0, **changes: Any) -> ProximalNetwork:
    """A network of the width that the fused kernels are written for, whose gates and thresholds matter."""
    torch.manual_seed(seed)
    config = named_config("pan+", **{"layers": 2, "filters": 32, "bits": 3, "carry": True, **changes})
    assert isinstance(config, NetworkConfig)
    network = ProximalNetwork(config).requires_grad_(False)
    for name, parameter in network.named_parameters():
        if parameter.ndim == 4 and not name.endswith(("D.weight", "G.weight")):
            torch.nn.init.kaiming_normal_(parameter)  # what they start from is mostly zeros
        if "carry" in name:
            torch.nn.init.normal_(parameter, std=0.3)
        if "raw_thresholds" in name:
            torch.nn.init.uniform_(parameter, -4, 0)
    network.refit()
    return network


def measurement(
    batch: int = 2, coils: int = 3, shape: tuple[int, int] = (16, 12), dtype: torch.dtype = torch.complex64
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random k-space, maps and mask, as `Reconstruction` takes them."""
    generator = torch.Generator().manual_seed(1)
    mps = torch.randn(batch, coils, *shape, dtype=dtype, generator=generator)
    mps = mps / mps.abs().square().sum(1, keepdim=True).sqrt()
    mask = torch.rand(batch, *shape, generator=generator) < 0.5
    return torch.randn(batch, coils, *shape, dtype=dtype, generator=generator), mps, mask


def problem(
    channels: int = 2, batch: int = 1, shape: tuple[int, int] = (12, 10), coils: int = 2
) -> tuple[torch.Tensor, Normal]:
    """A^H y and x -> A^H A x of random samples, as networks take them; real for one channel."""
    torch.manual_seed(0)
    mask = torch.rand(batch, *shape) < 0.5
    if channels == 1:
        encoding = RealEncoding(mask)
        return torch.rand(batch, *shape), encoding.normal
    mps = torch.randn(batch, coils, *shape, dtype=torch.complex64)
    mps = mps / mps.abs().square().sum(1, keepdim=True).sqrt()
    encoding = Encoding(mask, mps)
    image = torch.randn(batch, *shape, dtype=torch.complex64)
    return encoding.adjoint(encoding.forward(image)), encoding.normal
