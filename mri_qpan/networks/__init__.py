"""Unfolded networks: each is called as (A^H y, A^H A) -> image."""

from __future__ import annotations

from typing import Any

import torch

from mri_qpan.networks.admm import ADMMNetwork
from mri_qpan.networks.base import Network
from mri_qpan.networks.config import (
    ADMM_LAYERS,
    SYSTEMS,
    ADMMConfig,
    Config,
    NetworkConfig,
    config_from_dict,
    named_config,
)
from mri_qpan.networks.pan import ProximalNetwork

__all__ = [
    "ADMM_LAYERS",
    "SYSTEMS",
    "ADMMConfig",
    "ADMMNetwork",
    "Config",
    "Network",
    "NetworkConfig",
    "ProximalNetwork",
    "build",
    "config_from_dict",
    "named_config",
]


def build(config: Config, dtype: torch.dtype = torch.float32) -> Network[Any]:
    """Return the network of a configuration, its weights as training starts from them."""
    if isinstance(config, ADMMConfig):
        return ADMMNetwork(config, dtype)
    return ProximalNetwork(config, dtype)
