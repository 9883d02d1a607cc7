"""Unfolded networks: each is called as (A^H y, A^H A) -> image."""

from mri_qpan.networks.config import SYSTEMS, NetworkConfig, named_config
from mri_qpan.networks.pan import ProximalNetwork

__all__ = ["SYSTEMS", "NetworkConfig", "ProximalNetwork", "named_config"]
